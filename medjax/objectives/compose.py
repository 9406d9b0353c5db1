"""A recipe's terms -> one objective: the terms in the config decide what is computed.

compose(recipe).features   runs every distinct (network, tower, view~mask) once and every `>head` once a feature
compose(recipe).terms      the weighted sum of the terms over those features
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError, suggest
from medjax.models.build import head as build_head, tower as build_tower
from medjax.objectives import numerics
from medjax.objectives.features import Feature, parse
from medjax.objectives.schedules import Schedule, is_number, schedule
from medjax.objectives.terms import Context, Net, Term
from medjax.plugins import call, find
from medjax.types import Head, Mask, Masks, Metrics, Tower, Tree, Views

Features = dict[str, Array]


class Objective(NamedTuple):
    """Pure functions of (params, aux); params = {'towers', 'heads', 'terms'}, aux = {'teachers', 'stats', 'terms'}.

    aux['stats'] holds running statistics of batch norms: copy -> tower -> statistics, for the student and
    every copy that holds such a tower. The student's follow its passes, in the order of `needs`; another copy's follow
    the student's as its parameters do, and its passes use them (arXiv 2101.08482).
    """

    init: Callable[[Array], tuple[Tree, Tree]]  # key -> params, aux
    axes: tuple[Tree, Tree]  # tuples of logical axis names, like params and aux
    features: Callable[..., tuple[Features, Tree]]
    """(params, aux, views, masks, key, step) -> features, the student's statistics; row-wise, so micro-batches may run
    it, unless `batch_statistics` names a tower."""
    terms: Callable[..., tuple[Array, tuple[Metrics, Tree]]]
    """(params, aux, features, views, masks, key, step) -> loss, (metrics, carry); sees the whole batch."""
    update: Callable[..., Tree]
    """(params, aux, carry, stats, step) -> aux, after the optimiser: copies, centres, the statistics of `features`."""
    project: Callable[[Tree], Tree]  # params -> params, after the optimiser
    export: Callable[[Tree, Tree, str, tuple[str, ...]], Tree]
    """(params, aux, copy, ('towers/image', …)) -> {'towers': {'image': …}} with statistics, as towers take them."""
    moves: Callable[[int, dict[str, tuple[int, ...]]], int]  # rows, shapes of features -> elements between devices
    pairs: dict[str, tuple[Feature, Feature, Callable[[Tree, Array], Array]]]
    """Of each term that brings two features into one space: the features, and (params, step) -> the temperature."""
    towers: dict[str, Tower]
    needs: tuple[Feature, ...]
    batch_statistics: tuple[str, ...]  # towers whose features of a row depend on the other rows


class Copy(NamedTuple):
    """Another set of parameters of some parts: t <- m t + (1 - m) s after every step, m = momentum(step)."""

    of: tuple[str, ...]  # 'towers/image', 'heads/dino'
    momentum: Schedule


def compose(recipe: Mapping[str, Any]) -> Objective:
    """The objective of a resolved recipe (views, masks, towers, heads, copies, terms, …); raises UserError by key."""
    towers = {
        name: build_tower(cfg, recipe['image']['channels'], f'towers.{name}', recipe['dtype'])
        for name, cfg in recipe['towers'].items()
    }
    copies = {name: _copy(cfg, recipe, f'teachers.{name}') for name, cfg in recipe['teachers'].items()}
    heads = _heads(recipe, towers)
    terms, weights = _terms(recipe, towers, heads)
    needs = tuple({name: parse(name, f'terms.{t}') for t, term in terms.items() for name in term.needs}.values())
    for feature in needs:
        _check(feature, recipe, copies)
        _check_kind(feature, recipe, towers[feature.tower])
    batch_statistics = {f.tower for f in needs if f.network == 'student' and towers[f.tower].batch_statistics}
    for tower, views in _crops(needs, recipe).items():
        towers[tower].check(crops=views, rows_per_group=recipe['rows_per_group'])
    ranked = {'/'.join((*f.tower_pass, 'cls')): f for f in needs if f.network == 'student' and f.output == 'cls'}

    def init(key: Array) -> tuple[Tree, Tree]:
        def keyed(name: str) -> Array:
            return jax.random.fold_in(key, zlib.crc32(name.encode()))

        own = {name: term.init(keyed(f'terms/{name}')) for name, term in terms.items()}
        made, stats = without_stats({name: tower.init(keyed(f'towers/{name}')) for name, tower in towers.items()})
        params = {
            'towers': made,
            'heads': {name: head.init(keyed(f'heads/{name}')) for name, head in heads.items()},
            'terms': {name: p for name, (p, _) in own.items()},
        }
        aux = {
            'teachers': {name: pick(params, copy.of) for name, copy in copies.items()},
            'stats': {'student': stats} | {name: _held(stats, copy) for name, copy in copies.items()},
            'terms': {name: a for name, (_, a) in own.items()},
        }
        return params, aux

    def of_copy(params: Tree, aux: Tree, copy: str) -> Tree:
        return params if copy == 'student' else jax.lax.stop_gradient(aux['teachers'][copy])

    def features(params: Tree, aux: Tree, views: Views, masks: Masks, key: Array, step: Array) -> tuple[Features, Tree]:
        out: dict[tuple[str, str, str], dict[str, Array]] = {}
        found: Features = {}
        moved = aux['stats']['student']
        for f in needs:
            if f.tower_pass not in out:
                stats = moved if f.network == 'student' else aux['stats'][f.network]
                out[f.tower_pass] = towers[f.tower].apply(
                    with_stats(of_copy(params, aux, f.network), stats)['towers'][f.tower],
                    views[f.view],
                    masks[f.inputs] if f.mask else None,
                    train=f.network == 'student',
                    key=jax.random.fold_in(key, zlib.crc32('/'.join(f.tower_pass).encode())),
                    rows_per_group=recipe['rows_per_group'],
                )
                if 'stats' in out[f.tower_pass]:
                    moved = {**moved, f.tower: out[f.tower_pass]['stats']}
            if f.output not in out[f.tower_pass]:
                known = set(out[f.tower_pass]) - {'stats'}
                raise UserError(f'feature {f.name!r}: there is no output {f.output!r}{suggest(f.output, known)}')
            x = out[f.tower_pass][f.output]
            if f.at:
                x = at_mask(x, masks[f'{f.view}~{f.at}'])
            if f.head:
                x = heads[f.head].apply(of_copy(params, aux, f.network)['heads'][f.head], x)
            found[f.name] = x
        for name, f in ranked.items():
            found[name] = out[f.tower_pass]['cls']
        return found, moved

    def terms_(
        params: Tree, aux: Tree, found: Features, views: Views, masks: Masks, key: Array, step: Array
    ) -> tuple[Array, tuple[Metrics, Tree]]:
        net = Net(
            head=lambda name, x, copy: heads[name].apply(of_copy(params, aux, copy)['heads'][name], x),
            prototypes=lambda name, z, copy: heads[name].prototypes(of_copy(params, aux, copy)['heads'][name], z),
        )
        total, carry = jnp.zeros((), jnp.float32), {}
        metrics: Metrics = {}
        for name, term in terms.items():
            loss, own, carry[name] = term.loss(
                params['terms'][name], aux['terms'][name], found, views, masks, net,
                jax.random.fold_in(key, zlib.crc32(f'terms/{name}'.encode())), step,
            )  # fmt: skip
            total += weights[name](step) * loss
            metrics |= {f'term/{name}/loss': loss, **{f'term/{name}/{k}': v for k, v in own.items()}}
        for name, f in ranked.items():
            x, present = jax.lax.stop_gradient(found[name]), views[f.view].present.reshape(-1)
            metrics[f'rank/{name}'] = numerics.effective_rank(x.reshape(-1, x.shape[-1]), present)
            metrics[f'rank_max/{name}'] = jnp.minimum(present.sum() - 1.0, x.shape[-1])
        for name, copy in copies.items():
            metrics['momentum' if len(copies) == 1 else f'momentum/{name}'] = copy.momentum(step)
        return total, ({'loss': total, **metrics}, jax.lax.stop_gradient(carry))

    def update(params: Tree, aux: Tree, carry: Tree, stats: Tree, step: Array) -> Tree:
        def follow(copy: Copy, old: Tree, new: Tree) -> Tree:
            m = copy.momentum(step)
            return jax.tree.map(lambda t, s: m * t + (1 - m) * s, old, new)

        def statistics(name: str, copy: Copy) -> Tree:
            return follow(copy, aux['stats'][name], _held(stats, copy))

        return {
            'teachers': {
                name: follow(copy, aux['teachers'][name], pick(params, copy.of)) for name, copy in copies.items()
            },
            'stats': {'student': stats} | {name: statistics(name, copy) for name, copy in copies.items()},
            'terms': {name: term.update(aux['terms'][name], carry[name], step) for name, term in terms.items()},
        }

    def project(params: Tree) -> Tree:
        return {**params, 'terms': {name: term.project(params['terms'][name]) for name, term in terms.items()}}

    def export(params: Tree, aux: Tree, copy: str, paths: tuple[str, ...]) -> Tree:
        return pick(with_stats(params if copy == 'student' else aux['teachers'][copy], aux['stats'][copy]), paths)

    def moves(rows: int, shapes: dict[str, tuple[int, ...]]) -> int:
        gauges = sum(shapes[name][-1] ** 2 + shapes[name][-1] + 4 for name in ranked)
        return sum(term.moves(rows, shapes) for term in terms.values()) + gauges

    def pair(name: str, a: str, b: str, own: Callable) -> tuple[Feature, Feature, Callable[[Tree, Array], Array]]:
        return parse(a, name), parse(b, name), lambda params, step: own(params['terms'][name], step)

    pairs = {name: pair(name, *term.pair) for name, term in terms.items() if term.pair}

    towers_axes, stats_axes = without_stats({name: tower.axes for name, tower in towers.items()})
    params_axes = {
        'towers': towers_axes,
        'heads': {name: head.axes for name, head in heads.items()},
        'terms': {name: term.axes[0] for name, term in terms.items()},
    }
    aux_axes = {
        'teachers': {name: pick(params_axes, copy.of) for name, copy in copies.items()},
        'stats': {'student': stats_axes} | {name: _held(stats_axes, copy) for name, copy in copies.items()},
        'terms': {name: term.axes[1] for name, term in terms.items()},
    }
    return Objective(
        init, (params_axes, aux_axes), features, terms_, update, project, export, moves, pairs, towers, needs,
        tuple(sorted(batch_statistics)),
    )  # fmt: skip


def pick(tree: Tree, paths: tuple[str, ...]) -> Tree:
    """The parts 'kind/name' of {kind: {name: …}}, in the same shape."""
    out: dict[str, dict[str, Tree]] = {}
    for path in paths:
        kind, name = path.split('/')
        out.setdefault(kind, {})[name] = tree[kind][name]
    return out


def without_stats(towers: Tree) -> tuple[Tree, Tree]:
    """Trees of towers -> the same without running statistics, and the statistics of those that have some."""
    stats = {name: tree['stats'] for name, tree in towers.items() if 'stats' in tree}
    return {name: {k: v for k, v in tree.items() if k != 'stats'} for name, tree in towers.items()}, stats


def with_stats(params: Tree, stats: Tree) -> Tree:
    """{'towers': …} with the statistics in their towers again."""
    towers = params.get('towers', {})
    return {**params, 'towers': {n: {**t, 'stats': stats[n]} if n in stats else t for n, t in towers.items()}}


def _held(stats: Tree, copy: Copy) -> Tree:
    """The statistics of the towers that a copy holds."""
    return {name: tree for name, tree in stats.items() if f'towers/{name}' in copy.of}


def at_mask(x: Array, mask: Mask) -> Array:
    """The tokens of x [B,V,N,D] at the mask's positions, [G,K,M,D]; inside each group, so no row changes device."""
    groups, k, m = mask.index.shape
    tokens = x.reshape(groups, -1, x.shape[-1])
    chosen = jnp.take_along_axis(tokens, mask.index.reshape(groups, k * m, 1), axis=1)
    return chosen.reshape(groups, k, m, x.shape[-1])


