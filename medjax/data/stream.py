"""The stream: a batch is a function of the step. The host decodes, and chooses and tokenizes texts; chance beyond the
order and the choice of words is left to the device.

Global row r of step t of a part is element t*B + r of an endless sequence: each source shuffled anew every epoch and
repeated, every batch with as many rows of each source as the weights say (order.py). That element is computed from its
number alone, so the position is one integer, and which host or thread decodes a row changes nothing. What is drawn for
the texts of a row depends on the seed, the view, the epoch of the source and the record, and on nothing else.
"""

from __future__ import annotations

import collections
import hashlib
import json
import math
import os
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from medjax.data.format import KINDS
from medjax.data.images import decode
from medjax.data.mixing import Order
from medjax.data.records import DataSet, Split
from medjax.data.text import prompts, views as text_views
from medjax.data.text.tokenizer import Tokenizer
from medjax.data.text.views import Texts
from medjax.errors import UserError, suggest
from medjax.plugins import call

AHEAD = 2  # batches decoded while one is in use
LOOKED_AT = 64  # records of a source in which a text view looks for its first text
HostBatch = dict[str, dict[str, np.ndarray]]
Batches = Generator[HostBatch, None, None]  # endless; close() ends its threads


class Part(NamedTuple):
    """What a part's batches look like and where their rows come from."""

    rows: int  # B, global
    canvas: int  # side of the square canvas, pixels
    channels: int
    bits: int
    splits: tuple[Split, ...]  # the train split of each source
    sources: tuple[str, ...]
    order: Order  # element number -> (source number, record, epoch)
    columns: tuple[np.ndarray, ...]  # for each source: the vocabulary's position of each of its labels
    texts: dict[str, Texts]  # the text views of the part
    tokenizer: Tokenizer | None
    seed: int


class Stream:
    """Batches of the train splits, addressed by step.

    `parts` is the config's `data`: part -> dict(rows=…, sources={source: weight}, canvas=None). A picture larger than
    the canvas is reduced to it (antialiased); without a canvas, it is the longest stored side of the part's sources.
    Grey and colour sources, 8 and 16 bits, may share a part: grey is repeated, 8 bits are spread. `views` are the
    config's: the text views among them become fields of their parts, by `tokenizer`.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        datasets: Mapping[str, DataSet],
        seed: int,
        threads: int | None = None,
        views: Mapping[str, Mapping[str, Any]] | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        self.threads = threads or os.cpu_count() or 1
        used = [source for cfg in parts.values() for source in (cfg.get('sources') or {})]
        for source in used:
            if source not in datasets:
                near = suggest(source, datasets)
                raise UserError(f'no data for the source {source!r}{near}; give --data {source}=PATH')
        # one vocabulary over all parts, in order of first appearance
        self.vocabulary = tuple(dict.fromkeys(label for source in used for label in datasets[source].labels))
        place = {label: k for k, label in enumerate(self.vocabulary)}
        chosen = text_views.of_views(views or {})
        self.parts = {
            name: call(
                _part, cfg, f'data.{name}', name=name, datasets=datasets, seed=seed, place=place, tokenizer=tokenizer,
                texts={view: text for view, text in chosen.items() if text.part == name},
            )
            for name, cfg in parts.items()
        }  # fmt: skip
        for part in self.parts.values():
            for text in part.texts.values():
                _check_text(text, part)
        self.rows = {name: part.rows for name, part in self.parts.items()}

    def batches(self, start_step: int = 0, rows: Mapping[str, np.ndarray] | None = None) -> Batches:
        """Endless batches of step start_step, start_step + 1, …, the fields of `types.Batch` as numpy arrays.

        `rows` names the global rows that this host feeds, for each part (default: all of them), in their order in
        the batch. Closing or dropping the iterator ends its threads; a decoding error is raised at its batch.
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
        """An empty batch, and the tasks that fill it, one a row."""
        batch, futures = {}, []
        for name, numbers in rows.items():
            part = self.parts[name]
            batch[name] = _empty(part, numbers, len(self.vocabulary))
            futures += [
                pool.submit(_fill, part, batch[name], at, step * part.rows + int(row)) for at, row in enumerate(numbers)
            ]
        return batch, futures


def _part(
    rows: int, sources: Mapping[str, float], canvas: int | None = None, *,
    name: str, datasets: Mapping[str, DataSet], seed: int, place: Mapping[str, int], texts: dict[str, Texts],
    tokenizer: Tokenizer | None,
) -> Part:  # fmt: skip
    where = f'data.{name}'
    if not isinstance(rows, int) or rows < 1:
        raise UserError(f'{where}.rows: {rows!r}; a part has at least one row')
    if canvas is not None and (not isinstance(canvas, int) or canvas < 1):
        raise UserError(f'{where}.canvas: {canvas!r}; a number of pixels, or None for the longest stored side')
    if not sources:
        raise UserError(f'{where}.sources: empty; name a source and its weight, such as dict(main=1.0)')
    for source, weight in sources.items():
        if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight <= 0:
            raise UserError(f'{where}.sources.{source}: the weight {weight!r}; weights are above 0')
    chosen = [datasets[source] for source in sources]
    splits = tuple(data.split('train') for data in chosen)
    return Part(
        rows=rows,
        canvas=canvas or max(data.size for data in chosen),
        channels=max(data.channels for data in chosen),
        bits=max(data.bits for data in chosen),
        splits=splits,
        sources=tuple(sources),
        order=Order(rows, {s: len(split) for s, split in zip(sources, splits, strict=True)}, sources, seed, name),
        columns=tuple(np.array([place[label] for label in data.labels], int) for data in chosen),
        texts=texts,
        tokenizer=tokenizer,
        seed=seed,
    )


