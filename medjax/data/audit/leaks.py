"""Leaks within a data set and between data sets, and what else a careful reviewer would ask about the data.

Held-out records must not be known from training: a test record from train or val, a val record from train. Four kinds
of knowing are looked for, between all parts (a part is one split of one data set):

    patient   the same person (or study, where nobody is known)    by hashed ids, where both sides used one key
    image     the same image, or one made from it     by hashed ids and those of their origins (RSNA's images are NIH's)
    pixels    equal pixels                            by hash, whatever the files are called
    near      the same picture resized, coded again, brightened or slightly cropped    by `data.similar`; not `pixels`

The result is plain data, ready for JSON: numbers of records within their part, never an id.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.audit import near_duplicates, seen
from medjax.data.format import read_drops
from medjax.data.records import DataSet, Split

RANK = {'train': 0, 'val': 1, 'test': 2}
WORDS = dict(patient='patient', image='image or its origin', pixels='equal pixels', near='near-duplicates')
LISTED = 1000  # pairs that are listed of each finding; all are counted


class Part(NamedTuple):
    name: str  # 'nih/test'
    split: Split


class Pair(NamedTuple):
    """Two records that are one: numbers of parts, and of records in them. The first part is the earlier one."""

    part: int
    record: int
    other_part: int
    other: int
    alike: float  # 1 for everything but near-duplicates


def audit(datasets: Sequence[DataSet]) -> dict[str, Any]:
    """What was found in and between the data sets: sets, leaks, shared, labels, texts, unknown, verdict.

    leaks: [{'kind', 'known', 'held_out', 'records', 'of', 'pairs', 'pair_count'}]: `records` of the `of` records of the
    part `held_out` are known from the part `known`; pairs are [known record, held-out record, alike], `pair_count` says
    how many there are, listed or not.
    shared: the same for parts of equal rank (train and train, test and test, a part and itself), which is no leak.
    verdict: sentences, the leaks first; without any the first one is 'no leak found'.
    """
    names = _names(datasets)
    parts = [
        Part(f'{name}/{s}', data.split(s)) for name, data in zip(names, datasets, strict=True) for s in data.splits
    ]
    pairs = {
        'patient': list(_by_key(parts, 'patient')),
        'image': list(_by_key(parts, 'image')),
        'pixels': list(_by_key(parts, 'pixels')),
    }
    pairs['near'], notes = _near(parts)
    found = [finding for kind in WORDS for finding in _findings(kind, parts, pairs[kind])]
    leaks = [f for f in found if _rank(parts, f['known']) < _rank(parts, f['held_out'])]
    told = dict(
        sets=[_set(name, data) for name, data in zip(names, datasets, strict=True)],
        leaks=leaks,
        shared=[f for f in found if f not in leaks],
        labels=_labels(parts, [*pairs['pixels'], *pairs['near']]),
        texts=_texts(parts),
        unknown=[*_unknown(datasets, names), *notes],
    )
    return told | {'verdict': _verdict(told)}


def _verdict(told: dict[str, Any]) -> list[str]:
    """The audit in sentences, the worst first."""
    said = [
        f'leak: {f["records"]} of {f["of"]} records of {f["held_out"]} are in {f["known"]} by {WORDS[f["kind"]]}'
        for f in told['leaks']
    ]
    said = said or ['no leak found']
    for f in told['shared']:
        where = f['held_out'] if f['held_out'] == f['known'] else f'{f["held_out"]} and {f["known"]}'
        said.append(f'{f["records"]} records repeat others within {where} by {WORDS[f["kind"]]}; they are kept')
    if n := told['labels']['contradictions']:
        said.append(f'{n} pairs of equal or near-duplicate images have contradicting labels')
    return said + told['unknown']


def _names(datasets: Sequence[DataSet]) -> list[str]:
    """Each data set's name, numbered where two have the same."""
    count = collections.Counter(data.name for data in datasets)
    number: collections.Counter = collections.Counter()
    names = []
    for data in datasets:
        number[data.name] += 1
        names.append(f'{data.name}#{number[data.name]}' if count[data.name] > 1 else data.name)
    return names


def _rank(parts: Sequence[Part], name: str) -> int:
    return RANK[next(part.split.name for part in parts if part.name == name)]