def _copy(cfg: Mapping[str, Any], recipe: Mapping[str, Any], where: str) -> Copy:
    def ema(of: list[str], momentum: Any) -> Copy:
        known = [f'{kind}/{name}' for kind in ('towers', 'heads') for name in recipe[kind]]
        for path in of:
            if path not in known:
                raise UserError(f'{where}.of: there is no {path!r}{suggest(path, known)}')
        ends = [momentum.get(end) for end in ('start', 'end')] if isinstance(momentum, Mapping) else [momentum]
        for value in momentum if isinstance(momentum, (list, tuple)) else ends:
            if is_number(value) and not 0 <= value <= 1:
                raise UserError(f'{where}.momentum={momentum!r}: must stay between 0 and 1')
        return Copy(tuple(of), schedule(momentum, recipe['total_steps'], f'{where}.momentum'))

    rest = dict(cfg)
    if (rule := rest.pop('rule', None)) != 'ema':
        raise UserError(f"{where}.rule: 'ema' is what there is, got {rule!r}")
    return call(ema, rest, where)


def _heads(recipe: Mapping[str, Any], towers: dict[str, Tower]) -> dict[str, Head]:
    """Every head that the terms name, as wide as the tower before it."""
    widths: dict[str, int] = {}
    for i, cfg in enumerate(recipe['terms']):
        for value in cfg.values():
            for name in value if isinstance(value, (list, tuple)) else [value]:
                if not (isinstance(name, str) and '>' in name):
                    continue
                f = parse(name, f'terms[{i}]')
                if f.head not in recipe['heads']:
                    raise UserError(
                        f'terms[{i}]: {name!r}: there is no head {f.head!r}{suggest(str(f.head), recipe["heads"])}'
                    )
                if f.tower not in towers:
                    raise UserError(f'terms[{i}]: {name!r}: there is no tower {f.tower!r}{suggest(f.tower, towers)}')
                if widths.setdefault(f.head, towers[f.tower].width) != towers[f.tower].width:
                    raise UserError(f'heads.{f.head}: is used after towers of different widths; give each its own head')
    unused = set(recipe['heads']) - set(widths)
    if unused:
        raise UserError(f'heads.{min(unused)}: no term names this head; leave it out or name it as …>{min(unused)}')
    return {
        name: build_head(cfg, widths[name], f'heads.{name}', recipe['dtype']) for name, cfg in recipe['heads'].items()
    }


