"""Exports: what is written is what is read, whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.weights import export

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
    assert meta == dict(format=1, step=300, image=dict(mean=0.5))
    np.testing.assert_array_equal(params['heads']['dino']['prototypes']['gain'], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(params['towers']['image']['blocks']['norm1']['scale'], np.ones((2, 3)))
    export.save(folder, PARAMS, dict(step=301))
    assert export.load(folder)[1]['step'] == 301, 'an export is replaced'


def test_steps_are_those_that_are_whole(tmp_path):
    assert export.steps(tmp_path) == []
    for step in (100, 20):
        export.save(tmp_path / 'exports' / str(step), PARAMS, dict(step=step))
    (tmp_path / 'exports' / '.300.123').mkdir()  # what a killed process leaves behind
    (tmp_path / 'exports' / '400').mkdir()
    assert export.steps(tmp_path) == [20, 100]


def test_a_failed_export_leaves_nothing_under_its_name(tmp_path):
    with pytest.raises(TypeError):
        export.save(tmp_path / '5', PARAMS, dict(step=object()))
    assert not (tmp_path / '5').exists()


def test_mistakes_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match='is no export: it has no meta.json'):
        export.load(tmp_path)
    folder = export.save(tmp_path / '1', PARAMS, dict(step=1))
    (folder / 'weights.safetensors').write_bytes(b'short')
    with pytest.raises(UserError, match='no whole safetensors file'):
        export.load(folder)
    (folder / 'meta.json').write_text('{"format": 9}')
    with pytest.raises(UserError, match='format 9 is not known'):
        export.load(folder)
