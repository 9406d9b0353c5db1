"""Similarity to the start: whether a run that began with given weights still finds the same images alike.

At its first step a run encodes the images of one global batch, as probes would, with the network that it exports. Later
it encodes the same images again and logs `similarity/start`: the correlation between the cosine similarities of all
pairs of images then and now. It is 1 at the start, and 0 when nothing is left of which images look alike. Turning or
scaling all features does not change it.

The features of the start lie in RUN/data/start_features.npz, so a resumed run goes on comparing with its true start.
The measurement is a program of its own. It reads the state and changes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax import files
from medjax.errors import UserError
from medjax.models import passes
from medjax.objectives.compose import Objective
from medjax.parallel import sharding
from medjax.types import Batch, Metrics, TrainState, Tree
from medjax.views.make import evaluation_view

FILE = 'data/start_features.npz'
# Steps between two measurements, at least. One costs a forward pass of the images: a tenth of a DINOv2 step, a third of
# a contrastive one, about two thirds of an MAE step. So the cost stays below 2 % of the time.
RHYTHM = 50
IMAGES = 1_024  # the first rows of the batch, 500,000 pairs; more would cost memory and say the same
SPREAD = 1e-5  # standard deviation of cosine similarities below which all images look alike; float32 rounds by 1e-7
FIELDS = ('image', 'image/extent', 'image/present')  # what is kept of a batch
NEW = 1e-4  # weights that differ from those of a new tower by more than this were given

Rows = Mapping[str, Array]  # the FIELDS of one part of a batch


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """The encoder that a run exports, for the images of one batch."""

    objective: Objective
    tower: str
    part: str  # of the batch; the tower sees its images
    config: Mapping[str, Any]

    @property
    def size(self) -> int:
        """The side of the images in pixels, as in the meta.json of an export."""
        return int(max(np.max(view['size']) for view in self.config['views'].values() if 'size' in view))

    def features(self, state: TrainState, rows: Rows) -> Array:
        """CLS features float32 [N,D] of the first images of a batch."""
        weights, micro_batches = self._weights(state), self.config['micro_batches']
        seen = dict(self.config['image']) | dict(fit=self.config['export'].get('fit', 'crop'))

        def encode(_: None, share: tuple[Array, Array]) -> tuple[None, Array]:
            images, extent = map(sharding.constrain_rows, share)
            x = evaluation_view(images, extent, self.size, seen)
            out = passes.encode_images(self.tower, self.objective.towers, weights, x)['cls'][:, 0]
            return None, sharding.constrain_rows(out.astype(jnp.float32))

        shown = rows['image'][:, 0], rows['image/extent'][:, 0]
        if micro_batches == 1:
            return encode(None, shown)[1][:IMAGES]
        # what fits into memory in a step fits here too
        cls = jax.lax.scan(encode, None, sharding.split_rows(shown, micro_batches))[1]
        return sharding.merge_rows(cls, micro_batches)[:IMAGES]

    def is_new(self, state: TrainState) -> Array:
        """Whether the tower has the weights of a new run, so that there is no start worth keeping; bool []."""
        key = jax.random.fold_in(jax.random.key(self.config['seed']), zlib.crc32(f'towers/{self.tower}'.encode()))
        new, ours = self.objective.towers[self.tower].init(key), self._weights(state)[self.tower]
        gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), ours, new)
        return jnp.stack(jax.tree.leaves(gaps)).max() <= NEW

    def _weights(self, state: TrainState) -> Tree:
        """The parameters of the towers that it runs, by name."""
        used = passes.ordered([passes.image_pass(self.tower, self.objective.towers)])
        paths = tuple(f'towers/{one.tower}' for one in used)
        return self.objective.export(state.params, state.aux, self.config['export']['network'], paths)['towers']


@dataclasses.dataclass(frozen=True, eq=False)
class Gauge:
    """Measures `similarity/start` in a run."""

    encoder: Encoder
    rows: Rows  # of the first batch
    start: Array  # features [N,D]

    def due(self, step: int) -> bool:
        lines = self.encoder.config['log']['every']
        return step % (lines * math.ceil(RHYTHM / lines)) == 0 or step == self.encoder.config['total_steps']

    def __call__(self, state: TrainState) -> Metrics:
        """The metric, still on the device: the host does not wait."""
        return {'similarity/start': self._measure(state, self.rows, self.start)}

    @functools.cached_property
    def _measure(self) -> Callable[[TrainState, Rows, Array], Array]:
        def measure(state: TrainState, rows: Rows, start: Array) -> Array:
            now = self.encoder.features(state, rows)
            return similarity(start, now, rows['image/present'][: len(now), 0])

        return jax.jit(measure, out_shardings=self.start.sharding)


def encoder_of(objective: Objective, config: Mapping[str, Any]) -> Encoder | None:
    """The encoder that probes of this run will use; None where its exports cannot encode images alone."""
    aligned = [side.tower for one in objective.alignments.values() for side in (one.rows, one.columns)]
    exported = config['export']['towers']
    named = [config['export'].get('encoder'), *aligned, 'image']
    tower = next((name for name in named if name in exported and objective.towers[name].sees == 'image'), None)
    if tower is None:
        return None
    try:
        passes.image_pass(tower, objective.towers)
    except UserError:  # it needs more than one image
        return None
    parts = [
        objective.views[source.view].part
        for one in objective.passes.values()
        if tower in {of.tower for of in passes.ordered([one])}
        for source in one.views
        if objective.views[source.view].sees == 'image'
    ]
    return Encoder(objective, tower, parts[0], config) if parts else None


def begin(
    objective: Objective,
    config: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    run: Path,
    state: TrainState,
    batch: Batch,
    is_main: bool,
) -> Gauge | None:
    """The gauge of a run at its first step, and its file. None where there is no start to compare with.

    `batch` is that of the first step. All processes call it; `is_main` writes.
    """
    if (encoder := encoder_of(objective, config)) is None:
        return None
    rows = {field: batch[encoder.part][field] for field in FIELDS}

    def measure(state: TrainState, rows: Rows) -> tuple[Array, Array, Array]:
        return encoder.features(state, rows), rows['image/present'][:IMAGES, 0], encoder.is_new(state)

    start, present, new = jax.jit(measure, out_shardings=sharding.replicated(mesh))(state, rows)
    kept = np.asarray(start)
    if bool(new) or spread(kept[np.asarray(present)]) < SPREAD:
        return None
    if is_main and run.is_dir():  # somebody may have deleted it meanwhile
        files.write_npz(run / FILE, cls=kept, step=np.asarray(state.step))
    return Gauge(encoder, rows, start)


def first_step(run: Path) -> int | None:
    """The step at which the comparison began; None for a run without one. UserError for a damaged file."""
    return None if (found := _read(run)) is None else found[0]


def resume(
    objective: Objective, config: Mapping[str, Any], mesh: jax.sharding.Mesh, run: Path, batch: Batch
) -> Gauge | None:
    """The gauge of a resumed run, with the batch of `first_step`."""
    encoder, found = encoder_of(objective, config), _read(run)
    if encoder is None or found is None:
        return None
    rows = {field: batch[encoder.part][field] for field in FIELDS}
    return Gauge(encoder, rows, jax.device_put(found[1], sharding.replicated(mesh)))


def _read(run: Path) -> tuple[int, np.ndarray] | None:
    """Step and features of the start."""
    if not (run / FILE).exists():
        return None
    try:
        with np.load(run / FILE, allow_pickle=False) as file:
            return int(file['step']), file['cls']
    except files.NPZ_ERRORS as error:
        raise UserError(
            f'{run / FILE} cannot be read ({error}); put it back, or delete it: then the run goes on without a '
            'comparison with its start'
        ) from None


def similarity(then: Array, now: Array, counts: Array) -> Array:
    """The correlation between the cosine similarities of all pairs of rows of two feature arrays, [N,D] and [N,E].

    `counts` bool [N]: the rows that count. 0 where all rows of `now` look alike.
    """
    pairs = jnp.triu(counts[:, None] & counts[None], 1)
    number = jnp.maximum(pairs.sum(), 1)

    def centred(x: Array) -> Array:
        cosines = _cosines(x, jnp)
        return jnp.where(pairs, cosines - jnp.where(pairs, cosines, 0.0).sum() / number, 0.0)

    a, b = centred(then), centred(now)
    spread_a, spread_b = (jnp.sqrt((x * x).sum() / number) for x in (a, b))
    correlation = (a * b).sum() / number / jnp.maximum(spread_a * spread_b, SPREAD**2)
    return jnp.where(spread_b < SPREAD, 0.0, jnp.clip(correlation, -1.0, 1.0))


def spread(features: np.ndarray) -> float:
    """The standard deviation of the cosine similarities of all pairs of rows; 0 for fewer than three rows."""
    if len(features) < 3:
        return 0.0
    return float(_cosines(features, np)[np.triu_indices(len(features), 1)].std())


def _cosines(x: Any, xp: Any) -> Any:
    """The cosine similarities of all pairs of rows [N,N]."""
    unit = x / xp.maximum(xp.sqrt((x * x).sum(1, keepdims=True)), 1e-12)
    return unit @ unit.T if xp is np else jnp.matmul(unit, unit.T, precision='highest')  # GPUs round to 10 bits else
