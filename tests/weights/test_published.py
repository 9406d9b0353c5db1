"""Published folders and files: shards, pickles, prefixes, half precision, and files that are damaged or lie."""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil

import jax
import numpy as np
import pytest
from public_models import FAMILIES, IMAGE, numpy_state, save_pretrained, shaken
from published_names import to_meta, written
from safetensors.numpy import load_file, save_file

from medjax.errors import UserError
from medjax.models import build
from medjax.models.heads import dino_head
from medjax.weights import export, load
from medjax.weights.families import dino_head as names_of_heads

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')


@pytest.fixture(scope='module')
def model():
    return shaken(FAMILIES['dinov2'].make())


@pytest.fixture
def folder(model, tmp_path):
    """A DINOv2 as Hugging Face publishes it."""
    save_pretrained(model, tmp_path / 'dinov2-tiny')
    return tmp_path / 'dinov2-tiny'


def config_of(folder):
    return json.loads((folder / 'config.json').read_text())


def change(folder, **values):
    (folder / 'config.json').write_text(json.dumps(config_of(folder) | values))


def flat(path, module='towers/image', heads=2):
    return load.open(path).flat(module, heads)


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


# Forms of files.


def test_shards_and_their_index(model, folder, tmp_path):
    expected = flat(folder)
    model.save_pretrained(tmp_path / 'shards', max_shard_size='8KB')
    names = {path.name for path in (tmp_path / 'shards').iterdir()}
    assert 'model.safetensors.index.json' in names and len(names) > 3
    same(flat(tmp_path / 'shards'), expected)
    same(flat(tmp_path / 'shards' / 'model.safetensors.index.json'), expected)
    shard = next(name for name in sorted(names) if name.startswith('model-'))
    (tmp_path / 'shards' / shard).unlink()
    with pytest.raises(UserError, match=f'names {shard}, which the folder does not have'):
        load.open(tmp_path / 'shards')
    index = tmp_path / 'shards' / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(weight_map=dict(a='../other.safetensors'))))
    with pytest.raises(UserError, match=r"names '\.\./other\.safetensors', which is not a file of its folder"):
        load.open(tmp_path / 'shards')


