"""Exports: an export is read as it was written, it is whole or absent, and exports of version 1 are read, too."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from medjax.errors import UserError
from medjax.models import build
from medjax.probes import encode
from medjax.weights import export, load

PARAMS = {
    'towers': {
        'image': {'cls': np.arange(3, dtype=np.float32), 'blocks': {'norm1': {'scale': np.ones((2, 3), np.float32)}}}
    },
    'heads': {'dino': {'prototypes': {'gain': np.float32([1, 2])}}},
}


def test_an_export_comes_back_as_it_was(tmp_path):
    folder = tmp_path / 'exports' / '300'
    turned = {**PARAMS, 'heads': {'dino': {'prototypes': {'gain': np.arange(6, dtype=np.float32).reshape(2, 3).T}}}}
    assert export.save(folder, turned, dict(step=300, image=dict(mean=0.5))) == folder
    params, meta = export.load(folder)
    assert meta == dict(format=2, step=300, image=dict(mean=0.5))
    np.testing.assert_array_equal(params['heads']['dino']['prototypes']['gain'], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(params['towers']['image']['blocks']['norm1']['scale'], np.ones((2, 3)))
    export.save(folder, PARAMS, dict(step=301))
    assert export.load(folder)[1]['step'] == 301, 'an export is replaced'


def test_steps_are_those_that_are_whole(tmp_path):
    assert export.steps(tmp_path) == []
    for step in (100, 20):
        export.save(tmp_path / 'exports' / str(step), PARAMS, dict(step=step))
    (tmp_path / 'exports' / '.300.123').mkdir()  # left by a killed process
    (tmp_path / 'exports' / '400').mkdir()
    assert export.steps(tmp_path) == [20, 100]


def test_a_failed_export_leaves_nothing_under_its_name(tmp_path):
    with pytest.raises(TypeError):
        export.save(tmp_path / '5', PARAMS, dict(step=object()))
    assert not (tmp_path / '5').exists()


# The tower and meta.json of an export that version 1 wrote.
TOWER_1 = dict(tower='vit', variant='S/8', layout='clip', width=16, depth=2, heads=2, native_size=16)
META_1 = dict(
    format=1,
    step=7,
    copy='teacher',
    towers=dict(image=TOWER_1 | dict(layerscale='layout')),
    heads=dict(dino=dict(head='dino_head', prototypes=8)),
    pairs=[],
    image=dict(channels=1, mean=0.5, std=0.25),
    size=16,
    config_fingerprint='0123',
    seen=None,
    medjax='0.1.0',
)


def test_an_export_of_version_1_gives_the_same_features(tmp_path):
    tower = {'family' if key == 'layout' else key: value for key, value in TOWER_1.items()}
    params = build.tower(tower, 1, 'towers.image').init(jax.random.key(0))
    params = {'towers': {'image': jax.tree.map(lambda x: np.asarray(x) + 0.1, params)}}
    now = export.save(tmp_path / 'now', params, {**META_1, 'towers': dict(image=tower)})
    old = export.save(tmp_path / 'old', params, META_1)
    (old / 'meta.json').write_text(json.dumps(META_1))  # `save` writes the format of today

    meta = export.read_meta(old)
    assert meta['format'] == 2 and meta['network'] == 'teacher' and 'copy' not in meta
    assert meta['towers']['image'] == tower | dict(layerscale='family')
    assert meta | dict(network=0, towers=0, format=0) == {k: v for k, v in META_1.items() if k != 'copy'} | dict(
        network=0, towers=0, format=0
    )
    image = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    got, expected = (encode.load(folder).encode([image]) for folder in (old, now))
    for name in ('cls', 'patches'):
        np.testing.assert_array_equal(got[name], expected[name])
    # the family of a tower decides how its position embeddings are resized
    larger = build.tower(tower | dict(native_size=32), 1, 'x')
    wanted = jax.eval_shape(larger.init, jax.random.key(0))
    got, expected = (load.open(folder).read('towers/image', wanted, larger)['pos_grid'] for folder in (old, now))
    np.testing.assert_array_equal(got, expected)


def test_a_tower_of_the_user_keeps_its_own_layout():
    mine = dict(tower='mypkg.mytower', layout='wide', layerscale='layout')
    assert export.from_format_1(dict(format=1, towers=dict(image=mine)))['towers']['image'] == mine


def test_mistakes_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match='is no export: it has no meta.json'):
        export.load(tmp_path)
    folder = export.save(tmp_path / '1', PARAMS, dict(step=1))
    (folder / 'weights.safetensors').write_bytes(b'short')
    with pytest.raises(UserError, match='no whole safetensors file'):
        export.load(folder)
    (folder / 'meta.json').write_text('{"format": 9}')
    with pytest.raises(UserError, match='has format 9, and this version of medjax reads 1 and 2'):
        export.load(folder)
