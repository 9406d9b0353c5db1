"""From the terms of a recipe to one objective. The terms decide what is computed.

objective = compose(recipe)
objective.features(…)    one run of every distinct forward pass, then the features that the terms need
objective.loss(…)        the weighted sum of the terms over those features
objective.update(…)      teachers, running statistics and the state of terms, after the optimizer
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax import plugins
from medjax.errors import UserError, suggest
from medjax.models.build import head as build_head, tower as build_tower
from medjax.objectives import numerics
from medjax.objectives.checks import check_drop_rates, check_feature
from medjax.objectives.features import Feature, parse
from medjax.objectives.schedules import Schedule, schedule
from medjax.objectives.teachers import Teacher, TeacherContext
from medjax.objectives.terms import Alignment, Networks, Term, TermContext, TermInputs
from medjax.objectives.trees import at_mask, pick, with_stats, without_stats
from medjax.types import Head, Masks, Metrics, Tower, Tree, Views

Features = dict[str, Array]


def compose(recipe: Mapping[str, Any]) -> Objective:
    """The objective of a resolved recipe (views, masks, towers, heads, teachers, terms, …); UserError by key."""
    towers = {
        name: build_tower(cfg, recipe['image']['channels'], f'towers.{name}', recipe['dtype'])
        for name, cfg in recipe['towers'].items()
    }
    modules = tuple(f'{kind}/{name}' for kind in ('towers', 'heads') for name in recipe[kind])
    teachers = {
        name: plugins.make(
            cfg, 'rule', 'medjax.objectives.teachers', f'teachers.{name}',
            context=TeacherContext(f'teachers.{name}', recipe['total_steps'], modules),
        )
        for name, cfg in recipe['teachers'].items()
    }  # fmt: skip
    declared = Declared(recipe, towers, teachers)
    terms, weights = _terms(recipe, declared)
    for name in recipe['heads']:
        if name not in declared.heads:
            raise UserError(f'heads.{name}: no term names this head; leave it out or name it as …>{name}')
    needs = {name: parse(name, f'terms.{t}') for t, term in terms.items() for name in term.needs}
    check_drop_rates(list(needs.values()), recipe, towers)
    return Objective(towers, declared.heads, teachers, terms, weights, tuple(needs.values()), recipe['rows_per_group'])


@dataclasses.dataclass(frozen=True, eq=False)
class Declared:
    """The features that terms have declared so far, checked, and the heads that they name."""

    recipe: Mapping[str, Any]
    towers: dict[str, Tower]
    teachers: dict[str, Teacher]
    heads: dict[str, Head] = dataclasses.field(default_factory=dict)
    widths: dict[str, int] = dataclasses.field(default_factory=dict)  # head -> width of the tower before it

    def add(self, feature: Feature, where: str) -> None:
        """Checks a feature. The first feature that names a head decides how wide the head is."""
        check_feature(feature, where, self.recipe, self.towers, self.teachers)
        if feature.head is None:
            return
        name, width = feature.head, self.towers[feature.tower].width
        if self.widths.setdefault(name, width) != width:
            raise UserError(f'heads.{name}: is used after towers of different widths; give each its own head')
        if name not in self.heads:
            self.heads[name] = build_head(self.recipe['heads'][name], width, f'heads.{name}', self.recipe['dtype'])

    def width(self, name: str) -> int:
        """The length of the last axis of a declared feature."""
        feature = parse(name, 'terms')
        x = jax.ShapeDtypeStruct((1, self.towers[feature.tower].width), jnp.float32)
        if feature.head is None:
            return x.shape[-1]
        head = self.heads[feature.head]
        return jax.eval_shape(lambda key, x: head.apply(head.init(key), x), jax.random.key(0), x).shape[-1]


def _terms(recipe: Mapping[str, Any], declared: Declared) -> tuple[dict[str, Term], dict[str, Schedule]]:
    """The terms by name, and the weight of each."""
    parts = {name: cfg.get('part') for name, cfg in recipe['views'].items()}
    terms: dict[str, Term] = {}
    weights: dict[str, Schedule] = {}
    for i, cfg in enumerate(recipe['terms']):
        options = dict(cfg)
        name = options.pop('name', options.get('term'))
        if name in terms:
            raise UserError(f'terms[{i}]: a term {name!r} stands before it; give one of them another `name`')
        where = f'terms[{i}] ({name})' if name else f'terms[{i}]'
        weights[name] = schedule(options.pop('weight', 1.0), recipe['total_steps'], f'{where}.weight')
        context = TermContext(
            where, recipe['total_steps'], recipe['rows_per_group'], declared.heads, parts, declared.width,
            declare=functools.partial(declared.add, where=where),
        )  # fmt: skip
        terms[name] = plugins.make(options, 'term', 'medjax.objectives.terms', where, context=context)
    if not terms:
        raise UserError('terms: a recipe needs at least one term')
    return terms, weights


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The objective of a recipe, as pure functions of (params, aux).

    params = {'towers', 'heads', 'terms'} is what the optimizer moves. aux = {'teachers', 'stats', 'terms'} is not.
    aux['stats'] is network -> tower -> batch-norm statistics. Each forward pass of the student updates its statistics,
    in the order of `needs`. A teacher's statistics follow the student's by the teacher's rule, like its parameters;
    its forward passes read them and do not change them (arXiv 2101.08482).
    """

    towers: dict[str, Tower]
    heads: dict[str, Head]
    teachers: dict[str, Teacher]
    terms: dict[str, Term]
    weights: dict[str, Schedule]
    needs: tuple[Feature, ...]  # every feature that a term reads, once
    rows_per_group: int

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """params and aux at step 0. The key of a module depends on its name alone."""

        def keyed(name: str) -> Array:
            return jax.random.fold_in(key, zlib.crc32(name.encode()))

        own = {name: term.init(keyed(f'terms/{name}')) for name, term in self.terms.items()}
        towers, stats = without_stats({name: t.init(keyed(f'towers/{name}')) for name, t in self.towers.items()})
        heads = {name: head.init(keyed(f'heads/{name}')) for name, head in self.heads.items()}
        return self._state(towers, heads, stats, own)

    @property
    def axes(self) -> tuple[Tree, Tree]:
        """Trees like params and aux, with a tuple of logical axis names for each array."""
        towers, stats = without_stats({name: tower.axes for name, tower in self.towers.items()})
        heads = {name: head.axes for name, head in self.heads.items()}
        return self._state(towers, heads, stats, {name: term.axes for name, term in self.terms.items()})

    def _state(self, towers: Tree, heads: Tree, stats: Tree, terms: dict[str, tuple[Tree, Tree]]) -> tuple[Tree, Tree]:
        params = {'towers': towers, 'heads': heads, 'terms': {name: params for name, (params, _) in terms.items()}}
        aux = {
            'teachers': {name: pick(params, teacher.of) for name, teacher in self.teachers.items()},
            'stats': {'student': stats} | {name: teacher.held(stats) for name, teacher in self.teachers.items()},
            'terms': {name: state for name, (_, state) in terms.items()},
        }
        return params, aux

    def features(
        self, params: Tree, aux: Tree, views: Views, masks: Masks, key: Array, step: Array
    ) -> tuple[Features, Tree]:
        """The features that the terms need, by name, and the student's statistics after all passes.

        Row-wise, so micro-batches may run it, unless `batch_statistics` names a tower.
        """
        networks = Networks(self.heads, params, aux['teachers'])
        outputs: dict[tuple[str, str, str], dict[str, Array]] = {}
        features: Features = {}
        stats = aux['stats']['student']
        for f in self.needs:
            if f.tower_pass not in outputs:
                outputs[f.tower_pass] = self._run(f, networks, stats, aux['stats'], views, masks, key)
                if 'stats' in outputs[f.tower_pass]:
                    stats = {**stats, f.tower: outputs[f.tower_pass].pop('stats')}
            features[f.name] = self._feature(f, outputs[f.tower_pass], networks, masks)
        for name, f in self.ranked.items():
            features[name] = outputs[f.tower_pass]['cls']
        return features, stats

    def _run(
        self, f: Feature, networks: Networks, stats: Tree, all_stats: Tree, views: Views, masks: Masks, key: Array
    ) -> dict[str, Array]:
        """One forward pass: the tower of `f`, with the parameters of its network, on its view and mask."""
        held = stats if f.network == 'student' else all_stats[f.network]
        return self.towers[f.tower].apply(
            with_stats(networks.params_of(f.network), held)['towers'][f.tower],
            views[f.view],
            masks[f.inputs] if f.mask else None,
            train=f.network == 'student',
            key=jax.random.fold_in(key, zlib.crc32('/'.join(f.tower_pass).encode())),
            rows_per_group=self.rows_per_group,
        )

    def _feature(self, f: Feature, outputs: dict[str, Array], networks: Networks, masks: Masks) -> Array:
        """One output of a pass, at the positions of a mask and through a head where the name says so."""
        if f.output not in outputs:
            raise UserError(f'feature {f.name!r}: there is no output {f.output!r}{suggest(f.output, outputs)}')
        x = outputs[f.output]
        if f.at:
            x = at_mask(x, masks[f'{f.view}~{f.at}'])
        return networks.head(f.head, x, f.network) if f.head else x

    def loss(
        self, params: Tree, aux: Tree, features: Features, views: Views, masks: Masks, key: Array, step: Array
    ) -> tuple[Array, tuple[Metrics, Tree]]:
        """The weighted sum of the terms over the whole batch; (metrics, what `update` needs of each term).

        This is the one place where the weight of a term acts.
        """
        networks = Networks(self.heads, params, aux['teachers'])
        total, carry = jnp.zeros((), jnp.float32), {}
        metrics: Metrics = {}
        for name, term in self.terms.items():
            out = term.loss(TermInputs(
                params['terms'][name], aux['terms'][name], features, views, masks, networks, step,
                key=jax.random.fold_in(key, zlib.crc32(f'terms/{name}'.encode())),
            ))  # fmt: skip
            total += self.weights[name](step) * out.loss
            carry[name] = out.carry
            start = {} if out.start is None else {'start': out.start}
            metrics |= {
                f'term/{name}/{key}': value for key, value in {'loss': out.loss, **start, **out.metrics}.items()
            }
        metrics |= self._gauges(features, views, step)
        return total, ({'loss': total, **metrics}, jax.lax.stop_gradient(carry))

    def _gauges(self, features: Features, views: Views, step: Array) -> Metrics:
        """Numbers that belong to no term: the rank of the student's features, and what teachers log."""
        metrics: Metrics = {}
        for name, f in self.ranked.items():
            x, present = jax.lax.stop_gradient(features[name]), views[f.view].present.reshape(-1)
            metrics[f'rank/{name}'] = numerics.effective_rank(x.reshape(-1, x.shape[-1]), present)
            metrics[f'rank_max/{name}'] = jnp.minimum(present.sum() - 1.0, x.shape[-1])
        for name, teacher in self.teachers.items():
            suffix = '' if len(self.teachers) == 1 else f'/{name}'
            metrics |= {f'{key}{suffix}': value for key, value in teacher.metrics(step).items()}
        return metrics

    def update(self, params: Tree, aux: Tree, carry: Tree, stats: Tree, step: Array) -> Tree:
        """aux after the optimizer step: teachers, statistics (`stats` are the student's), the state of terms."""
        return {
            'teachers': {
                name: teacher.follow(aux['teachers'][name], pick(params, teacher.of), step)
                for name, teacher in self.teachers.items()
            },
            'stats': {'student': stats}
            | {
                name: teacher.follow(aux['stats'][name], teacher.held(stats), step)
                for name, teacher in self.teachers.items()
            },
            'terms': {name: term.update(aux['terms'][name], carry[name], step) for name, term in self.terms.items()},
        }

    def project(self, params: Tree) -> Tree:
        """params after the optimizer step, with the parameters of terms projected."""
        return {**params, 'terms': {name: term.project(params['terms'][name]) for name, term in self.terms.items()}}

    def export(self, params: Tree, aux: Tree, network: str, paths: tuple[str, ...]) -> Tree:
        """The towers and heads ('towers/image', …) of a network, with their statistics, as towers take them."""
        held = params if network == 'student' else aux['teachers'][network]
        return pick(with_stats(held, aux['stats'][network]), paths)

    def grids(self, views: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """The patch grid (rows, columns) of every image view, in the tower that sees it; `views` are the config's."""
        out = {}
        for f in self.needs:
            if self.towers[f.tower].sees == 'image':
                size = views[f.view]['size']
                out[f.view] = self.towers[f.tower].grid((size, size) if isinstance(size, int) else tuple(size))
        return out

    @property
    def ranked(self) -> dict[str, Feature]:
        """The CLS features of the student whose rank is logged: one for each pass that a term takes a CLS from."""
        return {'/'.join((*f.tower_pass, 'cls')): f for f in self.needs if f.network == 'student' and f.output == 'cls'}

    @property
    def batch_statistics(self) -> tuple[str, ...]:
        """Towers in which the features of a row depend on the other rows; these refuse micro-batches."""
        return tuple(sorted({f.tower for f in self.needs
                             if f.network == 'student' and self.towers[f.tower].batch_statistics}))  # fmt: skip

    @property
    def alignments(self) -> dict[str, Alignment]:
        """The pairs of features that terms bring into one space, by the name of the term."""
        return {name: term.alignment for name, term in self.terms.items() if term.alignment}

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The number of array elements that the loss exchanges between devices in a step."""
        gauges = sum(shapes[name][-1] ** 2 + shapes[name][-1] + 4 for name in self.ranked)
        return sum(term.moves(rows, shapes) for term in self.terms.values()) + gauges
