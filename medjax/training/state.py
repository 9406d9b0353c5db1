"""The train state: made new on its shards, described without memory, and started from given weights."""

from __future__ import annotations

import dataclasses
import re
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
from medjax.types import Tower, TrainState, Tree
from medjax.weights import export, load
from medjax.weights.base import Weights, heads_of


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


@dataclasses.dataclass(frozen=True)
class Place:
    """A module, or a part of one: 'towers/text', 'towers/text/blocks', 'towers/text/blocks[6:12]'."""

    module: str
    path: str  # inside of the module; '' for all of it
    layers: slice | None  # of a stack of layers

    @classmethod
    def parse(cls, text: str, where: str) -> Place:
        match = re.fullmatch(r'(\w+/[^/\[\]]+)(?:/([^\[\]]+))?(?:\[(\d*):(\d*)\])?', text)
        if match is None:
            raise UserError(
                f"{where}: {text!r} is no place; write 'towers/image', or a part, 'towers/text/blocks[6:12]'"
            )
        module, path, first, last = match.groups()
        layers = None if first is None else slice(int(first or 0), int(last) if last else None)
        if layers and not path:
            raise UserError(f'{where}: {text!r}: layers are cut from a stack, such as {module}/blocks[{first}:{last}]')
        return cls(module, path or '', layers)

    def inside(self, name: str) -> str | None:
        """The rest of a parameter's path inside of this place; None if it lies elsewhere."""
        if not self.path:
            return name
        return name[len(self.path) + 1 :] if name.startswith(f'{self.path}/') else '' if name == self.path else None


def start_from(
    path: str,
    state: TrainState,
    towers: Mapping[str, Tower],
    take: Sequence[str] | None = None,
    network: str | None = None,
) -> tuple[TrainState, tuple[str, ...]]:
    """Loads weights of an export or of public files, into the student and into every teacher that holds the module.

    With `network`, the weights of a teacher alone are loaded. Returns the state, and sentences for the user.

    take  the towers and heads to load, as 'towers/image', or 'towers/cxr=towers/image' if the recipe has another name
          for it than the file. 'towers/fusion/blocks=towers/text/blocks[6:12]' takes a part: the parameters under a
          path, and some layers of a stack. Parameters of ours that the part does not have stay new, and the user is
          told which. None: every tower that both have.

    All other modules stay new, as the heads on DINOv2's public backbone must (Meta never released them). Batch-norm
    statistics are loaded with their tower.
    """
    where = 'init_from' if network is None else f'teachers.{network}.init_from'
    try:
        weights = load.open(path)
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
    wanted = [(module, module) for module in both if module.startswith('towers/')]
    if take is not None:
        wanted = [(item.partition('=')[0], item.partition('=')[2] or item) for item in take]
    if not wanted:
        raise UserError(
            f'{where}.path: {path} holds {", ".join(weights.modules)}, and no tower of this name; write which one to '
            f"take, take=['{ours[0]}={weights.modules[0]}']"
        )
    loaded: dict[str, dict[str, np.ndarray]] = {}
    notes = list(weights.notes)
    for target, source in wanted:
        to, of = (Place.parse(text, f'{where}.take') for text in (target, source))
        if to.layers is not None:
            raise UserError(f'{where}.take: {target!r}: only the side of the file can be cut into layers')
        if to.module not in ours:
            owner = 'recipe' if network is None else f'teacher {network!r}'
            raise UserError(f'{where}.take: the {owner} has no {to.module!r}{suggest(to.module, ours)}')
        if of.module not in weights.modules:
            raise UserError(f'{where}.take: {path} has no {of.module!r}{suggest(of.module, weights.modules)}')
        kind, name = to.module.split('/')
        tower = towers.get(name) if kind == 'towers' else None
        try:
            if to.path or of.path:
                part, told = _part(weights, to, of, modules[kind][name])
            else:
                wanted_here, new = _without_added(weights, of.module, modules[kind][name], tower)
                part = export.flatten(weights.read(of.module, wanted_here, tower))
                told = weights.check(of.module, tower) if tower is not None else ()
                if new:
                    told = (*told, f'{to.module}: {len(new)} arrays are added and new, such as {new[0]}')
        except UserError as error:
            raise UserError(f'{where}: {error}') from None
        loaded[to.module] = loaded.get(to.module, {}) | part
        notes += told

    placed = {name: _with_loaded(tree, stats[name], loaded) for name, tree in networks.items()}
    teachers = {name: tree for name, (tree, _) in placed.items() if name != 'student'}
    aux = state.aux | {
        'teachers': state.aux['teachers'] | teachers,
        'stats': stats | {name: new_stats for name, (_, new_stats) in placed.items()},
    }
    params = placed['student'][0] if 'student' in placed else state.params
    return state._replace(params=params, aux=aux), tuple(dict.fromkeys(notes))


