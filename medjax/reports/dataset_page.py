"""The page of a data set: pictures of every label in every split, its labels, its histograms, whole records.

Columns are read whole, images are not: a page costs some hundreds of images, however many records there are.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from medjax.data.records import DataSet, Split
from medjax.errors import UserError, suggest
from medjax.reports import base, choice, data_facts, images, plots

SECTIONS = (
    ('sheet', 'Contact sheet'),
    ('labels', 'Labels'),
    ('histograms', 'Histograms'),
    ('counts', 'Counts'),
    ('records', 'Whole records'),
)
VALUES = {1: 'positive', 0: 'negative', -1: 'uncertain', -2: 'blank', -3: 'conflicting'}
LABELS = 20  # that have pictures and a place in the matrix: those with the most positives
ROW = 8  # pictures of a label in a split
SAMPLE = 100  # images of a split whose pixels are counted
BINS = 30  # of a histogram, at most
LISTED = 12  # values of a fact that are counted one by one
SMALL, FULL = 128, 1024  # px of the longer side: in the contact sheet, and of a whole record
RECORDS = 3  # whole records, unless some are named
FIRST = ('role', 'sex', 'view', 'site')  # facts in the order in which one asks; the others follow


class Place(NamedTuple):
    """A record by its split and its number there."""

    split: str
    number: int

    def __str__(self) -> str:
        return f'{self.split}/{self.number}'


def place(data: DataSet, text: str) -> Place:
    """The record that 'train/17' names; UserError where there is none."""
    split, slash, number = text.partition('/')
    if not slash or not number.isdecimal():
        raise UserError(f'--record {text}: write the split and the number in it, as in --record train/17')
    if split not in data.splits:
        raise UserError(f'--record {text}: no record in the split {split!r}{suggest(split, data.splits)}')
    if int(number) >= data.splits[split]:
        raise UserError(f'--record {text}: {split} has the records {split}/0 to {split}/{data.splits[split] - 1}')
    return Place(split, int(number))


def render(data: DataSet, places: Sequence[Place]) -> str:
    """The page; without `places` it shows some records of the train split (or the first there is)."""
    if not places:
        first = next(iter(data.splits))
        places = [Place(first, i) for i in choice.varied(data.split(first), RECORDS)]
    splits = {name: data.split(name) for name in data.splits}
    frequent = most_positive(data, splits)
    return base.render(
        'dataset_page.html',
        command='show',
        images=True,
        name=data.name,
        sections=SECTIONS,
        facts=data_facts.facts(data),
        splits=splits,
        sheet=sheet(data, splits, frequent),
        capped=capped(data),
        labels=labels(data, splits),
        together=together(data, splits, frequent),
        histograms=histograms(data, splits),
        sample=SAMPLE,
        counts=counts(splits),
        records=[record(data, place) for place in places],
    )


# Pictures


def sheet(data: DataSet, splits: Mapping[str, Split], frequent: Sequence[int]) -> list[dict[str, Any]]:
    """A group of rows for each label, and one for records without a positive label: a row for each split."""
    from tqdm import tqdm

    chosen: dict[str, dict[str, tuple[int, list[int]]]] = {}  # group -> split -> how many it has, and which are shown
    for name, split in splits.items():
        values = split.labels_array
        groups = {data.labels[i]: np.flatnonzero(values[:, i] == 1) for i in frequent}
        rest = np.flatnonzero(~(values == 1).any(1))
        for group, where in (groups | {'no positive label' if data.labels else 'all records': rest}).items():
            chosen.setdefault(group, {})[name] = len(where), choice.spread(split, where, ROW)
    wanted = sorted({(name, i) for rows in chosen.values() for name, (_, some) in rows.items() for i in some})
    shown = {
        at: images.whole(splits[at[0]].image(at[1]), SMALL)
        for at in tqdm(wanted, 'contact sheet', unit=' images', disable=None, leave=False)
    }
    return [
        dict(
            title=group,
            rows=[
                dict(
                    split=name, count=n, of=len(splits[name]), pictures=[(f'{name}/{i}', shown[name, i]) for i in some]
                )
                for name, (n, some) in rows.items()
            ],
        )
        for group, rows in chosen.items()
        if any(n for n, _ in rows.values())
    ]


def record(data: DataSet, at: Place) -> dict[str, Any]:
    """Everything about a record that a reader may see: no key, hashed or not."""
    split = data.split(at.split)
    found, mask = split[at.number], split.mask(at.number)
    height, width, channels = found.image.shape
    size = f'{width} x {height} px, {"grey" if channels == 1 else "colour"}, {8 * found.image.dtype.itemsize} bit'
    if max(width, height) > FULL:
        size += f'; shown with {FULL} px'
    facts = {name: words for name, words in found.attributes.items() if name not in ('text', 'split') and words != ''}
    by_value = {
        word: [name for name, value in zip(data.labels, found.label, strict=True) if value == number]
        for number, word in VALUES.items()
    }
    return dict(
        title=str(at),
        image=images.whole(found.image, FULL),
        mask=images.whole(images.tinted(found.image, mask), FULL) if mask is not None else None,
        mask_values=[] if mask is None else [int(value) for value in np.unique(mask) if value],
        facts=[('image', size), *((name, f'{v:g}' if isinstance(v, float) else str(v)) for name, v in facts.items())],
        labels=[(word, ', '.join(names)) for word, names in by_value.items() if names],
        texts=[(section, words) for section, words in found.attributes['text'].items() if words],
    )


# Labels


def most_positive(data: DataSet, splits: Mapping[str, Split]) -> list[int]:
    """The labels with the most positives, in the order of the data set."""
    positives = np.sum([(split.labels_array == 1).sum(0) for split in splits.values()], axis=0)
    return sorted(np.argsort(-positives, kind='stable')[:LABELS].tolist())


def capped(data: DataSet) -> str:
    n = len(data.labels)
    return f'The {LABELS} labels with the most positives of {n}.' if n > LABELS else ''


def labels(data: DataSet, splits: Mapping[str, Split]) -> dict[str, Any]:
    """How many records have each value of each label, in each split; values that no record has are left out."""
    tables = {name: {v: (split.labels_array == v).sum(0) for v in VALUES} for name, split in splits.items()}
    found = [v for v in VALUES if v >= 0 or any(table[v].any() for table in tables.values())]
    rows = [(label, [int(tables[s][v][i]) for s in splits for v in found]) for i, label in enumerate(data.labels)]
    absent = [VALUES[v] for v in VALUES if v not in found]
    return dict(values=[VALUES[v] for v in found], rows=rows, absent=' or '.join(absent))


def together(data: DataSet, splits: Mapping[str, Split], frequent: Sequence[int]) -> dict[str, Any] | None:
    """How many records, of all splits, are positive for two labels; the diagonal: for one."""
    if len(frequent) < 2:
        return None
    names = [data.labels[i] for i in frequent]
    both = np.zeros((len(names), len(names)))
    for split in splits.values():
        positive = (split.labels_array[:, frequent] == 1).astype(np.float32)
        both += (positive.T @ positive).round()
    shares = both / np.maximum(np.diag(both)[:, None], 1)
    picture = plots.matrix('how often labels come together; the table below has the numbers', names, shares)
    return dict(picture=picture, names=names, rows=list(zip(names, both.astype(int).tolist(), strict=True)))


# Facts


class Histograms(NamedTuple):
    panels: Sequence[Markup]
    words: Sequence[str]  # what needs no panel


def histograms(data: DataSet, splits: Mapping[str, Split]) -> Histograms:
    """Panels of shades, sizes, words and sentences of text, ages and other numbers; in words where all are equal."""
    shapes = {name: split.column('shape') for name, split in splits.items()}
    panels, words = [intensities(data, splits)], []
    numbers = [
        ('height', 'px', {name: shape[:, 0] for name, shape in shapes.items()}),
        ('width', 'px', {name: shape[:, 1] for name, shape in shapes.items()}),
        *(
            ('text', unit, {name: split.column(unit)[split.column(unit) > 0] for name, split in splits.items()})
            for unit in ('words', 'sentences')
        ),
        *(
            (
                fact,
                'years' if fact == 'age' else '',
                {name: known(split.column(fact)) for name, split in splits.items()},
            )
            for fact in facts(splits, 'f')
        ),
    ]
    for title, unit, values in numbers:
        every = np.concatenate(list(values.values()))
        some = {name: len(v) for name, v in values.items() if len(v) < len(splits[name])}
        if some:
            parts = ', '.join(f'{len(v):,} of {len(splits[name]):,} in {name}' for name, v in values.items())
            words.append(f'{title}: known of {parts}.' if len(every) else f'{title}: no record has any.')
        if len(every) and every.min() == every.max():
            words.append(f'{title}: {every[0]:g} {unit} in every record{" that has any" if some else ""}.')
        elif len(every):
            at = edges(every)
            counted = {name: (np.histogram(v, at)[0], at) for name, v in values.items() if len(v)}
            panels.append(plots.histogram(title, unit, counted))
    return Histograms(panels, list(dict.fromkeys(words)))  # words and sentences of text are known alike


def intensities(data: DataSet, splits: Mapping[str, Split]) -> Markup:
    """Shares of shades between black (0) and full scale (1), over the pixels of a fixed sample of each split."""
    from tqdm import tqdm

    full = np.iinfo(np.uint16 if data.bits == 16 else np.uint8).max
    at = np.linspace(0, 1, 65)
    chosen = [(name, i) for name, split in splits.items() for i in choice.spread(split, np.arange(len(split)), SAMPLE)]
    counted = {name: np.zeros(len(at) - 1) for name in splits}
    for name, i in tqdm(chosen, 'intensities', unit=' images', disable=None, leave=False):
        pixels = splits[name].image(i)
        counted[name] += np.histogram(pixels / full, at)[0] / pixels.size  # each image counts alike
    return plots.histogram('shades', 'of full scale', {name: (n, at) for name, n in counted.items()})


def edges(values: np.ndarray) -> np.ndarray:
    """At most about BINS bins of a round width that hold all values; around each value where these are few integers."""
    low, high = float(values.min()), float(values.max())
    integers = bool((values == np.round(values)).all())
    if integers and high - low < BINS:
        return np.arange(low, high + 2) - 0.5
    return np.asarray(MaxNLocator(BINS, integer=integers).tick_values(low, high))


def known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def facts(splits: Mapping[str, Split], kind: str) -> list[str]:
    """The facts that are numbers ('f') or words ('U'), those that one asks for first in front."""
    first = next(iter(splits.values()))
    found = [name for name in first.column_names if first.column(name).dtype.kind == kind]
    return sorted(found, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def counts(splits: Mapping[str, Split]) -> list[dict[str, Any]]:
    """A table for each fact that is a word: how often each value comes in each split, the most frequent first."""
    tables = []
    for fact in facts(splits, 'U'):
        found = {name: tally(split.column(fact)) for name, split in splits.items()}
        total = sum(found.values(), collections.Counter())
        values = [value for value, _ in total.most_common(LISTED)]
        rows = [(value or 'unknown', [found[name][value] for name in splits]) for value in values]
        if rest := len(total) - len(values):
            others = [n.total() - sum(n[value] for value in values) for n in found.values()]
            rows.append((f'{rest:,} other values', others))
        tables.append(dict(title=fact, rows=rows))
    return tables


def tally(values: Iterable[str]) -> collections.Counter[str]:
    names, n = np.unique(np.asarray(values), return_counts=True)
    return collections.Counter(dict(zip(names.tolist(), n.tolist(), strict=True)))