def _by_key(parts: Sequence[Part], kind: str) -> Iterator[Pair]:
    """Pairs of records with an equal key, between parts; within a part only equal pixels mean anything.

    Of each key the first record in a part stands for all the others that have it there.
    """
    firsts = [_first(part.split, kind) for part in parts]
    for (a, x), (b, y) in itertools.combinations(enumerate(parts), 2):
        if kind != 'pixels' and x.split.data.key_fingerprint != y.split.data.key_fingerprint:
            continue
        (a, x), (b, y) = sorted([(a, x), (b, y)], key=lambda item: (RANK[item[1].split.name], item[0]))
        keys, known = firsts[a]
        mine = [(hashed, np.arange(len(hashed))) for hashed in seen.ids(y.split, kind)]
        done: set[int] = set()
        for hashed, numbers in mine:
            at = np.searchsorted(keys, hashed)
            hit = (at < len(keys)) & (hashed != 0)
            hit[hit] = keys[at[hit]] == hashed[hit]
            for record, other in zip(known[at[hit]].tolist(), numbers[hit].tolist(), strict=True):
                if other not in done:
                    done.add(other)
                    yield Pair(a, record, b, other, 1.0)
    if kind == 'pixels':
        for a, part in enumerate(parts):
            hashed = part.split.keys('pixels')
            _, first, member = np.unique(hashed, return_index=True, return_inverse=True)
            for other in np.flatnonzero(first[member] != np.arange(len(hashed))).tolist():
                yield Pair(a, int(first[member[other]]), a, other, 1.0)


