"""The linear probe: logistic regressions on frozen features, a whole grid of them at once.

As in DINOv2 (arXiv 2304.07193) the grid crosses the last {1, 4} blocks' CLS with {without, with} the mean patch token
and the strength of regularisation, and validation chooses. Unlike there, each head is fitted to its optimum on cached
features instead of by SGD over images: for each label, over its n known records of standardised features x,

    minimise  1/n sum log(1 + exp(-s (w.x + b)))  +  penalty/2 |w|^2,      s = 1 for positives, -1 for negatives,

which is scikit-learn's LogisticRegression with C = 1 / (penalty n).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medjax.probes import policy
from medjax.probes.encode import Features
from medjax.probes.evaluate import Outcome, Result, Task, mean_auroc, needs_labels, of_labels

name, needs = 'linear', needs_labels
PENALTIES = tuple(10.0 ** (e / 2) for e in range(2, -9, -1))  # 10 … 1e-4 in half decades; of equals the first is taken
THRESHOLD = 0.0  # in log-odds: probability .5


class Heads(NamedTuple):
    """Logistic regressions for R penalties and L labels on one feature set:

    log-odds = (x - mean) / std @ kernel + bias.
    """

    mean: np.ndarray  # float32 [D]
    std: np.ndarray  # float32 [D]
    kernel: np.ndarray  # float32 [D,R,L]
    bias: np.ndarray  # float32 [R,L]
    steps: int
    residual: float  # the greatest preconditioned gradient norm that was left


def run(task: Task) -> Result:
    return of_labels(task, learn)


def learn(
    train: Features, val: Features, test: Features, seed: int, penalties: tuple[float, ...] = PENALTIES
) -> Outcome:
    """Fits all heads on train, chooses one combination for all labels by mean AUROC on val, scores test in log-odds."""
    grid: list[dict[str, Any]] = []
    best: tuple[float, int, Heads] | None = None
    for features, x in _inputs(train).items():
        heads = fit(x, train.labels, penalties)
        val_scores = log_odds(heads, _inputs(val)[features])
        for r, penalty in enumerate(penalties):
            figure = mean_auroc(val_scores[:, r], val.labels)
            grid.append(dict(features=features, penalty=penalty, validation_auroc=figure))
            if best is None or (figure or 0.0) > best[0]:
                best, entry = (figure or 0.0, r, heads), grid[-1]
    assert best is not None
    _, r, heads = best
    scores = {
        split: log_odds(heads, _inputs(x)[entry['features']])[:, r] for split, x in dict(val=val, test=test).items()
    }
    chosen = dict(entry, by='mean AUROC over labels on validation', scores='log-odds')
    details = dict(grid=grid, steps=heads.steps, residual=heads.residual)
    return Outcome(scores['test'], scores['val'], THRESHOLD, chosen, {}, details)


def _inputs(split: Features) -> dict[str, np.ndarray]:
    """The feature sets of the grid, each [n,D]."""
    if split.patches is None:
        return {'pixels': split.cls[:, -1]}
    sets = {'cls of the last block': split.cls[:, -1]}
    if split.cls.shape[1] > 1:
        sets[f'cls of the last {split.cls.shape[1]} blocks'] = split.cls.reshape(len(split.cls), -1)
    return sets | {f'{name} + mean patch': np.concatenate([x, split.patches], 1) for name, x in sets.items()}


def fit(x: np.ndarray, labels: np.ndarray, penalties: tuple[float, ...], tolerance: float = 1e-5) -> Heads:
    """Features [n,D] and labels int8 [n,L], of which only 0 and 1 are known -> the heads of all penalties and labels.

    Every label needs a known record of both classes.
    """
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    z = x - mean
    std = np.sqrt(np.einsum('nd,nd->d', z, z) / len(z))
    std = np.where(std > 1e-6 * np.abs(mean), std, 1.0).astype(np.float32)  # a constant feature stays at 0
    known = policy.known(labels)
    z = (z / std).astype(np.float32)
    basis = _principal_axes(z)
    with jax.default_matmul_precision('highest'):
        w, b, steps, residual = _minimise(
            z @ basis, (labels == 1).astype(np.float32), known.astype(np.float32), np.float32(penalties), tolerance
        )
    return Heads(mean, std, np.tensordot(basis, np.asarray(w), 1), np.asarray(b), int(steps), float(residual))


def log_odds(heads: Heads, x: np.ndarray) -> np.ndarray:
    """[n,D] -> float32 [n,R,L]."""
    return np.tensordot((x - heads.mean) / heads.std, heads.kernel, 1) + heads.bias


def _principal_axes(z: np.ndarray) -> np.ndarray:
    """An orthonormal basis [D,r] of the rows of z [n,D] in which z'z is diagonal, r = min(n, D). On the host."""
    if len(z) < z.shape[1]:
        span = np.linalg.qr(z.T)[0]
        return span @ _principal_axes(z @ span)
    return np.linalg.eigh(z.T @ z)[1]


@jax.jit
def _minimise(
    z: jax.Array, y: jax.Array, known: jax.Array, penalties: jax.Array, tolerance: float, limit: int = 1000
) -> tuple[jax.Array, jax.Array, Any, jax.Array]:
    """Accelerated gradient descent (Nesterov; restarts by O'Donoghue and Candes, arXiv 1204.3982), all heads at once.

    Along the principal axes the logistic loss is bounded by a quadratic with the diagonal z'z / 4n + penalty (Boehning
    and Lindsay 1988). Measured in its units the step 1 is safe and nearly Newton's, so no line search is needed, and
    some hundred steps of two matrix products solve every head. (optax.lbfgs: 20 s under vmap where this takes 2;
    on the sum of the heads its line search stalls in float32.)
    """
    n = known.sum(0)
    share = len(z) / n
    prevalence = (y * known).sum(0) / n
    unit = 1 / jnp.sqrt(jnp.mean(z * z, 0)[:, None, None] * share / 4 + penalties[:, None])  # [r,R,L]
    bias_unit = 2 / jnp.sqrt(share)
    shape = unit.shape

    def gradient(u: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w = u[0] * unit
        logit = (z @ w.reshape(len(w), -1)).reshape(-1, *shape[1:]) + u[1] * bias_unit
        error = known[:, None] * (jax.nn.sigmoid(logit) - y[:, None]) / n
        slope = (z.T @ error.reshape(len(z), -1)).reshape(shape)
        return unit * (slope + penalties[:, None] * w), bias_unit * error.sum(0)

    def dot(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (a[0] * b[0]).sum(0) + a[1] * b[1]  # [R,L]

    def step(carry: Any) -> Any:
        i, u, ahead, momentum, _ = carry
        g = gradient(ahead)
        new = jax.tree.map(jnp.subtract, ahead, g)
        moved = jax.tree.map(jnp.subtract, new, u)
        momentum = jnp.where(dot(g, moved) > 0, 1.0, momentum)  # uphill: forget the momentum of this head
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = jax.tree.map(lambda a, m: a + (momentum - 1) / following * m, new, moved)
        return i + 1, new, ahead, following, jnp.sqrt(dot(g, g))

    start = jnp.zeros(shape), jnp.tile(jnp.log(prevalence / (1 - prevalence)) / bias_unit, (shape[1], 1))
    ones = jnp.ones(shape[1:])
    steps, u, _, _, left = jax.lax.while_loop(
        lambda carry: (carry[0] < limit) & (carry[4].max() > tolerance), step, (0, start, start, ones, ones)
    )
    return u[0] * unit, u[1] * bias_unit, steps, left.max()
