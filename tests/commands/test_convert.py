"""`medjax convert`: every layout with its card, whose lines of code run; a folder is written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from text_batches import WORDS, tokenizer_in

from medjax import cli, files
from medjax.models import build
from medjax.probes import encode, image_text
from medjax.reports import model_card
from medjax.weights import export, load

VIT = dict(tower='vit', variant='S/4', width=16, depth=2, heads=2, mlp_ratio=2.0, native_size=8)
TEXT = dict(tower='text', width=16, depth=2, heads=2, mlp_ratio=2.0, vocabulary=len(WORDS), context=12)
LINEAR = dict(head='linear', out=6)


def save(
    folder: Any, towers: dict[str, Any], heads: dict[str, Any] | None = None, channels: int = 1, size: int = 8
) -> Any:
    """An export with random parameters; with a text tower also with a tokenizer and a pair."""
    rng, heads = np.random.default_rng(2), heads or {}
    built = {name: build.tower(section, channels, name) for name, section in towers.items()}
    tree = {'towers': {name: tower.init(jax.random.key(i)) for i, (name, tower) in enumerate(built.items())}}
    tree['heads'] = {name: build.head(cfg, 16, name).init(jax.random.key(9)) for name, cfg in heads.items()}
    noisy = jax.tree.map(lambda x: np.asarray(x + rng.uniform(0.0, 0.2, x.shape), np.float32), tree)
    meta = dict(
        step=40,
        network='teacher',
        encoder=None,
        towers=towers,
        heads=heads,
        pairs=[],
        size=size,
        image=dict(channels=channels, mean=0.4, std=0.2, fit='crop'),
        config_fingerprint='x',
        seen=None,
    )
    if 'text' not in towers:
        return export.save(folder, noisy, meta)
    folder.parent.mkdir(exist_ok=True)
    tokenizer = tokenizer_in(folder.parent)
    text = dict(tower='text', head='vt', length=12, sections=['findings'])
    image = dict(tower='image', head='vi' if 'vi' in heads else None)
    meta['pairs'] = [dict(term='pair', temperature=0.1, image=image, text=text)]
    meta['tokenizer'] = dict(file='vocab.txt', pad=None, length=12, fingerprint=tokenizer.fingerprint,
                             tokens=tokenizer.tokens._asdict())  # fmt: skip
    return export.save(folder, noisy, meta, {'vocab.txt': tokenizer.raw})


def convert(*arguments: Any) -> int:
    return cli.main(['convert', *map(str, arguments)])


def blocks(folder: Any) -> list[str]:
    """The Python code on the card, for this folder."""
    found = re.findall(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)
    return [code.replace('FOLDER', str(folder)) for code in found]


def features_of(code: str, place: Any, monkeypatch: Any, image: np.ndarray | None = None) -> np.ndarray:
    """Runs the code of a card beside a file image.png; returns its `features`."""
    if image is not None:
        Image.fromarray(image.squeeze()).save(place / 'image.png')
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    exec(code, names)
    features = names['features']
    features = features.pooler_output if hasattr(features, 'pooler_output') else features
    return np.asarray(features.detach() if hasattr(features, 'detach') else features)


def picture(channels: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (size, size, channels)).astype(np.uint8)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('layout', ['huggingface', 'timm', 'stablehlo'])
def test_the_code_of_the_card_gives_the_features(layout, channels, tmp_path, monkeypatch, capsys):
    pytest.importorskip(dict(huggingface='transformers', timm='timm', stablehlo='jax')[layout])
    source = save(tmp_path / 'export', dict(image=dict(VIT, family='vit')), channels=channels)
    assert convert(source, '--to', layout, '--out', tmp_path / 'out') == 0
    assert f'wrote {tmp_path / "out"}, from towers/image' in capsys.readouterr().out
    code, _ = blocks(tmp_path / 'out')
    image = picture(channels)
    got = features_of(code, tmp_path, monkeypatch, image)
    expected = encode.load(source).encode([image])['cls']
    np.testing.assert_allclose(got if layout == 'stablehlo' else got[:, 0], expected, atol=1e-4)


def a_pair(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Towers and heads of a pair: one that no class of transformers holds, of CLIP, or of SigLIP."""
    heads = dict(vi=LINEAR, vt=LINEAR)
    if family == 'siglip beside a ViT':
        return dict(image=dict(VIT, family='vit'), text=dict(TEXT, family='siglip')), heads
    towers = dict(image=dict(VIT, family='vit' if family == 'bert' else family), text=dict(TEXT, family=family))
    return towers, dict(vt=dict(head='linear', out=16, bias=True)) if family == 'siglip' else heads