def _first(split: Split, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The sorted keys of a kind and, of each, the first record that has it."""
    hashed = np.concatenate(seen.ids(split, kind))
    keys, first = np.unique(hashed, return_index=True)
    return keys, first % len(split)


def _near(parts: Sequence[Part]) -> tuple[list[Pair], list[str]]:
    """Near-duplicates in and between all parts: candidates by thumbnails, then looked at as pixels; and what was not
    looked for. Phantoms are left out: their bodies are as alike as a second look can tell, and who is who is known."""
    chosen = [n for n, part in enumerate(parts) if not part.split.data.invented]
    notes = (
        ['near-duplicates were not looked for among phantoms: who is who is known'] if len(chosen) < len(parts) else []
    )
    if not chosen:
        return [], notes
    start = np.cumsum([0, *(len(parts[n].split) for n in chosen)])
    found = near_duplicates.candidates(np.concatenate([parts[n].split.column('thumb') for n in chosen]))
    if not found.every:
        notes.append('so many images are searched for crops in the likeliest places only: some crops may be missed')

    def place(i: int) -> tuple[int, int]:
        at = int(np.searchsorted(start, i, 'right')) - 1
        return chosen[at], i - int(start[at])

    def picture(i: int) -> np.ndarray:
        part, record = place(i)
        return parts[part].split.image(record)

    agreed = near_duplicates.agreed(found.first, found.second, picture)
    first, second = (side[agreed >= near_duplicates.ALIKE] for side in (found.first, found.second))
    group = near_duplicates.groups(first, second, start[-1])
    alike = dict(
        zip(zip(first.tolist(), second.tolist()), agreed[agreed >= near_duplicates.ALIKE].tolist(), strict=True)
    )
    pixels = np.concatenate([parts[n].split.keys('pixels') for n in chosen])
    told = {
        (min(i, j), max(i, j))
        for i, j in _within(group, [place(i)[0] for i in range(len(group))], alike)
        if pixels[i] != pixels[j]  # else they are found as that
    }
    others = np.array(sorted(told - alike.keys()), np.int64).reshape(-1, 2)
    again = near_duplicates.agreed(others[:, 0], others[:, 1], picture)
    alike |= zip(map(tuple, others.tolist()), again.tolist(), strict=True)
    pairs = []
    for i, j in told:
        (a, x), (b, y) = sorted([place(i), place(j)], key=lambda p: (RANK[parts[p[0]].split.name], *p))
        pairs.append(Pair(a, x, b, y, round(alike[i, j], 4)))
    return sorted(pairs), notes


def _within(
    group: np.ndarray, part: Sequence[int], alike: Mapping[tuple[int, int], float]
) -> Iterator[tuple[int, int]]:
    """Pairs that tell all of each group of one picture: every member with one in each part where the group is.

    The search keeps the nearest of a picture and one of equal thumbnails; what it leaves out is in the group all the
    same. A member that was found alike is preferred to the part's first one.
    """
    known: dict[int, list[int]] = collections.defaultdict(list)
    for i, j in alike:
        known[i].append(j)
        known[j].append(i)
    several = np.flatnonzero(np.bincount(group, minlength=len(group))[group] > 1)
    order = several[np.argsort(group[several], kind='stable')]
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        first: dict[int, int] = {}
        for i in members.tolist():
            first.setdefault(part[i], i)
        for i in members.tolist():
            near = {part[j]: j for j in known[i]}
            for n, head in first.items():
                j = near.get(n, head)
                if i != j:
                    yield i, j


def _findings(kind: str, parts: Sequence[Part], pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """One for each two parts that have a pair."""
    chosen: dict[tuple[int, int], list[Pair]] = collections.defaultdict(list)
    for pair in pairs:
        chosen[pair.part, pair.other_part].append(pair)
    for (a, b), some in sorted(chosen.items()):
        yield dict(
            kind=kind,
            known=parts[a].name,
            held_out=parts[b].name,
            records=len({pair.other for pair in some}),
            of=len(parts[b].split),
            pairs=[[pair.record, pair.other, pair.alike] for pair in some[:LISTED]],
            pair_count=len(some),
        )


def _set(name: str, data: DataSet) -> dict[str, Any]:
    """One data set: counts, what was set aside and why, whose images may have text burned in."""
    burned = collections.Counter(
        str(word).upper() or 'UNKNOWN'
        for split in map(data.split, data.splits)
        for word in (split.column('burned_in') if 'burned_in' in split.column_names else [''] * len(split))
    )
    drops = collections.Counter((drop.scope, drop.reason) for drop in read_drops(data.path / 'drops.csv'))
    return dict(
        name=name,
        version=data.version,
        license=data.license,
        fingerprint=data.fingerprint,
        key_fingerprint=data.key_fingerprint,
        split_list=data.split_list,
        splits=data.splits,
        patients=data.patients,
        labels=list(data.labels),
        drops=[dict(scope=scope, reason=reason, count=n) for (scope, reason), n in drops.most_common()],
        burned_in=dict(burned),
    )


def _labels(parts: Sequence[Part], pairs: Sequence[Pair]) -> dict[str, Any]:
    """How often each label has each value, and duplicates of which one has a finding and the other does not."""
    counts = {
        part.name: {
            name: {str(v): int(n) for v, n in zip(*np.unique(column, return_counts=True), strict=True)}
            for name, column in zip(part.split.data.labels, part.split.labels_array.T, strict=True)
        }
        for part in parts
    }
    against = []
    for pair in pairs:
        x, y = parts[pair.part], parts[pair.other_part]
        mine = dict(zip(x.split.data.labels, x.split.labels_array[pair.record].tolist(), strict=True))
        theirs = dict(zip(y.split.data.labels, y.split.labels_array[pair.other].tolist(), strict=True))
        if names := [name for name in mine if {mine[name], theirs.get(name)} == {0, 1}]:
            against.append([x.name, pair.record, y.name, pair.other, names])
    return dict(counts=counts, contradictions=len(against), pairs=against[:LISTED])


def _texts(parts: Sequence[Part]) -> dict[str, Any]:
    """How often one text stands for several records: 'no acute findings' is many reports' whole text.

    `most` records have the most frequent text, `record` is the first of them; no text is told, for it can hold names.
    """
    told = {}
    for part in parts:
        keys = part.split.keys('text')
        numbers = np.flatnonzero(keys)
        if len(numbers):
            _, first, counts = np.unique(keys[numbers], return_index=True, return_counts=True)
            most = int(counts.argmax())
            told[part.name] = dict(
                records=len(numbers), distinct=len(counts), most=int(counts[most]), record=int(numbers[first[most]])
            )
    return told


def _unknown(datasets: Sequence[DataSet], names: Sequence[str]) -> list[str]:
    """What could not be compared, or was compared on the strength of a name."""
    said = []
    for name, data in zip(names, datasets, strict=True):
        if data.unknown_patients:
            said.append(
                f'{name}: {data.unknown_patients} images name no patient, so people may be in two splits unseen'
            )
    for (a, x), (b, y) in itertools.combinations(zip(names, datasets, strict=True), 2):
        if x.key_fingerprint != y.key_fingerprint:
            said.append(f'{a} and {b}: ids were hashed with different keys, so patients and images were not compared')
        elif x.namespace != y.namespace:
            spaces = f'the namespaces {x.namespace!r} and {y.namespace!r}'
            said.append(f'{a} and {b}: ids are of {spaces}, so patients and images were compared by their origins only')
        elif x.fingerprint != y.fingerprint:
            said.append(
                f'{a} and {b}: ids are both of the namespace {x.namespace!r}, so equal ids count as one patient'
            )
    return said
