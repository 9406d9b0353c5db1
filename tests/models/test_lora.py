"""LoRA against its formula in float64, gradients included, and what exports hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UserError
from medjax.models.towers import vit
from medjax.types import Input, View
from medjax.weights import export

SMALL = dict(variant='Ti/8', width=16, depth=2, heads=2, native_size=16, layerscale=0.5)
RANK, ALPHA, ALL = 3, 6.0, ['q', 'k', 'v', 'out', 'mlp']
KINDS = {
    'mlp': dict(SMALL, lora=dict(rank=RANK, alpha=ALPHA, targets=ALL)),
    'swiglu': dict(SMALL, family='dinov3', ffn='swiglu', lora=dict(rank=RANK, alpha=ALPHA, targets=['v', 'mlp', 'q'])),
}


def images():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 1, 16, 16, 1)), jnp.float32)
    return Input(View(x, jnp.arange(2, dtype=jnp.uint32), jnp.ones((2, 1), bool), None, {}))


def outputs(tower, params):
    return tower.apply(params, images(), want=('attention', 'last2/cls'))


def loss(tower, params):
    out = tower.apply(params, images())
    return jnp.sum(jnp.sin(out['cls'])) + jnp.sum(out['patches'] ** 2)


def adapted(options):
    """The tower with random small matrices, the plain tower, and the weights that both should stand for."""
    tower = vit.build(1, **options)
    plain = vit.build(1, **{key: value for key, value in options.items() if key != 'lora'})
    rng = np.random.default_rng(1)
    flat = export.flatten(tower.init(jax.random.key(0)))
    flat = {name: rng.normal(0, 0.3, x.shape).astype(np.float32) if 'lora' in name else x for name, x in flat.items()}
    return tower, plain, flat, {name: merge(name, x, flat) for name, x in flat.items() if 'lora' not in name}


def products(name, flat):
    """(rows of the kernel, A, B) of a kernel, as a loop over blocks and maps."""
    at = name.removesuffix('/kernel')
    for key in flat:
        if key.startswith(f'{at}/lora') and key.endswith('/down'):
            down, up = flat[key].astype(np.float64), flat[key[:-4] + 'up'].astype(np.float64)
            which = '_qkv'.find(key.removesuffix('/down')[-1]) - 1 if '/lora_' in key else None
            for i in range(len(down)):
                yield (i,) if which is None else (i, slice(None), which), key, down[i], up[i]


def merge(name, kernel, flat):
    whole = np.array(kernel, np.float64)
    for place, _, down, up in products(name, flat):
        whole[place] += ALPHA / RANK * np.tensordot(down, up, axes=1)
    return whole.astype(np.float32)


@pytest.mark.parametrize('kind', KINDS)
def test_outputs_and_gradients_are_those_of_the_merged_weights(kind):
    tower, plain, flat, whole = adapted(KINDS[kind])
    ours, merged = export.unflatten(flat), export.unflatten(whole)
    got, expected = outputs(tower, ours), outputs(plain, merged)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=2e-5, err_msg=name)
    slopes = export.flatten(jax.jit(jax.grad(lambda p: loss(tower, p)))(ours))
    by_weight = export.flatten(jax.jit(jax.grad(lambda p: loss(plain, p)))(merged))
    checked = 0
    for name, slope in by_weight.items():
        np.testing.assert_allclose(slopes[name], slope, atol=1e-4, rtol=1e-3, err_msg=name)
        for place, key, down, up in products(name, flat):
            inner = (down.ndim - 1, up.ndim - 1)
            w = slope[place].astype(np.float64)
            to_down = ALPHA / RANK * np.tensordot(w, np.moveaxis(up, 0, -1), axes=inner[1])
            to_up = ALPHA / RANK * np.tensordot(np.moveaxis(down, -1, 0), w, axes=inner[0])
            for part, formula in ((key, to_down), (key[:-4] + 'up', to_up)):
                np.testing.assert_allclose(slopes[part][place[0]], formula, atol=1e-4, rtol=1e-3, err_msg=part)
                checked += 1
    assert checked == 2 * 2 * (6 if kind == 'mlp' else 4)


@pytest.mark.parametrize('kind', KINDS)
def test_exports_are_plain_towers(kind):
    tower, plain, flat, whole = adapted(KINDS[kind])
    params, section = tower.exported(export.unflatten(flat), dict(tower='vit', **KINDS[kind]))
    got = export.flatten(params)
    assert got.keys() == whole.keys() and 'lora' not in section
    for name, x in whole.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)


def test_new_matrices_and_rank_0_change_no_bit():
    plain, key = vit.build(1, **SMALL), jax.random.key(0)
    params = plain.init(key)
    nothing = vit.build(1, **SMALL, lora=dict(rank=0))
    jax.tree.map(np.testing.assert_array_equal, nothing.init(key), params)
    before = outputs(plain, params)
    jax.tree.map(np.testing.assert_array_equal, outputs(nothing, params), before)
    tower = vit.build(1, **KINDS['mlp'])
    new = {name: x for name, x in export.flatten(tower.init(key)).items() if tower.is_added(name)}
    assert all((x == 0).all() == name.endswith('/up') for name, x in new.items()) and len(new) == 12
    begun = export.unflatten(export.flatten(params) | new)
    after = outputs(tower, begun)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize(
    ('lora', 'words'),
    [
        (dict(rank=-1), r'lora\.rank=-1: must be a whole number of at least 0'),
        (dict(rank=4, alpha=0), r'lora\.alpha=0: must be a number above 0'),
        (dict(rank=4, targets=['qkv']), r"lora\.targets=\['qkv'\]: must be a list of some of q, k, v, out, mlp"),
        (dict(rank=4, targets='q'), r'lora\.targets'),
        (dict(rnk=4), "vit: lora: unknown key 'rnk'; did you mean 'rank'"),
        (dict(alpha=4.0), "the key 'rank' is missing"),
    ],
)
def test_mistakes_are_sentences(lora, words):
    with pytest.raises(UserError, match=words):
        vit.build(1, **SMALL, lora=lora)
