"""The layers of a transformer: GELU and norms with their derivatives, and linear maps that share one kernel."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medjax.models import kernels, layers

X = np.concatenate([np.linspace(-12, 12, 401), [-0.75179, 0, 1e-6, -40, 40]]).astype(np.float32)


def gelu_by_definition(x):
    """x Phi(x) and its derivative Phi(x) + x phi(x), in float64."""
    x = x.astype(np.float64)
    phi = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in x])
    return x * below, below + x * phi


@pytest.mark.parametrize(('dtype', 'error'), [('float32', 2e-6), ('bfloat16', 2e-2)])
def test_gelu_and_its_derivative_are_their_definitions(dtype, error):
    x = jnp.asarray(X, dtype)
    value, slope = gelu_by_definition(np.asarray(x, np.float32))
    got = layers.gelu(x), jax.vjp(layers.gelu, x)[1](jnp.ones_like(x))[0]
    for a, b in zip(got, (value, slope), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=error, atol=error)
    with kernels.plain():  # can be differentiated forwards
        np.testing.assert_allclose(jax.jvp(layers.gelu, (x,), (jnp.ones_like(x),)), got, rtol=error, atol=error)


def norm_by_definition(x, scale, bias, g):
    """The norm of x [S,T,D] and its gradients for the cotangent g, in float64."""
    x, scale, bias, g = (np.asarray(a, np.float64) for a in (x, scale, bias, g))
    rate = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    z, gs = (x - x.mean(-1, keepdims=True)) * rate, g * scale
    centred = gs - gs.mean(-1, keepdims=True) - z * (gs * z).mean(-1, keepdims=True)
    return z * scale + bias, rate * centred, (g * z).sum((0, 1)), g.sum((0, 1))


@pytest.mark.parametrize(('dtype', 'error'), [('float32', 1e-5), ('bfloat16', 2e-2)])
def test_the_norm_and_its_gradients_are_their_definitions(dtype, error):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(m, s, (3, 5, 16)), dtype) for m, s in ((2.0, 3.0), (0.0, 1.0)))
    scale, bias = (jnp.asarray(rng.normal(1, 0.5, 16), jnp.float32) for _ in range(2))
    module = layers.LayerNorm(dtype=jnp.dtype(dtype))
    y, pull = jax.vjp(lambda x, s, b: module.apply({'params': dict(scale=s, bias=b)}, x), x, scale, bias)
    assert y.dtype == dtype
    for got, wanted in zip((y, *pull(g)), norm_by_definition(x, scale, bias, g), strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=error, atol=error * abs(wanted).max())


@pytest.mark.parametrize('bias', [True, False])
def test_linear_maps_of_one_kernel_equal_one_product(bias):
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    shape, axes = (6, 3, 2, 4), ('embed', None, 'heads', None)
    several, one = layers.Linears(shape, axes, bias=bias), layers.Linear(shape, axes, bias=bias)
    call = lambda module, x: module(x)  # noqa: E731
    # the field `init` of these modules hides flax's method
    start, other = (nn.meta.unbox(nn.init(call, module)(jax.random.key(0), x)) for module in (one, several))
    params = jax.tree.map(lambda p: p + 0.1, start)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, other)
    expected, got = (nn.apply(call, module)(params, x) for module in (one, several))
    assert len(got) == 3
    for i in range(3):
        np.testing.assert_allclose(got[i], expected[:, :, i], atol=1e-6)
