"""The example of docs/add_a_tower.md: it is built from its config, and computes what its first line says."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from medjax.errors import UserError
from medjax.objectives.compose import Objective, compose
from medjax.training.rehearsal import rehearse
from medjax.types import Input, View

PAGE = Path(__file__).parents[2] / 'docs' / 'add_a_tower.md'
SMALL = dict(
    image=dict(variant='S/8', width=16, depth=1, heads=2, native_size=16),
    text=dict(width=24, depth=1, heads=2, vocabulary=40, context=8),
)


@pytest.fixture
def blocks(tmp_path, monkeypatch) -> dict[str, Any]:
    """The module of the page is importable as mypkg.gate; the sections of its config."""
    module, config = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (tmp_path / 'mypkg').mkdir()
    (tmp_path / 'mypkg' / '__init__.py').touch()
    (tmp_path / 'mypkg' / 'gate.py').write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('mypkg', 'mypkg.gate'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert isinstance(ast.parse(config), ast.Module)
    sections: dict[str, Any] = {}
    exec(config, sections)
    return {name: sections[name] for name in ('towers', 'terms')}


def recipe(blocks: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A recipe with the sections of the page and small towers."""
    towers = {name: cfg | SMALL.get(name, {}) for name, cfg in blocks['towers'].items()}
    views = dict(
        crop=dict(view='crop', part='cxr', size=16), report=dict(view='text', part='cxr', length=8)
    )  # fmt: skip
    base = dict(
        total_steps=10, rows_per_group=2, dtype='float32', image=dict(channels=1, mean=0.5, std=0.25), views=views,
        masks={}, towers=towers, heads={}, teachers={}, terms=blocks['terms'], optim=dict(lr=1e-3),
    )  # fmt: skip
    return base | changes


def test_the_tower_of_the_page(blocks):
    cfg = recipe(blocks, export=dict(network='student', towers=['image', 'text', 'fusion'], heads=[], encoder='fusion'))
    objective: Objective = compose(cfg)
    rehearse(objective, recipes.views(cfg, objective), cfg)
    assert list(objective.declared) == ['student/fusion/crop+report/cls']
    tower = objective.towers['fusion']
    params = tower.init(jax.random.key(0)) | {'gate': jax.random.normal(jax.random.key(1), (16,))}
    assert jax.tree.structure(params) == jax.tree.structure(tower.axes, is_leaf=lambda x: isinstance(x, tuple))
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(4, 1, 16)), rng.normal(size=(4, 1, 24))
    there = np.array([[True], [True], [False], [True]])

    def given(cls, present):
        view = View(None, jnp.arange(4), jnp.asarray(present), None, {})
        return Input(view, None, {'cls': jnp.float32(cls), 'present': jnp.asarray(present)})

    both = [given(image, np.ones((4, 1), bool)), given(text, there)]
    outputs = tower.apply(params, *both)
    gate = 1 / (1 + np.exp(-(image @ np.float64(params['gate']))))
    expected = image + there[..., None] * gate[..., None] * (text @ np.float64(params['kernel']))
    np.testing.assert_allclose(outputs['cls'], expected, atol=1e-5)
    assert outputs['present'].all()  # the text is optional
    np.testing.assert_allclose(tower.apply(params, both[0], None)['cls'], image, atol=1e-6)


def test_a_mistake_in_its_section(blocks):
    cfg = recipe(blocks)
    cfg['towers']['fusion']['reads'] = ['image']
    with pytest.raises(UserError, match=r"it reads two towers: reads=\['image', 'text\?'\]"):
        compose(cfg)
