"""Learns from labels and columns of the data: labels, classes, numbers or ordered levels from one feature.

    dict(term='supervised', of='student/image/crop/cls>classifier')                    all labels of the data
    dict(…, labels=['effusion', 'nodule'], policy=dict(uncertain='negative'), weights='balanced')
    dict(…, classes='sex')                              one of the words of a column, with columns=dict(sex=None)
    dict(…, classes=['normal', 'bacteria', 'virus'])    labels that exclude each other
    dict(…, numbers='age', error='huber')               a column of numbers
    dict(…, ordered='grade', levels=['none', 'mild', 'severe'])
    dict(term='supervised', of='student/decoder/crop/cells>classifier', structures='all')     where structures are

The head, `heads=dict(classifier=dict(head='linear', bias=True))`, gets its number of outputs from the term. With the
losses l of medjax/objectives/tasks.py and the targets t whose value is known:

    loss = mean over all known t_bo, rows b, crops v and outputs o of  l( output_bvo, t_bo )

Under CutMix (`cutmix` of the view) a crop shows two rows, and each element above has the weight of the row's share of
the pixels: with the partner's targets t', a l(output, t) + (1-a) l(output, t') as in arXiv 1905.04899. A target that is
not known has no weight.

`structures` are those that masks of the data show. The feature has one element for each cell of a crop, and the target
of a cell is the share t of it that the structure covers; the box and the flip of the crop are those of the image. With
the outputs s, and with weights w, the share of a cell that lies on the image:

    loss = mean over rows, crops, cells and structures, weighted by w, of log(1 + exp(s)) - t s

Only rows with a mask that may show the structure count.

`share` uses the targets of some patients only. The draw depends on the patient's key and on `seed` alone, so it is the
same in every epoch and on any number of devices, and the patients of a small share belong to those of a larger one.
`start` is the loss of the best constant outputs for the targets of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.data.train_records import TrainRecords
from medjax.errors import UserError
from medjax.objectives import task_data, task_options
from medjax.objectives.features import Feature, parse
from medjax.objectives.tasks import Structures, Task
from medjax.objectives.terms import Prediction, Term, TermContext, TermInputs, TermOutput
from medjax.types import is_number, is_whole
from medjax.views import cutmix


def build(
    context: TermContext,
    of: str,
    labels: Sequence[str] | None = None,
    classes: str | Sequence[str] | None = None,
    numbers: str | Sequence[str] | None = None,
    ordered: str | None = None,
    structures: str | Sequence[str] | None = None,
    policy: Mapping[str, Any] | None = None,
    weights: str | Sequence[Any] | Mapping[str, Any] | None = None,
    focal: float | None = None,
    smoothing: float | None = None,
    levels: Sequence[Any] | None = None,
    error: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    share: float = 1.0,
    seed: int = 0,
) -> Term:
    """The term `supervised` of a config.

    of         a feature that ends in a head with O outputs: [B,V,O]; for structures the cells [B,V,h,w,O] of a decoder
               or the patches [B,V,N,O] of an encoder
    labels     names of labels, each predicted by itself; None, without any of the next four: all labels of the data
    classes    a column of words, or labels that exclude each other: a row then counts if exactly one is present
    numbers    a column of numbers, or several
    ordered    a column of ordered levels
    structures names of structures in the masks of the data, or 'all'; no other option but share and seed belongs to it
    policy     of labels: the targets of uncertain, blank and conflicting ones, see label_policy.py; None: they are
               ignored
    weights    of classes: 'balanced' (from the train split), a dict by name, or a list by output; of labels and levels
               [weight of absent, weight of present], or the weight of present
    focal      gamma of the focal loss (arXiv 1708.02002); None: 0
    smoothing  of labels, classes and levels (arXiv 1512.00567): the part of a target that is spread evenly; None: 0
    levels     of `ordered`, the lowest first; None: the numbers of the train split
    error      of `numbers`: 'mse', 'mae' or 'huber'; None: 'mse'
    mean, std  of `numbers`, one or one for each column; None: those of the train split
    share      the share of the patients whose targets are used
    seed       of the draw of these patients
    """
    options = dict(
        labels=labels, classes=classes, numbers=numbers, ordered=ordered, structures=structures, policy=policy,
        weights=weights, focal=focal, smoothing=smoothing, levels=levels, error=error, mean=mean, std=std,
    )  # fmt: skip
    _check_share(context, share, seed)
    task = task_options.task(context, options, stand_ins=context.labels is None)
    dense = isinstance(task, Structures)
    feature = context.feature(of, 'of', per_row=dense, outputs=len(task.names), mixes=not dense)
    if feature.network != 'student':
        raise UserError(f'{context.where}.of: {of!r} has no gradient; name the feature of the student')
    width = context.width(of)
    if width != len(task.names) and context.labels is not None:
        raise UserError(
            f'{context.where}.of: {of!r} has {width} numbers and the term predicts {len(task.names)} outputs; end it '
            "in a head of its own, …>classifier, with heads=dict(classifier=dict(head='linear', bias=True)) and no "
            '`out`, which the term knows'
        )
    return (OfCells if dense else Supervised)(context, feature, task, float(share), seed)


def from_data(
    context: TermContext,
    of: str,
    records: Callable[[str], TrainRecords],
    share: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """The options that the train splits decide; `records` gives those behind a view."""
    _check_share(context, share, seed)
    train = records(parse(of, f'{context.where}.of').view)
    return task_data.from_data(context, options, train, is_used(train.patients(), share, seed))


@dataclasses.dataclass(frozen=True, eq=False)
class Supervised(Term):
    """The term `supervised`; see the top of this file."""

    of: Feature
    task: Task
    share: float
    seed: int

    def loss(self, x: TermInputs) -> TermOutput:
        outputs, present = x.feature(self.of, 'BVD'), x.present(self.of)
        shown = [(x, present.astype(jnp.float32))]
        if (partners := x.partners(self.of.view)) is not None:
            own = x.views[self.of.view].meta[cutmix.SHARE]
            shown = [(x, present * own), (partners, present * (1 - own))]
        values: list[Array] = []
        counts: list[Array] = []
        loss = jnp.zeros(())
        for rows, weight in shown:
            value, known = self.task.targets(rows, self.of)
            known &= is_used(rows.views[self.of.view].meta['key/patient'], self.share, self.seed)[:, None]
            values.append(value)
            counts.append(weight[..., None] * known[:, None])  # [B,V,O] or [B,V,1]
            loss += (counts[-1] * self.task.losses(outputs, value[:, None])).sum()
        count = jnp.stack(counts)
        total = jnp.where(count.any(), count.sum(), 1)
        start = self.task.start(_beside(values), _beside([one.sum(1) for one in counts])) / total
        metrics = {'rows': count.any((0, 2, 3)).sum(), 'targets': count.sum()}
        return TermOutput(loss / total, metrics, start)

    @property
    def prediction(self) -> Prediction:
        return Prediction(self.of, len(self.task.names), self.task.described())

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return 16 * len(self.task.names) + 64  # sums over rows for `start`, and single numbers


@dataclasses.dataclass(frozen=True, eq=False)
class OfCells(Supervised):
    """The term `supervised` of structures. The cells of a row become sums in the micro-batch of the row."""

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        outputs = self.on_grid(x)  # [B,V,h,w,O]
        share, on_image, known = x.cells(self.of, self.task.names, outputs.shape[2:4])
        used = is_used(x.views[self.of.view].meta['key/patient'], self.share, self.seed)
        there = x.present(self.of)[:, :, None, None] * on_image
        count = there[..., None] * (known & used[:, None])[:, None, None, None]
        outputs = jnp.where(count > 0, outputs, 0.0)  # so that no number of a row that does not count matters
        sums = dict(losses=count * self.task.losses(outputs, share), covered=count * share, count=count)
        return {name: one.sum((1, 2, 3)) for name, one in sums.items()}

    def loss(self, x: TermInputs) -> TermOutput:
        count = x.per_row['count']  # [B,O]
        total = jnp.where(count.any(), count.sum(), 1)
        value = x.per_row['covered'] / jnp.where(count > 0, count, 1)
        metrics = {'rows': (count > 0).any(1).sum(), 'targets': count.sum()}
        return TermOutput(x.per_row['losses'].sum() / total, metrics, self.task.start(value, count) / total)

    def on_grid(self, x: TermInputs) -> Array:
        """The outputs in the rows and columns of cells: float32 [B,V,h,w,O]."""
        outputs, where = x.features[self.of.name], f'{self.context.where}.of: {self.of.name!r}'
        if outputs.ndim == 5:
            return outputs
        tower = self.context.towers[self.of.tower]
        if outputs.ndim != 4 or tower.sees != 'image' or tower.reads:
            raise UserError(
                f'{where} has the shape {list(outputs.shape)}, and structures are learned from the patches of an '
                'encoder of images or from the cells of a decoder: student/image/crop/patches>classifier, or '
                'student/decoder/crop/cells>classifier'
            )
        grid = tower.grid(x.views[self.of.view].image.shape[2:4])
        if outputs.shape[2] != grid[0] * grid[1]:
            raise UserError(
                f'{where} has {outputs.shape[2]} patches of {grid[0]} x {grid[1]}; name a view whose mask drops none, '
                'and no @mask'
            )
        return outputs.reshape(*outputs.shape[:2], *grid, -1)

    @property
    def structures(self) -> Mapping[str, tuple[str, ...]]:
        return {self.of.view: self.task.names}


def _beside(arrays: Sequence[Array]) -> Array:
    """Arrays [B,O] as the rows of one array, those of one row of the batch next to each other: none changes device."""
    return jnp.stack(arrays, 1).reshape(-1, arrays[0].shape[-1])


def is_used(patients: Any, share: float, seed: int) -> Any:
    """uint32 [n,2], the keys of patients -> bool [n]: a fixed random share of them, of numpy or of jax.

    Each patient is in or out by itself: the key and the seed go through the last step of MurmurHash3, which makes every
    bit of its result depend on every bit of its input.
    """
    x = patients[:, 0] ^ _mixed(patients[:, 1] ^ _mixed(np.full(1, seed, np.uint32)))
    return _mixed(x) <= np.uint32(max(np.ceil(share * 2**32) - 1, 0))


def _mixed(x: Any) -> Any:
    """uint32 [n] -> uint32 [n], one to one."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x


def _check_share(context: TermContext, share: Any, seed: Any) -> None:
    if not is_number(share) or not 0 < share <= 1:
        raise UserError(
            f'{context.where}.share={share!r}: must be above 0 and at most 1; .1 is a tenth of the patients'
        )
    if not is_whole(seed) or not 0 <= seed < 2**32:
        raise UserError(f'{context.where}.seed={seed!r}: must be a whole number from 0 to 2**32 - 1')
