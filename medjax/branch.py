"""Branches: a new run that begins with the state of another one, its parent.

    medjax train --from RUN@2000 --workdir OTHER --config.optim.lr=1e-5

The state has six parts: towers, heads, terms, teachers, moments, clock. A branch keeps all that fits its own config, or
the parts that --keep names. What it does not keep begins as in a new run; a teacher begins as a copy of the student.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medjax import config as configs, life
from medjax.errors import UserError, suggest
from medjax.objectives.compose import Objective, compose
from medjax.stages import stages
from medjax.training import checkpoint
from medjax.training.checkpoint import Checkpoints
from medjax.training.state import abstract_state, make_optimizer, state_shardings
from medjax.types import TrainState

PARTS = {
    'towers': 'parameters and running statistics of the towers',
    'heads': 'those of the heads',
    'terms': 'what terms learn or remember: temperatures, centres, queues',
    'teachers': 'the networks of the teachers',
    'moments': 'what the optimizer remembers of earlier gradients',
    'clock': 'the step, so batches, draws and schedules go on where the parent was',
}


class Parent(NamedTuple):
    """A checkpoint of a run, from which another run begins."""

    run: Path
    step: int
    config: configs.Config
    is_newest: bool = False  # the user names no step: if this checkpoint is damaged, the one before it is taken

    def described(self, kept: Iterable[str], keep: Sequence[str] | None = None) -> dict[str, Any]:
        """The entry in the config.json of the branch."""
        return dict(
            run=str(self.run.absolute()),
            step=self.step,
            total_steps=self.config['total_steps'],
            fingerprint=configs.fingerprint(self.config),
            kept=list(kept),
            keep=keep if keep is None else sorted(keep),
        )


class Branch(NamedTuple):
    """The beginning of a branch."""

    parent: Parent
    keep: Sequence[str] | None  # parts or modules; None: all that fit


def parent(spec: str) -> Parent:
    """The parent that 'RUN' (its newest checkpoint) or 'RUN@STEP' names. UserError where there is none."""
    folder, text = checkpoint.named(spec)
    if not os.path.isfile(folder / 'config.json'):  # False for a name that is too long
        way = ''
        if os.path.isfile(folder / 'meta.json'):
            way = f"""; it is an export, so begin with its weights: --config.init_from='dict(path="{folder}")'"""
        raise UserError(f'--from {spec}: {folder} is no run: it has no config.json{way}')
    if text and not text.isdecimal():
        raise UserError(
            f'--from {spec}: {text!r} is no step; write --from {folder}@STEP, or --from {folder} for its newest'
        )
    config = config_of(folder)
    if configs.is_version_1(config):
        raise UserError(
            f'--from {spec}: it is a run of medjax 0.1, whose checkpoints this version cannot read; start from its '
            f"""export: --config.init_from='dict(path="{folder}/exports/STEP")'"""
        )
    there = checkpoint.steps(folder / 'checkpoints')
    if not there:
        raise UserError(f'--from {spec}: {folder} has no checkpoint')
    step = int(text) if text else there[-1]
    if step not in there:
        more = ''
        if (folder / 'exports' / str(step)).is_dir():
            more = f"""; of step {step} there is an export: --config.init_from='dict(path="{folder}/exports/{step}")'"""
        raise UserError(
            f'--from {spec}: there is no checkpoint of step {step}; there are {", ".join(map(str, there))}{more}'
        )
    return Parent(folder, step, config, is_newest=not text)


def config_of(run: Path) -> configs.Config:
    """The config.json of a run, from which all of it can be built. UserError where it is damaged."""
    path = run / 'config.json'
    config = configs.load_json(path)
    if configs.is_version_1(config):
        return config
    try:
        configs.to_json(config)
        for stage in stages(configs.check(config)):
            compose(stage.config)
    except Exception as error:  # the builders of a run's own config raise nothing
        what = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
        raise UserError(f'{path} is damaged, as the run cannot be built from it: {what}') from error
    return config


def again(run: Path, spec: str, keep: Sequence[str] | None = None) -> Parent | None:
    """The parent of a branch that was stopped before its first checkpoint. None for a run with checkpoints.

    UserError for a run that is no branch, for another parent than `spec` names, and for another `keep`, which the first
    start has settled. A parent may have moved.
    """
    named = life.of(configs.load_json(run / 'config.json'))['parent']
    if named is None:
        raise UserError(
            f'--from: {run} holds a run that is no branch; continue it without --from, or use another folder'
        )
    folder, step = checkpoint.named(spec)
    is_it = folder.resolve() == Path(named['run']).resolve()
    if not is_it and (folder / 'config.json').is_file():
        is_it = configs.fingerprint(configs.load_json(folder / 'config.json')) == named['fingerprint']
    if not is_it or (step and step != str(named['step'])):
        raise UserError(
            f'--from {spec}: {run} is a branch of {named["run"]}@{named["step"]}; give this one to continue it, or '
            'another --workdir for a new branch'
        )
    saved = checkpoint.steps(run / 'checkpoints')
    settled = named.get('keep', keep) and tuple(named.get('keep', keep))  # runs may be older than this entry
    if keep != settled and set(keep or ()) != set(settled or ()) and not (saved and keep is None):
        first = 'without --keep' if settled is None else f'with --keep {",".join(settled)}'
        raise UserError(f'--keep: {run} began {first}; give the same, or another --workdir for a new branch')
    return None if saved else parent(f'{folder}@{named["step"]}')


def check_keep(keep: Sequence[str] | None, objective: Objective) -> None:
    """UserError if --keep names something that the branch does not have."""
    modules = [f'towers/{name}' for name in objective.towers] + [f'heads/{name}' for name in objective.heads]
    modules += [f'terms/{name}' for name in objective.terms] + [f'teachers/{name}' for name in objective.teachers]
    if keep is not None and not keep:
        raise UserError(f'--keep names no part; it takes {", ".join(PARTS)}, and without --keep all that fits is kept')
    for name in keep or ():
        if name not in (*PARTS, *modules):
            choices = [*PARTS, *modules]
            raise UserError(
                f'--keep {name}: there is no such part{suggest(name, choices)}; it takes {", ".join(PARTS)}'
            )


class Plan(NamedTuple):
    """What a branch keeps of its parent: modules as 'towers/image' or 'teachers/teacher/heads/dino', moments, clock."""

    kept: tuple[str, ...]
    new: dict[str, str]  # module -> why it is not kept

    def sentences(self, objective: Objective) -> list[str]:
        """What is kept and what is new, for the user."""
        told = [f'kept: {", ".join(self.kept) or "nothing"}']
        for module, why in self.new.items():
            section, name, *_ = f'{module}/'.split('/')
            copy = section == 'teachers' and objective.teachers[name].init_from is None
            told.append(f'{"a copy of the student" if copy else "new"}: {module} ({why})')
        return told


def plan(parent: Parent, ours: TrainState, theirs: TrainState, keep: Sequence[str] | None) -> Plan:
    """What fits, of two states given by their shapes. UserError where a part that must be kept does not fit."""
    here, there = _modules(ours), _modules(theirs)
    kept, new = [], {}
    for module, leaves in here.items():
        if module in ('moments', 'clock'):
            continue
        if keep is not None and not _named(module, keep):
            new[module] = 'not in --keep'
        elif module not in there:
            new[module] = 'the parent has none'
        elif (why := _misfit(leaves, there[module])) is None:
            kept.append(module)
        else:
            new[module] = why
        must = keep is not None or (module.startswith('towers/') and module in there)
        if module in new and new[module] != 'not in --keep' and must:
            raise UserError(
                f'--from {parent.run}: its {module} does not fit this config: {new[module]}. Leave it out by --keep '
                "with the parts that fit, or give the parent's config"
            )
    if keep is None and not any(module.startswith('towers/') for module in kept):
        raise UserError(
            f'--from {parent.run}: it has no tower of this config; its towers are '
            f'{", ".join(name[7:] for name in there if name.startswith("towers/"))}'
        )
    anew = [module for module in new if not module.startswith('teachers/')]
    if keep is not None and 'moments' not in keep:
        new['moments'] = 'not in --keep'
    elif anew:
        why = f'Adam counts its steps once for all parameters, and {anew[0]} is new'
        if keep is not None:
            raise UserError(f'--keep moments: {why}; keep all towers, heads and terms, or leave moments out')
        new['moments'] = why
    elif why := _misfit(here['moments'], {k: v for k, v in there['moments'].items() if k in here['moments']}):
        if keep is not None:
            raise UserError(f'--keep moments: the optimizer is another one: {why}; leave moments out')
        new['moments'] = f'the optimizer is another one: {why}'
    else:
        kept.append('moments')
    if keep is None or 'clock' in keep:
        kept.append('clock')
    else:
        new['clock'] = 'not in --keep'
    return Plan(tuple(kept), new)


def _modules(state: TrainState) -> dict[str, dict[str, Any]]:
    """Module -> path -> leaf."""
    found: dict[str, dict[str, Any]] = {}
    for path, leaf in checkpoint.leaves(state).items():
        found.setdefault(_module(path), {})[path] = leaf
    return found


def _module(path: str) -> str:
    """The module of an array of the state, by its path: 'aux/teachers/t/heads/dino/…' -> 'teachers/t/heads/dino'."""
    section, *names = path.split('/')
    if section == 'params':
        return '/'.join(names[:2])
    if section == 'opt':
        return 'moments'
    if section != 'aux':
        return 'clock'
    if names[0] == 'teachers' or (names[0] == 'stats' and names[1] != 'student'):
        return '/'.join(['teachers', *names[1:4]])
    return '/'.join(names[2:4]) if names[0] == 'stats' else '/'.join(names[:2])


def _named(module: str, keep: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f'{name}/') for name in keep)


def _misfit(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """In what a module of the parent differs; None if it fits."""
    for path in sorted(ours.keys() ^ theirs.keys()):
        return f'the parent {"lacks" if path in ours else "has also"} {path}'
    for path, leaf in ours.items():
        there = theirs[path]
        if (leaf.shape, leaf.dtype) != (there.shape, there.dtype):
            return f'{path} is {there.dtype}{list(there.shape)} there and {leaf.dtype}{list(leaf.shape)} here'
    return None


def abstract_parent(parent: Parent, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the parent's state on a mesh."""
    objective = compose(parent.config)
    abstract = abstract_state(
        objective, make_optimizer(objective, parent.config['optim'], parent.config['total_steps'])
    )
    return checkpoint.abstract(abstract, state_shardings(objective, abstract, mesh))


