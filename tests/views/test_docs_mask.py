"""The example of docs/add_a_mask.md: it is built from its config, and masks the number of patches that it says."""

from __future__ import annotations

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
from medjax.objectives.compose import compose
from medjax.training.rehearsal import rehearse

PAGE = Path(__file__).parents[2] / 'docs' / 'add_a_mask.md'


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> dict[str, Any]:
    """A recipe with the sections of the page; its module is importable as mypkg.stripes."""
    module, config = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (tmp_path / 'mypkg').mkdir()
    (tmp_path / 'mypkg' / '__init__.py').touch()
    (tmp_path / 'mypkg' / 'stripes.py').write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ('mypkg', 'mypkg.stripes'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    sections: dict[str, Any] = {}
    exec(config, sections)
    views = dict(crop=dict(view='crop', part='cxr', count=2, size=(32, 24)))
    return recipes.tiny(rows_per_group=2, views=views, masks=sections['masks'], terms=sections['terms'])


def test_the_mask_of_the_page(recipe):
    objective = compose(recipe)
    make_views = recipes.views(recipe, objective)
    rehearse(objective, make_views, recipe)
    draw = jax.jit(lambda batch, key: make_views(batch, key, jnp.int32(0))[1]['crop~stripes'])
    mask = draw(recipes.batch(8), jax.random.key(0))
    bits = np.asarray(mask.bits).reshape(8, 2, 4, 3)
    assert (bits.all(-1) == bits.any(-1)).all() and (bits.all(-1).sum(-1) == 2).all()
    assert len({row.tobytes() for row in bits.reshape(16, -1)}) > 3
    assert mask.index.shape == (4, 1, 2 * 2 * 2 * 3) and mask.mode == 'replace'
    np.testing.assert_allclose(mask.weight, 1 / 6)
    again = draw(recipes.batch(8), jax.random.key(0))
    assert np.array_equal(mask.bits, again.bits)
    other = draw(recipes.batch(8), jax.random.key(1))
    assert not np.array_equal(mask.bits, other.bits)


def test_a_mistake_in_its_section(recipe):
    objective = compose(recipe)
    recipe['masks'] = {'crop~stripes': dict(mask='mypkg.stripes', count=4)}
    with pytest.raises(UserError, match=r'masks\.crop~stripes\.count=4: a crop has 4 rows of patches'):
        recipes.views(recipe, objective)
