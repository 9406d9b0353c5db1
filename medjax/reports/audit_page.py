"""The page of `medjax audit`: the verdict, a table of leaks, and the records of each leak side by side.

Sentences and numbers come from the result of `medjax.data.audit.leaks`, pictures from the data sets. A split of a data
set has the name 'nih/train'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.audit.leaks import KIND_NAMES
from medjax.data.records import DataSet, Split
from medjax.reports import base, data_facts, images

SECTIONS = (
    ('leaks', 'Leaks'),
    ('matches', 'Records side by side'),
    ('labels', 'Labels'),
    ('texts', 'Texts'),
    ('aside', 'Dropped by the build'),
    ('burned', 'Burned-in text'),
    ('unknown', 'Not compared'),
    ('sets', 'Data sets'),
)
SHOWN = 24  # matches of a finding that are shown as pictures
ALL = 360  # matches on the whole page that are shown as pictures
LISTED = 200  # further matches of a finding, listed by their numbers; the JSON has up to 1000 matches
SIDE = 160  # px of the longer side of a picture


class ShownRecord(NamedTuple):
    """One of two records side by side. It never holds an id."""

    image: str
    name: str  # 'nih/train/17'
    labels: str
    person: str  # '61 years, F', or ''


class Records:
    """The records of the data sets, by the name of their split."""

    def __init__(self, names: Sequence[str], datasets: Sequence[DataSet], done: Callable[[int], Any]):
        self.splits = {
            f'{name}/{split}': data.split(split)
            for name, data in zip(names, datasets, strict=True)
            for split in data.splits
        }
        self.done = done  # moves the progress bar

    def match(self, first: tuple[str, int], second: tuple[str, int], note: str) -> tuple[ShownRecord, ShownRecord, str]:
        """The two records of a match for the page, each given by its split and its number there."""
        self.done(1)
        return self.shown(*first), self.shown(*second), note

    def shown(self, name: str, number: int) -> ShownRecord:
        split = self.splits[name]
        caption = images.caption(split.labels_array[number], split.data.labels)
        picture = images.whole(split.image(number), SIDE)
        return ShownRecord(picture, f'{name}/{number}', caption, ', '.join(person(split, number)))

    def have_one_patient(self, first: tuple[str, int], second: tuple[str, int]) -> bool:
        """True if both records are known to be of one patient."""
        (split, i), (other, j) = ((self.splits[name], number) for name, number in (first, second))
        comparable = split.data.key_fingerprint == other.data.key_fingerprint
        return comparable and bool(split.keys('patient')[i] == other.keys('patient')[j])


def render(audit: Mapping[str, Any], datasets: Sequence[DataSet]) -> str:
    """The page for the result of `leaks.audit(datasets)`."""
    from tqdm import tqdm

    names = [dataset['name'] for dataset in audit['sets']]
    leaks, findings = audit['leaks'], [*audit['leaks'], *audit['shared']]
    contradictions = audit['labels']['pairs']
    counts = ration([*(len(finding['pairs']) for finding in findings), len(contradictions)])
    with tqdm(total=sum(counts), desc='pictures', unit=' matches', disable=None, leave=False) as bar:
        records = Records(names, datasets, bar.update)
        finding_blocks = [finding_block(finding, n, records) for finding, n in zip(findings, counts, strict=False)]
        contradiction_block = contradictions_block(audit['labels'], counts[-1], records)
    return base.render(
        'audit_page.html',
        command='audit',
        images=bool(sum(counts)),
        name=', '.join(names),
        sections=SECTIONS,
        verdict=audit['verdict'][: len(leaks) or 1],
        notes=audit['verdict'][len(leaks) or 1 :],
        leaks=[row(leak) for leak in leaks],
        shared=[row(finding) for finding in audit['shared']],
        leaks_as_text=tab_separated(leaks),
        findings=finding_blocks,
        contradictions=contradiction_block,
        conflicting=conflicting(audit['labels']['counts']),
        texts=list(audit['texts'].items()),
        drops=[(dataset['name'], drop) for dataset in audit['sets'] for drop in dataset['drops']],
        burned=[(dataset['name'], *burned_in(dataset['burned_in'])) for dataset in audit['sets']],
        sets=[
            (name, [*data_facts.facts(data), ('key of the ids', f'fingerprint {dataset["key_fingerprint"]}')])
            for name, dataset, data in zip(names, audit['sets'], datasets)
        ],
        unknown=[*audit['unknown'], *single_image_patients(names, datasets)],
    )


# Findings


def ration(wanted: Sequence[int]) -> list[int]:
    """The number of pictures for each finding: at most SHOWN for each, and ALL together."""
    left, counts = ALL, []
    for n in wanted:
        counts.append(min(n, SHOWN, left))
        left -= counts[-1]
    return counts


def row(finding: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Cells of a table: kind, both splits, number of records, of how many, per cent."""
    records, of = finding['records'], finding['of']
    kind, train_side, held_out = KIND_NAMES[finding['kind']], finding['known'], finding['held_out']
    return kind, train_side, held_out, f'{records:,}', f'{of:,}', f'{100 * records / of:.1f}'


