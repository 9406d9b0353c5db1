"""The audit: searches data sets for leaks, and for other faults that a careful reviewer would ask about.

A leak is a held-out record that is known from training: a test record from train or val, or a val record from train.
The audit compares all splits of all data sets, and looks for four kinds of matches:

    patient   the same patient (the same study, where patients are unknown), by hashed ids
    image     the same image, or images made from the same one (RSNA's images are NIH's), by hashed ids
    pixels    equal pixels, by their hash, whatever the files are called
    near      the same picture resized, coded again, brightened or slightly cropped: see `near_duplicates`

Hashed ids are compared only where both data sets used one key. A near-duplicate with equal pixels counts as 'pixels'.
The result is plain data, ready for JSON. It holds numbers of records within their split, never an id.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.audit import near_duplicates, seen
from medjax.data.format import read_drops
from medjax.data.records import DataSet, Split

RANK = {'train': 0, 'val': 1, 'test': 2}
KIND_NAMES = dict(patient='patient', image='image or its origin', pixels='equal pixels', near='near-duplicates')
# What one record, and what several records, have in common with records of another split. {} is 'a record of nih/train'
# or 'a patient of nih/train'.
KIND_SENTENCES = dict(
    patient=('shows {}', 'show {}'),
    image=('has the same image or origin as {}', 'have the same image or origin as {}'),
    pixels=('has the same pixels as {}', 'have the same pixels as {}'),
    near=('is a near-duplicate of {}', 'are near-duplicates of {}'),
)
NEARLY_ALL = 0.9  # share of the studies: one patient who has them may be nobody
FEWEST_STUDIES = 3  # with fewer, one patient may well have all
# Namespaces of public releases: their people are known, so those of another namespace are others.
RELEASES = (
    'brax', 'candid_ptx', 'chexpert', 'covidx', 'mimic_cxr', 'nih', 'openi', 'padchest', 'rsna_pneumonia', 'siim_acr',
    'tb_lung', 'vindr_cxr',
)  # fmt: skip
LISTED = 1000  # matches of a finding that are listed; all of them are counted


class NamedSplit(NamedTuple):
    """A split with the name that the audit gives it."""

    name: str  # 'nih/test'
    split: Split


class Match(NamedTuple):
    """Two records that match. The first one is of the earlier split, in the order train, val, test."""

    first_split: int  # number in the list of splits
    first_record: int  # number within its split
    second_split: int
    second_record: int
    similarity: float  # 1 for all kinds but near-duplicates


def audit(datasets: Sequence[DataSet]) -> dict[str, Any]:
    """Audits data sets, each by itself and all together.

    Returns a dict of:
    sets: facts about each data set, with counts of drops by reason.
    leaks: one finding for each kind of match and each two splits: {'kind', 'known', 'held_out', 'records', 'of',
        'pairs', 'pair_count'}. Of the `of` records in the split `held_out`, `records` match a record of the split
        `known`. `pairs` lists matches as [known record, held-out record, similarity]; `pair_count` counts all of them.
    shared: the same for splits of equal rank (two train splits, two test splits, one split with itself): no leaks.
    labels: counts of label values, and matches with contradicting labels.
    texts: counts of repeated texts.
    unknown: sentences about what could not be compared.
    doubts: those sentences of `unknown` for which a person may be in two splits unnoticed.
    verdict: all of it as sentences, the leaks first. Without a leak and without a doubt, the first sentence is 'no leak
        found'. With a doubt it says that leaks cannot be ruled out.
    """
    names = _unique_names(datasets)
    splits = [
        NamedSplit(f'{name}/{s}', data.split(s))
        for name, data in zip(names, datasets, strict=True)
        for s in data.splits
    ]
    near, notes = _near_matches(splits)
    matches = {kind: list(_key_matches(splits, kind)) for kind in ('patient', 'image', 'pixels')} | {'near': near}
    findings = [finding for kind in KIND_NAMES for finding in _findings(kind, splits, matches[kind])]
    leaks = [f for f in findings if _rank(splits, f['known']) < _rank(splits, f['held_out'])]
    result = dict(
        sets=[_set_facts(name, data) for name, data in zip(names, datasets, strict=True)],
        leaks=leaks,
        shared=[f for f in findings if f not in leaks],
        labels=_labels(splits, [*matches['pixels'], *matches['near']]),
        texts=_texts(splits),
        doubts=_doubts(datasets, names),
        unknown=[*_doubts(datasets, names), *_by_name(datasets, names), *notes],
    )
    return result | {'verdict': _verdict(result)}


def _verdict(result: Mapping[str, Any]) -> list[str]:
    """The result in sentences, the leaks first."""
    sentences = [
        f'leak: {f["records"]} of {f["of"]} records of {f["held_out"]} {_sentence(f)}' for f in result['leaks']
    ]
    if not sentences and result['doubts']:
        sentences = ['leaks cannot be ruled out (see below); what could be compared shows none']
    sentences = sentences or ['no leak found']
    for f in result['shared']:
        sentences.append(f'{_count(f["records"], "record")} of {f["held_out"]} {_sentence(f)}; no record was removed')
    if n := result['labels']['contradictions']:
        sentences.append(f'contradicting labels: {n} times, two equal or near-duplicate images have different labels')
    return sentences + result['unknown']


def _sentence(finding: Mapping[str, Any]) -> str:
    """The end of a sentence about a finding: 'have the same pixels as a record of nih/train'."""
    one, several = KIND_SENTENCES[finding['kind']]
    train_side = finding['known']  # the key 'known' of audit.json: the split that training knows, or the earlier one
    if finding['kind'] == 'patient':
        other = f'a patient of {train_side}'
    else:
        other = f'another record of {train_side}' if train_side == finding['held_out'] else f'a record of {train_side}'
    return (one if finding['records'] == 1 else several).format(other)


def _count(n: int, noun: str) -> str:
    return f'{n} {noun}' if n == 1 else f'{n} {noun}s'


def _unique_names(datasets: Sequence[DataSet]) -> list[str]:
    """The name of each data set, with a number where two have the same name."""
    count = collections.Counter(data.name for data in datasets)
    number: collections.Counter = collections.Counter()
    names = []
    for data in datasets:
        number[data.name] += 1
        names.append(f'{data.name}#{number[data.name]}' if count[data.name] > 1 else data.name)
    return names


def _rank(splits: Sequence[NamedSplit], name: str) -> int:
    return RANK[next(named.split.name for named in splits if named.name == name)]


# Matches


def _key_matches(splits: Sequence[NamedSplit], kind: str) -> Iterator[Match]:
    """Matches of records with an equal key of a kind, between splits; for 'pixels' also within a split.

    In the first split of a match, the first record with a key stands for all records of the split with this key.
    """
    first_records = [_first_records(named.split, kind) for named in splits]
    for numbers in itertools.combinations(range(len(splits)), 2):
        a, b = sorted(numbers, key=lambda n: (RANK[splits[n].split.name], n))
        split, other = splits[a].split, splits[b].split
        if kind != 'pixels' and split.data.key_fingerprint != other.data.key_fingerprint:
            continue
        keys, record_of = first_records[a]
        matched: set[int] = set()
        for hashed in seen.hashed_ids(other, kind):
            at = np.searchsorted(keys, hashed)
            hit = (at < len(keys)) & (hashed != 0)
            hit[hit] = keys[at[hit]] == hashed[hit]
            for record, other_record in zip(record_of[at[hit]].tolist(), np.flatnonzero(hit).tolist(), strict=True):
                if other_record not in matched:
                    matched.add(other_record)
                    yield Match(a, record, b, other_record, 1.0)
    if kind == 'pixels':
        for a, named in enumerate(splits):
            hashed = named.split.keys('pixels')
            _, first, member = np.unique(hashed, return_index=True, return_inverse=True)
            for record in np.flatnonzero(first[member] != np.arange(len(hashed))).tolist():
                yield Match(a, int(first[member[record]]), a, record, 1.0)


def _first_records(split: Split, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The sorted keys of a kind, and the first record with each key."""
    hashed = np.concatenate(seen.hashed_ids(split, kind))
    keys, first = np.unique(hashed, return_index=True)
    return keys, first % len(split)


