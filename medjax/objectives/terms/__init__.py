"""Terms: one module each, named as in the config; `build(context=…, **config)` gives a `Term`.

`term='koleo'` in a config is the module `medjax.objectives.terms.koleo`; a name with a dot, 'mypkg.myterm', is the
user's own. See docs/add_a_term.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax import Array

from medjax.types import Head, Metrics, Tree


class Context(NamedTuple):
    """What a term may know of its recipe when it is built."""

    where: str  # the config path that errors name
    total_steps: int
    rows_per_group: int
    heads: dict[str, Head]
    parts: Mapping[str, str] = {}  # view -> the part of the batch that it shows
    width: Callable[[str], int] = lambda name: (
        0
    )  # name of a feature -> the length of its last axis; once the recipe is checked


class Net(NamedTuple):
    """What a term may run inside the step, with the parameters of a copy ('student' or a name in `copies`)."""

    head: Callable[[str, Array, str], Array]  # name, x, copy
    prototypes: Callable[[str, Array, str], Array]  # head name, bottleneck, copy -> logits


class Term(NamedTuple):
    """A function of features to a scalar, as a record of pure functions.

    needs    the features it reads, by their full names
    loss     (params, aux, features, views, masks, net, key, step) -> (scalar, metrics, carry); metrics hold 'start',
             the value for uniform outputs, and 'rows'; `features` of other copies arrive without gradient
    init     key -> (params, aux) of its own;  axes: the same trees with tuples of logical axis names
    update   (aux, carry, step) -> aux, after the optimiser
    project  params -> params, after the optimiser (a clamp, unit norm)
    moves    (rows, features: name -> shape) -> how many elements it exchanges between devices in a step
    pair     of a term that brings two features into one space: their names, and (params, step) -> the temperature of
             their cosines; exports tell it to whoever compares the two
    """

    needs: tuple[str, ...]
    loss: Callable[..., tuple[Array, Metrics, Any]]
    moves: Callable[[int, dict[str, tuple[int, ...]]], int]
    init: Callable[[Array], tuple[Tree, Tree]] = lambda key: ({}, {})
    axes: tuple[Tree, Tree] = ({}, {})
    update: Callable[[Tree, Any, Array], Tree] = lambda aux, carry, step: aux
    project: Callable[[Tree], Tree] = lambda params: params
    pair: tuple[str, str, Callable[[Tree, Array], Array]] | None = None