def _check_text(text: Texts, part: Part) -> None:
    """A UserError where the view could only see absent texts, or its prompts name no label of the part."""
    if part.tokenizer is None:
        raise UserError(f'{text.where}: a text view needs a tokenizer; see tokenizer.path')
    if text.length <= part.tokenizer.around:
        raise UserError(
            f'{text.where}.length: {text.length} tokens have no room for a word: {part.tokenizer.path} puts '
            f'{part.tokenizer.around} around every text'
        )
    if text.prompts:
        labels = {label for split in part.splits for label in split.data.labels}
        prompts.check_classes(text.prompts, labels, f'{text.where}.prompts')
    met: set[str] = set()
    for split in part.splits:
        told = split.column('words') > 0
        if text.prompts:
            told = told | (split.labels_array != -2).any(1)
        candidates = np.flatnonzero(told)
        for i in candidates[:: max(1, len(candidates) // LOOKED_AT)].tolist():
            said = split.text(i)
            met |= said.keys()
            if (
                text_views.key([text_views.words(text, said, _labels(split, split.labels_array[i]))])
                != text_views.NO_KEY
            ):
                return
    wanted = ', '.join('+'.join(names) for names in text.sections) or 'prompts'
    there = f'their records have the sections {", ".join(sorted(met))}' if met else 'their records have no text'
    raise UserError(
        f'{text.where}: no text for {wanted} in the sources of data.{text.part} ({", ".join(part.sources)}): {there}'
    )


def _labels(split: Split, values: np.ndarray) -> dict[str, int]:
    return dict(zip(split.data.labels, values.tolist(), strict=True))


def _empty(part: Part, numbers: np.ndarray, labels: int) -> dict[str, np.ndarray]:
    n, depth = len(numbers), np.uint8 if part.bits == 8 else np.uint16
    fields = {
        'row': numbers.astype(np.uint32),
        'image': np.zeros((n, 1, part.canvas, part.canvas, part.channels), depth),
        'image/present': np.ones((n, 1), bool),
        'image/extent': np.zeros((n, 1, 2), np.int32),
        'label': np.full((n, labels), -2, np.int8),
        'key/patient': np.zeros((n, 2), np.uint32),
        'key/study': np.zeros((n, 2), np.uint32),
        'key/text': np.zeros((n, 2), np.uint32),
        'index': np.zeros(n, np.uint32),
    }
    for name, text in part.texts.items():
        fields |= {
            f'text/{name}': np.full((n, text.number, text.length), part.tokenizer.tokens.pad, np.int32),
            f'text/{name}/length': np.zeros((n, text.number), np.int32),
        }
    return fields


def _fill(part: Part, fields: dict[str, np.ndarray], at: int, element: int) -> None:
    """Decodes element number `element` of the part into row `at` of the batch.

    All of it comes from the record: at random places of millions, the columns would be two more reads of a page.
    """
    source, record, epoch = part.order[element]
    raw = part.splits[source].raw(record)
    picture = decode.bounded(decode.decode(raw['image'], part.channels, part.bits), part.canvas)
    height, width = picture.shape[:2]
    fields['image'][at, 0, :height, :width] = picture
    fields['image/extent'][at, 0] = height, width
    fields['label'][at, part.columns[source]] = raw['label']
    keys = raw['keys'].view(np.uint64)
    for kind in ('patient', 'study'):
        fields[f'key/{kind}'][at] = divmod(int(keys[KINDS.index(kind)]), 2**32)
    fields['index'][at] = record
    if not part.texts:
        return
    said, labels = json.loads(raw['text']), _labels(part.splits[source], raw['label'])
    words = {name: text_views.words(text, said, labels) for name, text in part.texts.items()}
    fields['key/text'][at] = np.frombuffer(text_views.key(words.values()), '>u4')
    for name, text in part.texts.items():
        chance = hashlib.sha256(f'{part.seed}:{name}:{part.sources[source]}:{epoch}:{record}'.encode()).digest()
        rng = np.random.default_rng(int.from_bytes(chance[:8], 'big'))
        for r, drawn in enumerate(text_views.draw(text, words[name], rng)):
            ids = part.tokenizer.encode(drawn, text.length)
            fields[f'text/{name}'][at, r, : len(ids)] = ids
            fields[f'text/{name}/length'][at, r] = len(ids)
