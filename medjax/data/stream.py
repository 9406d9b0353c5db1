"""The stream of batches: each batch is a function of its step.

Global row r of step t of a part is element t * B + r of an endless sequence (see mixing.py): each source is shuffled
anew every epoch and repeated, and every batch has as many rows of each source as the weights demand. An element is
computed from its number alone. So the position of a run is one integer, and any host and any thread may decode any row.

The host decodes the images. It also draws the texts of a row and tokenizes them; these draws depend on the seed, the
view, the epoch of the source and the record, and on nothing else. All other random draws happen on the device.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from medjax.data.format import KINDS
from medjax.data.images import decode
from medjax.data.mixing import Mixing
from medjax.data.records import DataSet, Split, label_vocabulary, planes
from medjax.data.text import prompts, views as text_views
from medjax.data.text.tokenizer import Tokenizer
from medjax.data.text.views import TextView
from medjax.data.types import BLANK, given
from medjax.errors import UserError, suggest
from medjax.plugins import call
from medjax.types import is_number, is_whole

AHEAD = 2  # batches that are decoded while one is in use
SEARCHED = 64  # records of a source in which a text view searches for its first text
HostBatch = dict[str, dict[str, np.ndarray]]  # part -> field -> the rows of this host
Batches = Generator[HostBatch, None, None]  # endless; close() ends its threads


class Stream:
    """Batches of the train splits, addressed by step.

    `parts` is the config's `data`: part -> dict(rows=…, sources={source: weight}, canvas=None). An image larger than
    the canvas is reduced to it (antialiased). The default canvas is the longest stored side of the part's sources.
    A part may mix grey with colour and 8 with 16 bits: grey is repeated over three channels, 8 bits are scaled to 16.
    `views` are the config's views: each text view adds fields to its part, tokenized by `tokenizer`.
    `columns` are the config's columns: name -> 'number', or the words that count.
    `structures` names those whose masks terms read, by part; other parts have no masks in their batches.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        datasets: Mapping[str, DataSet],
        seed: int,
        threads: int | None = None,
        views: Mapping[str, Mapping[str, Any]] | None = None,
        tokenizer: Tokenizer | None = None,
        columns: Mapping[str, Any] | None = None,
        structures: Mapping[str, Sequence[str]] | None = None,
    ):
        self.threads = threads or os.cpu_count() or 1
        sources = [source for cfg in parts.values() for source in (cfg.get('sources') or {})]
        for source in sources:
            if source not in datasets:
                near = suggest(source, datasets)
                raise UserError(f'no data for the source {source!r}{near}; give --data {source}=PATH')
        self.vocabulary = label_vocabulary(parts, datasets)
        texts = text_views.from_config(views or {})
        factory = _PartFactory(datasets, self.vocabulary, texts, tokenizer, seed, columns or {}, structures or {})
        self.parts = {name: call(factory.part, cfg, f'data.{name}', name=name) for name, cfg in parts.items()}
        for part in self.parts.values():
            for view in part.text_views.values():
                _check_text_view(view, part)
        self.rows = {name: part.rows for name, part in self.parts.items()}

    def batches(self, start_step: int = 0, rows: Mapping[str, np.ndarray] | None = None) -> Batches:
        """Endless batches of step start_step, start_step + 1, …: the fields of `types.Batch` as numpy arrays.

        `rows` names the global rows of each part that this host feeds, in their order in the batch. Default: all rows.
        Closing or dropping the iterator ends its threads. A decoding error is raised at its batch.
        """
        chosen = {name: np.arange(part.rows) for name, part in self.parts.items()} if rows is None else dict(rows)
        for name, numbers in chosen.items():
            if name not in self.parts:
                raise ValueError(f'no part {name!r}')
            if len(numbers) and not 0 <= np.min(numbers) <= np.max(numbers) < self.rows[name]:
                raise ValueError(f'rows of {name!r} must be below {self.rows[name]}')
        return self._decoded(int(start_step), {name: np.asarray(numbers) for name, numbers in chosen.items()})

    def _decoded(self, step: int, rows: dict[str, np.ndarray]) -> Batches:
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix='decode')
        try:
            waiting = collections.deque(self._begin(pool, step + k, rows) for k in range(AHEAD + 1))
            while True:
                batch, futures = waiting.popleft()
                for future in futures:
                    future.result()
                step += 1
                waiting.append(self._begin(pool, step + AHEAD, rows))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(
        self, pool: ThreadPoolExecutor, step: int, rows: dict[str, np.ndarray]
    ) -> tuple[HostBatch, list[Future]]:
        """An empty batch, and the tasks that fill it, one for each row."""
        batch, futures = {}, []
        for name, numbers in rows.items():
            part = self.parts[name]
            batch[name] = part.empty_fields(numbers)
            futures += [
                pool.submit(part.fill_row, batch[name], i, step * part.rows + int(row)) for i, row in enumerate(numbers)
            ]
        return batch, futures


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the batch: the shapes of its fields, and the records behind its rows."""

    rows: int  # B, global
    canvas: int  # side of the square canvas, pixels
    channels: int
    bits: int
    sources: tuple[str, ...]
    splits: tuple[Split, ...]  # the train split of each source
    mixing: Mixing  # element number -> (source number, record, epoch)
    label_count: int  # labels of the vocabulary of all parts
    label_columns: tuple[np.ndarray, ...]  # for each source: the place of each of its labels in the vocabulary
    text_views: Mapping[str, TextView]  # the text views of this part
    tokenizer: Tokenizer | None
    seed: int
    columns: Mapping[str, Any]  # name -> 'number', or its words
    structures: tuple[str, ...]  # whose masks are read; bit k of a mask in a batch is structure k

    def empty_fields(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of the given global rows, before any row is filled."""
        n, depth = len(rows), np.uint8 if self.bits == 8 else np.uint16
        fields = {
            'row': rows.astype(np.uint32),
            'image': np.zeros((n, 1, self.canvas, self.canvas, self.channels), depth),
            'image/present': np.ones((n, 1), bool),
            'image/extent': np.zeros((n, 1, 2), np.int32),
            'label': np.full((n, self.label_count), BLANK, np.int8),
            'key/patient': np.zeros((n, 2), np.uint32),
            'key/study': np.zeros((n, 2), np.uint32),
            'key/text': np.zeros((n, 2), np.uint32),
            'index': np.zeros(n, np.uint32),
        }
        if self.columns:
            fields['column'] = np.full((n, len(self.columns)), np.nan, np.float32)
        if self.structures:
            fields['mask'] = np.zeros((n, 1, self.canvas, self.canvas), np.uint8)
            fields['mask/known'] = np.zeros((n, 1), np.uint8)
        for name, view in self.text_views.items():
            fields |= {
                f'text/{name}': np.full((n, view.count, view.length), self.tokenizer.tokens.pad, np.int32),
                f'text/{name}/length': np.zeros((n, view.count), np.int32),
            }
        return fields

    def fill_row(self, fields: dict[str, np.ndarray], i: int, element: int) -> None:
        """Decodes element number `element` into row `i` of the fields.

        Everything is read from the record. The columns would cost two more page reads for a record at a random place
        among millions.
        """
        source, number, epoch = self.mixing[element]
        record = self.splits[source].raw(number)
        image = decode.bounded(decode.decode(record['image'], self.channels, self.bits), self.canvas)
        height, width = image.shape[:2]
        fields['image'][i, 0, :height, :width] = image
        fields['image/extent'][i, 0] = height, width
        fields['label'][i, self.label_columns[source]] = record['label']
        keys = record['keys'].view(np.uint64)
        for kind in ('patient', 'study'):
            fields[f'key/{kind}'][i] = divmod(int(keys[KINDS.index(kind)]), 2**32)
        fields['index'][i] = number
        if self.columns:
            attributes = json.loads(record['info'])
            fields['column'][i] = [_column_value(attributes.get(name), kind) for name, kind in self.columns.items()]
        if self.structures and record['mask']:
            self._fill_mask(fields, i, record['mask'], self.splits[source].data.structures)
        if self.text_views:
            self._fill_texts(fields, i, record, source, number, epoch)

    def _fill_mask(self, fields: dict[str, np.ndarray], i: int, png: bytes, stored: tuple[str, ...]) -> None:
        """The structures of a mask as bits. Those that the source does not mark stay unknown."""
        mask = decode.bounded_mask(decode.decode(png, 1, 8)[..., 0], self.canvas)
        height, width = mask.shape
        for name, plane in zip(stored, planes(mask, len(stored)), strict=True):
            if name in self.structures:
                bit = np.uint8(1 << self.structures.index(name))
                fields['mask'][i, 0, :height, :width] |= plane * bit
                fields['mask/known'][i, 0] |= bit

    def _fill_texts(
        self, fields: dict[str, np.ndarray], i: int, record: Mapping[str, Any], source: int, number: int, epoch: int
    ) -> None:
        """Draws the texts of a record and tokenizes them into row `i` of the fields."""
        texts, labels = json.loads(record['text']), _labels_by_name(self.splits[source], record['label'])
        pools = {name: view.pool(texts, labels) for name, view in self.text_views.items()}
        fields['key/text'][i] = np.frombuffer(text_views.text_key(pools.values()), '>u4')
        for name, view in self.text_views.items():
            draw = f'{self.seed}:{name}:{self.sources[source]}:{epoch}:{number}'
            digest = hashlib.sha256(draw.encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], 'big'))
            for r, text in enumerate(view.draw(pools[name], rng)):
                ids = self.tokenizer.encode(text, view.length)
                fields[f'text/{name}'][i, r, : len(ids)] = ids
                fields[f'text/{name}/length'][i, r] = len(ids)