def _terms(
    recipe: Mapping[str, Any], towers: dict[str, Tower], heads: dict[str, Head]
) -> tuple[dict[str, Term], dict[str, Schedule]]:
    def width(name: str) -> int:
        f = parse(name, 'terms')
        x = jax.ShapeDtypeStruct((1, towers[f.tower].width), jnp.float32)
        if f.head is None:
            return x.shape[-1]
        head = heads[f.head]
        return jax.eval_shape(lambda key, x: head.apply(head.init(key), x), jax.random.key(0), x).shape[-1]

    parts = {name: cfg.get('part') for name, cfg in recipe['views'].items()}
    terms: dict[str, Term] = {}
    weights: dict[str, Schedule] = {}
    for i, cfg in enumerate(recipe['terms']):
        rest = dict(cfg)
        kind = rest.pop('term', None)
        if not isinstance(kind, str):
            raise UserError(f"terms[{i}]: the key 'term' is missing: the name of a module in medjax.objectives.terms")
        name = rest.pop('name', kind)
        if name in terms:
            raise UserError(f'terms[{i}]: a term {name!r} stands before it; give one of them another `name`')
        where = f'terms[{i}] ({name})'
        weights[name] = schedule(rest.pop('weight', 1.0), recipe['total_steps'], f'{where}.weight')
        module = find(kind, 'medjax.objectives.terms', where)
        context = Context(where, recipe['total_steps'], recipe['rows_per_group'], heads, parts, width)
        terms[name] = call(module.build, rest, where, context=context)
    if not terms:
        raise UserError('terms: a recipe needs at least one term')
    return terms, weights


