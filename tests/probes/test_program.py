"""Encoders as programs: a process that can import neither medjax nor flax runs them, and gets what `encode` gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from programs import run

from medjax.errors import UserError
from medjax.models import build
from medjax.probes import encode, image_text, program
from medjax.probes.vectors import unit
from medjax.types import Input, View
from medjax.weights import arrays as files_of_arrays, export, load

VIT = dict(tower='vit', variant='S/4', width=16, depth=2, heads=2, mlp_ratio=2.0, native_size=8)
TEXT = dict(tower='text', width=16, depth=2, heads=2, mlp_ratio=2.0, vocabulary=30, context=9)
LINEAR = dict(head='linear', out=6)
CASES: dict[str, dict[str, Any]] = {
    'vit': dict(towers=dict(image=dict(VIT, registers=2)), channels=1, size=12),
    'rope': dict(towers=dict(image=dict(VIT, family='dinov3', attention='auto')), channels=3, size=8),
    'resnet': dict(towers=dict(image=dict(tower='resnet', variant='50', stem=8, depths=[2, 1, 1, 1])), size=64),
    'over towers': dict(
        towers=dict(image=VIT, sum=dict(tower='tests.sum_tower', reads=['image'])), encoder='sum', size=8
    ),
    'bert': dict(towers=dict(text=dict(TEXT, family='bert')), size=0),
    'pair': dict(
        towers=dict(cxr=VIT, report=dict(TEXT, family='clip'), other=VIT),
        heads=dict(vi=LINEAR, vt=dict(head='mlp', out=6, hidden=8, activation='gelu')),
        pairs=[dict(term='pair', temperature=0.1, image=dict(tower='cxr', head='vi'),
                    text=dict(tower='report', head='vt', length=7, sections=['findings']))],
        size=8,
    ),
    'siglip': dict(
        towers=dict(image=dict(VIT, family='siglip'), text=dict(TEXT, family='siglip')),
        pairs=[dict(term='pair', temperature=0.1, image=dict(tower='image', head=None),
                    text=dict(tower='text', head=None, length=9, sections=['findings']))],
        size=8,
    ),
}  # fmt: skip
# What a user runs, after three lines that make sure that neither medjax nor flax is there.
CONSUMER = """
import sys
for name in ('medjax', 'flax'):
    sys.modules[name] = None  # its import is an error
import json, pathlib
import jax, numpy as np
from safetensors.numpy import load_file

for folder in map(pathlib.Path, sys.argv[1:]):
    signature = json.loads((folder / 'signature.json').read_text())
    parameters = load_file(folder / 'weights.safetensors')
    for name, about in signature['programs'].items():
        call = jax.export.deserialize((folder / about['file']).read_bytes()).call
        given, results = np.load(folder / f'{name}_in.npz'), {}
        for rows in (1, 3):
            out = call(parameters, *(given[key][:rows] for key in about['inputs']))
            results |= {f'{key}/{rows}': np.asarray(value) for key, value in out.items()}
        np.savez(folder / f'{name}_out.npz', **results)