@pytest.mark.parametrize('family', ['bert', 'clip', 'siglip', 'siglip beside a ViT'])
@pytest.mark.parametrize('layout', ['huggingface', 'stablehlo'])
def test_the_code_of_a_card_of_images_and_texts(layout, family, tmp_path, monkeypatch):
    """In the layout of transformers, a pair of one class gives vectors of the common space."""
    pytest.importorskip(dict(huggingface='transformers', stablehlo='jax')[layout])
    source = save(tmp_path / 'weights' / 'export', *a_pair(family), channels=3)
    assert convert(source, '--to', layout, '--out', tmp_path / 'out') == 0
    encoder = encode.load(source)
    pair = image_text.load(encoder)
    image, (of_image, of_text, _) = picture(3), blocks(tmp_path / 'out')
    got = (
        features_of(of_image, tmp_path, monkeypatch, image),
        features_of(of_text.replace('No pleural effusion.', 'no effusion one.'), tmp_path, monkeypatch),
    )
    cls = encoder.encode([image])['cls']
    if layout == 'huggingface' and family in ('clip', 'siglip'):
        expected = pair.image_vectors(cls), pair.text_vectors(['no effusion one.'])
    else:
        expected = cls, image_text._encode_texts(pair.text, [pair.tokens('no effusion one.')], 12, 0)
        at = 0 if family == 'bert' else -1  # where the text is pooled
        got = got if layout == 'stablehlo' else (got[0][:, 0], got[1][:, at])
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize(
    ('case', 'layout'),
    [(case, layout) for case in ('one', 'pair') for layout in ('huggingface', 'timm', 'meta', 'stablehlo')]
    + [('two images', 'huggingface'), ('two images', 'stablehlo')],  # the others hold one tower
)
def test_the_code_for_medjax_gives_the_features(case, layout, tmp_path, monkeypatch):
    """In every layout, also where a folder of transformers holds a folder for each tower, of any name."""
    vit = dict(VIT, family='vit')
    towers: dict[str, Any] = dict(one=dict(cxr=vit), pair=dict(cxr=vit, report=dict(TEXT, family='bert')))
    towers['two images'] = dict(lateral=vit, cxr=vit)
    source = save(tmp_path / 'export', towers[case])
    meta = json.loads((source / 'meta.json').read_text())
    if case == 'pair':
        sides = dict(image=dict(tower='cxr', head=None), text=dict(tower='report', head=None, length=12, sections=[]))
        meta['pairs'] = [dict(term='pair', temperature=0.1, **sides)]
    else:
        meta['encoder'] = 'cxr'
    (source / 'meta.json').write_text(json.dumps(meta))
    assert convert(source, '--to', layout, '--out', tmp_path / 'out') == 0
    image = picture(1, 12)
    got = features_of(blocks(tmp_path / 'out')[-1], tmp_path, monkeypatch, image)
    np.testing.assert_allclose(got, encode.load(source).encode([image])['cls'], atol=1e-6)


def test_a_card_without_an_encoder_of_images_has_no_code_for_medjax(tmp_path):
    source = save(tmp_path / 'weights' / 'export', dict(text=dict(TEXT, family='bert')))
    meta = json.loads((source / 'meta.json').read_text())
    (source / 'meta.json').write_text(json.dumps(meta | dict(pairs=[])))
    assert convert(source, '--to', 'stablehlo', '--out', tmp_path / 'out') == 0
    (code,) = blocks(tmp_path / 'out')
    assert 'medjax' not in code and 'text.stablehlo' in code


def test_public_weights_become_an_export_and_go_out_again(tmp_path, capsys):
    """The way of a pair of CLIP, with its tokenizer: to Hugging Face's layout, to an export, and out again."""
    towers = dict(image=dict(VIT, family='clip'), text=dict(TEXT, family='clip'))
    source = save(tmp_path / 'weights' / 'export', towers, dict(vi=LINEAR, vt=LINEAR), channels=3)
    assert convert(source, '--to', 'huggingface', '--out', tmp_path / 'hf') == 0
    assert convert(tmp_path / 'hf', '--out', tmp_path / 'again') == 0
    first, second = (export.flatten(export.load(path)[0]) for path in (source, tmp_path / 'again'))
    assert set(first) == set(second)
    for name in first:
        if not name.endswith('mask_token'):  # CLIP has none
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    again = image_text.load(encode.load(tmp_path / 'again'))
    before = image_text.load(encode.load(source))
    np.testing.assert_array_equal(again.text_vectors(['no effusion.']), before.text_vectors(['no effusion.']))
    assert convert(tmp_path / 'again', '--to', 'stablehlo', '--out', tmp_path / 'program') == 0
    assert (tmp_path / 'program' / 'text.stablehlo').is_file()
    capsys.readouterr()
    assert (
        convert(tmp_path / 'hf', '--to', 'timm', '--out', tmp_path / 'timm') == 0
    )  # public weights, without an export
    assert "the tower 'text' is left out: timm has image models" in capsys.readouterr().out


