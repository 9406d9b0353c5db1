"""Measures the fits of probes on drawn features, beside scikit-learn, faiss and torch in the same run.

    python benchmarks/probe.py                        # the comparisons below
    python benchmarks/probe.py --cases logistic --labels 1
    python benchmarks/probe.py --cases nearest --queries 1000
    python benchmarks/probe.py --large                # 377,000 films x (4 blocks + mean patch) x 768, 14 labels
    python benchmarks/probe.py --large --labels 1 --widths 3072     # the four blocks alone, one label

logistic   the 45 strengths of the linear probe on 10,000 x 768 features, against scikit-learn's LogisticRegression
           (lbfgs, from the strongest penalty to the weakest, each from the solution before). It gets the loosest
           tolerance, in float32 or float64, with which all its objectives come within 1e-6 of the best known one,
           relatively. Ours are checked in the same way, in float64.
nearest    the 200 nearest of 100,000 features to each of 10,000, against faiss's flat index; compares the neighbours
grid       some steps of the 52 settings of DINOv2's linear grid on 10,000 x 4 blocks x 768, against torch as the
           original trains them: a module with one linear layer for each setting, one SGD
--large    the whole linear probe (four feature sets, 45 strengths) on features that lie on the disk: minutes, and the
           peak of the memory of its process. The features need 6.5 GB of the disk at --folder.

Both sides take turns, each once unmeasured before. It prints the median of the rounds with the lowest and the highest,
in seconds, and the ratio in each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, BLOCKS = 768, 4
FILMS = 377_000  # as MIMIC-CXR has
PREVALENCE = (0.17, 0.12, 0.1, 0.056, 0.05, 0.047, 0.04, 0.03, 0.025, 0.022, 0.02, 0.015, 0.012, 0.002)  # as of NIH's
HIDDEN = 256  # directions in which films differ
NEAR = 1e-6  # to the best objective, relatively


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cases', default='logistic,nearest,grid', help='(default: %(default)s)')
    parser.add_argument('--rows', type=int, default=10_000, help='of logistic and grid (default: %(default)s)')
    parser.add_argument('--labels', type=int, help='default: 3, of --large 14')
    parser.add_argument('--queries', type=int, default=10_000, help='of nearest (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=50, help='of grid (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--large', action='store_true')
    parser.add_argument('--films', type=int, default=FILMS, help='of --large (default: %(default)s)')
    parser.add_argument('--widths', default='768,1536,3072,3840', help='feature sets of --large (default: all four)')
    parser.add_argument('--folder', type=Path, help='for the features of --large (default: a temporary one)')
    parser.add_argument('--fit', type=Path, help=argparse.SUPPRESS)  # this process fits the features of --large
    options = parser.parse_args()
    options.labels = options.labels or (len(PREVALENCE) if options.large or options.fit else 3)
    widths = [int(width) for width in options.widths.split(',')]
    if options.fit:
        fit(options.fit, options.films, options.labels, widths)
    elif options.large:
        with tempfile.TemporaryDirectory(dir=options.folder) as place:
            draw(Path(place), options.films)
            given = [f'--films={options.films}', f'--labels={options.labels}', f'--widths={options.widths}']
            subprocess.run(
                [sys.executable, __file__, '--fit', place, *given], check=True
            )  # its peak is that of the fit
    else:
        cases: dict[str, Callable] = dict(logistic=logistic, nearest=nearest, grid=grid)
        for case in options.cases.split(','):
            cases[case](options)


def take_turns(title: str, sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Runs both sides in turns and prints their times; returns the last results."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    results = {}
    for turn in range(rounds + 1):  # the first is the warm-up
        for side in sides if turn % 2 else reversed(sides):
            begun = time.perf_counter()
            results[side] = sides[side]()
            if turn:
                seconds[side].append(time.perf_counter() - begun)
    ours, theirs = seconds.values()
    print(f'{title}, {rounds} rounds')
    for name, values in {**seconds, 'ratio': [b / a for a, b in zip(ours, theirs, strict=True)]}.items():
        print(f'  {name:14}{statistics.median(values):8.2f}  [{min(values):.2f}, {max(values):.2f}]', flush=True)
    return results


# Logistic regression.


def logistic(options: argparse.Namespace) -> None:
    from medjax.probes import logistic as ours
    from medjax.probes.methods.linear import STRENGTHS

    x, labels = Films(0).draw(options.rows, blocks=1)
    x, labels = x[:, 0], labels[:, : options.labels]
    mean, std = ours.moments(x)
    z = (x - mean) / std

    def medjaxs() -> np.ndarray:
        found = ours.fit(x, labels, STRENGTHS)
        return np.concatenate([found.kernel, found.bias[None]]).transpose(2, 1, 0)  # [L,R,D+1]

    first = objectives(z, labels, STRENGTHS, medjaxs())
    for kind, tolerance in ((k, 10.0**-t) for t in (4, 5, 6, 7) for k in ('float32', 'float64')):
        begun = time.perf_counter()
        solution = sklearns(z.astype(kind), labels, STRENGTHS, tolerance)
        seconds = time.perf_counter() - begun
        found = objectives(z, labels, STRENGTHS, solution)
        above = f'{excess(found, first):.1e} above the best'
        print(f'scikit-learn with {kind}, tol={tolerance:g}: {above}, {seconds:.0f} s', flush=True)
        if excess(found, first) <= NEAR:
            break
    numbers = z.astype(kind)
    sides = {
        'medjax': medjaxs,
        'scikit-learn': lambda: sklearns(numbers, labels, STRENGTHS, tolerance),
    }
    title = f'{len(STRENGTHS)} strengths, {options.labels} label(s), {options.rows:,} x {WIDTH}'
    results = take_turns(title, sides, options.rounds)
    values = {side: objectives(z, labels, STRENGTHS, found) for side, found in results.items()}
    for side, mine in values.items():
        worst = max(excess(mine, other) for other in values.values())
        print(f'  {side}: at most {worst:.1e} above the best objective')
        assert worst <= NEAR, side


def sklearns(z: np.ndarray, labels: np.ndarray, strengths: np.ndarray, tolerance: float) -> np.ndarray:
    """The regressions of scikit-learn, [L,R,D+1]."""
    from sklearn.linear_model import LogisticRegression

    found = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that it did not converge
        for y in labels.T:
            model = LogisticRegression(tol=tolerance, max_iter=10_000, warm_start=True)
            for strength in strengths:
                model.set_params(C=strength).fit(z, y)
                found.append(np.append(model.coef_[0], model.intercept_))
    return np.array(found).reshape(labels.shape[1], len(strengths), -1)


def objectives(z: np.ndarray, labels: np.ndarray, strengths: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[L,R], in float64: the mean loss of a record, and the penalty."""
    z, found = z.astype(np.float64), found.astype(np.float64)
    wrong = 1 - 2.0 * labels.T[..., None]  # [L,n,1]
    losses = [np.logaddexp(0, s * (z @ each[:, :-1].T + each[:, -1])).mean(0) for s, each in zip(wrong, found)]
    return np.array(losses) + (found[..., :-1] ** 2).sum(-1) / (2 * strengths * len(z))