assert not {'medjax', 'flax'} & {name.split('.')[0] for name, module in sys.modules.items() if module}
"""


def save(folder: Any, case: dict[str, Any]) -> Any:
    """An export with random parameters."""
    channels, rng = case.get('channels', 3), np.random.default_rng(3)
    towers = build.towers(case['towers'], channels)
    tree: Any = {'towers': {name: tower.init(jax.random.key(i)) for i, (name, tower) in enumerate(towers.items())}}
    tree['heads'] = {
        name: build.head(section, 16, name).init(jax.random.key(9)) for name, section in case.get('heads', {}).items()
    }
    noisy = jax.tree.map(lambda x: np.asarray(x + rng.uniform(0.0, 0.2, x.shape), np.float32), tree)
    pairs = case.get('pairs', [])
    meta = dict(
        step=7,
        network='teacher',
        encoder=case.get('encoder'),
        towers=case['towers'],
        heads=case.get('heads', {}),
        pairs=pairs,
        image=dict(channels=channels, mean=0.4, std=[0.2] * channels, fit='crop'),
        size=case['size'],
        config_fingerprint='x',
        seen=None,
    )
    return export.save(folder, noisy, meta)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """The exports and their programs, which another process has run on the inputs beside them."""
    place = tmp_path_factory.mktemp('programs')
    for name, case in CASES.items():
        out = place / name
        out.mkdir()
        program.write(load.open(save(place / f'{name} export', case)), out)
        rng, signature = np.random.default_rng(0), json.loads((out / 'signature.json').read_text())
        for kind, about in signature['programs'].items():
            inputs = {}
            for key, described in about['inputs'].items():
                shape = (3, *described['shape'][1:])
                if key == 'images':
                    inputs[key] = (rng.integers(0, 256, shape) / 255).astype(np.float32)
                elif key == 'ids':
                    inputs[key] = rng.integers(0, 30, shape).astype(np.int32)
                else:
                    inputs[key] = np.arange(shape[1]) < np.array([[shape[1]], [4], [1]])
            np.savez(out / f'{kind}_in.npz', **inputs)
    script = place / 'consumer.py'
    script.write_text(CONSUMER)
    subprocess.run([sys.executable, '-P', script, *(place / name for name in CASES)], check=True, cwd=place)
    return place


def results(folder: Any, kind: str) -> dict[str, np.ndarray]:
    """What the other process got for three rows; for one row it must be the same."""
    out = np.load(folder / f'{kind}_out.npz')
    full = {name.removesuffix('/3'): out[name] for name in out.files if name.endswith('/3')}
    for name, value in full.items():
        assert out[f'{name}/1'].shape == (1, *value.shape[1:])
        np.testing.assert_allclose(out[f'{name}/1'], value[:1], atol=1e-5 * max(1.0, np.abs(value).max()))
    return full


def close(got: Any, expected: Any) -> None:
    assert got.shape == expected.shape and np.ptp(expected) > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n, case in CASES.items() if n != 'bert'])
def test_images_are_encoded_as_by_encode(name, folders):
    encoder = encode.load(folders / f'{name} export')
    images = np.load(folders / name / 'image_in.npz')['images']
    expected = encoder.encode(list(np.round(images * 255).astype(np.uint8)))
    got = results(folders / name, 'image')
    close(got['cls'], expected['cls'])
    wanted = {'cls'} if name == 'over towers' else {'cls', 'patches'}
    assert set(got) == (wanted | {'embedding'} if CASES[name].get('pairs') else wanted)
    if 'patches' in wanted:
        close(got['patches'], expected['patches'])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['bert', 'pair', 'siglip'])
def test_texts_are_encoded_as_by_the_tower(name, folders):
    case, given = CASES[name], np.load(folders / name / 'text_in.npz')
    tower = 'report' if name == 'pair' else 'text'
    params, _ = export.load(folders / f'{name} export')
    view = View(
        given['ids'][:, None], np.arange(3, dtype=np.uint32), np.ones((3, 1), bool), given['valid'][:, None], {}
    )
    expected = run(build.tower(case['towers'][tower], 1, 'x').apply, params['towers'][tower], Input(view))
    close(results(folders / name, 'text')['cls'], np.asarray(expected['cls'][:, 0]))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['pair', 'siglip'])
def test_embeddings_are_those_of_zero_shot(name, folders):
    """The unit vectors of both sides, by the heads of the pair."""
    case, (params, _) = CASES[name], export.load(folders / f'{name} export')
    for side, kind in (('image', 'image'), ('text', 'text')):
        got, head = results(folders / name, kind), case['pairs'][0][side]['head']
        features = got['cls']
        if head is not None:
            features = build.head(case['heads'][head], 16, head).apply(params['heads'][head], features)
        close(got['embedding'], unit(np.asarray(features)))


@pytest.mark.slow
def test_the_first_text_of_a_pair_is_what_image_text_reads(folders):
    """The padded text that a user gives has the vector that the probes compute from its tokens."""
    encoder = encode.load(folders / 'pair export')
    branch = image_text._branch(encoder, CASES['pair']['pairs'][0]['text'])
    given = np.load(folders / 'pair' / 'text_in.npz')
    tokens = [ids[:n].tolist() for ids, n in zip(given['ids'], given['valid'].sum(1), strict=True)]
    close(results(folders / 'pair', 'text')['cls'], image_text._encode_texts(branch, tokens, 7, 0))


@pytest.mark.slow
def test_the_signature_says_what_the_program_takes(folders):
    signature = json.loads((folders / 'pair' / 'signature.json').read_text())
    image, text = signature['programs']['image'], signature['programs']['text']
    assert image['inputs']['images']['shape'] == ['b', 8, 8, 3] and text['inputs']['ids']['shape'] == ['b', 7]
    assert image['outputs']['patches']['shape'] == ['b', 2, 2, 16] and image['outputs']['embedding']['shape'] == [
        'b',
        6,
    ]
    assert image['parameters'] == ['towers/cxr', 'heads/vi'] and text['arguments'] == ['parameters', 'ids', 'valid']
    assert signature['preprocessing'] == dict(channels=3, mean=0.4, std=[0.2] * 3, fit='crop', zoom=1.0, size=8)
    assert signature['temperature'] == 0.1 and signature['versions']['jax'] == jax.__version__
    for about in signature['programs'].values():
        exported = jax.export.deserialize((folders / 'pair' / about['file']).read_bytes())
        assert exported.calling_convention_version == about['calling_convention_version'] >= 9
    stored = files_of_arrays.of_safetensors([folders / 'pair' / 'weights.safetensors'])
    assert {name.split('/')[1] for name in stored} == {'cxr', 'report', 'vi', 'vt'}  # not the tower `other`


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_the_folder_is_also_an_export(name, folders):
    """Of the towers and heads that the programs run, with equal arrays and features."""
    (before, _), (after, meta) = load.as_export(folders / f'{name} export'), load.as_export(folders / name)
    before, after = export.flatten(before), export.flatten(after)
    assert {n for n in before if '/other/' not in n} == set(after)
    for path, array in after.items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)
    assert {f'towers/{n}' for n in meta['towers']} | {f'heads/{n}' for n in meta['heads']} == {
        '/'.join(path.split('/')[:2]) for path in after
    }
    assert meta['pairs'] == CASES[name].get('pairs', [])
    if name != 'bert':
        images = [np.zeros((9, 9), np.uint8), np.full((9, 9), 200, np.uint8)]
        a, b = (encode.load(folders / n).encode(images)['cls'] for n in (f'{name} export', name))
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_programs_are_plain_and_for_every_platform(name, folders):
    """Custom calls would have to be there in another version of jax, and on every device.

    jax itself writes one, which checks that there is at least one row; whoever reads the program takes it out.
    """
    for path in (folders / name).glob('*.stablehlo'):
        exported = jax.export.deserialize(path.read_bytes())
        text = exported.mlir_module()
        assert exported.platforms == ('cpu', 'cuda', 'tpu') and exported.nr_devices == 1
        assert set(re.findall(r'custom_call @(\w+)', text)) == {'shape_assertion'}
        assert 'custom_vjp' not in text and not exported.disabled_safety_checks
        assert re.search(r'tensor<\?x', text)  # a free number of rows
        arrays = files_of_arrays.of_safetensors([path.parent / 'weights.safetensors'])
        constants = re.findall(r'stablehlo.constant dense<[^>]*> : tensor<([\dx]+)xf32>', text)
        largest = max((np.prod([int(n) for n in shape.split('x')]) for shape in constants), default=0)
        assert largest < max(array.size for array in arrays.values())  # no parameter became a constant


def test_an_export_without_such_towers_is_refused(tmp_path):
    meta = dict(towers=dict(x=VIT), image=dict(channels=1, mean=0.0, std=1.0), size=8, encoder='fusion')
    with pytest.raises(UserError, match='there is no tower of images or texts to make a program of, only x'):
        program.programs_of(meta)


def test_an_operation_of_one_device_is_refused(tmp_path):
    """A user's own tower may hold one: here a callback to Python, which no file can hold."""

    def one(params, x):
        return dict(cls=jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(x.shape, x.dtype), x))

    own = program.Program('image', ('towers/own',), dict(images=((4,), np.float32)), one)
    with pytest.raises(UserError, match='towers/own.* cannot become one program for cpu, cuda, tpu'):
        program.exported_program(own, {})
