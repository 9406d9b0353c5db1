"""The numerics of prototype losses: what the chunks of rows keep, and in which type their gradients add up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.models.heads import dino_head
from medjax.objectives import numerics

ROWS, K, D = 64, 48, 8


def test_log_softmax_is_that_of_jax_in_value_and_gradient():
    x = 30 * np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    for f in (lambda f: f(x), lambda f: jax.grad(lambda x: (f(x) * weights).sum())(x)):
        np.testing.assert_allclose(f(numerics.log_softmax), f(jax.nn.log_softmax), atol=2e-5)


def distilled(dtype):
    """loss(params of a DINO head), and the params, for ROWS random rows."""
    head = dino_head.build(D, prototypes=K, hidden=D, bottleneck=D, dtype=dtype)
    params = head.init(jax.random.key(0))
    zs, zt = (numerics.unit(jax.random.normal(jax.random.key(i), (ROWS, 1, D))) for i in (1, 2))
    weight = jnp.ones((ROWS, 1, 1)), jnp.ones((ROWS, 1))

    def loss(params):
        logits = head.prototypes(params)
        student, teacher = numerics.Softmax(logits, zs, 0.1), numerics.Softmax(logits, zt, 0.05)
        return numerics.distill(student, teacher, *weight, jnp.zeros(K), K).loss.sum()

    return loss, params


def of_prototypes(gradient):
    return np.asarray(gradient['prototypes']['direction'], np.float64)


def test_chunks_make_logits_again_but_look_for_no_maxima_again(monkeypatch):
    monkeypatch.setattr(numerics, 'CHUNK_ELEMENTS', 8 * 2 * K)  # eight chunks
    loss, params = distilled('float32')
    text = str(jax.make_jaxpr(jax.value_and_grad(loss))(params))
    products = text.count('dot_general')
    assert products > 4  # those of the backward pass too
    # the first chunk and the loop over the others, each for the student and the teacher
    assert text.count('reduce_max') == 4


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_gradients_of_chunks_add_up_in_float32(monkeypatch, dtype):
    """Each chunk rounds its gradient to the type of the products; the sum over chunks is not rounded so."""
    loss, params = distilled(dtype)
    whole = of_prototypes(jax.grad(loss)(params))
    monkeypatch.setattr(numerics, 'CHUNK_ELEMENTS', 2 * K)  # a chunk for each row
    loss, params = distilled(dtype)
    error = np.linalg.norm(of_prototypes(jax.grad(loss)(params)) - whole) / np.linalg.norm(whole)
    # a sum of 64 numbers in bfloat16 is off by more than 5e-3
    assert error < {'float32': 1e-6, 'bfloat16': 4e-3}[dtype]