def _without_added(weights: Weights, module: str, ours: Tree, tower: Tower | None) -> tuple[Tree, list[str]]:
    """Our parameters without those that were added to a trained tower and the file lacks, and the paths of these."""
    flat = leaves_by_path(ours)
    added = [path for path in flat if tower is not None and tower.is_added(path)]
    if added:
        theirs = weights.flat(module, heads_of(ours))
        added = [path for path in added if path not in theirs]
    return export.unflatten({path: x for path, x in flat.items() if path not in added}) if added else ours, added


def _part(weights: Weights, to: Place, of: Place, ours: Tree) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The parameters of a part by their path in our module, and a sentence about what stays new."""
    shapes = export.flatten(ours, shapes=True)
    heads = heads_of(ours)
    theirs = {rest: x for name, x in weights.flat(of.module, heads).items() if (rest := of.inside(name)) is not None}
    wanted = {rest: name for name in shapes if (rest := to.inside(name)) is not None}
    for place, found in ((to, wanted), (of, theirs)):
        if not found:
            raise UserError(f'{place.module} has nothing under {place.path!r}')
    if of.layers is not None:
        depth = max(len(x) for x in theirs.values())
        if not 0 <= of.layers.start < (of.layers.stop or depth) <= depth:
            raise UserError(f'{of.module}/{of.path} has {depth} layers, not {of.layers.start} to {of.layers.stop}')
        theirs = {rest: x[of.layers] for rest, x in theirs.items()}
    here, there = '/'.join(filter(None, (to.module, to.path))), '/'.join(filter(None, (of.module, of.path)))
    left = sorted(set(theirs) - set(wanted))
    other = [
        f'{wanted[rest]} {x.shape} there, {shapes[wanted[rest]]} here'
        for rest, x in theirs.items()
        if rest in wanted and x.shape != shapes[wanted[rest]]
    ]
    if left or other:
        problems = [f'no place for {", ".join(left)}'] if left else []
        problems += [f'of another shape: {", ".join(other)}'] if other else []
        raise UserError(f'{there} of {weights.path} does not fit {here}: {"; ".join(problems)}')
    new = [name for name in shapes if name not in {wanted[rest] for rest in theirs}]
    stays = f'; new in {to.module} stay {", ".join(new)}' if new else ''
    return {wanted[rest]: x for rest, x in theirs.items()}, (f'{here}: {len(theirs)} arrays from {there}{stays}',)


def _with_loaded(tree: Tree, stats: Tree, loaded: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[Tree, Tree]:
    """Parameters and statistics of one network, with the loaded arrays in place and on the same devices."""

    def put(module: str, old: Tree) -> Tree:
        arrays = loaded.get(module, {})
        leaves = {
            name: jax.device_put(np.asarray(arrays[name], x.dtype), x.sharding) if name in arrays else x
            for name, x in leaves_by_path(old).items()
        }
        return export.unflatten(leaves)

    whole = {
        kind: {name: put(f'{kind}/{name}', old) for name, old in modules.items()}
        for kind, modules in with_stats(tree, stats).items()
    }
    return without_stats(whole)


def leaves_by_path(tree: Tree, prefix: str = '') -> dict[str, Array]:
    """Nested dicts of arrays -> {'blocks/attn/qkv/kernel': array}, without a copy."""
    flat: dict[str, Array] = {}
    for key, value in tree.items():
        flat |= leaves_by_path(value, f'{prefix}{key}/') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return flat


def copies_of_sources(objective: Objective, state: TrainState) -> TrainState:
    """The state in which each teacher that follows another teacher begins as its copy."""
    teachers, stats = dict(state.aux['teachers']), dict(state.aux['stats'])
    for name, teacher in objective.teachers.items():  # each after the one that it follows
        if teacher.source in teachers:
            for trees in (teachers, stats):
                trees[name] = jax.tree.map(jnp.copy, pick(trees[teacher.source], teacher.of))
    return state._replace(aux={**state.aux, 'teachers': teachers, 'stats': stats})