def read(parent: Parent, theirs: TrainState) -> tuple[Parent, TrainState, tuple[str, ...]]:
    """The parent with the step that is taken, its state, and sentences about newer checkpoints, which are damaged.

    `theirs` is `abstract_parent`. UserError where the named step, or every checkpoint, is damaged.
    """
    checkpoints = Checkpoints(parent.run / 'checkpoints', every=1, keep=2, read_only=True)
    if not parent.is_newest:
        return parent, checkpoints.restore(parent.step, theirs), ()
    state, notes = checkpoints.resume(theirs)
    if state is None:
        raise UserError(f'--from {parent.run}: its checkpoints were deleted just now')
    return parent._replace(step=int(state.step)), state, notes


def inherit(
    old: TrainState,
    chosen: Plan,
    objective: Objective,
    shardings: TrainState,
    seed: int,
    new: Callable[[], TrainState],
) -> TrainState:
    """The first state of a branch. `old` is the state of the parent; `new` makes the state of a new run."""
    key = jax.jit(lambda: jax.random.key(seed), out_shardings=shardings.key)()
    taken = checkpoint.leaves(old)
    if not chosen.new and taken.keys() == checkpoint.leaves(shardings).keys():
        return old._replace(key=key)  # equal in all shapes: a new state would only take memory
    fresh = new()

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = checkpoint.name_of(path)
        keep = name != 'key' and _module(name) in chosen.kept
        return jax.device_put(taken[name], leaf.sharding) if keep else leaf

    return _following(jax.tree_util.tree_map_with_path(one, fresh), objective, chosen)


def _following(state: TrainState, objective: Objective, chosen: Plan) -> TrainState:
    """The state in which modules of teachers that are not kept are copies of the network that the teacher follows."""
    teachers, stats = dict(state.aux['teachers']), dict(state.aux['stats'])
    for name, teacher in objective.teachers.items():  # each after the one that it follows
        if teacher.init_from is not None:
            continue
        follows = teacher.source in teachers
        for trees, source in (
            (teachers, teachers[teacher.source] if follows else state.params),
            (stats, stats[teacher.source if follows else 'student']),
        ):
            trees[name] = {
                kind: {
                    module: tree
                    if f'teachers/{name}/{kind}/{module}' in chosen.kept or module not in source.get(kind, {})
                    else jax.tree.map(jnp.copy, source[kind][module])
                    for module, tree in modules.items()
                }
                for kind, modules in trees[name].items()
            }
    return state._replace(aux={**state.aux, 'teachers': teachers, 'stats': stats})