def excess(values: np.ndarray, others: np.ndarray) -> float:
    """The greatest relative distance of objectives to the better of both."""
    best = np.minimum(values, others)
    return float(((values - best) / best).max())


# Nearest neighbours.


def nearest(options: argparse.Namespace, candidates: int = 100_000, k: int = 200) -> None:
    import faiss

    from medjax.probes import vectors

    films = Films(0)
    train = vectors.unit(films.draw(candidates, blocks=1)[0][:, 0])
    queries = vectors.unit(films.draw(options.queries, blocks=1)[0][:, 0])
    index = faiss.IndexFlatIP(WIDTH)
    index.add(train)
    sides = {'medjax': lambda: vectors.nearest(queries, train, k), 'faiss': lambda: index.search(queries, k)}
    title = f'the {k} nearest of {candidates:,} to each of {options.queries:,} x {WIDTH}'
    results = take_turns(title, sides, options.rounds)
    (ours, numbers), (theirs, others) = results['medjax'], results['faiss']
    assert np.abs(ours - theirs).max() < 1e-5
    same = np.mean([np.isin(a, b).mean() for a, b in zip(numbers, others, strict=True)])
    print(f'  the same neighbours: {same:.6%}; cosines differ by at most {np.abs(ours - theirs).max():.0e}')


# The grid of DINOv2.