def tab_separated(findings: Sequence[Mapping[str, Any]]) -> str:
    """The findings as a table for a spreadsheet."""
    head = ('kind', 'earlier split', 'later split', 'records', 'of')
    lines = [(f['kind'], f['known'], f['held_out'], f['records'], f['of']) for f in findings]
    return '\n'.join('\t'.join(map(str, line)) for line in (head, *lines))


def finding_block(finding: Mapping[str, Any], n: int, records: Records) -> dict[str, Any]:
    """A finding for the page: a title, n matches as pictures, and further matches by their numbers."""
    train_side, held_out, matches = finding['known'], finding['held_out'], finding['pairs']
    count, near = finding['pair_count'], finding['kind'] == 'near'
    shown = []
    for i, j, similarity in matches[:n]:
        notes = [f'similarity {similarity:.3f}'] if near else []
        if finding['kind'] != 'patient' and records.have_one_patient((train_side, i), (held_out, j)):
            notes.append('same patient')  # a near-duplicate may then be a second image of this patient
        shown.append(records.match((train_side, i), (held_out, j), ', '.join(notes)))
    listed = [f'{i} – {j}' + (f' ({similarity:.3f})' if near else '') for i, j, similarity in matches[n:][:LISTED]]
    where = f'within {train_side}' if train_side == held_out else f'{held_out} in {train_side}'
    return dict(
        title=f'{where}, {KIND_NAMES[finding["kind"]]}',
        note=f'{finding["records"]:,} of {finding["of"]:,} records of {held_out}, {count:,} match{"es" * (count > 1)}',
        matches=shown,
        listed=listed,
        unlisted=count - n - len(listed),
    )


def person(split: Split, number: int) -> Iterator[str]:
    """Age and sex, where known."""
    for fact in ('age', 'sex'):
        value = split.column(fact)[number] if fact in split.column_names else ''
        if isinstance(value, np.floating):
            yield from () if np.isnan(value) else (f'{value:g} years',)
        elif value:
            yield str(value)


# Labels, data sets


def contradictions_block(labels: Mapping[str, Any], n: int, records: Records) -> dict[str, Any]:
    """Equal images with contradicting labels: n matches as pictures, further matches by their numbers."""
    matches, count = labels['pairs'], labels['contradictions']
    shown = []
    for first, i, second, j, names in matches[:n]:
        split = records.splits[first]
        in_first = {name: split.labels_array[i, split.data.labels.index(name)] == 1 for name in names}
        note = '; '.join(f'{name}: only the {"left" if positive else "right"}' for name, positive in in_first.items())
        shown.append(records.match((first, i), (second, j), note))
    listed = [f'{a}/{i}, {b}/{j}: {", ".join(names)}' for a, i, b, j, names in matches[n:][:LISTED]]
    return dict(count=count, matches=shown, listed=listed, unlisted=count - n - len(listed))


def conflicting(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[tuple[str, str, int]]:
    """(split, label, number of records whose readers or table lines disagree)."""
    return [
        (split, label, values['-3'])
        for split, table in counts.items()
        for label, values in table.items()
        if '-3' in values
    ]


def burned_in(counts: Mapping[str, int]) -> tuple[int, int, int]:
    """Numbers of records whose file states burned-in text, states none, and states nothing."""
    yes, no = counts.get('YES', 0), counts.get('NO', 0)
    return yes, no, sum(counts.values()) - yes - no


def single_image_patients(names: Sequence[str], datasets: Sequence[DataSet]) -> list[str]:
    """A sentence for each data set in which every record has a patient of its own."""
    return [
        f'{name}: every record is a patient of its own; if the source named none, one person can be in two splits'
        for name, data in zip(names, datasets, strict=True)
        if data.patients == data.splits
    ]
