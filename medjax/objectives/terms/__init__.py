"""Terms are the losses that a recipe adds up. Each term is a module that the config names.

`term='koleo'` in a config is the module `medjax.objectives.terms.koleo`. A name with a dot, 'mypkg.myterm', is a module
of the user. Its function `build(context, **config)` returns a `Term`. See docs/add_a_term.md.

The weight of a term acts in one place: `Objective.loss` in `medjax/objectives/compose.py` multiplies by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import Array

from medjax.objectives.features import Feature, parse
from medjax.types import Head, Masks, Metrics, Tree, Views


class TermContext(NamedTuple):
    """The facts of a recipe that a term may use when it is built."""

    where: str  # the config path that messages name, 'terms[0] (koleo)'
    total_steps: int
    rows_per_group: int
    heads: Mapping[str, Head] = {}  # the heads of the features that were declared so far
    parts: Mapping[str, str] = {}  # view -> the part of the batch that it shows
    width: Callable[[str], int] = lambda name: 0  # name of a declared feature -> the length of its last axis
    declare: Callable[[Feature], None] = lambda feature: None  # checks a feature against the recipe

    def feature(self, name: str, argument: str) -> Feature:
        """Declares that the term reads the feature `name`, the value of the config key `argument`.

        UserError if the name does not have the form of a feature, or if the recipe has no such feature.
        """
        feature = parse(name, f'{self.where}.{argument}')
        self.declare(feature)
        return feature


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """The heads with the parameters of the student and of the teachers, for terms that run a head themselves."""

    heads: Mapping[str, Head]
    params: Tree  # of the student
    teachers: Tree  # teacher -> its parameters

    def params_of(self, network: str) -> Tree:
        """The parameters of the student, or of a teacher without gradient."""
        return self.params if network == 'student' else jax.lax.stop_gradient(self.teachers[network])

    def head(self, name: str, x: Array, network: str) -> Array:
        return self.heads[name].apply(self.params_of(network)['heads'][name], x)

    def prototypes(self, name: str, z: Array, network: str) -> Array:
        """The logits of a head with prototypes, from its bottleneck z."""
        return self.heads[name].prototypes(self.params_of(network)['heads'][name], z)


@dataclasses.dataclass(frozen=True, eq=False)
class TermInputs:
    """The inputs of `Term.loss`."""

    params: Tree  # of the term itself
    state: Tree  # of the term itself
    features: Mapping[str, Array]  # by full name; those of teachers have no gradient
    views: Views
    masks: Masks
    networks: Networks
    step: Array
    key: Array | None  # a random key for this term alone

    def head(self, name: str, x: Array, network: str = 'student') -> Array:
        """The output of a head for `x`."""
        return self.networks.head(name, x, network)

    def prototypes(self, name: str, z: Array, network: str = 'student') -> Array:
        """The logits [...,K] of a head with prototypes, from its bottleneck z [...,d]."""
        return self.networks.prototypes(name, z, network)


class TermOutput(NamedTuple):
    """The result of `Term.loss`."""

    loss: Array  # a scalar, without the term's weight
    metrics: Metrics  # numbers to log; 'rows' is the number of rows that count
    start: Array | None = None  # the loss of uniform outputs, which health compares with; None if there is none
    carry: Any = None  # what `Term.update` receives


class Alignment(NamedTuple):
    """Two features that a term brings into one space. Exports list them, for image-text probes."""

    rows: Feature
    columns: Feature
    temperature: Callable[[Tree, Array], Array]  # (parameters of the term, step) -> temperature of the cosines


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """A function of features that gives one number.

    Subclasses define `needs` and `loss`. The other methods are optional.
    """

    context: TermContext

    @property
    def needs(self) -> tuple[str, ...]:
        """The full names of the features that the term reads. They decide which forward passes run."""
        raise NotImplementedError

    def loss(self, x: TermInputs) -> TermOutput:
        """The loss over the global batch, as the paper writes it. The compiler shards it."""
        raise NotImplementedError

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """Parameters and state of the term itself."""
        return {}, {}

    @property
    def axes(self) -> tuple[Tree, Tree]:
        """Trees like those of `init`, with a tuple of logical axis names (or None) for each array."""
        return {}, {}

    def update(self, state: Tree, carry: Any, step: Array) -> Tree:
        """The state after the optimizer step; `carry` is what `loss` returned."""
        return state

    def project(self, params: Tree) -> Tree:
        """The parameters after the optimizer step, for example clamped."""
        return params

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The number of array elements that devices exchange in one step; `shapes` are those of the features by name.

        The sharding tests compare this bound with the compiled program. 0 means nothing but the loss itself.
        """
        return 0

    @property
    def alignment(self) -> Alignment | None:
        """The two features that the term brings into one space; None if it brings none."""
        return None
