"""Checks of what the terms of a recipe declare: everything that the name of a feature refers to is in the recipe."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.errors import UserError, suggest
from medjax.models import build as models, passes
from medjax.models.passes import Pass
from medjax.objectives.features import Feature
from medjax.objectives.teachers import Teacher
from medjax.objectives.trees import leaf_at
from medjax.types import Head, Tower
from medjax.views.kinds import Kind

HIDDEN = ('stats', 'present')  # what towers give to the objective and to no term


@dataclasses.dataclass(frozen=True, eq=False)
class Declared:
    """What terms have declared so far, checked: features with their passes, and heads."""

    recipe: Mapping[str, Any]
    towers: dict[str, Tower]
    teachers: dict[str, Teacher]
    views: dict[str, Kind]
    features: dict[str, Feature] = dataclasses.field(default_factory=dict)
    passes: dict[str, Pass] = dataclasses.field(default_factory=dict)  # by the name of the feature
    heads: dict[str, Head] = dataclasses.field(default_factory=dict)
    widths: dict[str, int] = dataclasses.field(default_factory=dict)  # head -> width of its inputs

    def add(self, feature: Feature, outputs: int | None = None, *, where: str) -> Feature:
        """Checks a feature, and finds the view of its `@mask`. The first one that names a head decides its width.

        `outputs`: the number of outputs of its last head, where the config leaves `out` open.
        """
        where = f'{where}: feature {feature.name!r}'
        if feature.at:
            feature = feature._replace(at_view=self._view_of_mask(feature, where))
        self._check_names(feature, where)
        kinds = {name: kind.sees for name, kind in self.views.items()}
        try:
            one = passes.bind(feature.network, feature.tower, feature.inputs, self.towers, kinds)
        except UserError as error:
            raise UserError(f'{where}: {error}') from None
        self._check_pass(one, where)
        self._check_output(feature, where)
        width = self._tower_width(feature)
        for head in feature.heads:
            self.add_head(head, width, where, outputs if head == feature.head else None)
            width = self._out(head, width)
        self._check_teacher(feature, one, where)
        self.features[feature.name] = feature
        self.passes[feature.name] = one
        return feature

    def _view_of_mask(self, feature: Feature, where: str) -> str | None:
        """The view of the mask `feature.at`: one that the feature reads, or one whose crops show the same boxes."""

        def masked(views: list[str]) -> list[str]:
            return [view for view in views if f'{view}~{feature.at}' in self.recipe['masks']]

        own = masked([x.view for x in feature.inputs])
        if own or feature.view not in self.views:
            return next(iter(own), None)
        boxes = {name: getattr(kind, 'boxes', None) or name for name, kind in self.views.items()}
        same = masked([view for view, first in boxes.items() if first == boxes[feature.view]])
        if len(same) > 1:
            raise UserError(
                f'{where}: {" and ".join(same)} show the boxes of {feature.view!r}, and each has a mask '
                f'{feature.at!r}; give the masks names of their own'
            )
        return next(iter(same), None)

    def add_head(self, name: str, width: int, where: str, outputs: int | None = None) -> Head:
        """The head `name` for inputs of `width` numbers; UserError where the recipe has none."""
        if name not in self.recipe['heads']:
            raise UserError(f'{where}: there is no head {name!r}{suggest(name, self.recipe["heads"])}')
        if self.widths.setdefault(name, width) != width:
            raise UserError(
                f'heads.{name}: is used after features of different widths, {self.widths[name]} and {width}; give each '
                'its own head'
            )
        if name not in self.heads:
            cfg = self.recipe['heads'][name]
            self.heads[name] = models.head(cfg, width, f'heads.{name}', self.recipe['dtype'], outputs)
            self._tied(name)
        return self.heads[name]

    def width(self, name: str) -> int:
        """The length of the last axis of a declared feature."""
        feature = self.features[name]
        width = self._tower_width(feature)
        for head in feature.heads:
            width = self._out(head, width)
        return width

    def _tower_width(self, feature: Feature) -> int:
        """The length of the last axis of a feature before its heads: D, and the number of patches for `attention`."""
        tower, size = self.towers[feature.tower], self.views[feature.view].size
        if feature.output == 'attention' and tower.sees == 'image' and size is not None and not tower.reads:
            return math.prod(tower.grid(size))
        return tower.widths.get(feature.output, tower.width)

    def _out(self, name: str, width: int) -> int:
        """The length of the last axis of what a head gives."""
        head, tied = self.heads[name], self._tied(name)
        x = jax.ShapeDtypeStruct((2, 1, width), jnp.float32)

        def run(key: jax.Array, x: jax.Array, tied: Any) -> jax.Array:
            return head.apply(head.init(key) | ({} if tied is None else {'tied': tied}), x)

        try:
            return jax.eval_shape(run, jax.random.key(0), x, tied).shape[-1]
        except UserError as error:
            raise UserError(f'heads.{name}: {error}') from None

    def _tied(self, name: str) -> Any:
        """The shape of the parameter that a head is tied to; None for a head that is not."""
        tie = self.heads[name].tie
        if tie is None:
            return None
        kind, module = tie.split('/')[:2]
        if kind != 'towers' or module not in self.towers:
            raise UserError(f'heads.{name}.tie: there is no {kind}/{module}{suggest(module, self.towers)}')
        shapes = {kind: {module: jax.eval_shape(self.towers[module].init, jax.random.key(0))}}
        try:
            leaf = leaf_at(shapes, tie)
        except (KeyError, TypeError):
            leaf = None
        if not hasattr(leaf, 'shape'):
            raise UserError(f'heads.{name}.tie: {kind}/{module} has no parameter {"/".join(tie.split("/")[2:])!r}')
        return leaf

    def _check_names(self, f: Feature, where: str) -> None:
        """A UserError that names what is missing, and what would work."""
        names = [('network', f.network, ['student', *self.teachers]), ('tower', f.tower, self.towers)]
        names += [('view', x.view, self.views) for x in f.inputs]
        masks = [*(x.masked_view for x in f.inputs if x.mask), *([f.at_mask] if f.at else [])]
        names += [('mask', mask, self.recipe['masks']) for mask in masks]
        names += [('head', head, self.recipe['heads']) for head in f.heads]
        for word, name, choices in names:
            if name not in choices:
                raise UserError(f'{where}: there is no {word} {name!r}{suggest(name, choices)}')
        parts = {x.view: self.views[x.view].part for x in f.inputs}
        if len(set(parts.values())) > 1:
            shown = ' and '.join(f'{view!r} shows {part!r}' for view, part in parts.items())
            raise UserError(f'{where}: its inputs show different parts of the batch: {shown}')

    def _check_output(self, f: Feature, where: str) -> None:
        """Outputs of the last n blocks need n blocks. `stats` and `present` belong to the objective."""
        blocks = self.towers[f.tower].blocks
        match = re.fullmatch(r'(last|mean)(\d+)/\w+', f.output)
        if match and blocks and int(match[2]) > blocks:
            most = f'{match[1]}{blocks}/…'
            raise UserError(f'{where}: the tower {f.tower!r} has no {match[2]} blocks; name {most} at most')
        if f.output in HIDDEN:
            raise UserError(f'{where}: {f.output!r} is no feature; name an output such as cls or patches')

    def _check_teacher(self, f: Feature, one: Pass, where: str) -> None:
        """A teacher holds all towers and heads that it runs."""
        if f.network == 'student':
            return
        modules = [f'towers/{p.tower}' for p in passes.ordered([one])] + [f'heads/{head}' for head in f.heads]
        modules += ['/'.join(tie.split('/')[:2]) for head in f.heads if (tie := self.heads[head].tie)]
        for path in modules:
            if path not in self.teachers[f.network].of:
                raise UserError(
                    f'{where}: the teacher {f.network!r} does not hold {path!r}; add it to teachers.{f.network}.of'
                )

    def _check_pass(self, one: Pass, where: str) -> None:
        """Towers see views of their kind: text towers know all token ids, patches divide images."""
        for source, tower in passes.readers(one):
            if self.views[source.view].sees == 'text':
                self._check_texts(source.view, tower)
        for view, tower in passes.patch_towers(one, self.towers).items():
            if (size := self.views[view].size) is not None:
                try:
                    tower.grid(size)
                except UserError as error:
                    name = next(name for name, other in self.towers.items() if other is tower)
                    shown = self.recipe['views'][view].get('size', size)
                    raise UserError(f'views.{view}.size={shown}: the tower {name!r} cannot see it: {error}') from None

    def _check_texts(self, view: str, name: str) -> None:
        """The tower has an embedding for every token id and a position for every token."""
        tower, length = self.towers[name], self.views[view].length
        ids = self.recipe.get('tokenizer', {}).get('tokens', {}).get('vocabulary', 0)  # known in a resolved config
        if tower.vocabulary and ids > tower.vocabulary:
            raise UserError(
                f'towers.{name}: the tower has embeddings for {tower.vocabulary:,} token ids and the tokenizer '
                f'{self.recipe["tokenizer"]["path"]} (tokenizer.path) has {ids:,}; give the tokenizer that the tower '
                'was made for, or set the vocabulary of the tower'
            )
        if tower.context and length > tower.context:
            raise UserError(f'views.{view}.length={length}: the tower {name!r} takes at most {tower.context} tokens')

    # After all terms.

    def check_heads(self) -> None:
        """Every head of the recipe is used."""
        for name in self.recipe['heads']:
            if name not in self.heads:
                raise UserError(f'heads.{name}: no term names this head; leave it out or name it as …>{name}')

    def check_drop_rates(self) -> None:
        """Every tower of the student can meet its drop rate on groups of rows of its views."""
        crops: dict[str, dict[str, int]] = {}
        students = [one for one in self.passes.values() if one.network == 'student']
        for one in passes.ordered(students):
            view = one.views[0].view
            crops.setdefault(one.tower, {})[view] = self.views[view].count
        for tower, counts in crops.items():
            self.towers[tower].check(crops=counts, rows_per_group=self.recipe['rows_per_group'])


def check_teachers(
    recipe: Mapping[str, Any], teachers: Mapping[str, Teacher], declared: Declared, run_by_terms: Sequence[str]
) -> tuple[str, ...]:
    """The towers and heads that only teachers have. `run_by_terms` are those that terms run themselves.

    UserError for a teacher that would teach noise, or that follows itself.
    """
    for name, teacher in teachers.items():
        above = [name]
        while teacher.source not in (None, 'student'):
            if teacher.source not in teachers:
                raise UserError(
                    f'teachers.{name}.source: there is no network {teacher.source!r}'
                    f'{suggest(str(teacher.source), ["student", *teachers])}'
                )
            if teacher.source in above:
                raise UserError(f'teachers.{name}.source: teachers follow each other in a circle: {" -> ".join(above)}')
            above.append(str(teacher.source))
            source = teachers[str(teacher.source)]
            if missing := [path for path in teacher.of if path not in source.of]:
                raise UserError(f'teachers.{name}.of: the teacher {teacher.source!r} does not hold {missing[0]!r}')
            teacher = source
    roots = {name: _root(name, teachers) for name in teachers}
    held = {path for name, teacher in teachers.items() if roots[name] is None for path in teacher.of}
    needed = {path for name, teacher in teachers.items() if roots[name] == 'student' for path in teacher.of}
    for name, one in declared.passes.items():
        if one.network == 'student':
            needed |= {f'towers/{p.tower}' for p in passes.ordered([one])}
            needed |= {f'heads/{head}' for head in declared.features[name].heads}
    needed |= set(run_by_terms)
    ties = {name: head.tie for name, head in declared.heads.items() if head.tie and f'heads/{name}' in needed}
    needed |= {'/'.join(tie.split('/')[:2]) for tie in ties.values()}
    of_passes = {f'towers/{p.tower}' for p in passes.ordered(declared.passes.values())}
    named = {f'heads/{head}' for feature in declared.features.values() for head in feature.heads}
    # a tower or head that no feature names is run by a term, which may ask the student
    only = {path for path in held - needed if path in of_passes | named}
    for name, teacher in teachers.items():
        if teacher.source is not None:
            continue
        missing = [path for path in teacher.of if not _starts_given(path, teacher.init_from, recipe.get('init_from'))]
        if missing and missing[0] not in only:
            raise UserError(
                f'teachers.{name}: {missing[0]!r} has new weights, and a frozen teacher would teach noise; give it, or '
                "the recipe, init_from=dict(path='weights.safetensors')"
            )
        if missing:
            kind = missing[0].partition('/')[0]
            theirs = 'towers/image' if kind == 'towers' else missing[0]
            raise UserError(
                f'teachers.{name}: {missing[0]!r} belongs to this teacher alone, and new weights would teach noise; '
                f"give it init_from=dict(path='weights.safetensors', take=['{missing[0]}={theirs}'])"
            )
    return tuple(sorted(only))


def _starts_given(path: str, *init_from: Any) -> bool:
    """Whether one of several entries `init_from` may load the tower or head `path`, as far as can be seen here."""
    starts = [one for given in init_from for one in ([given] if isinstance(given, Mapping) else given or ())]
    taken = [None if one.get('take') is None else [item.partition('=')[0] for item in one['take']] for one in starts]
    return any((take is None and path.startswith('towers/')) or path in (take or ()) for take in taken)


def check_export(
    recipe: Mapping[str, Any],
    towers: Mapping[str, Tower],
    teacher_only: Sequence[str],
    heads: Mapping[str, Head],
    aligned: Sequence[str],
) -> None:
    """UserError where exports would lack a module, or where the tower that probes run cannot encode images alone.

    `aligned` are the towers of features that contrastive terms bring into one space.
    """
    cfg = recipe.get('export')
    if cfg is None:
        return
    passes.check_exported(cfg['towers'], towers)
    for path in (f'{kind}/{name}' for kind in ('towers', 'heads') for name in cfg[kind]):
        if cfg['network'] == 'student' and path in teacher_only:
            kind, name = path.split('/')
            raise UserError(f'export.{kind}: {name!r} belongs to a teacher alone; give export.network, or leave it out')
    for name in cfg['heads']:
        tie = heads[name].tie if name in heads else None
        if tie and tie.split('/')[1] not in cfg['towers']:
            raise UserError(f'export.heads: {name!r} is tied to {tie!r}; export the tower {tie.split("/")[1]!r} too')
    if cfg['encoder'] is not None:
        try:
            _try(cfg['encoder'], towers, recipe)
        except UserError as error:
            raise UserError(f'export.encoder: {error}') from None
    elif not {'image', *aligned} & set(cfg['towers']):
        encoders = [name for name in cfg['towers'] if _encodes(name, towers, recipe)]
        if encoders:
            raise UserError(
                f"export.encoder: probes would run the tower 'image', which is not exported; name the tower that they "
                f'are to run, export.encoder={encoders[0]!r}'
            )


def _encodes(tower: str, towers: Mapping[str, Tower], recipe: Mapping[str, Any]) -> bool:
    """Whether a tower can encode whole images alone."""
    try:
        _try(tower, towers, recipe)
    except UserError:
        return False
    return True


def _try(tower: str, towers: Mapping[str, Tower], recipe: Mapping[str, Any]) -> None:
    """Runs a tower on the shape of one image, as probes run it."""
    sizes = [max(np.atleast_1d(view['size'])) for view in recipe['views'].values() if 'size' in view]
    jax.eval_shape(lambda: _encode(tower, towers, max(sizes, default=1), recipe['image']['channels']))


def _encode(tower: str, towers: Mapping[str, Tower], size: int, channels: int) -> Any:
    """The outputs of a tower for one black image, as probes run it."""
    names = {one.tower for one in passes.ordered([passes.image_pass(tower, towers)])}
    params = {name: towers[name].init(jax.random.key(0)) for name in names}
    return passes.encode_images(tower, towers, params, jnp.zeros((1, size, size, channels)))


def _root(name: str, teachers: Mapping[str, Teacher]) -> str | None:
    """The network at the end of the chain that a teacher follows: 'student', or None for a frozen teacher."""
    source = teachers[name].source
    return source if source in (None, 'student') else _root(source, teachers)
