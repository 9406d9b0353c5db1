"""A data set on disk, opened: random access to its records, and columns that need no image.

data = records.open('DATA')
data.labels, data.mean, data.splits          # the content of medjax.json
train = data.split('train')
train[3].image, train[3].label               # one decoded record, from any thread
train.labels_array, train.keys('patient'), train.column('age')
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.data.format import COLUMNS, FORMAT, KINDS, column_rows, map_columns
from medjax.data.images import decode
from medjax.errors import UserError, suggest
from medjax.types import Record


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The content of a data set's medjax.json. `mean` and `std` are of the train split's pixels, in units of [0,1]."""

    path: pathlib.Path
    name: str
    version: str
    fingerprint: str  # of the content, without the hashed ids
    key_fingerprint: str  # of the key that hashed the ids
    license: str
    labels: tuple[str, ...]
    channels: int  # 1 or 3
    bits: int  # 8 or 16
    size: int  # the longest stored side, pixels
    mean: float
    std: float
    splits: dict[str, int]  # split -> number of records; only splits that are not empty
    patients: dict[str, int]  # split -> number of patients; a study counts as one where no patient is known
    unknown_patients: int  # images for which the source names no patient
    # Two data sets share patients by id if they have one namespace and one key: equal ids are then one patient.
    namespace: str
    split_list: str  # 'nih/official', …; 'given' by the source; or 'drawn', patient by patient
    dropped: int
    invented: bool  # the ids are made up (phantom) and always right: the audit searches no near-duplicates
    columns: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # what became of each column of a table
    # How the build made images square: 'crop', 'pad', or None (not at all). Older data sets lack this and what follows.
    fit: str | None = None
    windows: list[list[float]] = dataclasses.field(default_factory=list)  # of --window: centre and width of each, HU
    remarks: dict[str, int] = dataclasses.field(default_factory=dict)  # remark on images -> number of images
    masks: tuple[str, ...] = ()  # the names of the structures that masks show, see `Split.structures`

    def split(self, name: str) -> Split:
        """The split 'train', 'val' or 'test'. Raises UserError if the data set has no record in it."""
        if name not in self.splits:
            raise UserError(f'{self.path}: no record in the split {name!r}; there are {_counts(self.splits)}')
        return self._splits[name]

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of the structures that masks may show: 'mask' alone if the set was built before they had names."""
        return self.masks or ('mask',)

    @functools.cached_property
    def _splits(self) -> dict[str, Split]:
        """One object for each split: all callers share its open files and their indices (8 bytes for each record)."""
        return {name: Split(self, name) for name in self.splits}


class Split:
    """The records of one split, in the order of their source.

    Indexing decodes the image. Threads may share a split.
    """

    def __init__(self, data: DataSet, name: str):
        self.data, self.name = data, name
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.data.splits[self.name]

    def __getitem__(self, i: int) -> Record:
        raw = self.raw(i)
        attributes = json.loads(raw['info'])
        attributes |= dict(role=raw['role'].decode(), split=self.name, text=json.loads(raw['text']))
        keys = dict(zip(KINDS, raw['keys'].view(np.uint64), strict=True))
        image = decode.decode(raw['image'], self.data.channels, self.data.bits)
        return Record(image, raw['label'], keys, attributes)

    def image(self, i: int, channels: int | None = None, bits: int | None = None) -> np.ndarray:
        """The image of record i, uint8 or uint16 [H,W,C]. Default channels and bits: those of the data set."""
        return decode.decode(self.raw(i)['image'], channels or self.data.channels, bits or self.data.bits)

    def text(self, i: int) -> dict[str, str]:
        """The texts of record i by section, without decoding its image."""
        return json.loads(self.raw(i)['text'])

    def mask(self, i: int) -> np.ndarray | None:
        """The mask of record i, uint8 [H,W], of the size of its image. None: the record has no mask."""
        png = self.raw(i)['mask']
        return decode.decode(png, 1, 8)[..., 0] if png else None

    def structures(self, i: int) -> np.ndarray | None:
        """`DataSet.structures` in record i, bool [K,H,W], of the size of its image. None: it has no mask."""
        mask = self.mask(i)
        return None if mask is None else planes(mask, len(self.data.structures))

    def stored(self, numbers: Sequence[int]) -> list[bytes]:
        """The records of these numbers as bytes, as they are on disk. For copying."""
        return self._files.__getitems__(numbers)

    @property
    def labels_array(self) -> np.ndarray:
        """int8 [n,L]: 1, 0, -1 uncertain, -2 blank, -3 conflicting."""
        return self._columns['label']

    def keys(self, kind: str) -> np.ndarray:
        """uint64 [n]: the hashed 'patient', 'study', 'image', 'origin', 'via' or 'text' (0: none), or the 'pixels'."""
        if kind not in KINDS:
            raise UserError(f'no key {kind!r}{suggest(kind, KINDS)}')
        return self._columns['keys'][:, KINDS.index(kind)]

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names that `column` accepts: the columns of every data set, and the attributes that the source gave."""
        return tuple(name.removeprefix('info/') for name in self._columns if name not in ('label', 'keys'))

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The names of the attributes that the source gave: age, sex, view, …"""
        return tuple(name.removeprefix('info/') for name in self._columns if name.startswith('info/'))

    def column(self, name: str) -> np.ndarray:
        """[n], mapped from disk. An attribute is float32, nan if unknown (age), or words, '' if unknown (sex, view, …).

        Columns of every data set: role; shape int32 [n,3] and bits, as stored; words and sentences, the number of them
        in the texts; thumb uint8 [n,32,32] and its perceptual hash uint8 [n,32].
        """
        if name not in self.column_names:
            raise UserError(f'{self.data.path}: the records have no {name!r}{suggest(name, self.column_names)}')
        return self._columns[name if name in self._columns else f'info/{name}']

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return map_columns(self.data.path / 'columns' / self.name)

    def raw(self, i: int) -> dict[str, Any]:
        """Record i as it is stored (`format.schema`): encoded image, label, keys as int64, … Reads no column."""
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f'record {i} of {len(self)}')
        with self._lock:
            reader = self._reader
        try:
            record, why = reader[i % len(self)], 'it is empty'  # as ArrayRecord reads what a cut file has lost
        except Exception as error:  # ArrayRecord raises many kinds
            record, why = None, ' '.join(str(error).split())[:120]
        if record is None or record['image'] is None:
            raise UserError(
                f'{self.data.path}: record {i % len(self)} of {self.name} cannot be read ({why}); a file of its folder '
                'records is lost or damaged: copy it again, or build the data set again'
            )
        return record

    @functools.cached_property
    def _files(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        files = sorted((self.data.path / 'records').glob(f'records-{self.name}.array_record-*'))
        return ArrayRecordDataSource([str(file) for file in files])

    @functools.cached_property
    def _reader(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.data.path / 'records').as_data_source(split=self.name)


def planes(mask: np.ndarray, count: int) -> np.ndarray:
    """The structures of a stored mask uint8 [H,W]: bool [count,H,W].

    Bit k of a mask is structure k. A mask of a single structure shows it with any value but 0.
    """
    return mask[None] > 0 if count == 1 else mask >> np.arange(count, dtype=np.uint8)[:, None, None] & 1 > 0


def open(path: str | os.PathLike) -> DataSet:
    """The data set that `medjax build` wrote at `path`."""
    path = pathlib.Path(path).expanduser().absolute()
    file = path / 'medjax.json'
    if not path.is_dir():
        raise UserError(f'no data set at {path}: there is no such folder; make one with medjax build … --out {path}')
    if not file.is_file():
        raise UserError(f'no data set at {path}: it has no medjax.json; make one with medjax build … --out FOLDER')
    try:
        facts = json.loads(file.read_text())
        version = facts.pop('format')
        if version != FORMAT:
            raise UserError(f'{path} has format {version}, this medjax reads {FORMAT}; build it again')
        data = DataSet(path=path, **(facts | {name: tuple(facts.get(name, ())) for name in ('labels', 'masks')}))
    except OSError as error:
        raise UserError(f'{file} cannot be read: {error.strerror}') from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{file} is damaged ({error}); build the data set again') from None
    for name in ('drops.csv', 'records/dataset_info.json', 'records/features.json', *_shards(path)):
        if not (path / name).exists():
            raise UserError(f'{path} is incomplete: {name} is missing; copy it again, or build it again')
    for split, count in data.splits.items():
        for name in COLUMNS:
            if column_rows(path / 'columns' / split / f'{name}.npy') != count:
                raise UserError(
                    f'{path} is damaged: columns/{split}/{name}.npy is missing or has not {count} rows; copy it again, '
                    'or build it again'
                )
    return data


def _shards(path: pathlib.Path) -> list[str]:
    """The record files that tfds will open, relative to the data set."""
    try:
        dataset_info = json.loads((path / 'records' / 'dataset_info.json').read_text())
        counts = {split['name']: len(split['shardLengths']) for split in dataset_info['splits']}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [f'records/records-{s}.array_record-{k:05d}-of-{n:05d}' for s, n in counts.items() for k in range(n)]


def _counts(splits: Mapping[str, int]) -> str:
    return ', '.join(f'{name} {n}' for name, n in splits.items())


def label_vocabulary(parts: Mapping[str, Any], datasets: Mapping[str, DataSet]) -> tuple[str, ...]:
    """The labels of a batch: those of all sources of all parts of a config, in order of first appearance."""
    sources = [source for part in parts.values() for source in (part.get('sources') or {})]
    return tuple(dict.fromkeys(label for source in sources for label in datasets[source].labels))


MOST_WORDS = 100  # of a column of words that a term may learn


def column_words(
    name: str, given: Any, parts: Mapping[str, Any], datasets: Mapping[str, DataSet]
) -> str | tuple[str, ...]:
    """'number' for a column of numbers, else its words in the train splits of a config's sources, sorted.

    `given` is what the config says of the column: 'number', its words, or None. UserError if no source has the column,
    if sources or the config disagree on what it is, or if it has too few or too many words to learn.
    """
    where = f'columns.{name}'
    sources = {source: None for part in parts.values() for source in (part.get('sources') or {})}
    splits = [datasets[source].split('train') for source in sources]
    columns = [split.column(name) for split in splits if name in split.attribute_names]
    if not columns:
        names = sorted({attribute for split in splits for attribute in split.attribute_names})
        raise UserError(f'{where}: the records have no column of this name{suggest(name, names)}')
    numbers = {column.dtype.kind == 'f' for column in columns}
    if len(numbers) > 1:
        raise UserError(f'{where}: it holds numbers in one source and words in another')
    if numbers == {True}:
        if given not in (None, 'number'):
            raise UserError(f"{where}={given!r}: the records have numbers there; write 'number'")
        return 'number'
    words = sorted({word for column in columns for word in np.unique(column).tolist() if word})
    if given == 'number':
        raise UserError(f"{where}='number': the records have words there, such as {', '.join(words[:5])}")
    if given is not None:
        for word in given:
            if word not in words:
                raise UserError(f'{where}: no record has the word {word!r}{suggest(word, words[:MOST_WORDS])}')
        return tuple(given)
    if len(words) < 2:
        only = f'only the word {words[0]!r}' if words else 'no word'
        raise UserError(f'{where}: the records have {only} there, so there is nothing to learn')
    if len(words) > MOST_WORDS:
        raise UserError(
            f'{where}: the records have {len(words)} different words there, and at most {MOST_WORDS} can be learned; '
            'give the list of words that count'
        )
    return tuple(words)
