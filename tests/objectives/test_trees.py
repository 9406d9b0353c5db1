"""Tokens at a mask, and crops of elements: the cases that fit, and the sentence of those that do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from medjax.errors import UserError
from medjax.objectives.trees import at_mask, floats_and_others, joined, same_crop, weight_at_mask
from medjax.training.rehearsal import rehearse
from medjax.views.masks import from_bits

BITS = np.zeros((4, 2, 6), bool)
BITS[0, 0, [1, 4]] = BITS[1, 1, 5] = BITS[3, 0, 0] = True
MASK = from_bits(jnp.asarray(BITS), 2, 3)  # two groups of two rows


def test_tokens_at_a_mask_are_those_of_the_bits():
    x = np.arange(4 * 2 * 6 * 2, dtype=np.float32).reshape(4, 2, 6, 2)
    taken = np.asarray(at_mask(jnp.asarray(x), MASK))
    np.testing.assert_array_equal(taken[0, 0], [x[0, 0, 1], x[0, 0, 4], x[1, 1, 5]])
    np.testing.assert_array_equal(taken[1, 0, 0], x[3, 0, 0])
    present = np.ones((4, 2), bool)
    present[0, 0] = False
    np.testing.assert_array_equal(weight_at_mask(jnp.asarray(present), MASK)[:, 0], [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize('shape', [(4, 2, 9, 3), (4, 1, 6, 3), (4, 2, 4, 6, 3)])
def test_a_mask_of_another_grid_is_refused(shape):
    with pytest.raises(UserError, match='the mask is made for 2 crops of 6 tokens'):
        at_mask(jnp.zeros(shape), MASK)


def test_teacher_and_student_of_other_patches_share_no_mask():
    """The mask has the patches of the tower that sees it; the sentence names the feature of the other."""
    cfg = recipes.tiny()
    cfg['towers']['coarse'] = {**cfg['towers']['image'], 'variant': 'S/16'}
    cfg['teachers']['teacher']['of'] = ['towers/coarse', 'heads/dino']
    cfg['terms'] = [
        {**cfg['terms'][1], 'teacher': 'teacher/coarse/global/patches@block>dino'},
    ]
    cfg['labels'] = ()
    objective, _, step = recipes.parts(cfg)
    with pytest.raises(UserError, match='teacher/coarse/global/patches@block>dino.*the mask is made for 2 crops of 16'):
        rehearse(objective, step.make_views, cfg)


def test_a_crop_and_itself_with_several_contexts():
    np.testing.assert_array_equal(same_crop(4, 2, 2), [[1, 0], [1, 0], [0, 1], [0, 1]])
    np.testing.assert_array_equal(same_crop(3, 3, 3), np.eye(3))


def test_floats_are_parted_from_others_and_joined():
    tree = {'a': jnp.ones(2), 'b': {'c': jnp.arange(3), 'd': jnp.zeros(1, bool)}}
    floats, others = floats_and_others(tree)
    assert floats['b'] == {'c': None, 'd': None} and others['a'] is None
    jax.tree.map(np.testing.assert_array_equal, joined(floats, others), tree)