@dataclasses.dataclass(frozen=True)
class _PartFactory:
    """Builds the parts of a config; the fields are what all its parts share."""

    datasets: Mapping[str, DataSet]
    vocabulary: tuple[str, ...]
    text_views: Mapping[str, TextView]
    tokenizer: Tokenizer | None
    seed: int
    columns: Mapping[str, Any]
    structures: Mapping[str, Sequence[str]]

    def part(self, rows: int, sources: Mapping[str, float], canvas: int | None = None, *, name: str) -> Part:
        """The part `name`, checked. A config gives `rows`, `sources` and `canvas`."""
        where = f'data.{name}'
        if not is_whole(rows) or rows < 1:
            raise UserError(f'{where}.rows: {rows!r}; a part has at least one row')
        if canvas is not None and (not is_whole(canvas) or canvas < 1):
            raise UserError(f'{where}.canvas: {canvas!r}; a number of pixels, or None for the longest stored side')
        if not sources:
            raise UserError(f'{where}.sources: empty; name a source and its weight, such as dict(main=1.0)')
        for source, weight in sources.items():
            if not is_number(weight) or not math.isfinite(weight) or weight <= 0:
                raise UserError(f'{where}.sources.{source}: the weight {weight!r}; weights are above 0')
        datasets = [self.datasets[source] for source in sources]
        splits = tuple(data.split('train') for data in datasets)
        lengths = {source: len(split) for source, split in zip(sources, splits, strict=True)}
        number = {label: k for k, label in enumerate(self.vocabulary)}
        return Part(
            rows=rows,
            canvas=canvas or max(data.size for data in datasets),
            channels=max(data.channels for data in datasets),
            bits=max(data.bits for data in datasets),
            sources=tuple(sources),
            splits=splits,
            mixing=Mixing(rows, lengths, sources, self.seed, name),
            label_count=len(self.vocabulary),
            label_columns=tuple(np.array([number[label] for label in data.labels], int) for data in datasets),
            text_views={view: text for view, text in self.text_views.items() if text.part == name},
            tokenizer=self.tokenizer,
            seed=self.seed,
            columns=self.columns,
            structures=tuple(self.structures.get(name, ())),
        )