@pytest.mark.parametrize('container', ['plain', 'model', 'teacher', 'old format'])
def test_files_of_torch(container, model, folder):
    """A plain state_dict, checkpoints of MAE and DINO with their settings, and torch's format before 1.6."""
    expected = flat(folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = dict(args=argparse.Namespace(lr=1e-3), epoch=3, best=np.float64(0.5), seen=collections.Counter('ab'))
    content = dict(plain=state, model=dict(model=state, **settings)).get(container, state)
    if container == 'teacher':
        teacher = {f'module.backbone.{name}': tensor for name, tensor in state.items()}
        student = {name: tensor + 1 for name, tensor in teacher.items()}
        content = dict(student=student, teacher=teacher, **settings)
    (folder / 'model.safetensors').unlink()
    torch.save(content, folder / 'pytorch_model.bin', _use_new_zipfile_serialization=container != 'old format')
    same(flat(folder), expected)
    told = ' '.join(load.open(folder).notes)
    assert {'model': 'the weights are those under model', 'teacher': 'prefix module.backbone.'}.get(
        container, ''
    ) in told


def test_half_precision(model, folder, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        expected = {name: tensor.to(dtype).float().numpy() for name, tensor in model.state_dict().items()}
        half = FAMILIES['dinov2'].make()
        half.load_state_dict(model.state_dict())
        half.to(dtype).save_pretrained(tmp_path / str(dtype))
        got = flat(tmp_path / str(dtype))
        assert got['cls'].dtype == np.float32
        same(got, load.of_state(expected).flat('towers/image', 2))
        torch.save(half.state_dict(), tmp_path / 'half.pth')
        same(flat(tmp_path / 'half.pth'), got)


@pytest.mark.parametrize(
    'prefix',
    ['module.', 'model.', 'backbone.', 'teacher.backbone.', 'student.backbone.', 'encoder.', 'visual.trunk.', 'net.'],
)
def test_prefixes_are_found_and_told(prefix, folder, tmp_path):
    state = load_file(folder / 'model.safetensors')
    save_file({f'{prefix}{name}': array for name, array in state.items()}, tmp_path / 'wrapped.safetensors')
    weights = load.open(tmp_path / 'wrapped.safetensors')
    same(weights.flat('towers/image', 2), flat(folder))
    if prefix != 'visual.trunk.':  # open_clip's usual name
        assert any(f'prefix {prefix}' in note for note in weights.notes)


def test_a_student_and_a_teacher(folder, tmp_path):
    state = load_file(folder / 'model.safetensors')
    both = {f'teacher.{name}': array for name, array in state.items()}
    both |= {f'student.{name}': array + 1 for name, array in state.items()}
    save_file(both, tmp_path / 'both.safetensors')
    weights = load.open(tmp_path / 'both.safetensors')
    same(weights.flat('towers/image', 2), flat(folder))
    assert any('the teacher (teacher.) is taken' in note for note in weights.notes)
    other = {name.replace('teacher', 'first').replace('student', 'second'): array for name, array in both.items()}
    save_file(other, tmp_path / 'two.safetensors')
    with pytest.raises(UserError, match=r"two modules towers/image: .* under 'first\.' and .* under 'second\.'"):
        load.open(tmp_path / 'two.safetensors')


def test_the_folder_of_rad_dino(folder):
    """The same backbone in Meta's names and the head lie beside model.safetensors."""
    backbone = export.unflatten(flat(folder))
    save_file(to_meta(backbone), folder / 'backbone_compatible.safetensors')
    head = dino_head.build(16, 20, hidden=16, bottleneck=8)
    params = jax.tree.map(np.asarray, head.init(jax.random.key(1)))
    save_file(written(names_of_heads.table(''), params), folder / 'dino_head.safetensors')
    processor = dict(image_mean=[0.5307] * 3, image_std=[0.2583] * 3, do_center_crop=True, do_resize=True,
                     size=dict(shortest_edge=518), crop_size=dict(height=518, width=518))  # fmt: skip
    (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
    weights = load.open(folder)
    assert weights.modules == ('towers/image', 'heads/dino')
    assert weights.section('heads/dino') == dict(head='dino_head', prototypes=20, hidden=16, bottleneck=8)
    assert any('backbone_compatible.safetensors holds the same' in note for note in weights.notes)
    same(weights.flat('heads/dino'), export.flatten(params))
    _, meta = weights.as_export()
    assert meta['image'] == dict(channels=3, mean=0.5307, std=0.2583, fit='crop') and meta['size'] == 518
    assert meta['step'] is None and meta['name'] == 'dinov2-tiny' and 'DINOv2' in meta['origin']


# A recipe and the folder.


def test_positions_come_to_another_grid_by_the_rule_of_the_recipe(folder):
    """A recipe's `offset` holds when weights are read as it holds in a pass."""
    options = dict(tower='vit', variant='S/4', width=16, depth=2, heads=2)
    stored = flat(folder)['pos_grid']
    for rule in (dict(offset=0.25), dict(antialias=True), dict()):
        tower = build.tower(dict(options, native_size=(20, 8), **rule), 3, 'x')
        wanted = jax.eval_shape(tower.init, jax.random.key(0))
        got = load.open(folder).read('towers/image', wanted, tower)['pos_grid']
        same_size = build.tower(dict(options, native_size=12, **rule), 3, 'x')
        expected = resized(same_size, stored, (5, 2))
        np.testing.assert_allclose(got, expected, atol=1e-6)


def resized(tower, grid, shape):
    from medjax.models.towers.vit import resize_grid

    return resize_grid(grid, shape, tower.module.antialias, tower.module.family.offset)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(heads=4), ['heads=2', 'has 4', 'write heads=2']),
        (dict(activation='quick_gelu'), ["activation='gelu'", "write activation='gelu'"]),
        (dict(depth=3), ['2 layers in the weights, 3 in this configuration']),
        (dict(width=32), ['cls (16,) in the weights, (32,) in this configuration', 'norm/bias (16,)']),
        (dict(registers=2), ['missing from the weights: registers']),
        (dict(layerscale=None), ['not in this configuration: blocks/gamma1, blocks/gamma2']),
    ],
    ids=str,
)
def test_a_recipe_that_does_not_fit_is_told_everything(options, words, folder):
    tower = build.tower(
        dict(tower='vit', variant='S/4', native_size=12, **(dict(width=16, depth=2, heads=2) | options)), 3, 'x'
    )
    with pytest.raises(UserError) as error:
        load.open(folder).read('towers/image', jax.eval_shape(tower.init, jax.random.key(0)), tower)
    for word in words:
        assert word in str(error.value)


def test_other_norms_are_told(folder):
    tower = build.tower(dict(tower='vit', variant='S/4', width=16, depth=2, heads=2, eps=1e-3), 3, 'x')
    (note,) = load.open(folder).check('towers/image', tower)
    assert 'eps=1e-06' in note and '0.001' in note


