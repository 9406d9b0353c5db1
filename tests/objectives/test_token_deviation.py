"""The term `token_deviation` against loops in float64, with padding and absent crops."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from medjax.objectives.terms import TermContext, TermInputs, token_deviation
from medjax.types import Mask

OWN, OTHERS = (f'student/predictor/altered~block/{output}@block' for output in ('patches', 'others'))


def test_loss_and_gradient_by_loops():
    """Two groups of two rows with two crops, two contexts of each crop, two sets of at most four targets."""
    rng = np.random.default_rng(0)
    groups, rows, crops, contexts, sets, room, d = 2, 2, 2, 2, 2, 4, 3
    counts = rng.integers(1, room + 1, (groups, sets, rows, crops))
    counts[0, 0, 0], counts[1, 1, 0] = (1, 3), (1, 1)  # a set of one target has no deviation
    weight = (np.arange(room) < counts[..., None]) / counts[..., None]
    index = np.arange(rows * crops)[:, None] * 9 + rng.integers(0, 9, (groups, sets, rows * crops, room))
    mask = Mask(
        np.zeros((groups * rows, crops, 9), bool), index.reshape(groups, sets, -1),
        weight.reshape(groups, sets, -1).astype(np.float32), mode='drop', crop_room=room,
    )  # fmt: skip
    present = np.ones((groups * rows, crops), bool)
    present[3], present[2, 0] = False, False
    shape = (groups, sets, rows, crops, contexts, room, d)
    predicted = {name: rng.normal(size=shape).astype(np.float32) * 0.8 for name in (OWN, OTHERS)}
    term = token_deviation.build(TermContext('terms[0]', 10, rows), [OWN, OTHERS], floor=0.9)

    def loss(predicted):
        features = {name: x.reshape(groups, sets, -1, d) for name, x in predicted.items()}
        presence = {name: jnp.repeat(present, contexts, axis=1) for name in features}
        x = TermInputs({}, {}, features, presence, {}, {'altered~block': mask}, None, jnp.int32(0), None)
        out = term.loss(dataclasses.replace(x, per_row=term.per_row(x)))
        return out.loss, out.metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(predicted)
    hinges, means = [], []
    for group, k, row in np.ndindex(groups, sets, rows):
        deviations = []
        for name, crop, context in np.ndindex(2, crops, contexts):
            count = counts[group, k, row, crop]
            if present[group * rows + row, crop] and count > 1:
                z = predicted[(OWN, OTHERS)[name]][group, k, row, crop, context, :count].astype(np.float64)
                deviations.append(np.sqrt(z.var(0, ddof=1) + 1e-4))
        if deviations:
            mean = np.mean(deviations, axis=0)
            hinges.append(np.maximum(0, 0.9 - mean).mean())
            means.append(mean.mean())
    np.testing.assert_allclose(value, np.mean(hinges), rtol=1e-5)
    np.testing.assert_allclose(metrics['deviation'], np.mean(means), rtol=1e-5)
    assert float(metrics['rows']) == len(hinges) < groups * sets * rows
    for x in gradient.values():
        x = np.asarray(x)
        counted = (np.arange(room) < counts[..., None]) & present.reshape(groups, 1, rows, crops, 1)
        assert not x[np.broadcast_to(~counted[:, :, :, :, None], x.shape[:-1])].any() and np.isfinite(x).all()
        assert np.abs(x).max() > 0