@dataclasses.dataclass(frozen=True)
class _Images:
    """The images of several splits under one numbering."""

    splits: Sequence[NamedSplit]
    searched: Sequence[int]  # the splits whose images are numbered, as positions in `splits`

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """The number of the first image of each searched split, and at the end the number of all images."""
        return np.cumsum([0, *(len(self.splits[n].split) for n in self.searched)])

    def place(self, i: int) -> tuple[int, int]:
        """The position of the split in `splits`, and the record in this split, of image i."""
        k = int(np.searchsorted(self.starts, i, 'right')) - 1
        return self.searched[k], i - int(self.starts[k])

    def open(self, i: int) -> np.ndarray:
        """The pixels of image i."""
        n, record = self.place(i)
        return self.splits[n].split.image(record)


def _near_matches(splits: Sequence[NamedSplit]) -> tuple[list[Match], list[str]]:
    """Near-duplicates within and between all splits, and notes about what was not searched.

    Thumbnails give the candidates, and the images' pixels confirm them. Phantoms are left out: their bodies are too
    similar for this comparison, and their patients are known.
    """
    searched = [n for n, named in enumerate(splits) if not named.split.data.invented]
    notes = []
    if len(searched) < len(splits):
        notes.append('near-duplicates were not searched among phantom images: their patients are known without it')
    if not searched:
        return [], notes
    images = _Images(splits, searched)
    candidates = near_duplicates.candidates(np.concatenate([splits[n].split.column('thumb') for n in searched]))
    if not candidates.exhaustive:
        notes.append('with over 100,000 images, the search for near-duplicates is approximate: it may miss some crops')

    similarities = near_duplicates.pixel_similarities(candidates.first, candidates.second, images.open)
    confirmed = similarities >= near_duplicates.SAME_PICTURE
    first, second = candidates.first[confirmed], candidates.second[confirmed]
    cluster = near_duplicates.clusters(first, second, images.starts[-1])
    similarity = dict(zip(zip(first.tolist(), second.tolist()), similarities[confirmed].tolist(), strict=True))
    pixels = np.concatenate([splits[n].split.keys('pixels') for n in searched])
    expanded = {
        (min(i, j), max(i, j))
        for i, j in _expand_clusters(cluster, [images.place(i)[0] for i in range(len(cluster))], similarity)
        if pixels[i] != pixels[j]  # equal pixels are a kind of their own
    }
    new = np.array(sorted(expanded - similarity.keys()), np.int64).reshape(-1, 2)
    new_similarities = near_duplicates.pixel_similarities(new[:, 0], new[:, 1], images.open)
    similarity |= zip(map(tuple, new.tolist()), new_similarities.tolist(), strict=True)
    matches = []
    for i, j in expanded:
        (a, x), (b, y) = sorted([images.place(i), images.place(j)], key=lambda p: (RANK[splits[p[0]].split.name], *p))
        matches.append(Match(a, x, b, y, round(similarity[i, j], 4)))
    return sorted(matches), notes