def _check(f: Feature, recipe: Mapping[str, Any], copies: dict[str, Copy]) -> None:
    """Everything that the feature's name refers to is in the recipe."""
    places = {
        'network': (f.network, ['student', *copies]),
        'tower': (f.tower, recipe['towers']),
        'view': (f.view, recipe['views']),
    }
    for word, (name, known) in places.items():
        if name not in known:
            raise UserError(f'feature {f.name!r}: there is no {word} {name!r}{suggest(name, known)}')
    for mask in (m for m in (f.mask, f.at) if m):
        if f'{f.view}~{mask}' not in recipe['masks']:
            raise UserError(
                f'feature {f.name!r}: there is no mask "{f.view}~{mask}"{suggest(f"{f.view}~{mask}", recipe["masks"])}'
            )
    if f.network != 'student':
        for path in [f'towers/{f.tower}'] + ([f'heads/{f.head}'] if f.head else []):
            if path not in copies[f.network].of:
                raise UserError(
                    f'feature {f.name!r}: the teacher {f.network!r} does not hold {path!r}; add it to '
                    f'teachers.{f.network}.of'
                )


def _check_kind(f: Feature, recipe: Mapping[str, Any], tower: Tower) -> None:
    """Text towers see text views, with ids that they can embed and no more of them than they have positions."""
    view, where = recipe['views'][f.view], f'feature {f.name!r}'
    is_text = view.get('view') == 'text'
    if is_text != (tower.vocabulary > 0):
        sees = 'texts' if tower.vocabulary else 'images'
        raise UserError(f'{where}: the tower {f.tower!r} sees {sees}, and the view {f.view!r} has none')
    if not is_text:
        return
    ids = recipe.get('tokenizer', {}).get('tokens', {}).get('vocabulary', 0)  # known once the config is resolved
    if ids > tower.vocabulary:
        raise UserError(
            f'towers.{f.tower}: the tower knows {tower.vocabulary:,} token ids and the tokenizer '
            f'{recipe["tokenizer"]["path"]} (tokenizer.path) has {ids:,}; give the one that the tower was made for, or '
            'set the vocabulary of the tower'
        )
    if tower.context and view['length'] > tower.context:
        raise UserError(
            f'views.{f.view}.length={view["length"]}: the tower {f.tower!r} takes at most {tower.context} tokens'
        )


def _crops(needs: tuple[Feature, ...], recipe: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """tower -> view -> number of crops, of the student's passes."""
    out: dict[str, dict[str, int]] = {}
    for f in needs:
        if f.network == 'student':
            out.setdefault(f.tower, {})[f.view] = recipe['views'][f.view].get('count', 1)
    return out
