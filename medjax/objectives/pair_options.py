"""The options of contrastive terms: what a config may give them, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.features import Feature
from medjax.objectives.positives import LABELS, Positives, positives
from medjax.objectives.schedules import POSITIVE, Schedule, schedule
from medjax.objectives.terms import TermContext
from medjax.plugins import call
from medjax.types import Tree, is_number, is_whole


class Scale(NamedTuple):
    """1 / temperature: from a schedule, a learned parameter `log_scale`, or that of another term.

    `start` is None without a learned scale. A learned scale starts there and stays between `low` and `high`.
    """

    schedule: Schedule | None  # of the temperature
    start: float | None
    low: float
    high: float
    of: str | None = None  # the term whose temperature this is

    def value(self, params: Tree, step: Array) -> Array:
        """The scale that belongs to this term."""
        return 1.0 / self.schedule(step) if self.start is None else jnp.exp(params['log_scale'])


class PairOptions(NamedTuple):
    """The fields of `PairLoss`, checked."""

    rows: Feature
    columns: Feature
    positives: Positives
    scale: Scale
    queue: int
    ring: bool


def pair_options(
    context: TermContext, rows: str, columns: str, kinds: Any, temperature: Any, queue: int, ring: bool
) -> PairOptions:
    """Checks the arguments that all contrastive terms take.

    rows, columns   features [B,V,d] and [B,W,d] of any towers: image and text, image and image, text and text
    kinds           the config's `positives`, see positives.py
    temperature     a number or any schedule; or dict(learned=.07, low=.01, high=100.) for a learned temperature that
                    starts at .07 and stays between .01 and 100; or dict(of='i2t') for that of the term 'i2t'
    queue           number of columns of past batches that rows are compared with as well (MoCo, arXiv 1911.05722)
    ring            visit the pairs in blocks around the devices: less memory, more and smaller messages
    """
    where = context.where
    row_feature, column_feature = context.feature(rows, 'rows'), context.feature(columns, 'columns')
    chosen = positives(kinds, context.total_steps, f'{where}.positives')
    _check_features(context, row_feature, column_feature, chosen)
    _check_queue(queue, ring, chosen, column_feature.network, where)
    scale = _scale(temperature, context.total_steps, f'{where}.temperature')
    options = PairOptions(row_feature, column_feature, chosen, scale, queue, bool(ring))
    for name in soft_features(row_feature, column_feature, chosen) or ():
        context.feature(name, 'positives')
    return options


def soft_features(rows: Feature, columns: Feature, chosen: Positives) -> tuple[str, str] | None:
    """The features whose similarities are the soft positives: those of rows and columns by the network that makes them.

    None if no network makes soft positives.
    """
    if chosen.soft in (None, LABELS):
        return None
    return rows.of(chosen.soft), columns.of(chosen.soft)


def _check_features(context: TermContext, rows: Feature, columns: Feature, chosen: Positives) -> None:
    for argument, feature in (('rows', rows), ('columns', columns)):
        if feature.at:
            raise UserError(
                f'{context.where}.{argument}: {feature.name!r} has several tokens a view; a pair needs one vector'
            )
    parts = [context.parts.get(feature.view) for feature in (rows, columns)]
    if 'identity' in chosen.kinds and parts[0] != parts[1]:
        raise UserError(
            f"{context.where}.positives: 'identity' pairs rows of one part, but {rows.view!r} shows {parts[0]!r} and "
            f"{columns.view!r} shows {parts[1]!r}; take 'study', 'text', 'label' or soft positives"
        )


def _check_queue(queue: int, ring: bool, chosen: Positives, network: str, where: str) -> None:
    """`network` gives the columns."""
    if not is_whole(queue) or queue < 0:
        raise UserError(f'{where}.queue={queue!r}: must be a whole number of columns, or 0 for no queue')
    if not queue:
        return
    if not chosen.kinds:
        raise UserError(f"{where}.queue: needs kinds of positives besides the soft ones, for example 'identity'")
    if chosen.soft == LABELS or (chosen.soft and chosen.soft != network):
        raise UserError(
            f'{where}.queue: soft positives with a queue come from the network that gives the columns, {network!r}, '
            f'not from {chosen.soft!r}'
        )
    if ring:
        raise UserError(f'{where}.queue: every device holds the whole queue, so ring=True saves no memory; omit one')


def _scale(temperature: Any, total_steps: int, where: str) -> Scale:
    if isinstance(temperature, Mapping) and 'of' in temperature:
        return call(shared_scale, temperature, where, where=where)
    if isinstance(temperature, Mapping) and 'rule' not in temperature:
        return call(learned_scale, temperature, where, where=where)
    return Scale(schedule(temperature, total_steps, where, POSITIVE), None, 0.0, 0.0)


def learned_scale(learned: float, low: float = 0.01, high: float = 100.0, *, where: str) -> Scale:
    """Checks dict(learned=…, low=…, high=…) of a config, which are temperatures."""
    if not all(map(is_number, (learned, low, high))) or not 0 < low <= learned <= high:
        raise UserError(f'{where}: needs 0 < low <= learned <= high, got {low!r}, {learned!r}, {high!r}')
    return Scale(None, 1 / learned, 1 / high, 1 / low)


def shared_scale(of: str, *, where: str) -> Scale:
    """Checks dict(of=…) of a config; `compose` checks that there is such a term."""
    if not isinstance(of, str):
        raise UserError(f"{where}.of={of!r}: must be the name of a term, as in dict(of='pair_softmax')")
    return Scale(None, None, 0.0, 0.0, of)
