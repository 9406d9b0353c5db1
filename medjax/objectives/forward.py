"""One forward run of a recipe: every distinct pass of a tower once, and its outputs through heads, as features.

A pass of the student moves running statistics of batch norms, which the next pass reads. So passes have an order, and
`Forward` holds the statistics as they stand after the passes that are done.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError, suggest
from medjax.models import passes
from medjax.models.passes import Pass
from medjax.objectives.checks import HIDDEN
from medjax.objectives.features import Feature
from medjax.objectives.terms import Networks
from medjax.objectives.trees import at_mask, weight_at_mask
from medjax.types import Input, Masks, Tree, Views


@dataclasses.dataclass
class Forward:
    """The passes of one call of `Objective.features`, and the statistics that they move."""

    declared: Mapping[str, Feature]  # every feature that a term reads, by name
    passes: Mapping[str, Pass]  # the pass of each of them
    wanted: Mapping[Pass, frozenset[str]]  # the costly outputs of each pass that towers over it need
    networks: Networks
    stats: Tree  # of the student
    views: Views
    masks: Masks
    key: Array
    outputs: dict[Pass, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    after_heads: dict[tuple, Array] = dataclasses.field(default_factory=dict)

    def run(self) -> None:
        """Runs every pass once."""
        self.outputs = passes.run(self.passes.values(), self.apply, self.views, self.masks)

    def apply(self, one: Pass, inputs: tuple[Input | None, ...]) -> Mapping[str, Any]:
        """One pass: its tower with the parameters of its network. The student's statistics move."""
        declared = self.declared.items()
        try:
            outputs = self.networks.towers[one.tower].apply(
                self.networks.trees[one.network]['towers'][one.tower],
                *inputs,
                train=one.network == 'student',
                key=jax.random.fold_in(self.key, zlib.crc32(one.name.encode())),
                rows_per_group=self.networks.rows_per_group,
                want=self.wanted[one] | {f.output for name, f in declared if self.passes[name] == one},
            )
        except UserError as error:  # the tower knows what is wrong, and not for which feature it runs
            reading = (name for name, last in self.passes.items() if one in passes.ordered([last]))
            raise UserError(f'feature {next(reading, one.name)!r}: {error}') from None
        for name in sorted(self.wanted[one]):
            if name not in outputs:
                raise UserError(
                    f'towers.{one.tower}: a tower that reads it wants its output {name!r}, which it does not give'
                    f'{suggest(name, [name for name in outputs if name not in HIDDEN])}'
                )
        if 'stats' in outputs:
            self.move('towers', one.tower, outputs['stats'])
        return outputs

    def move(self, kind: str, name: str, stats: Tree) -> None:
        """New running statistics of a tower or a head of the student, which its next pass reads."""
        self.stats = {**self.stats, kind: {**self.stats[kind], name: stats}}
        student = self.networks.trees['student']
        module = {**student[kind][name], 'stats': stats}
        trees = {**self.networks.trees, 'student': {**student, kind: {**student[kind], name: module}}}
        self.networks = dataclasses.replace(self.networks, trees=trees)

    def feature(self, f: Feature) -> Array:
        """One output of a pass, at the positions of a mask and through heads where the name says so."""
        one = self.passes[f.name]
        outputs = self.outputs[one]
        if f.output not in outputs:
            names = [name for name in outputs if name not in HIDDEN]
            raise UserError(f'feature {f.name!r}: there is no output {f.output!r}{suggest(f.output, names)}')
        return self.through_heads(one, f, outputs[f.output], outputs['present'], f.heads)

    def through_heads(self, one: Pass, f: Feature, x: Array, present: Array, heads: tuple[str, ...]) -> Array:
        """`x` at the mask of a feature and through some of its heads. Features share the first heads of a chain."""
        done = _head_key(one, f, heads)
        if done not in self.after_heads:
            if heads and self.networks.heads[heads[-1]].together:
                self.run_together(heads[-1], f.network)
            else:
                self.after_heads[done] = self._through_last_head(one, f, x, present, heads)
        return self.after_heads[done]

    def run_together(self, name: str, network: str) -> None:
        """Runs a head once on all features of a network that name it, as one batch."""
        keys: list[tuple] = []
        inputs: list[Array] = []
        here: list[Array] = []
        for feature in self.declared.values():
            if feature.network != network or name not in feature.heads:
                continue
            one, heads = self.passes[feature.name], feature.heads[: feature.heads.index(name) + 1]
            key, outputs = _head_key(one, feature, heads), self.outputs[one]
            if key in keys:
                continue
            x = self.through_heads(one, feature, outputs[feature.output], outputs['present'], heads[:-1])
            if x.ndim != 3 or (inputs and len(x) != len(inputs[0])):
                raise UserError(
                    f'feature {feature.name!r}: the features of a head with together=True are vectors of crops of one '
                    'part of the batch, as cls'
                )
            keys, inputs, here = [*keys, key], [*inputs, x], [*here, outputs['present']]
        x, present = jnp.concatenate(inputs, axis=1), jnp.concatenate(here, axis=1)
        if network == 'student':
            y, stats = self.networks.run_head(name, x, network, present, train=True)
            self.move('heads', name, stats)
        else:
            y = self.networks.run_head(name, x, network, present)
        ends = np.cumsum([part.shape[1] for part in inputs])[:-1]
        self.after_heads |= dict(zip(keys, jnp.split(y, ends, axis=1), strict=True))

    def _through_last_head(self, one: Pass, f: Feature, x: Array, present: Array, heads: tuple[str, ...]) -> Array:
        if not heads:
            if f.at and not self.networks.towers[one.tower].reads and _drops(one, self.masks):
                raise UserError(
                    f'feature {f.name!r}: the tower reads only the tokens that its mask keeps, so there are none at '
                    f'the positions of {f.at!r}; leave out @{f.at}'
                )
            try:
                return at_mask(x, self.masks[f.at_mask]) if f.at else x
            except UserError as error:
                raise UserError(f'feature {f.name!r}: {error}') from None
        before = self.through_heads(one, f, x, present, heads[:-1])
        name = heads[-1]
        if not self.networks.heads[name].batch_statistics:
            return self.networks.run_head(name, before, f.network)
        if not f.at and before.ndim > present.ndim + 1 and self.padded(one):
            raise UserError(
                f'feature {f.name!r}: the head {name!r} normalises by the statistics of the batch, and padding would '
                f'count among these tokens; name the tokens of a mask, as {f.output}@mask>{name}'
            )
        here = weight_at_mask(present, self.masks[f.at_mask]) > 0 if f.at else present
        here = jnp.broadcast_to(jnp.expand_dims(here, tuple(range(here.ndim, before.ndim - 1))), before.shape[:-1])
        if f.network != 'student':
            return self.networks.run_head(name, before, f.network, here)
        y, stats = self.networks.run_head(name, before, f.network, here, train=True)
        self.move('heads', name, stats)
        return y

    def padded(self, one: Pass) -> bool:
        """Whether some tokens of a pass are padding: those of texts, and of contexts of different lengths."""
        masks = [self.masks[source.masked_view] for source in one.views if source.mask]
        texts = any(self.views[source.view].valid is not None for source in one.views)
        return texts or any(mask.length is not None for mask in masks)


def _head_key(one: Pass, f: Feature, heads: tuple[str, ...]) -> tuple:
    """What the result of some heads depends on."""
    return one, f.output, f.at_mask if f.at else None, heads


def _drops(one: Pass, masks: Masks) -> bool:
    return any(source.mask and masks[source.masked_view].mode == 'drop' for source in one.views)