def _expand_clusters(
    cluster: np.ndarray, split_of: Sequence[int], confirmed: Mapping[tuple[int, int], float]
) -> Iterator[tuple[int, int]]:
    """Expands clusters of near-duplicates into reported matches.

    Each member is matched with one representative per split, so that copies dropped by the search's top-k limit are
    still counted. The representative is a member that the search confirmed as a match, or else the split's first
    member. `cluster` and `split_of` have an element for each image; `confirmed` has the matches of the search.
    """
    matches_of: dict[int, list[int]] = collections.defaultdict(list)
    for i, j in confirmed:
        matches_of[i].append(j)
        matches_of[j].append(i)
    clustered = np.flatnonzero(np.bincount(cluster, minlength=len(cluster))[cluster] > 1)
    order = clustered[np.argsort(cluster[clustered], kind='stable')]
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        first_member: dict[int, int] = {}
        for i in members.tolist():
            first_member.setdefault(split_of[i], i)
        for i in members.tolist():
            confirmed_in = {split_of[j]: j for j in matches_of[i]}
            for split, first in first_member.items():
                j = confirmed_in.get(split, first)
                if i != j:
                    yield i, j


def _findings(kind: str, splits: Sequence[NamedSplit], matches: Sequence[Match]) -> Iterator[dict[str, Any]]:
    """One finding for each two splits that have a match."""
    by_splits: dict[tuple[int, int], list[Match]] = collections.defaultdict(list)
    for match in matches:
        by_splits[match.first_split, match.second_split].append(match)
    for (a, b), chosen in sorted(by_splits.items()):
        yield dict(
            kind=kind,
            known=splits[a].name,  # `train_side` everywhere else in the code
            held_out=splits[b].name,
            records=len({match.second_record for match in chosen}),
            of=len(splits[b].split),
            pairs=[[match.first_record, match.second_record, match.similarity] for match in chosen[:LISTED]],
            pair_count=len(chosen),
        )


# Other facts


def _set_facts(name: str, data: DataSet) -> dict[str, Any]:
    """One data set: its counts, its drops by reason, and its images by `burned_in` (text in the pixels)."""
    burned_in: collections.Counter = collections.Counter()
    for split in (data.split(s) for s in data.splits):
        values = split.column('burned_in') if 'burned_in' in split.column_names else [''] * len(split)
        burned_in.update(str(value).upper() or 'UNKNOWN' for value in values)
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
        burned_in=dict(burned_in),
    )


