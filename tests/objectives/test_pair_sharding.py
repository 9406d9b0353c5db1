"""The pair losses on eight devices: gradients through the exchange, and how much is exchanged."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from collectives import collectives
from pair_cases import (
    COLUMNS,
    MODULES,
    OPTIONS,
    ROWS,
    TEACHER_COLUMNS,
    TEACHER_ROWS,
    build_term,
    check_term,
    expected_loss,
    make_batch,
    set_mesh,
    without_teacher_gradient,
)
from reference_losses import close, loss_of

from medjax.objectives import pairs
from medjax.objectives.terms import pair_softmax
from medjax.parallel import sharding


@pytest.mark.parametrize('placement', ['gathered', 'ring'])
@pytest.mark.parametrize('module', MODULES)
def test_columns_that_are_exchanged_without_gradient_are_noticed(module, placement, monkeypatch):
    """The classic mistake gives the right value and a wrong gradient by the columns. `check_term` must fail on it."""
    stop, everywhere, ring_sums = jax.lax.stop_gradient, pairs.everywhere, pairs.ring_sums
    if placement == 'gathered':
        monkeypatch.setattr(pairs, 'everywhere', lambda x: stop(everywhere(x)))
    else:
        monkeypatch.setattr(pairs, 'ring_sums', lambda block, x, y, *rest: ring_sums(block, x, stop(y), *rest))
    with pytest.raises(AssertionError, match='by the columns'):
        check_term(module, placement, 'identity', *make_batch())


def test_ring_where_devices_share_rows():
    """With a tensor axis two devices hold the same rows."""
    set_mesh('ring')  # skips without eight devices
    mesh = sharding.make_mesh(2, 2, 2)
    jax.set_mesh(mesh)
    features, views = make_batch()
    term = build_term(pair_softmax, 'ring', positives='text', **OPTIONS[pair_softmax])
    params, _ = term.init(jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(lambda features: loss_of(term, features, views, params=params)[0]))
    value, gradients = loss(jax.device_put(features, sharding.rows_sharding(mesh)))
    expected = expected_loss(pair_softmax, 'text', features, views)
    assert float(value) == pytest.approx(expected.loss, rel=1e-5)
    close(gradients[ROWS][:, 0], expected.by_rows, 1e-5, 'by the rows')
    close(gradients[COLUMNS][:, 0], expected.by_columns, 1e-5, 'by the columns')


@pytest.mark.parametrize('placement', ['gathered', 'ring'])
@pytest.mark.parametrize('positives', ['identity', ['text', dict(soft='teacher', alpha=0.4)]], ids=str)
@pytest.mark.parametrize('module', MODULES)
def test_moves_bounds_what_devices_exchange(module, positives, placement):
    """`Term.moves` is at least what the compiled program exchanges, and at most 1.5 times as much.

    In a ring no device ever holds all columns.
    """
    mesh = set_mesh(placement)
    rows, d = 64, 48
    rng = np.random.default_rng(0)
    _, views = make_batch(rows=rows)
    names = (ROWS, TEACHER_ROWS, COLUMNS, TEACHER_COLUMNS)
    features = {name: rng.normal(size=(rows, 1, d)).astype(np.float32) for name in names}
    term = build_term(module, placement, positives=positives)
    params, _ = term.init(jax.random.key(0))

    def loss(features, params, views):
        return loss_of(term, without_teacher_gradient(features), views, params=params)[0]

    features, views = jax.device_put((features, views), sharding.rows_sharding(mesh))
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(features, params, views).compile()
    loops, entry = compiled.as_text().split('\nENTRY ')
    messages = collectives(loops) * 7 + collectives(entry)  # the loop of a ring runs seven times
    declared = term.moves(rows, {name: x.shape for name, x in features.items()})
    moved = sum(math.prod(dims) for _, dims in messages)
    assert moved <= declared <= 1.5 * moved, f'{moved} elements move, the term declares {declared}: {messages}'
    if placement == 'ring':
        assert max(math.prod(dims) for _, dims in messages) <= rows // 8 * (d + 1)
