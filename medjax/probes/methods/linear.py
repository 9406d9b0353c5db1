"""The linear probe: fits logistic regressions on frozen features, a whole grid of them at once.

As in DINOv2 (arXiv 2304.07193), validation chooses from a grid: the CLS of the last {1, 4} blocks, {without, with} the
mean patch token, and the strength of regularisation. DINOv2 trains its classifiers by SGD over images. Here each
regression is fitted to its optimum on cached features. For each label, over its n records with a known label
(`policy.known`), with standardised features x:

    minimise  1/n sum log(1 + exp(-s (w.x + b)))  +  penalty/2 |w|^2,      s = 1 for positives, -1 for negatives

This is scikit-learn's LogisticRegression with C = 1 / (penalty n).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medjax.probes import policy
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result, Scores, label_requirements, mean_auroc, run_label_probe

name, requirements = 'linear', label_requirements
PENALTIES = tuple(10.0 ** (e / 2) for e in range(2, -9, -1))  # 10 … 1e-4 in half decades
THRESHOLD = 0.0  # in log-odds: probability .5


class Regressions(NamedTuple):
    """Logistic regressions for R penalties and L labels on one feature set.

    log-odds = (x - mean) / std @ kernel + bias
    """

    mean: np.ndarray  # float32 [D]
    std: np.ndarray  # float32 [D]
    kernel: np.ndarray  # float32 [D,R,L]
    bias: np.ndarray  # float32 [R,L]
    steps: int  # of the minimiser
    residual: float  # the greatest preconditioned gradient norm after the last step


def run(inputs: ProbeInputs) -> Result:
    return run_label_probe(inputs, learn)


class Classifier(NamedTuple):
    """The regressions of one setting of the grid."""

    features: str  # name of the feature set
    regressions: Regressions
    number: int  # of the penalty
    chosen: dict[str, Any]
    details: dict[str, Any]

    def log_odds(self, split: SplitFeatures) -> np.ndarray:
        """float32 [n,L]."""
        return log_odds(self.regressions, feature_sets(split)[self.features])[:, self.number]


def learn(train: SplitFeatures, val: SplitFeatures, test: SplitFeatures, seed: int) -> Scores:
    """Fits the grid on train, chooses on val, scores test in log-odds."""
    one = choose(train, val)
    return Scores(one.log_odds(test), one.log_odds(val), THRESHOLD, one.chosen, {}, one.details, 'log-odds')


def choose(train: SplitFeatures, val: SplitFeatures, penalties: tuple[float, ...] = PENALTIES) -> Classifier:
    """Fits the grid on train and chooses one entry for all labels by mean AUROC on val.

    Of equally good entries the first is chosen: fewer features, then the stronger penalty.
    """
    grid: list[dict[str, Any]] = []
    best: tuple[float, int, Regressions] | None = None
    for features, x in feature_sets(train).items():
        regressions = fit(x, train.labels, penalties)
        val_scores = log_odds(regressions, feature_sets(val)[features])
        for r, penalty in enumerate(penalties):
            auroc = mean_auroc(val_scores[:, r], val.labels)
            grid.append(dict(features=features, penalty=penalty, validation_auroc=auroc))
            if best is None or (auroc or 0.0) > best[0]:
                best, entry = (auroc or 0.0, r, regressions), grid[-1]
    assert best is not None
    _, r, regressions = best
    chosen = dict(entry, by='mean AUROC over labels on validation', scores='log-odds')
    details = dict(grid=grid, steps=regressions.steps, residual=regressions.residual)
    return Classifier(entry['features'], regressions, r, chosen, details)


def feature_sets(split: SplitFeatures) -> dict[str, np.ndarray]:
    """The feature sets of the grid, each [n,D]."""
    if split.patches is None:
        return {'pixels': split.cls[:, -1]}
    sets = {'cls of the last block': split.cls[:, -1]}
    if split.cls.shape[1] > 1:
        sets[f'cls of the last {split.cls.shape[1]} blocks'] = split.cls.reshape(len(split.cls), -1)
    return sets | {f'{name} + mean patch': np.concatenate([x, split.patches], 1) for name, x in sets.items()}


def fit(x: np.ndarray, labels: np.ndarray, penalties: tuple[float, ...], tolerance: float = 1e-5) -> Regressions:
    """Fits the regressions of all penalties and labels to features [n,D] and labels int8 [n,L].

    A label is fitted on the records with a known value of it. Each label needs a positive and a negative record.
    """
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    z = x - mean
    std = np.sqrt(np.einsum('nd,nd->d', z, z) / len(z))
    std = np.where(std > 1e-6 * np.abs(mean), std, 1.0).astype(np.float32)  # a constant feature stays at 0
    known = policy.known(labels)  # drops uncertain, blank and conflicting labels from the fit
    z = (z / std).astype(np.float32)
    basis = _principal_axes(z)
    with jax.default_matmul_precision('highest'):
        w, b, steps, residual = minimise(
            z @ basis, (labels == 1).astype(np.float32), known.astype(np.float32), np.float32(penalties), tolerance
        )
    return Regressions(mean, std, np.tensordot(basis, np.asarray(w), 1), np.asarray(b), int(steps), float(residual))


def log_odds(regressions: Regressions, x: np.ndarray) -> np.ndarray:
    """Features [n,D] -> float32 [n,R,L]."""
    return np.tensordot((x - regressions.mean) / regressions.std, regressions.kernel, 1) + regressions.bias


def _principal_axes(z: np.ndarray) -> np.ndarray:
    """An orthonormal basis [D,r] of the rows of z [n,D] in which z'z is diagonal, r = min(n, D). On the host."""
    if len(z) < z.shape[1]:
        span = np.linalg.qr(z.T)[0]
        return span @ _principal_axes(z @ span)
    return np.linalg.eigh(z.T @ z)[1]


