"""The page of `medjax show`: pictures for each label and split, tables of labels, histograms, whole records.

Columns are read whole, images are not. So a page reads some hundreds of images, whatever the size of the data set.
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
LABELS = 20  # labels with pictures and a place in the matrix: those with the most positives
PICTURES = 8  # in a strip of the contact sheet
SAMPLE = 100  # images of each split whose pixels are counted
BINS = 30  # of a histogram, at most
LISTED = 12  # values of a fact that have a line of their own in its table
SMALL, FULL = 128, 1024  # px of the longer side, in the contact sheet and of a whole record
RECORDS = 3  # whole records, unless some are named
FIRST = ('role', 'sex', 'view', 'site')  # these facts come first, the others in alphabetical order


class RecordName(NamedTuple):
    """A record by its split and its number there: 'train/17'."""

    split: str
    number: int

    def __str__(self) -> str:
        return f'{self.split}/{self.number}'


def parse_record(data: DataSet, text: str) -> RecordName:
    """The record that --record names, as 'train/17'; UserError if there is none."""
    split, slash, number = text.partition('/')
    if not slash or not number.isdecimal():
        raise UserError(f'--record {text}: write the split and the number in it, as in --record train/17')
    if split not in data.splits:
        raise UserError(f'--record {text}: no record in the split {split!r}{suggest(split, data.splits)}')
    if int(number) >= data.splits[split]:
        raise UserError(f'--record {text}: {split} has the records {split}/0 to {split}/{data.splits[split] - 1}')
    return RecordName(split, int(number))


def render(data: DataSet, names: Sequence[RecordName]) -> str:
    """The page, with the named records whole; without names, with some of train, else of the first split."""
    if not names:
        first = next(iter(data.splits))
        names = [RecordName(first, i) for i in choice.varied(data.split(first), RECORDS)]
    splits = {name: data.split(name) for name in data.splits}
    frequent = most_positive(splits)
    return base.render(
        'dataset_page.html',
        command='show',
        images=True,
        name=data.name,
        sections=SECTIONS,
        facts=data_facts.facts(data),
        splits=splits,
        sheet=sheet(data, splits, frequent),
        label_limit=label_limit(data),
        labels=labels(data, splits),
        together=together(data, splits, frequent),
        histograms=histograms(data, splits),
        sample=SAMPLE,
        counts=counts(splits),
        records=[record(data, name) for name in names],
    )


# Pictures


def sheet(data: DataSet, splits: Mapping[str, Split], frequent: Sequence[int]) -> list[dict[str, Any]]:
    """For each label, and for records without a positive label: a title, and a strip of pictures for each split."""
    from tqdm import tqdm

    counts: dict[str, dict[str, int]] = {}  # title -> split -> number of records
    chosen: dict[str, dict[str, list[int]]] = {}  # title -> split -> the records that are shown
    for name, split in splits.items():
        values = split.labels_array
        by_title = {data.labels[i]: np.flatnonzero(values[:, i] == 1) for i in frequent}
        without = np.flatnonzero(~(values == 1).any(1))
        by_title['no positive label' if data.labels else 'all records'] = without
        for title, numbers in by_title.items():
            counts.setdefault(title, {})[name] = len(numbers)
            chosen.setdefault(title, {})[name] = choice.spread(split, numbers, PICTURES)
    wanted = sorted({(name, i) for strips in chosen.values() for name, numbers in strips.items() for i in numbers})
    pictures = {
        (name, i): images.whole(splits[name].image(i), SMALL)
        for name, i in tqdm(wanted, 'contact sheet', unit=' images', disable=None, leave=False)
    }
    return [
        dict(
            title=title,
            strips=[
                dict(
                    split=name,
                    count=counts[title][name],
                    of=len(splits[name]),
                    pictures=[(f'{name}/{i}', pictures[name, i]) for i in numbers],
                )
                for name, numbers in strips.items()
            ],
        )
        for title, strips in chosen.items()
        if any(counts[title].values())
    ]


def record(data: DataSet, name: RecordName) -> dict[str, Any]:
    """A whole record: everything that a reader may see. No id is in it, hashed or not."""
    split = data.split(name.split)
    stored, mask = split[name.number], split.mask(name.number)
    height, width, channels = stored.image.shape
    size = f'{width} x {height} px, {"grey" if channels == 1 else "colour"}, {8 * stored.image.dtype.itemsize} bit'
    if max(width, height) > FULL:
        size += f'; reduced to {FULL} px here'
    facts = {fact: value for fact, value in stored.attributes.items() if fact not in ('text', 'split') and value != ''}
    by_value = {
        title: [label for label, value in zip(data.labels, stored.label, strict=True) if value == number]
        for number, title in VALUES.items()
    }
    return dict(
        title=str(name),
        image=images.whole(stored.image, FULL),
        mask=images.whole(images.tinted(stored.image, mask), FULL) if mask is not None else None,
        mask_content=mask_content(split, name.number, mask),
        facts=[('image', size), *((fact, f'{v:g}' if isinstance(v, float) else str(v)) for fact, v in facts.items())],
        labels=[(title, ', '.join(names)) for title, names in by_value.items() if names],
        texts=[(section, text) for section, text in stored.attributes['text'].items() if text],
    )


def mask_content(split: Split, number: int, mask: np.ndarray | None) -> str:
    """What a mask shows: the names of its structures, or its values if the data set has no names."""
    if mask is None:
        return ''
    if names := split.data.masks:
        shown = split.structures(number).any((1, 2))
        return ', '.join(name for name, there in zip(names, shown, strict=True) if there) or 'nothing'
    return f'the values {", ".join(str(value) for value in np.unique(mask) if value)}' if mask.any() else 'nothing'


# Labels


def most_positive(splits: Mapping[str, Split]) -> list[int]:
    """The labels with the most positives, in the order of the data set."""
    positives = np.sum([(split.labels_array == 1).sum(0) for split in splits.values()], axis=0)
    return sorted(np.argsort(-positives, kind='stable')[:LABELS].tolist())


def label_limit(data: DataSet) -> str:
    """A sentence if not all labels are shown."""
    n = len(data.labels)
    return f'Only the {LABELS} labels with the most positives are shown, of {n}.' if n > LABELS else ''


def labels(data: DataSet, splits: Mapping[str, Split]) -> dict[str, Any]:
    """A table of the number of records with each value of each label; values without any record are left out."""
    tables = {name: {v: (split.labels_array == v).sum(0) for v in VALUES} for name, split in splits.items()}
    values = [v for v in VALUES if v >= 0 or any(table[v].any() for table in tables.values())]
    rows = [(label, [int(tables[s][v][i]) for s in splits for v in values]) for i, label in enumerate(data.labels)]
    absent = [VALUES[v] for v in VALUES if v not in values]
    return dict(values=[VALUES[v] for v in values], rows=rows, absent=' or '.join(absent))


def together(data: DataSet, splits: Mapping[str, Split], frequent: Sequence[int]) -> dict[str, Any] | None:
    """The number of records, of all splits, that are positive for two labels; on the diagonal, for one label."""
    if len(frequent) < 2:
        return None
    names = [data.labels[i] for i in frequent]
    both = np.zeros((len(names), len(names)))
    for split in splits.values():
        positive = (split.labels_array[:, frequent] == 1).astype(np.float32)
        both += (positive.T @ positive).round()
    shares = both / np.maximum(np.diag(both)[:, None], 1)
    picture = plots.matrix('how often two labels occur together; the table below has the numbers', names, shares)
    return dict(picture=picture, names=names, rows=list(zip(names, both.astype(int).tolist(), strict=True)))


# Facts


class Histograms(NamedTuple):
    """The histograms of the page, with notes on what they leave out."""

    panels: Sequence[Markup]
    notes: Sequence[str]  # on values that some records lack, or that are equal in all records


def histograms(data: DataSet, splits: Mapping[str, Split]) -> Histograms:
    """Panels of pixel values, heights, widths, words and sentences of the texts, and the facts that are numbers."""
    shapes = {name: split.column('shape') for name, split in splits.items()}
    numbers = [
        ('height', 'px', {name: shape[:, 0] for name, shape in shapes.items()}),
        ('width', 'px', {name: shape[:, 1] for name, shape in shapes.items()}),
    ]
    for unit in ('words', 'sentences'):
        numbers.append(('text', unit, {name: positive(split.column(unit)) for name, split in splits.items()}))
    for fact in facts(splits, 'f'):
        unit = 'years' if fact == 'age' else ''
        numbers.append((fact, unit, {name: finite(split.column(fact)) for name, split in splits.items()}))

    panels, notes = [pixel_values(data, splits)], []
    for title, unit, values in numbers:
        every = np.concatenate(list(values.values()))
        incomplete = any(len(v) < len(splits[name]) for name, v in values.items())
        if incomplete:
            counts = ', '.join(f'{len(v):,} of {len(splits[name]):,} in {name}' for name, v in values.items())
            notes.append(f'{title}: known of {counts}.' if len(every) else f'{title}: no record has any.')
        if len(every) and every.min() == every.max():
            notes.append(f'{title}: {every[0]:g} {unit} in every record{" that has any" if incomplete else ""}.')
        elif len(every):
            bins = edges(every)
            counted = {name: (np.histogram(v, bins)[0], bins) for name, v in values.items() if len(v)}
            panels.append(plots.histogram(title, unit, counted))
    return Histograms(panels, list(dict.fromkeys(notes)))  # words and sentences of texts have the same note


def pixel_values(data: DataSet, splits: Mapping[str, Split]) -> Markup:
    """A histogram of the pixels of a fixed sample of each split, from black (0) to full scale (1)."""
    from tqdm import tqdm

    full = np.iinfo(np.uint16 if data.bits == 16 else np.uint8).max
    bins = np.linspace(0, 1, 65)
    chosen = [(name, i) for name, split in splits.items() for i in choice.spread(split, np.arange(len(split)), SAMPLE)]
    counted = {name: np.zeros(len(bins) - 1) for name in splits}
    for name, i in tqdm(chosen, 'pixel values', unit=' images', disable=None, leave=False):
        pixels = splits[name].image(i)
        counted[name] += np.histogram(pixels / full, bins)[0] / pixels.size  # all images have the same weight
    return plots.histogram('pixel values', 'share of full scale', {name: (n, bins) for name, n in counted.items()})


def edges(values: np.ndarray) -> np.ndarray:
    """The edges of at most about BINS bins of a round width; few different integers have a bin each."""
    low, high = float(values.min()), float(values.max())
    integers = bool((values == np.round(values)).all())
    if integers and high - low < BINS:
        return np.arange(low, high + 2) - 0.5
    return np.asarray(MaxNLocator(BINS, integer=integers).tick_values(low, high))


def finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def positive(values: np.ndarray) -> np.ndarray:
    return values[values > 0]


def facts(splits: Mapping[str, Split], kind: str) -> list[str]:
    """The names of the facts that are numbers (kind 'f') or texts (kind 'U'), those of FIRST first."""
    first = next(iter(splits.values()))
    names = [name for name in first.column_names if first.column(name).dtype.kind == kind]
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def counts(splits: Mapping[str, Split]) -> list[dict[str, Any]]:
    """A table for each fact that is a text: how many records of each split have each value, the most frequent first."""
    tables = []
    for fact in facts(splits, 'U'):
        tallies = {name: tally(split.column(fact)) for name, split in splits.items()}
        total = sum(tallies.values(), collections.Counter())
        values = [value for value, _ in total.most_common(LISTED)]
        rows = [(value or 'unknown', [tallies[name][value] for name in splits]) for value in values]
        if unlisted := len(total) - len(values):
            others = [n.total() - sum(n[value] for value in values) for n in tallies.values()]
            rows.append((f'{unlisted:,} other values', others))
        tables.append(dict(title=fact, rows=rows))
    return tables


def tally(values: Iterable[str]) -> collections.Counter[str]:
    names, n = np.unique(np.asarray(values), return_counts=True)
    return collections.Counter(dict(zip(names.tolist(), n.tolist(), strict=True)))
