"""Visual prompts: plain ones against registers, dynamic ones against a loop in float64, none against the tower."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from medjax.errors import UserError
from medjax.models.prompts import renewed
from medjax.models.towers import vit
from medjax.types import Input, Mask, View
from medjax.weights import export

SMALL = dict(variant='Ti/8', width=16, depth=2, heads=2, native_size=16, layerscale=0.5)


def images(seed=0):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 1, 1, 16, 16, 1)), jnp.float32)
    return View(x, jnp.arange(2, dtype=jnp.uint32), jnp.ones((2, 1), bool), None, {})


def outputs(tower, params, mask=None):
    want = () if mask is not None else ('attention',)
    return tower.apply(params, Input(images(), mask), want=want)


def test_no_prompts_change_no_bit():
    plain, none = vit.build(1, **SMALL), vit.build(1, **SMALL, prompts=dict(count=0, bottleneck=4))
    params = plain.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, none.init(jax.random.key(0)), params)
    jax.tree.map(np.testing.assert_array_equal, outputs(none, params), outputs(plain, params))


@pytest.mark.parametrize('family', ['dinov2', 'dinov3'])
def test_plain_prompts_are_registers(family):
    prompted = vit.build(1, **SMALL, family=family, prompts=dict(count=3))
    registered = vit.build(1, **SMALL, family=family, registers=3)
    flat = export.flatten(prompted.init(jax.random.key(0)))
    tokens = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    flat['prompts/tokens'] = tokens
    theirs = {name: x for name, x in flat.items() if not prompted.is_added(name)} | {'registers': tokens}
    got, expected = outputs(prompted, export.unflatten(flat)), outputs(registered, export.unflatten(theirs))
    for name in ('cls', 'patches', 'attention'):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-6, err_msg=name)


def test_dynamic_prompts_equal_a_loop():
    rng = np.random.default_rng(0)
    count, d, width, first = 3, 4, 8, 1
    shapes = dict(queries=(count, d), down=(width, d), down_bias=(d,), up=(d, width), up_bias=(width,))
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x, lengths = rng.normal(size=(2, 9, width)), np.array([9, 6])
    single = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    got = np.asarray(renewed(jnp.asarray(x, jnp.float32), single, first, jnp.asarray(lengths)))
    for s in range(2):
        others = [t for t in range(lengths[s]) if not first <= t < first + count]
        z = []
        for t in others:
            y = (x[s, t] - x[s, t].mean()) / np.sqrt(x[s, t].var() + 1e-6)
            y = y @ params['down'] + params['down_bias']
            z.append(y * special.ndtr(y))
        expected = x[s].copy()
        for p in range(count):
            weights = special.softmax([params['queries'][p] @ one / 2 for one in z])
            expected[first + p] = weights @ np.stack(z) @ params['up'] + params['up_bias']
        np.testing.assert_allclose(got[s], expected, atol=2e-5)


@pytest.mark.slow
def test_prompts_depend_on_the_image_in_each_block_and_learn():
    tower = vit.build(1, **SMALL, prompts=dict(count=2, bottleneck=4), registers=1)
    flat = export.flatten(tower.init(jax.random.key(0)))
    assert {name for name in flat if tower.is_added(name)} == {
        f'prompts/{name}' for name in ('queries', 'down', 'down_bias', 'up', 'up_bias')
    }
    params = export.unflatten({k: x + 0.3 if k.startswith('prompts') else x for k, x in flat.items()})
    out = outputs(tower, params)
    assert out['patches'].shape == (2, 1, 4, 16) and out['registers'].shape == (2, 1, 1, 16)
    assert out['attention'].shape == (2, 1, 4)
    slopes = jax.grad(lambda p: jnp.sum(jnp.sin(tower.apply(p, Input(images()))['cls'])))(params)['prompts']
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(slopes))


def test_contexts_of_other_lengths_see_their_own_tokens_only():
    """A context of two patches, padded to three, equals one of two."""
    tower = vit.build(1, **SMALL, prompts=dict(count=2, bottleneck=4))
    params = jax.tree.map(lambda x: x + 0.1, tower.init(jax.random.key(0)))
    bits = jnp.zeros((2, 1, 4), bool)
    index, weight = jnp.zeros((2, 1, 1), jnp.int32), jnp.zeros((2, 1, 1))

    def of(kept, length):
        kept = jnp.broadcast_to(jnp.asarray(kept, jnp.int32), (2, 1, 1, len(kept)))
        lengths = None if length is None else jnp.full((2, 1, 1), length, jnp.int32)
        return outputs(tower, params, Mask(bits, index, weight, kept, lengths, None, 'drop'))

    two = of([1, 3], None)['cls']
    np.testing.assert_allclose(of([1, 3, 0], 2)['cls'], two, atol=3e-4)
    assert float(jnp.abs(of([1, 3, 0], None)['cls'] - two).max()) > 1e-2


@pytest.mark.parametrize(
    ('prompts', 'words'),
    [
        (dict(count=-1), r'prompts\.count=-1: must be a whole number'),
        (dict(count=2, bottleneck=0.5), r'prompts\.bottleneck=0\.5'),
        (dict(number=2), "unknown key 'number'"),
    ],
)
def test_mistakes_are_sentences(prompts, words):
    with pytest.raises(UserError, match=words):
        vit.build(1, **SMALL, prompts=prompts)
