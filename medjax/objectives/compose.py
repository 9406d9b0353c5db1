"""From the terms of a recipe to one objective. The terms decide what is computed.

objective = compose(recipe)
objective.features(…)    one run of every distinct pass (forward.py), then the row-wise results of the terms
objective.loss(…)        the weighted sum of the terms over those
objective.update(…)      teachers, running statistics and the state of terms, after the optimizer
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medjax import plugins
from medjax.errors import UserError, suggest
from medjax.models import build as models, passes
from medjax.models.passes import Pass
from medjax.objectives import numerics
from medjax.objectives.checks import Declared, check_export, check_teachers
from medjax.objectives.features import Feature
from medjax.objectives.forward import Forward
from medjax.objectives.schedules import Schedule, schedule
from medjax.objectives.teachers import Teacher, TeacherContext
from medjax.objectives.terms import Alignment, Networks, Prediction, Term, TermContext, TermInputs
from medjax.objectives.trees import pick, with_stats, without_stats
from medjax.types import Head, Masks, Metrics, Tower, Tree, Views
from medjax.views import make
from medjax.views.kinds import Kind

MOST_STRUCTURES = 8  # bits of a mask in a batch
SUMS = 64  # numbers that a term without declared moves may exchange: its loss and metrics are sums over rows


def compose(recipe: Mapping[str, Any]) -> Objective:
    """The objective of a resolved recipe (views, masks, towers, heads, teachers, terms, …); UserError by key."""
    towers = models.towers(recipe['towers'], recipe['image']['channels'], recipe['dtype'])
    modules = tuple(f'{kind}/{name}' for kind in ('towers', 'heads') for name in recipe[kind])
    teachers = {
        name: plugins.make(
            cfg, 'rule', 'medjax.objectives.teachers', f'teachers.{name}',
            context=TeacherContext(f'teachers.{name}', recipe['total_steps'], modules, tuple(recipe['teachers'])),
        )
        for name, cfg in recipe['teachers'].items()
    }  # fmt: skip
    views = make.kinds(recipe['views'])
    declared = Declared(recipe, towers, teachers, views)
    terms, weights = _terms(recipe, declared)
    declared.check_heads()
    declared.check_drop_rates()
    by_terms = [path for term in terms.values() for path in term.context.run_by_term]
    teacher_only = check_teachers(recipe, teachers, declared, by_terms)
    aligned = [side.tower for term in terms.values() if term.alignment for side in term.alignment]
    check_export(recipe, towers, teacher_only, declared.heads, aligned)
    before = {name: [t.source] if t.source in teachers else [] for name, t in teachers.items()}
    teachers = {name: teachers[name] for name in plugins.in_order(before, 'teachers.{}.source', 'a circle')}
    return Objective(
        towers, declared.heads, teachers, terms, weights, declared.features, declared.passes, views, teacher_only,
        recipe['rows_per_group'],
    )  # fmt: skip


def _terms(recipe: Mapping[str, Any], declared: Declared) -> tuple[dict[str, Term], dict[str, Schedule]]:
    """The terms by name, and the weight of each."""
    parts = {name: kind.part for name, kind in declared.views.items()}
    crops = {name: kind.count for name, kind in declared.views.items()}
    boxes = {name: other for name, kind in declared.views.items() if (other := getattr(kind, 'boxes', None))}
    mixed = frozenset(name for name, kind in declared.views.items() if getattr(kind, 'cutmix', 0))
    terms: dict[str, Term] = {}
    weights: dict[str, Schedule] = {}
    where_of: dict[str, str] = {}
    for i, cfg in enumerate(recipe['terms']):
        options = dict(cfg)
        name = options.pop('name', options.get('term'))
        if name in terms:
            raise UserError(f'terms[{i}]: a term {name!r} stands before it; give one of them another `name`')
        where = where_of[name] = f'terms[{i}] ({name})' if name else f'terms[{i}]'
        weights[name] = schedule(options.pop('weight', 1.0), recipe['total_steps'], f'{where}.weight')
        context = TermContext(
            where, recipe['total_steps'], recipe['rows_per_group'], declared.heads, parts, crops, boxes,
            declared.passes, declared.width,
            declare=functools.partial(declared.add, where=where), declare_head=declared.add_head,
            towers=declared.towers, mixed=mixed, labels=recipe.get('labels'), columns=recipe.get('columns') or {},
        )  # fmt: skip
        terms[name] = plugins.make(options, 'term', 'medjax.objectives.terms', where, context=context)
    if not terms:
        raise UserError('terms: a recipe needs at least one term')
    sources = [name for name, term in terms.items() if term.temperature_of is None]
    for name, term in terms.items():
        other = term.temperature_of
        if other is not None and (other not in sources or terms[other].alignment is None):
            raise UserError(
                f'{where_of[name]}.temperature.of: there is no other term {other!r} with a temperature of its own'
                f'{suggest(other, [n for n in sources if terms[n].alignment])}'
            )
    return terms, weights


class Computed(NamedTuple):
    """The results of `Objective.features`."""

    features: dict[str, Array]  # by full name
    presence: dict[str, Array]  # bool [B,V] by full name
    per_row: dict[str, dict[str, Array]]  # by term


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """The objective of a recipe, as pure functions of (params, aux).

    params = {'towers', 'heads', 'terms'} is what the optimizer moves. aux = {'teachers', 'stats', 'terms'} is not.
    aux['stats'] is network -> {'towers', 'heads'} -> name -> batch-norm statistics. Each pass of the student updates
    its statistics, in the order of `passes`. A teacher's statistics follow the student's by the teacher's rule, like
    its parameters; its passes read them and do not change them (arXiv 2101.08482).
    """

    towers: dict[str, Tower]
    heads: dict[str, Head]
    teachers: dict[str, Teacher]  # each after the one that it follows
    terms: dict[str, Term]
    weights: dict[str, Schedule]
    declared: dict[str, Feature]  # every feature that a term reads
    passes: dict[str, Pass]  # the pass of each of these features, by the name of the feature
    views: dict[str, Kind]
    teacher_only: tuple[str, ...]  # towers and heads that the student does not have, as 'towers/large'
    rows_per_group: int

    def init(self, key: Array) -> tuple[Tree, Tree]:
        """params and aux at step 0. The key of a module depends on its name alone."""

        def keyed(name: str) -> Array:
            return jax.random.fold_in(key, zlib.crc32(name.encode()))

        own = {name: term.init(keyed(f'terms/{name}')) for name, term in self.terms.items()}
        modules = {
            kind: {name: module.init(keyed(f'{kind}/{name}')) for name, module in named.items()}
            for kind, named in self._modules.items()
        }
        return self._state(modules, own)

    @property
    def axes(self) -> tuple[Tree, Tree]:
        """Trees like params and aux, with a tuple of logical axis names for each array."""
        modules = {kind: {name: module.axes for name, module in named.items()} for kind, named in self._modules.items()}
        return self._state(modules, {name: term.axes for name, term in self.terms.items()})

    @property
    def _modules(self) -> dict[str, dict[str, Any]]:
        return {'towers': self.towers, 'heads': self.heads}

    def _state(self, modules: Tree, terms: dict[str, tuple[Tree, Tree]]) -> tuple[Tree, Tree]:
        trees, stats = without_stats(modules)

        def student(tree: Tree) -> Tree:
            return {
                kind: {name: x for name, x in named.items() if f'{kind}/{name}' not in self.teacher_only}
                for kind, named in tree.items()
            }

        params = student(trees) | {'terms': {name: params for name, (params, _) in terms.items()}}
        aux = {
            'teachers': {name: pick(trees, teacher.of) for name, teacher in self.teachers.items()},
            'stats': {'student': {kind: named for kind, named in student(stats).items() if named}}
            | {name: pick(stats, teacher.of) for name, teacher in self.teachers.items()},
            'terms': {name: state for name, (_, state) in terms.items()},
        }
        return params, aux

    # Features.

    def features(
        self, params: Tree, aux: Tree, views: Views, masks: Masks, key: Array, step: Array
    ) -> tuple[Computed, Tree]:
        """What the terms need of these rows, and the student's statistics after all passes.

        Row-wise, so micro-batches may run it, unless `batch_statistics` names a tower or a head.
        """
        forward = Forward(
            self.declared, self.passes, self.wanted, self._networks(params, aux), aux['stats']['student'], views,
            masks, key,
        )  # fmt: skip
        forward.run()
        presence = {name: forward.outputs[one]['present'] for name, one in self.passes.items()}
        ranked = {name: forward.outputs[one]['cls'] for name, one in self.ranked.items()}
        presence |= {name: forward.outputs[one]['present'] for name, one in self.ranked.items()}
        features = {name: forward.feature(f) for name, f in self.declared.items()}
        computed = Computed(features, presence, {})
        inputs = self._inputs(params, aux, computed, views, masks, key, step)
        results = {name: term.per_row(inputs[name]) for name, term in self.terms.items()}
        per_row = {name: result for name, result in results.items() if result}
        needed = {name for term in self.terms.values() for name in term.needs}
        kept = {name: x for name, x in features.items() if name in needed}
        return Computed(kept | ranked, presence, per_row), forward.stats

    def _networks(self, params: Tree, aux: Tree) -> Networks:
        """The towers and heads with the parameters of all networks; those of teachers have no gradient."""
        trees = {'student': {kind: params[kind] for kind in self._modules}} | jax.lax.stop_gradient(aux['teachers'])
        whole = {name: with_stats(tree, aux['stats'][name]) for name, tree in trees.items()}
        return Networks(self.towers, self.heads, whole, self.rows_per_group)

    def _inputs(
        self, params: Tree, aux: Tree, computed: Computed, views: Views, masks: Masks, key: Array, step: Array
    ) -> dict[str, TermInputs]:
        """The inputs of every term. The networks and the temperatures are the same for all."""
        networks, temperatures = self._networks(params, aux), self.temperatures(params['terms'], step)
        marked = {name: self.structures.get(kind.part, ()) for name, kind in self.views.items()}
        return {
            name: TermInputs(
                params['terms'][name], aux['terms'][name], computed.features, computed.presence, views, masks,
                networks, step, jax.random.fold_in(key, zlib.crc32(f'terms/{name}'.encode())),
                computed.per_row.get(name, {}), temperatures, marked,
            )
            for name in self.terms
        }  # fmt: skip

    def loss(
        self, params: Tree, aux: Tree, computed: Computed, views: Views, masks: Masks, key: Array, step: Array
    ) -> tuple[Array, tuple[Metrics, Tree]]:
        """The weighted sum of the terms over the whole batch; (metrics, what `update` needs of each term).

        This is the one place where the weight of a term acts.
        """
        total, carry = jnp.zeros((), jnp.float32), {}
        metrics: Metrics = {}
        inputs = self._inputs(params, aux, computed, views, masks, key, step)
        for name, term in self.terms.items():
            rows = min((len(computed.features[feature]) for feature in term.needs), default=term.least_rows)
            if rows < term.least_rows:
                raise UserError(
                    f'{term.context.where}: compares the rows of a batch, and the batch has {rows} row here; give at '
                    f'least {term.least_rows} (batch_size)'
                )
            with jax.named_scope(f'terms/{name}'):
                out = term.loss(inputs[name])
            total += self.weights[name](step) * out.loss
            carry[name] = out.carry
            start = {} if out.start is None else {'start': jax.lax.stop_gradient(out.start)}
            metrics |= {
                f'term/{name}/{key}': value for key, value in {'loss': out.loss, **start, **out.metrics}.items()
            }
        metrics |= self._gauges(computed, step)
        return total, ({'loss': total, **metrics}, jax.lax.stop_gradient(carry))

    def _gauges(self, computed: Computed, step: Array) -> Metrics:
        """Numbers that belong to no term: the rank of the student's features, and what teachers log."""
        metrics: Metrics = {}
        for name in self.ranked:
            x, present = jax.lax.stop_gradient(computed.features[name]), computed.presence[name].reshape(-1)
            metrics[f'rank/{name}'] = numerics.effective_rank(x.reshape(-1, x.shape[-1]), present)
            metrics[f'rank_max/{name}'] = jnp.minimum(present.sum() - 1.0, x.shape[-1])
        for name, teacher in self.teachers.items():
            suffix = '' if len(self.teachers) == 1 else f'/{name}'
            metrics |= {f'{key}{suffix}': value for key, value in teacher.metrics(step).items()}
        return metrics

    # After the optimizer step.

    def update(self, params: Tree, aux: Tree, carry: Tree, stats: Tree, step: Array) -> Tree:
        """aux after the optimizer step: teachers, statistics (`stats` are the student's), the state of terms."""
        new = {'student': (params, stats)}  # network -> parameters and statistics after this step
        for name, teacher in self.teachers.items():  # a teacher stands after the one that it follows
            old = aux['teachers'][name], aux['stats'][name]
            if teacher.source is not None:
                source = (pick(tree, teacher.of) for tree in new[teacher.source])
                old = tuple(teacher.follow(a, b, step) for a, b in zip(old, source, strict=True))
            new[name] = old
        return {
            'teachers': {name: new[name][0] for name in self.teachers},
            'stats': {name: of_network for name, (_, of_network) in new.items()},
            'terms': {name: term.update(aux['terms'][name], carry[name], step) for name, term in self.terms.items()},
        }

    def project(self, params: Tree) -> Tree:
        """params after the optimizer step, with the parameters of terms projected."""
        return {**params, 'terms': {name: term.project(params['terms'][name]) for name, term in self.terms.items()}}

    def export(self, params: Tree, aux: Tree, network: str, paths: tuple[str, ...]) -> Tree:
        """The towers and heads ('towers/image', …) of a network, with their statistics, as towers take them."""
        held = params if network == 'student' else aux['teachers'][network]
        return pick(with_stats(held, aux['stats'][network]), paths)

    # What others ask of an objective.

    def grids(self) -> dict[str, tuple[int, int]]:
        """The patch grid (rows, columns) of every image view, in the tower that sees it.

        If towers with other patches see a view too, the one that sees it under a mask decides.
        """
        grids: dict[str, tuple[int, int]] = {}
        for under_mask in (False, True):
            for one in self.passes.values():
                masked = {source.view for source in one.views if source.mask}
                for view, tower in passes.patch_towers(one, self.towers).items():
                    if (view in masked) == under_mask:
                        grids[view] = tower.grid(self.views[view].size)
        return grids

    @functools.cached_property
    def wanted(self) -> dict[Pass, frozenset[str]]:
        """The costly outputs of each pass that towers over it need."""
        return passes.wanted(self.passes.values(), self.towers)

    def temperatures(self, terms: Tree, step: Array) -> dict[str, Array]:
        """The temperature of every term that has one, its own or that of another term; from params['terms']."""
        own = {name: term.own_temperature(terms[name], step) for name, term in self.terms.items()}
        of = {name: own[term.temperature_of or name] for name, term in self.terms.items()}
        return {name: value for name, value in of.items() if value is not None}

    @property
    def ranked(self) -> dict[str, Pass]:
        """The passes of the student whose CLS features have their rank logged, by the name of the feature.

        They are those from which a term takes a CLS feature. If there are none, all passes of towers of views.
        """
        students = {name: one for name, one in self.passes.items() if one.network == 'student'}
        chosen = [one for name, one in students.items() if self.declared[name].output == 'cls']
        if not chosen:
            chosen = [one for one in passes.ordered(students.values()) if not self.towers[one.tower].reads]
        return {f'{one.name}/cls': one for one in chosen}

    @property
    def batch_statistics(self) -> tuple[str, ...]:
        """Towers and heads in which the results of a row depend on the other rows; these refuse micro-batches."""
        students = {name: one for name, one in self.passes.items() if one.network == 'student'}
        towers = {one.tower for one in passes.ordered(students.values()) if self.towers[one.tower].batch_statistics}
        heads = {head for name in students for head in self.declared[name].heads if self.heads[head].batch_statistics}
        return tuple(sorted({f'towers.{name}' for name in towers} | {f'heads.{name}' for name in heads}))

    @property
    def alignments(self) -> dict[str, Alignment]:
        """The pairs of features that terms bring into one space, by the name of the term."""
        return {name: term.alignment for name, term in self.terms.items() if term.alignment}

    @property
    def predictions(self) -> dict[str, Prediction]:
        """The features that terms make predict labels or columns, by the name of the term."""
        return {name: term.prediction for name, term in self.terms.items() if term.prediction}

    @functools.cached_property
    def structures(self) -> dict[str, tuple[str, ...]]:
        """Part of the batch -> the structures whose masks terms read; bit k of a mask is structure k."""
        found: dict[str, dict[str, None]] = {}
        for term in self.terms.values():
            for view, names in term.structures.items():
                found.setdefault(self.views[view].part, {}).update(dict.fromkeys(names))
        for part, names in found.items():
            if len(names) > MOST_STRUCTURES:
                raise UserError(
                    f'data.{part}: the terms read {len(names)} structures ({", ".join(names)}), and a batch holds '
                    f'{MOST_STRUCTURES} at most; name fewer'
                )
        return {part: tuple(names) for part, names in found.items()}

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """The number of array elements that the loss exchanges between devices in a step; infinite for no bound."""
        bounds = [term.moves(rows, shapes) for term in self.terms.values()]
        if 'any' in bounds:
            return math.inf
        gauges = sum(shapes[name][-1] ** 2 + shapes[name][-1] + 4 for name in self.ranked)
        return sum(SUMS if bound is None else int(bound) for bound in bounds) + gauges