def test_an_end_token_that_transformers_would_not_see(tmp_path, capsys):
    """RoBERTa's end token is number 2, and transformers pools such texts of CLIP at another token."""
    source = save(tmp_path / 'weights' / 'export', *a_pair('clip'), channels=3)
    meta = json.loads((source / 'meta.json').read_text())
    meta['tokenizer']['tokens']['last'] = 2
    (source / 'meta.json').write_text(json.dumps(meta))
    assert 'pools at the end token, which is number 2' in refused(
        capsys, source, '--to', 'huggingface', '--out', tmp_path / 'x'
    )


def test_a_run_gives_its_newest_export(tmp_path, capsys):
    for step in (20, 100):
        save(tmp_path / 'run' / 'exports' / str(step), dict(image=dict(VIT, depth=step // 20)))
    assert convert(tmp_path / 'run', '--to', 'timm', '--out', tmp_path / 'out') == 0
    assert json.loads((tmp_path / 'out' / 'config.json').read_text())['model_args']['depth'] == 5


def refused(capsys: Any, *arguments: Any) -> str:
    """The sentence with which a conversion is refused."""
    assert convert(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('medjax: ') and error.count('\n') == 1
    return error


def test_what_cannot_be_converted(tmp_path, capsys):
    source = save(tmp_path / 'export', dict(image=VIT))
    assert 'is an export already; --to huggingface|timm|meta|stablehlo' in refused(
        capsys, source, '--out', tmp_path / 'x'
    )
    assert 'there is no such file or folder' in refused(capsys, tmp_path / 'no', '--out', tmp_path / 'x')
    assert 'holds neither an export' in refused(capsys, tmp_path, '--out', tmp_path / 'x')
    text = save(tmp_path / 'texts' / 'export', dict(image=VIT, text=TEXT), dict(vi=LINEAR, vt=LINEAR))
    (text / 'vocab.txt').unlink()
    assert 'lacks its tokenizer vocab.txt' in refused(capsys, text, '--to', 'stablehlo', '--out', tmp_path / 'x')
    assert not (tmp_path / 'x').exists() and not list(tmp_path.glob('.x*'))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(image=None), 'lacks image: the export is not whole'),
        (dict(towers=None, size=None), 'lacks towers, size'),
        (dict(towers=dict(image=dict(VIT, heads=4))), 'of another shape: blocks/attn/out/kernel (2, 2, 8, 16)'),
        (dict(towers=dict(image=dict(VIT, depth=3))), 'blocks/*, 2 layers in the weights, 3 in this configuration'),
        (dict(towers=dict(image=dict(VIT, registers=1))), 'missing from the weights: registers'),
    ],
    ids=str,
)
@pytest.mark.parametrize('layout', ['huggingface', 'meta', 'stablehlo'])
def test_an_export_whose_meta_lies(layout, change, words, tmp_path, capsys):
    source = save(tmp_path / 'export', dict(image=VIT))
    meta = json.loads((source / 'meta.json').read_text()) | change
    (source / 'meta.json').write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))
    assert words in refused(capsys, source, '--to', layout, '--out', tmp_path / 'x')
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
    ('file', 'content'),
    [('config.json', '{'), ('config.json', '[]'), ('data/sources.json', '[1]')],
)
def test_a_run_with_a_damaged_file(file, content, tmp_path, capsys):
    """A card from half of the facts would be read as whole, so none is written."""
    save(tmp_path / 'run' / 'exports' / '40', dict(image=VIT))
    (tmp_path / 'run' / 'data').mkdir()
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(dict(towers=dict(image=VIT))))
    (tmp_path / 'run' / file).write_text(content)
    sentence = refused(capsys, tmp_path / 'run', '--to', 'meta', '--out', tmp_path / 'x')
    assert file.rpartition('/')[2] in sentence and 'JSON' in sentence and not (tmp_path / 'x').exists()


