"""Figures of open-access articles and their captions: what ROCO, PMC-OA and a rebuilt PMC-15M share.

A figure has no label and no known patient; its article, a number of PubMed Central, is its study. All these sets take
from one body of articles, so they have one namespace: an article's key is the same in each of them.
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
    image: str  # its id in the release
    file: str  # relative to the folder
    article: str  # 'PMC4083729', '' where it is not known
    where: str
    captions: tuple[Any, ...]  # texts, or keys of which `Figures.read_caption` makes texts
    split: str | None = None
    info: Mapping[str, str | float] = {}


def article(text: str) -> str:
    """The first number of PubMed Central in a text, 'PMC4083729', or the text if it is a bare one; else ''."""
    found = re.search(r'PMC\d+', text)
    return found[0] if found else f'PMC{text}' if re.fullmatch(r'[0-9]+', text) else ''


def license(text: str) -> str:
    """'CC BY-NC' out of 'CC BY-NC 4.0' or 'CC BY-NC [Doe et al. (2020)]'; '' where no licence is named."""
    found = re.search(r'NO-CC CODE|CC0|CC[ -]BY(-(NC|SA|ND))*', text.upper())
    return found[0].replace('CC-BY', 'CC BY') if found else ''


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures that a release names."""

    name: str  # of the source
    license: str
    figures: Iterable[Figure | Drop]  # a line that names no figure is a drop
    notes: Sequence[str] = ()
    splits: str = ''  # the published list that the splits are
    read_caption: Callable[[Any], str] = str  # one of `Figure.captions` -> its text; may raise Unreadable


def source(root: pathlib.Path, release: Figures, size: int | None) -> Source:
    """The figures whose files are there. Several lines of one image are joined: its captions one below the other."""
    kept, dropped = _usable(root, _joined(release.figures))
    if not kept:
        reasons = Counter(drop.reason for drop in dropped).most_common(1)
        most = f' ({reasons[0][1]} x {reasons[0][0]})' if reasons else ''
        raise UserError(f'{root}: no image of {release.name} is there{most}')

    def load(i: int) -> Example:
        figure = kept[i]
        text, note = '', ''
        data = folders.content(folders.inside(root, figure.file))
        try:
            captions = (release.read_caption(caption).strip() for caption in figure.captions)
            text = '\n'.join(dict.fromkeys(filter(None, captions)))
        except Unreadable as error:
            note = f'the caption is left out: {error}'
        return Example(data, text={'caption': text} if text else {}, info=figure.info, note=note)

    entries = [
        Entry(f.image, None, f.article or f'image/{f.image}', f.split, f.where, stamp=folders.stamp(root / f.file))
        for f in kept
    ]
    return Source(
        name=release.name, version='1', namespace=NAMESPACE, labels=(), license=release.license, size=size,
        entries=entries, label=lambda i: (), load=load, dropped=dropped, notes=[*release.notes, *_notes(kept)],
        splits=release.splits,
    )  # fmt: skip


def _joined(figures: Iterable[Figure | Drop]) -> list[Figure | Drop]:
    """One figure for each image id; a line that puts it in another split or file than its first line is a drop."""
    found: dict[str, Figure] = {}
    drops: list[Drop] = []
    for figure in figures:
        if isinstance(figure, Drop):
            drops.append(figure)
            continue
        first = found.setdefault(figure.image, figure)
        if first is figure:
            continue
        if (first.split, first.file) != (figure.split, figure.file):
            drops.append(Drop(figure.image, figure.where, f'the image of {first.where} in another split or file'))
        else:
            found[figure.image] = first._replace(captions=first.captions + figure.captions)
    return [*found.values(), *drops]


def _usable(root: pathlib.Path, figures: list[Figure | Drop]) -> tuple[list[Figure], list[Drop]]:
    """Millions of files are looked up by listing each folder once; whether one leaves `root` is seen when opened."""
    listed: dict[str, frozenset[str]] = {}

    def there(file: str) -> bool:
        folder, _, name = file.rpartition('/')
        if folder not in listed:
            try:
                listed[folder] = frozenset(os.listdir(root / folder))
            except OSError:
                listed[folder] = frozenset()
        return name in listed[folder]

    kept, dropped = [], []
    for figure in figures:
        if isinstance(figure, Drop):
            dropped.append(figure)
            continue
        try:
            if not there(folders.relative(figure.file)):
                raise Unreadable('there is no such file')
            kept.append(figure)
        except Unreadable as error:
            dropped.append(Drop(figure.image, figure.where, str(error)))
    return kept, dropped


def _notes(figures: list[Figure]) -> list[str]:
    notes = []
    articles = defaultdict(set)
    for figure in figures:
        articles[figure.article].add(figure.split)
    unknown = len(articles.pop('', ()))
    if across := sum(len(splits) > 1 for splits in articles.values()):
        notes.append(
            f'{across} of {len(articles)} articles have figures in more than one split, so patients may be too'
        )
    if unknown:
        notes.append(f'{sum(not figure.article for figure in figures)} images name no article')
    known = Counter(str(figure.info.get('license', 'unknown')) for figure in figures)
    if set(known) - {'unknown'}:
        notes.append('licences: ' + ', '.join(f'{name} {count}' for name, count in known.most_common()))
    return notes