def _labels(splits: Sequence[NamedSplit], matches: Sequence[Match]) -> dict[str, Any]:
    """Counts of each label's values, and the matches in which one record has a finding and the other does not."""
    counts = {
        named.name: {
            label: {str(v): int(n) for v, n in zip(*np.unique(column, return_counts=True), strict=True)}
            for label, column in zip(named.split.data.labels, named.split.labels_array.T, strict=True)
        }
        for named in splits
    }
    contradictions = []
    for match in matches:
        a, b = splits[match.first_split], splits[match.second_split]
        first = dict(zip(a.split.data.labels, a.split.labels_array[match.first_record].tolist(), strict=True))
        second = dict(zip(b.split.data.labels, b.split.labels_array[match.second_record].tolist(), strict=True))
        if labels := [label for label in first if {first[label], second.get(label)} == {0, 1}]:
            contradictions.append([a.name, match.first_record, b.name, match.second_record, labels])
    return dict(counts=counts, contradictions=len(contradictions), pairs=contradictions[:LISTED])


def _texts(splits: Sequence[NamedSplit]) -> dict[str, Any]:
    """Counts of texts, and of repeated ones: 'no acute findings' is the whole text of many reports.

    For each split with texts: `records` with a text, `distinct` texts, `most` records with the most frequent text, and
    the first `record` with it. The text itself is left out, because it can hold names.
    """
    result = {}
    for named in splits:
        keys = named.split.keys('text')
        numbers = np.flatnonzero(keys)
        if len(numbers):
            _, first, counts = np.unique(keys[numbers], return_index=True, return_counts=True)
            most = int(counts.argmax())
            result[named.name] = dict(
                records=len(numbers), distinct=len(counts), most=int(counts[most]), record=int(numbers[first[most]])
            )
    return result


def _doubts(datasets: Sequence[DataSet], names: Sequence[str]) -> list[str]:
    """Comparisons of patients that were impossible or say little: a person may be in two splits unnoticed."""
    sentences = []
    for name, data in zip(names, datasets, strict=True):
        if n := data.unknown_patients:
            without = f'{n} of {_count(sum(data.splits.values()), "image")} name{"s" * (n == 1)} no patient'
            sentences.append(f'{name}: {without}, so one person may be in two splits unnoticed')
        most, studies = _most_studies(data)
        if most >= max(FEWEST_STUDIES, NEARLY_ALL * studies):
            sentences.append(
                f'{name}: one patient has {most} of {studies} studies. If the id stands for nobody, one person may be '
                'in two splits unnoticed'
            )
    for (a, x), (b, y) in itertools.combinations(zip(names, datasets, strict=True), 2):
        if x.key_fingerprint != y.key_fingerprint:
            sentences.append(
                f'{a} and {b}: ids were hashed with different keys, so patients and images were not compared'
            )
        elif x.namespace != y.namespace and not (_is_registered(x) and _is_registered(y)):
            sentences.append(_other_namespace(a, x, b, y))
    return sentences


def _most_studies(data: DataSet) -> tuple[int, int]:
    """The number of studies of the patient who has most of them, and of all studies. 0 of 0 for invented patients."""
    if data.invented:
        return 0, 0
    keys = [np.concatenate([data.split(s).keys(kind) for s in data.splits]) for kind in ('patient', 'study')]
    pairs = np.unique(np.stack(keys, 1), axis=0)
    return int(np.unique(pairs[:, 0], return_counts=True)[1].max(initial=0)), len(pairs)


def _is_registered(data: DataSet) -> bool:
    """Whether it is known where all images of a data set come from, so that another namespace means other people."""
    return (
        data.invented
        or data.namespace in RELEASES
        or all(np.all(data.split(split).keys('origin') != 0) for split in data.splits)
    )


def _other_namespace(a: str, x: DataSet, b: str, y: DataSet) -> str:
    return (
        f'{a} and {b}: ids belong to different namespaces ({x.namespace!r} and {y.namespace!r}), so patients '
        'and images were compared by their origins only. If they share people, build both with one --namespace'
    )


def _by_name(datasets: Sequence[DataSet], names: Sequence[str]) -> list[str]:
    """Comparisons that were only possible by a name."""
    sentences = []
    for (a, x), (b, y) in itertools.combinations(zip(names, datasets, strict=True), 2):
        if x.key_fingerprint != y.key_fingerprint:
            continue
        if x.namespace != y.namespace:
            sentences += [_other_namespace(a, x, b, y)] if _is_registered(x) and _is_registered(y) else []
        elif x.fingerprint != y.fingerprint:
            sentences.append(
                f'{a} and {b}: ids of both belong to the namespace {x.namespace!r}, so equal ids count as one patient'
            )
    return sentences
