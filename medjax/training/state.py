"""The train state: made new on its shards, described without memory, and started from given weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError, suggest
from medjax.objectives.compose import Objective
from medjax.objectives.trees import pick, with_stats, without_stats
from medjax.parallel import sharding
from medjax.plugins import call
from medjax.training.optimizer import Optimizer, optimizer
from medjax.types import TrainState, Tree
from medjax.weights.load import load


def create(objective: Objective, optimizer: Optimizer, key: Array) -> TrainState:
    """The state at step 0. Run it under jit with the shardings of the state, so that no device holds it whole."""
    params, aux = objective.init(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), aux, key, {'in_a_row': zero, 'total': zero})


def make_optimizer(objective: Objective, cfg: Mapping[str, Any], total_steps: int) -> Optimizer:
    """The optimizer that `optim` of a config describes, for the parameters of this objective."""
    params, _ = jax.eval_shape(objective.init, jax.random.key(0))
    return call(optimizer, cfg, 'optim', params=params, total_steps=total_steps)


def abstract_state(objective: Objective, optimizer: Optimizer) -> TrainState:
    """Shapes and dtypes of the state; nothing is allocated."""
    return jax.eval_shape(lambda key: create(objective, optimizer, key), jax.random.key(0))


def state_shardings(objective: Objective, abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """A sharding for every array of the state: parameters, moments and teachers by their logical axes."""
    params_axes, aux_axes = objective.axes
    params = sharding.param_shardings(params_axes, abstract.params, mesh)
    replicated = sharding.replicated(mesh)

    def like_params(tree: Any) -> bool:
        return isinstance(tree, dict) and tree.keys() == abstract.params.keys()

    # moments are trees like the parameters; the count is a number
    opt = jax.tree.map(lambda tree: params if like_params(tree) else replicated, abstract.opt, is_leaf=like_params)
    aux = sharding.param_shardings(aux_axes, abstract.aux, mesh)
    return TrainState(replicated, params, opt, aux, replicated, dict.fromkeys(abstract.skipped, replicated))


def start_from(
    path: str, state: TrainState, take: Sequence[str] | None = None, network: str | None = None
) -> TrainState:
    """Loads weights of an export or of a public file, into the student and into every teacher that holds the module.

    With `network`, the weights of a teacher alone are loaded.

    take  the towers and heads to load, as 'towers/image', or 'towers/cxr=towers/image' if the recipe has another name
          for it than the file. None: every tower that both have.

    All other modules stay new, as the heads on DINOv2's public backbone must (Meta never released them). Batch-norm
    statistics are loaded with their tower.
    """
    where = 'init_from' if network is None else f'teachers.{network}.init_from'
    try:
        weights = load(path)
    except UserError as error:
        raise UserError(f'{where}.path: {error}') from None
    stats = state.aux['stats']
    networks = {'student': state.params} | state.aux['teachers']
    networks = networks if network is None else {network: networks[network]}
    modules: Tree = {kind: {} for kind in ('towers', 'heads')}
    for name, tree in networks.items():
        for kind, named in modules.items():
            named.update(with_stats(tree, stats[name]).get(kind, {}))
    ours = [f'{kind}/{name}' for kind, named in modules.items() for name in named]
    both = [module for module in weights.modules if module in ours]
    wanted: dict[str, str] = {module: module for module in both if module.startswith('towers/')}
    if take is not None:
        wanted = {item.partition('=')[0]: item.partition('=')[2] or item for item in take}
    if not wanted:
        raise UserError(
            f'{where}.path: {path} holds {", ".join(weights.modules)}, and no tower of this name; write which one to '
            f"take, take=['{ours[0]}={weights.modules[0]}']"
        )
    loaded: dict[str, Tree] = {}
    for module, theirs in wanted.items():
        if module not in ours:
            owner = 'recipe' if network is None else f'teacher {network!r}'
            raise UserError(f'{where}.take: the {owner} has no {module!r}{suggest(module, ours)}')
        if theirs not in weights.modules:
            raise UserError(f'{where}.take: {path} has no {theirs!r}{suggest(theirs, weights.modules)}')
        kind, name = module.split('/')
        try:
            loaded[module] = weights.read(theirs, modules[kind][name])
        except UserError as error:
            raise UserError(f'{where}: {error}') from None

    placed = {name: _with_loaded(tree, stats[name], loaded) for name, tree in networks.items()}
    teachers = {name: tree for name, (tree, _) in placed.items() if name != 'student'}
    aux = state.aux | {
        'teachers': state.aux['teachers'] | teachers,
        'stats': stats | {name: new_stats for name, (_, new_stats) in placed.items()},
    }
    return state._replace(params=placed['student'][0] if 'student' in placed else state.params, aux=aux)


def _with_loaded(tree: Tree, stats: Tree, loaded: Mapping[str, Tree]) -> tuple[Tree, Tree]:
    """Parameters and statistics of one network, with the loaded modules in place and on the same devices."""

    def put(old: Array, new: np.ndarray) -> Array:
        return jax.device_put(np.asarray(new, old.dtype), old.sharding)

    whole = {
        kind: {
            name: jax.tree.map(put, old, loaded[f'{kind}/{name}']) if f'{kind}/{name}' in loaded else old
            for name, old in modules.items()
        }
        for kind, modules in with_stats(tree, stats).items()
    }
    return without_stats(whole)


def copies_of_sources(objective: Objective, state: TrainState) -> TrainState:
    """The state in which each teacher that follows another teacher begins as its copy."""
    teachers, stats = dict(state.aux['teachers']), dict(state.aux['stats'])
    for name, teacher in objective.teachers.items():  # each after the one that it follows
        if teacher.source in teachers:
            for trees in (teachers, stats):
                trees[name] = jax.tree.map(jnp.copy, pick(trees[teacher.source], teacher.of))
    return state._replace(aux={**state.aux, 'teachers': teachers, 'stats': stats})