_Point = tuple[jax.Array, jax.Array]  # weights [r,R,L] and biases [R,L] of all regressions, in the units of `_Loss`


class _Loss(NamedTuple):
    """The loss of all regressions on n records with r features."""

    z: jax.Array  # float32 [n,r]: the features
    y: jax.Array  # float32 [n,L]: 1 for positives
    known: jax.Array  # float32 [n,L]: 1 for known labels
    penalties: jax.Array  # float32 [R]
    counts: jax.Array  # float32 [L]: number of known labels
    unit: jax.Array  # float32 [r,R,L]: unit of the weights
    bias_unit: jax.Array  # float32 [L]: unit of the biases

    def gradient(self, point: _Point) -> _Point:
        """The gradient at a point, in the same units."""
        w = point[0] * self.unit
        logit = (self.z @ w.reshape(len(w), -1)).reshape(-1, *self.unit.shape[1:]) + point[1] * self.bias_unit
        error = self.known[:, None] * (jax.nn.sigmoid(logit) - self.y[:, None]) / self.counts
        slope = (self.z.T @ error.reshape(len(self.z), -1)).reshape(self.unit.shape)
        return self.unit * (slope + self.penalties[:, None] * w), self.bias_unit * error.sum(0)


def _dot(a: _Point, b: _Point) -> jax.Array:
    """[R,L]: the inner product of two points or gradients, for each regression."""
    return (a[0] * b[0]).sum(0) + a[1] * b[1]


@jax.jit
def minimise(
    z: jax.Array, y: jax.Array, known: jax.Array, penalties: jax.Array, tolerance: float, limit: int = 1000
) -> tuple[jax.Array, jax.Array, Any, jax.Array]:
    """Minimises all regressions at once by accelerated gradient descent.

    It is Nesterov's method with the restarts of O'Donoghue and Candes (arXiv 1204.3982). Along the principal axes a
    quadratic with the diagonal z'z / 4n + penalty bounds the logistic loss (Boehning and Lindsay 1988). In the units of
    this quadratic a step of 1 is safe and nearly Newton's. So no line search is needed, and some hundred steps of two
    matrix products solve every regression. (Measured: optax.lbfgs takes 20 s under vmap where this method takes 2 s. On
    the sum of all losses its line search stalls in float32.)
    """
    n = known.sum(0)
    share = len(z) / n
    prevalence = (y * known).sum(0) / n
    unit = 1 / jnp.sqrt(jnp.mean(z * z, 0)[:, None, None] * share / 4 + penalties[:, None])  # [r,R,L]
    bias_unit = 2 / jnp.sqrt(share)
    loss = _Loss(z, y, known, penalties, n, unit, bias_unit)

    def step(carry: Any) -> Any:
        i, u, ahead, momentum, _ = carry
        g = loss.gradient(ahead)
        new = jax.tree.map(jnp.subtract, ahead, g)
        moved = jax.tree.map(jnp.subtract, new, u)
        momentum = jnp.where(_dot(g, moved) > 0, 1.0, momentum)  # uphill: restart the momentum of this regression
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = jax.tree.map(lambda a, m: a + (momentum - 1) / following * m, new, moved)
        return i + 1, new, ahead, following, jnp.sqrt(_dot(g, g))

    bias = jnp.log(prevalence / (1 - prevalence)) / bias_unit  # with weights of 0, it predicts the prevalence
    start = jnp.zeros(unit.shape), jnp.tile(bias, (len(penalties), 1))
    ones = jnp.ones(unit.shape[1:])
    steps, u, _, _, left = jax.lax.while_loop(
        lambda carry: (carry[0] < limit) & (carry[4].max() > tolerance), step, (0, start, start, ones, ones)
    )
    return u[0] * unit, u[1] * bias_unit, steps, left.max()