def test_folders_that_are_there(tmp_path, capsys):
    """Only what a conversion wrote is replaced, and never the weights themselves."""
    source = save(tmp_path / 'export', dict(image=VIT))
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'README.md').write_text('# My photos')
    (tmp_path / 'file').write_text('x')
    for name in ('photos', 'file'):
        for more in ((), ('--overwrite',)):
            sentence = refused(capsys, source, '--to', 'meta', '--out', tmp_path / name, *more)
            assert 'was not written by `medjax convert`; choose another' in sentence
    (tmp_path / 'empty').mkdir()
    assert convert(source, '--to', 'meta', '--out', tmp_path / 'empty') == 0
    assert 'add --overwrite to replace it' in refused(capsys, source, '--to', 'timm', '--out', tmp_path / 'empty')
    assert convert(source, '--to', 'timm', '--out', tmp_path / 'empty', '--overwrite') == 0
    assert 'architecture' in json.loads((tmp_path / 'empty' / 'config.json').read_text())
    for out in (source, tmp_path / 'export' / '..' / 'export'):
        assert 'holds the weights' in refused(capsys, source, '--to', 'timm', '--out', out, '--overwrite')
    assert 'cannot be written' in refused(capsys, source, '--to', 'timm', '--out', tmp_path / 'file' / 'x')
    assert (source / 'weights.safetensors').is_file() and (tmp_path / 'photos' / 'README.md').is_file()


@pytest.mark.parametrize(
    ('layout', 'name'),
    [
        (None, 'notes.txt'),
        ('huggingface', '.git/HEAD'),
        ('huggingface', 'image/holiday.png'),
        ('stablehlo', 'figures/config.json'),
        ('huggingface', 'link'),
    ],
)
def test_files_that_the_user_added_are_not_deleted(layout, name, tmp_path, capsys):
    source = save(tmp_path / 'export', dict(image=VIT))
    assert convert(source, '--to', 'huggingface', '--out', tmp_path / 'public') == 0
    out, first = tmp_path / 'out', ('--to', layout) if layout else ()
    assert convert(tmp_path / 'public', *first, '--out', out) == 0
    assert convert(tmp_path / 'public', *first, '--out', out, '--overwrite') == 0
    added = out / name
    added.parent.mkdir(exist_ok=True)
    if name == 'link':
        added.symlink_to(tmp_path)
    else:
        added.write_text('mine')
    before = {path: path.read_bytes() for path in out.rglob('*') if path.is_file()}
    sentence = refused(capsys, source, '--to', 'timm', '--out', out, '--overwrite')
    assert f'holds {name}, which `medjax convert` did not write' in sentence and 'move this away' in sentence
    assert before == {path: path.read_bytes() for path in out.rglob('*') if path.is_file()} and os.path.lexists(added)
    added.unlink()
    assert convert(source, '--to', 'timm', '--out', out, '--overwrite') == 0


def test_a_pair_is_replaced_with_its_folders_and_its_tokenizer(tmp_path):
    towers = dict(image=VIT, text=dict(TEXT, family='bert'))
    source = save(tmp_path / 'export', towers, dict(vi=LINEAR, vt=LINEAR))
    for layout in ('huggingface', 'stablehlo', 'huggingface'):
        assert convert(source, '--to', layout, '--out', tmp_path / 'out', '--overwrite') == 0
    assert (tmp_path / 'out' / 'text' / 'vocab.txt').is_file()


@pytest.mark.parametrize('part', ['weights', 'card', 'full disk'])
def test_a_conversion_that_fails_leaves_what_was_there(part, tmp_path, monkeypatch, capsys):
    source = save(tmp_path / 'export', dict(image=VIT))
    assert convert(source, '--to', 'meta', '--out', tmp_path / 'out') == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, 'No space left on device') if part == 'full disk' else KeyboardInterrupt

    where = dict(weights='medjax.weights.layouts_out.save_file', card='medjax.reports.model_card.card')
    monkeypatch.setattr(where.get(part, 'medjax.weights.layouts_out.save_file'), fail)
    code = convert(source, '--to', 'timm', '--out', tmp_path / 'out', '--overwrite')
    assert code == (2 if part == 'full disk' else 130)
    assert ('no space is left on the disk' in capsys.readouterr().err) == (part == 'full disk')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((files.SUFFIX, files.ASIDE))]


def test_the_mark_of_a_card_is_on_every_card(tmp_path):
    """By it `--overwrite` knows a folder of its own."""
    source = save(tmp_path / 'export', dict(image=VIT))
    for layout in ('huggingface', 'timm', 'meta', 'stablehlo'):
        assert convert(source, '--to', layout, '--out', tmp_path / layout) == 0
        assert model_card.MARK in (tmp_path / layout / 'README.md').read_text()
    assert load.open(tmp_path / 'huggingface').modules == ('towers/image',)
