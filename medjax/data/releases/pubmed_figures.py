"""Builds the source of a set of figures from open-access articles: ROCO, PMC-OA, a rebuilt PMC-15M.

A figure has a caption, but no labels and no known patient. Its article, by the article's number in PubMed Central, is
its study. All these sets take their figures from the same articles, so they share one namespace: the key of an article
is the same in all of them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from medjax.data.releases import folders
from medjax.data.types import Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

NAMESPACE = 'pmc'


class Figure(NamedTuple):
    """A figure before it is opened."""

    image: str  # its id in the release
    file: str  # relative to the folder
    article: str  # 'PMC4083729'; '' if it is not known
    where: str  # for the list of drops
    captions: tuple[Any, ...]  # texts, or keys for `Figures.read_caption`
    split: str | None = None
    attributes: Mapping[str, str | float] = {}


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures that a release names."""

    name: str  # of the source
    license: str
    figures: Iterable[Figure | Drop]  # a line that names no figure is a drop
    notes: Sequence[str] = ()
    splits: str = ''  # the name of the published list
    read_caption: Callable[[Any], str] = str  # gives the text of one of `Figure.captions`; may raise Unreadable


def article_id(text: str) -> str:
    """The first PubMed Central number in a text: 'PMC4083729', also from '4083729' alone; '' if there is none."""
    match = re.search(r'PMC\d+', text)
    return match[0] if match else f'PMC{text}' if re.fullmatch(r'[0-9]+', text) else ''


def license_name(text: str) -> str:
    """'CC BY-NC' from 'CC BY-NC 4.0' or 'CC BY-NC [Doe et al. (2020)]'; '' if the text names no licence."""
    match = re.search(r'NO-CC CODE|CC0|CC[ -]BY(-(NC|SA|ND))*', text.upper())
    return match[0].replace('CC-BY', 'CC BY') if match else ''


def source(root: pathlib.Path, release: Figures, size: int | None) -> Source:
    """The source with the figures whose files are in the folder `root`.

    Lines that name the same image are joined: the record has all their captions, one below the other.
    """
    figures, dropped = _with_files(root, _joined(release.figures))
    if not figures:
        reasons = Counter(drop.reason for drop in dropped).most_common(1)
        most = f' ({reasons[0][1]} x {reasons[0][0]})' if reasons else ''
        raise UserError(f'{root}: no image of {release.name} is there{most}')

    def load(i: int) -> Example:
        figure = figures[i]
        text, note = '', ''
        data = folders.read_bytes(folders.inside(root, figure.file))
        try:
            captions = (release.read_caption(caption).strip() for caption in figure.captions)
            text = '\n'.join(dict.fromkeys(filter(None, captions)))
        except Unreadable as error:
            note = f'the caption is left out: {error}'
        return Example(data, text={'caption': text} if text else {}, attributes=figure.attributes, note=note)

    entries = [
        Entry(f.image, None, f.article or f'image/{f.image}', f.split, f.where, stamp=folders.stamp(root / f.file))
        for f in figures
    ]
    return Source(
        name=release.name, version='1', namespace=NAMESPACE, labels=(), license=release.license, size=size,
        entries=entries, label=lambda i: (), load=load, dropped=dropped, notes=[*release.notes, *_notes(figures)],
        splits=release.splits,
    )  # fmt: skip


def _joined(figures: Iterable[Figure | Drop]) -> list[Figure | Drop]:
    """One figure for each image id. A line with another split or file than the image's first line becomes a drop."""
    by_image: dict[str, Figure] = {}
    dropped: list[Drop] = []
    for figure in figures:
        if isinstance(figure, Drop):
            dropped.append(figure)
            continue
        first = by_image.setdefault(figure.image, figure)
        if first is figure:
            continue
        if (first.split, first.file) != (figure.split, figure.file):
            dropped.append(Drop(figure.image, figure.where, f'the image of {first.where} in another split or file'))
        else:
            by_image[figure.image] = first._replace(captions=first.captions + figure.captions)
    return [*by_image.values(), *dropped]


def _with_files(root: pathlib.Path, figures: list[Figure | Drop]) -> tuple[list[Figure], list[Drop]]:
    """The figures whose files are there, and the drops.

    Each folder is listed once, since there are millions of files. A link that leaves `root` is noticed when the file is
    opened.
    """
    listed: dict[str, frozenset[str]] = {}

    def is_there(file: str) -> bool:
        folder, _, name = file.rpartition('/')
        if folder not in listed:
            try:
                listed[folder] = frozenset(os.listdir(root / folder))
            except OSError:
                listed[folder] = frozenset()
        return name in listed[folder]

    present, dropped = [], []
    for figure in figures:
        if isinstance(figure, Drop):
            dropped.append(figure)
            continue
        try:
            if not is_there(folders.relative_path(figure.file)):
                raise Unreadable('there is no such file')
            present.append(figure)
        except Unreadable as error:
            dropped.append(Drop(figure.image, figure.where, str(error)))
    return present, dropped


def _notes(figures: list[Figure]) -> list[str]:
    """Notes on articles in several splits, on images without an article, and on licences."""
    notes = []
    splits_of = defaultdict(set)
    for figure in figures:
        splits_of[figure.article].add(figure.split)
    without_article = len(splits_of.pop('', ()))
    if across := sum(len(splits) > 1 for splits in splits_of.values()):
        notes.append(
            f'{across} of {len(splits_of)} articles have figures in more than one split, so patients may be too'
        )
    if without_article:
        notes.append(f'{sum(not figure.article for figure in figures)} images name no article')
    licenses = Counter(str(figure.attributes.get('license', 'unknown')) for figure in figures)
    if set(licenses) - {'unknown'}:
        notes.append('licences: ' + ', '.join(f'{name} {count}' for name, count in licenses.most_common()))
    return notes