# Damage and lies.


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        (dict(hidden_size=32), 'hidden_size|width=32 where the weights have 16'),
        (dict(num_hidden_layers=3), 'depth=3 where the weights have 2'),
        (dict(patch_size=8), 'patch=8 where the weights have 4'),
        (dict(num_channels=1), 'channels=1 where the weights have 3'),
        (dict(image_size=224), '3136 patches, where the weights have positions for 9'),
        (dict(num_attention_heads=5), '5 heads of attention, which do not divide the width 16'),
        (dict(use_swiglu_ffn=True), "an FFN of the kind 'swiglu' where the weights have 'mlp'"),
        (dict(mlp_ratio=2), 'hidden=32 where the weights have 64'),
        (dict(hidden_act='mish'), "hidden_act='mish'; known are"),
        (dict(hidden_size='wide'), r'config\.json: it cannot be read'),
        (dict(num_attention_heads='2'), "heads='2' of the image tower fits no tower"),
    ],
    ids=str,
)
def test_a_config_that_lies(values, words, folder):
    change(folder, **values)
    with pytest.raises(UserError, match=words):
        load.as_export(folder)


def test_a_config_that_is_no_json(folder):
    (folder / 'config.json').write_text('{"hidden_size": ')
    with pytest.raises(UserError, match=r'config\.json is no JSON'):
        load.open(folder)
    (folder / 'config.json').write_text('[1]')
    with pytest.raises(UserError, match='a JSON object is expected, not list'):
        load.open(folder)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('inside', ['alone', 'beside weights'])
def test_a_pickle_with_code_is_refused(inside, model, tmp_path):
    mark = tmp_path / 'executed'
    bad = Malicious(mark)
    content = bad if inside == 'alone' else dict(model=dict(model.state_dict()), extra=bad)
    torch.save(content, tmp_path / 'model.pth')
    with pytest.raises(UserError, match=r'holds (posix|os)\.system, which could run code'):
        load.open(tmp_path / 'model.pth')
    assert not mark.exists()


def test_a_program_of_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'clip.pt')
    with pytest.raises(UserError, match='TorchScript, which holds code'):
        load.open(tmp_path / 'clip.pt')


@pytest.mark.parametrize('kind', ['safetensors', 'pth', 'old pth'])
def test_a_truncated_file(kind, model, folder, tmp_path):
    if kind == 'safetensors':
        path = folder / 'model.safetensors'
    else:
        path = tmp_path / 'model.pth'
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == 'pth')
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match='no whole safetensors file|it is damaged, or no file of torch'):
        load.open(path)


@pytest.mark.parametrize('content', [dict(epoch=3), [1, 2], dict(model=dict(a=1))], ids=str)
def test_a_file_of_torch_without_weights(content, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UserError, match='and no arrays with names'):
        load.open(tmp_path / 'x.pth')


def test_a_folder_with_two_models(folder, tmp_path):
    other = shaken(transformers.Dinov2Model(transformers.Dinov2Config(**(IMAGE | dict(image_size=16)))))
    save_file(numpy_state(other), folder / 'other.safetensors')
    with pytest.raises(UserError, match=r'holds two models, model\.safetensors and other\.safetensors; name the file'):
        load.open(folder)
    same(
        flat(folder / 'model.safetensors'),
        load.of_state(load_file(folder / 'model.safetensors')).flat('towers/image', 2),
    )
    loose = tmp_path / 'loose'
    loose.mkdir()
    for name in ('a', 'b'):
        shutil.copy(
            folder / ('model.safetensors' if name == 'a' else 'other.safetensors'), loose / f'{name}.safetensors'
        )
    with pytest.raises(UserError, match=r'holds two models, a\.safetensors and b\.safetensors'):
        load.open(loose)


def test_an_unknown_family_is_told_with_the_nearest(folder, tmp_path):
    state = load_file(folder / 'model.safetensors')
    gone = {name: array for name, array in state.items() if name != 'embeddings.cls_token'}
    for content, words in (
        (gone, "the nearest is a DINOv2 backbone in Hugging Face's names; this file lacks embeddings.cls_token"),
        ({'unet.down.0.weight': np.zeros((2, 2))}, 'the first are unet.down.0.weight; no known family is near'),
        ({'decode.weight': np.zeros(2), 'last_layer.weight': np.zeros(2)}, 'no known family'),
    ):
        save_file(content, tmp_path / 'unknown.safetensors')
        with pytest.raises(UserError, match='arrays of no known family') as error:
            load.open(tmp_path / 'unknown.safetensors')
        assert words in str(error.value) and 'heads/dino' not in str(error.value)


def test_paths_that_are_no_weights(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.txt').write_text('hello')
    save_file({}, tmp_path / 'nothing.safetensors')
    for path, words in (
        ('empty', 'holds neither an export'),
        ('notes.txt', 'weights are a folder, or a file of the kinds .safetensors, .bin'),
        ('nothing.safetensors', 'holds no arrays'),
        ('absent', 'there is no such file or folder'),
    ):
        with pytest.raises(UserError, match=words):
            load.open(tmp_path / path)
