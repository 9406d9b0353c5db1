"""The page of an audit: the verdict, a table of leaks, and the pairs themselves side by side.

The words and numbers come from the result of `medjax.data.audit.leaks`, the pictures from the data sets that it names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.audit.leaks import WORDS
from medjax.data.records import DataSet, Split
from medjax.reports import base, data_facts, images

SECTIONS = (
    ('leaks', 'Leaks'),
    ('pairs', 'Pairs'),
    ('labels', 'Labels'),
    ('texts', 'Texts'),
    ('aside', 'Set aside'),
    ('burned', 'Burned-in text'),
    ('unknown', 'Not compared'),
    ('sets', 'Data sets'),
)
SHOWN = 24  # pairs of a finding that are shown as pictures
ALL = 360  # on the whole page; findings after that are told by numbers
SIDE = 160  # px of the longer side of a picture
LISTED = 200  # pairs of a finding that are told by number; the JSON has up to a thousand


class Side(NamedTuple):
    """One of two records, for people: never an id."""

    image: str
    where: str  # 'nih/train/17'
    labels: str
    person: str  # '61 years, F', or ''


def render(told: Mapping[str, Any], datasets: Sequence[DataSet]) -> str:
    """The page of what `data.audit.audit(datasets)` told."""
    from tqdm import tqdm

    names = [one['name'] for one in told['sets']]
    parts = {f'{name}/{s}': data.split(s) for name, data in zip(names, datasets, strict=True) for s in data.splits}
    found = [*told['leaks'], *told['shared']]
    against = told['labels']['pairs']
    room = ration([*(len(f['pairs']) for f in found), len(against)])
    with tqdm(total=sum(room), desc='pictures', unit=' pairs', disable=None, leave=False) as bar:
        findings = [finding(f, n, parts, bar.update) for f, n in zip(found, room, strict=False)]
        contradictions = [contradiction(pair, parts, bar.update) for pair in against[: room[-1]]]
    leaks = len(told['leaks'])
    return base.render(
        'audit_page.html',
        command='audit',
        images=bool(sum(room)),
        name=', '.join(names),
        sections=SECTIONS,
        verdict=told['verdict'][: leaks or 1],
        more=told['verdict'][leaks or 1 :],
        leaks=[row(f) for f in told['leaks']],
        shared=[row(f) for f in told['shared']],
        leaks_as_text=tabs(told['leaks']),
        findings=findings,
        contradictions=contradictions,
        contradiction_count=told['labels']['contradictions'],
        contradictions_rest=[
            f'{a}/{i}, {b}/{j}: {", ".join(names)}' for a, i, b, j, names in against[len(contradictions) :][:LISTED]
        ],
        conflicting=conflicting(told['labels']['counts']),
        texts=list(told['texts'].items()),
        drops=[(one['name'], drop) for one in told['sets'] for drop in one['drops']],
        burned=[(one['name'], *burned(one['burned_in'])) for one in told['sets']],
        sets=[(name, [*data_facts.facts(data), *key(one)]) for name, one, data in zip(names, told['sets'], datasets)],
        unknown=[*told['unknown'], *alone(names, datasets)],
    )


# Findings


def ration(wanted: Sequence[int]) -> list[int]:
    """How many pairs of each finding become pictures: at most SHOWN of each and ALL together, the first ones first."""
    left, given = ALL, []
    for n in wanted:
        given.append(min(n, SHOWN, left))
        left -= given[-1]
    return given


def row(found: Mapping[str, Any]) -> tuple[str, str, str, str, str, str]:
    """Kind, the two parts, records, of how many, per cent."""
    records, of = found['records'], found['of']
    kind, known, held_out = WORDS[found['kind']], found['known'], found['held_out']
    return kind, known, held_out, f'{records:,}', f'{of:,}', f'{100 * records / of:.1f}'


def tabs(found: Sequence[Mapping[str, Any]]) -> str:
    """Findings for a spreadsheet or a paper."""
    head = ('kind', 'known part', 'held-out part', 'records', 'of')
    lines = [(f['kind'], f['known'], f['held_out'], f['records'], f['of']) for f in found]
    return '\n'.join('\t'.join(map(str, line)) for line in (head, *lines))


def finding(found: Mapping[str, Any], n: int, parts: Mapping[str, Split], done: Any) -> dict[str, Any]:
    """Its title, n pairs as pictures, and the others by number."""
    known, held_out, pairs = found['known'], found['held_out'], found['pairs']
    seen = functools.partial(side, parts)
    shown = []
    for i, j, alike in pairs[:n]:
        words = [f'alike {alike:.3f}'] if found['kind'] == 'near' else []
        words += (
            ['one patient'] if found['kind'] != 'patient' and one_patient(parts[known], i, parts[held_out], j) else []
        )
        shown.append((seen(known, i), seen(held_out, j), ', '.join(words)))
        done(1)
    rest = [f'{i} – {j}' + (f' ({alike:.3f})' if found['kind'] == 'near' else '') for i, j, alike in pairs[n:][:LISTED]]
    where = f'within {known}' if known == held_out else f'{held_out} in {known}'
    return dict(
        title=f'{where}, {WORDS[found["kind"]]}',
        words=f'{found["records"]:,} of {found["of"]:,} records of {held_out}, {found["pair_count"]:,} '
        f'pair{"s" * (found["pair_count"] > 1)}',
        pairs=shown,
        rest=rest,
        more=found['pair_count'] - n - len(rest),
    )


def side(parts: Mapping[str, Split], part: str, number: int) -> Side:
    split = parts[part]
    label = images.words(split.labels_array[number], split.data.labels)
    return Side(images.whole(split.image(number), SIDE), f'{part}/{number}', label, ', '.join(person(split, number)))


def one_patient(split: Split, i: int, other: Split, j: int) -> bool:
    """Whether both records are known to be of one patient: a near-duplicate may then be another image of theirs."""
    comparable = split.data.key_fingerprint == other.data.key_fingerprint
    return comparable and bool(split.keys('patient')[i] == other.keys('patient')[j])


def person(split: Split, number: int) -> Iterator[str]:
    """Age and sex, where known."""
    for fact in ('age', 'sex'):
        value = split.column(fact)[number] if fact in split.column_names else ''
        if isinstance(value, np.floating):
            yield from () if np.isnan(value) else (f'{value:g} years',)
        elif value:
            yield str(value)


# Labels, sets


def contradiction(pair: Sequence[Any], parts: Mapping[str, Split], done: Any) -> tuple[Side, Side, str]:
    """Two pictures that are one, and what is said of each: 'nodule: positive in the first'."""
    part, i, other, j, names = pair
    split = parts[part]
    said = {name: split.labels_array[i, split.data.labels.index(name)] == 1 for name in names}
    words = [f'{name}: only the {"left" if left else "right"}' for name, left in said.items()]
    done(1)
    return side(parts, part, i), side(parts, other, j), '; '.join(words)


def conflicting(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[tuple[str, str, int]]:
    """Part, label, records whose own readers or lines disagree."""
    return [
        (part, name, values['-3']) for part, table in counts.items() for name, values in table.items() if '-3' in values
    ]


def burned(flags: Mapping[str, int]) -> tuple[int, int, int]:
    """Records whose files say yes, say no, and say nothing that is known."""
    yes, no = flags.get('YES', 0), flags.get('NO', 0)
    return yes, no, sum(flags.values()) - yes - no


def alone(names: Sequence[str], datasets: Sequence[DataSet]) -> list[str]:
    """A sentence for each set in which patients can hardly have been compared."""
    return [
        f'{name}: every record is a patient of its own; if the source named none, one person can be in two splits'
        for name, data in zip(names, datasets, strict=True)
        if data.patients == data.splits
    ]


def key(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [('key of the ids', f'fingerprint {one["key_fingerprint"]}')]