def grid(options: argparse.Namespace) -> None:
    import torch

    from medjax.probes.encode import SplitFeatures
    from medjax.probes.methods import linear_sgd as ours

    x, labels = Films(0).draw(options.rows, BLOCKS + 1)
    labels = labels[:, : options.labels]
    split = SplitFeatures(x[:, :BLOCKS], x[:, BLOCKS], labels, np.arange(options.rows))
    sets = tuple(ours.feature_sets(split).values())
    cls, patches, targets = (torch.tensor(array) for array in (x[:, :BLOCKS], x[:, BLOCKS], labels.astype(np.float32)))

    class Classifier(torch.nn.Module):
        def __init__(self, blocks: int, mean_patch: bool) -> None:
            super().__init__()
            self.blocks, self.mean_patch = blocks, mean_patch
            self.linear = torch.nn.Linear((blocks + mean_patch) * WIDTH, options.labels)

        def forward(self, cls: Any, patches: Any) -> Any:
            parts = [cls[:, -i] for i in range(self.blocks, 0, -1)] + [patches] * self.mean_patch
            return self.linear(torch.cat(parts, -1))

    def theirs() -> None:
        modules = torch.nn.ModuleList(
            Classifier(blocks, mean_patch) for blocks in (1, 4) for mean_patch in (False, True) for _ in ours.RATES
        )
        groups = [dict(params=m.parameters(), lr=rate / 2) for m, rate in zip(modules, 4 * ours.RATES, strict=True)]
        optimizer = torch.optim.SGD(groups, momentum=ours.MOMENTUM, weight_decay=0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        for _ in range(options.steps):
            rows = torch.randint(options.rows, (ours.BATCH,))
            a, b, y = cls[rows], patches[rows], targets[rows]
            loss_of = torch.nn.functional.binary_cross_entropy_with_logits
            loss = sum(loss_of(m(a, b), y, reduction='sum') / ours.BATCH for m in modules)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    title = (
        f'{options.steps} steps of 52 settings, {options.labels} label(s), {options.rows:,} x {BLOCKS + 1} x {WIDTH}'
    )
    sides = dict(medjax=lambda: ours.fit([split], sets, ours.RATES, 0, options.steps), torch=theirs)
    take_turns(title, sides, options.rounds)


# The linear probe at the size of a large data set.


def draw(place: Path, films: int) -> None:
    """Writes the features of --large."""
    source, sizes = Films(0), dict(train=films, val=films // 40, test=films // 40)
    for split, n in sizes.items():
        arrays = {
            name: np.lib.format.open_memmap(place / f'{split}.{name}.npy', 'w+', dtype, (n, *shape))
            for name, dtype, shape in (
                ('cls', np.float32, (BLOCKS, WIDTH)),
                ('patches', np.float32, (WIDTH,)),
                ('labels', np.int8, (len(PREVALENCE),)),
            )
        }
        for start in range(0, n, 8192):
            rows = slice(start, min(start + 8192, n))
            x, labels = source.draw(rows.stop - start, BLOCKS + 1)
            arrays['cls'][rows], arrays['patches'][rows], arrays['labels'][rows] = x[:, :-1], x[:, -1], labels
    print(f'{films:,} films x {BLOCKS + 1} x {WIDTH} drawn', flush=True)


def fit(place: Path, films: int, labels: int, widths: list[int]) -> None:
    """Fits the linear probe on features on the disk; prints minutes and the peak of the memory."""
    from medjax.probes import features, logistic
    from medjax.probes.encode import SplitFeatures
    from medjax.probes.methods import linear

    def split(name: str, n: int) -> SplitFeatures:
        cls = features.stored(place / f'{name}.cls.npy', (n, BLOCKS, WIDTH), 'float32')
        patches = features.stored(place / f'{name}.patches.npy', (n, WIDTH), 'float32')
        return SplitFeatures(cls, patches, np.load(place / f'{name}.labels.npy')[:, :labels], np.arange(n))

    fit_one, all_sets = logistic.fit, linear.feature_sets

    def told(x: Any, *given: Any) -> logistic.Regressions:
        begun = time.perf_counter()
        found = fit_one(x, *given)
        minutes, left = (time.perf_counter() - begun) / 60, int((~found.converged).sum())
        print(
            f'  {x.shape[1]:5} features: {minutes:.1f} minutes, {found.passes} passes, {left} not converged', flush=True
        )
        return found

    logistic.fit = told
    linear.feature_sets = lambda split: {name: x for name, x in all_sets(split).items() if x.shape[1] in widths}
    begun = time.perf_counter()
    scores = linear.learn(split('train', films), split('val', films // 40), split('test', films // 40), 0)
    minutes = (time.perf_counter() - begun) / 60
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    peak = int(status['VmHWM'].split()[0]) / 2**20
    print(f'the linear probe, {labels} label(s): {minutes:.1f} minutes, {peak:.2f} GiB at the peak')
    print(f'chosen: {json.dumps(scores.chosen)}')


class Films:
    """Drawn features of films: blocks that resemble each other, few strong and many weak directions, heavy tails."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(99)
        scale = (np.exp(-np.arange(HIDDEN) / 60) + 0.02)[:, None]
        shared = rng.standard_normal((HIDDEN, WIDTH))
        own = rng.standard_normal((BLOCKS + 1, HIDDEN, WIDTH))
        self.mix = ((0.8 * shared + 0.6 * own) * scale).astype(np.float32)
        truth = rng.standard_normal((HIDDEN, len(PREVALENCE)))
        self.truth = (1.6 * truth / np.linalg.norm(truth, axis=0)).astype(np.float32)
        self.rng = np.random.default_rng(seed)
        logits = np.sort(self._hidden(200_000) @ self.truth + self.rng.logistic(size=(200_000, len(PREVALENCE))), 0)
        self.threshold = np.array([logits[int((1 - p) * len(logits)), j] for j, p in enumerate(PREVALENCE)])

    def draw(self, n: int, blocks: int) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 [n,blocks,WIDTH] and labels int8 [n,14] of new films."""
        hidden = self._hidden(n)
        x = np.stack([hidden @ self.mix[i] for i in range(blocks)], 1)
        x += 0.3 * self.rng.standard_normal(x.shape, np.float32)
        logits = hidden @ self.truth + self.rng.logistic(size=(n, len(PREVALENCE)))
        return x, (logits > self.threshold).astype(np.int8)

    def _hidden(self, n: int) -> np.ndarray:
        return self.rng.standard_t(6, (n, HIDDEN)).astype(np.float32)


if __name__ == '__main__':
    main()