def _check_text_view(view: TextView, part: Part) -> None:
    """Raises UserError if the view finds no text in the part, or if its prompts name no label of the part."""
    if part.tokenizer is None:
        raise UserError(f'{view.where}: a text view needs a tokenizer; see tokenizer.path')
    if view.length <= part.tokenizer.around:
        raise UserError(
            f'{view.where}.length: {view.length} tokens have no room for a word: {part.tokenizer.path} puts '
            f'{part.tokenizer.around} around every text'
        )
    if view.prompts:
        labels = {label for split in part.splits for label in split.data.labels}
        prompts.check_classes(view.prompts, labels, f'{view.where}.prompts')
    sections: set[str] = set()
    for split in part.splits:
        usable = split.column('words') > 0
        if view.prompts:
            usable = usable | given(split.labels_array).any(1)
        numbers = np.flatnonzero(usable)
        for i in numbers[:: max(1, len(numbers) // SEARCHED)].tolist():
            texts = split.text(i)
            sections |= texts.keys()
            if view.pool(texts, _labels_by_name(split, split.labels_array[i])).has_text:
                return
    wanted = ', '.join('+'.join(names) for names in view.sections) or 'prompts'
    present = f'the sections {", ".join(sorted(sections))}' if sections else 'no text'
    raise UserError(
        f'{view.where}: no text for {wanted} in the sources of data.{view.part} ({", ".join(part.sources)}): '
        f'their records have {present}'
    )


def _labels_by_name(split: Split, values: np.ndarray) -> dict[str, int]:
    return dict(zip(split.data.labels, values.tolist(), strict=True))


def _column_value(value: Any, kind: Any) -> float:
    """A number as it is, a word as its place among the words that count; nan where it is unknown."""
    if kind == 'number':
        return float(value) if is_number(value) else math.nan
    return kind.index(value) if value in kind else math.nan
