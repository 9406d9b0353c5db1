"""Checks of the features that the terms of a recipe declare: everything that a name refers to is in the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medjax.errors import UserError, suggest
from medjax.objectives.features import Feature
from medjax.objectives.teachers import Teacher
from medjax.types import Tower


def check_feature(
    f: Feature, where: str, recipe: Mapping[str, Any], towers: Mapping[str, Tower], teachers: Mapping[str, Teacher]
) -> None:
    """A UserError that names the feature, what is missing, and what would work."""
    where = f'{where}: feature {f.name!r}'
    for word, name, known in (
        ('network', f.network, ['student', *teachers]),
        ('tower', f.tower, towers),
        ('view', f.view, recipe['views']),
    ):
        if name not in known:
            raise UserError(f'{where}: there is no {word} {name!r}{suggest(name, known)}')
    for mask in (f'{f.view}~{mask}' for mask in (f.mask, f.at) if mask):
        if mask not in recipe['masks']:
            raise UserError(f'{where}: there is no mask {mask!r}{suggest(mask, recipe["masks"])}')
    if f.head and f.head not in recipe['heads']:
        raise UserError(f'{where}: there is no head {f.head!r}{suggest(f.head, recipe["heads"])}')
    if f.network != 'student':
        for path in [f'towers/{f.tower}', *([f'heads/{f.head}'] if f.head else [])]:
            if path not in teachers[f.network].of:
                raise UserError(
                    f'{where}: the teacher {f.network!r} does not hold {path!r}; add it to teachers.{f.network}.of'
                )
    check_kind(f, where, recipe, towers[f.tower])


def check_kind(f: Feature, where: str, recipe: Mapping[str, Any], tower: Tower) -> None:
    """Text towers see text views, image towers see crops that their patches divide."""
    view = recipe['views'][f.view]
    is_text = view.get('view') == 'text'
    if is_text != (tower.sees == 'text'):
        raise UserError(f'{where}: the tower {f.tower!r} sees {tower.sees}s, and the view {f.view!r} has none')
    if is_text:
        check_texts(f, recipe, tower)
    elif (size := view.get('size')) is not None:
        try:
            tower.grid((size, size) if isinstance(size, int) else tuple(size))
        except UserError as error:
            raise UserError(f'views.{f.view}.size={size}: the tower {f.tower!r} cannot see it: {error}') from None


def check_texts(f: Feature, recipe: Mapping[str, Any], tower: Tower) -> None:
    """The tower has an embedding for every token id and a position for every token."""
    view = recipe['views'][f.view]
    ids = recipe.get('tokenizer', {}).get('tokens', {}).get('vocabulary', 0)  # known once the config is resolved
    if ids > tower.vocabulary:
        raise UserError(
            f'towers.{f.tower}: the tower has embeddings for {tower.vocabulary:,} token ids and the tokenizer '
            f'{recipe["tokenizer"]["path"]} (tokenizer.path) has {ids:,}; give the tokenizer that the tower was made '
            'for, or set the vocabulary of the tower'
        )
    if tower.context and view['length'] > tower.context:
        raise UserError(
            f'views.{f.view}.length={view["length"]}: the tower {f.tower!r} takes at most {tower.context} tokens'
        )


def check_drop_rates(needs: Sequence[Feature], recipe: Mapping[str, Any], towers: Mapping[str, Tower]) -> None:
    """Every tower of the student can meet its drop rate on groups of rows of its views."""
    crops: dict[str, dict[str, int]] = {}
    for f in needs:
        if f.network == 'student':
            crops.setdefault(f.tower, {})[f.view] = recipe['views'][f.view].get('count', 1)
    for tower, views in crops.items():
        towers[tower].check(crops=views, rows_per_group=recipe['rows_per_group'])
