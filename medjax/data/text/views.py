"""Text views: which texts of a record a text tower sees. They are drawn on the host, before the tokenizer.

views={'report': dict(view='text', part='cxr', length=128),                      # impression, else findings, …
       'sentence': dict(view='text', part='cxr', length=64, sentences=1),        # ConVIRT: one sentence, drawn
       'both': dict(view='text', part='cxr', length=256, count=2, sections=['findings', 'impression'])}  # CXR-CLIP

A view first collects the texts of a record that it may use (`TextView.pool`), then draws from them (`TextView.draw`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.text import language, prompts as prompt_files
from medjax.errors import UserError
from medjax.plugins import call
from medjax.types import is_whole

FALLBACKS = ('impression', 'findings', 'report', 'caption')
NO_TEXT = bytes(8)  # the key of a record without any text


class TextPool(NamedTuple):
    """The texts of one record that a view draws from: its sections, or sentences from prompts."""

    sections: list[list[str]]  # the sentences of each section
    prompts: prompt_files.SentencePools | None  # only for a record with none of the view's sections

    @property
    def has_text(self) -> bool:
        return bool(self.sections) or (self.prompts is not None and any(self.prompts))


@dataclasses.dataclass(frozen=True)
class TextView:
    """A text view of a config: R texts for each row of a part, each of at most T tokens."""

    part: str
    length: int  # T
    count: int  # R
    sections: tuple[tuple[str, ...], ...]  # in order of preference; the names in one tuple are joined
    sentences: int | None  # None: a text is a section; n: a text is n sentences of the best section
    shuffle: bool
    prompts: prompt_files.Prompts | None
    absent: int  # how many absent findings the prompts may state
    where: str  # the config path that messages name

    def pool(self, texts: Mapping[str, str], labels: Mapping[str, int]) -> TextPool:
        """The pool of a record with these texts (by section) and labels (by name)."""
        joined = ([s for name in names for s in language.sentences(texts.get(name, ''))] for names in self.sections)
        sections = [sentences for sentences in joined if sentences][: 1 if self.sentences else self.count]
        if self.prompts is None or sections:
            return TextPool(sections, None)
        return TextPool([], prompt_files.sentence_pools(self.prompts, labels, self.absent > 0))

    def draw(self, pool: TextPool, rng: np.random.Generator) -> list[str]:
        """At most `count` texts from the pool of a record."""
        texts = pool.sections
        if pool.prompts is not None:
            drawn = (
                prompt_files.draw_sentences(pool.prompts, self.absent, rng)
                for _ in range(1 if self.sentences else self.count)
            )
            texts = [sentences for sentences in drawn if sentences]
        if self.sentences and texts:
            texts = self._packs(texts[0], self.sentences, rng)
        elif self.shuffle:
            texts = [[sentences[k] for k in rng.permutation(len(sentences))] for sentences in texts]
        return [' '.join(sentences) for sentences in texts]

    def _packs(self, sentences: list[str], size: int, rng: np.random.Generator) -> list[list[str]]:
        """The sentences, dealt at random into packs of `size`; the first `count` packs."""
        positions = rng.permutation(len(sentences))
        packs = [positions[at : at + size] for at in range(0, len(sentences), size)][: self.count]
        return [[sentences[k] for k in (pack if self.shuffle else sorted(pack))] for pack in packs]


def from_config(views: Mapping[str, Mapping[str, Any]]) -> dict[str, TextView]:
    """The text views among the views of a config, checked. A UserError names the key."""
    text_views = {}
    for name, cfg in views.items():
        if cfg.get('view') == 'text':
            keywords = {key: value for key, value in cfg.items() if key != 'view'}
            text_views[name] = call(text, keywords, f'views.{name}', name=f'views.{name}')
    return text_views


def text(
    part: str,
    length: int,
    count: int = 1,
    sections: Sequence[str] = FALLBACKS,
    sentences: int | None = None,
    shuffle: bool = False,
    prompts: str | Mapping[str, Any] | None = None,
    absent: int = 0,
    *,
    name: str,
) -> TextView:
    """`count` texts for each row of `part`, each of at most `length` tokens, first and last token included.

    `sections`: names of sections in order of preference; 'impression+findings' joins two sections. The texts of a
    record are the first `count` of those that it has. So one text is the best section, and two texts of
    ['findings', 'impression'] are both sections. A record with fewer texts has absent texts (length 0) in their place.
    `sentences`: a text is this number of sentences instead of a section. The sentences of the best section are dealt
    at random, without replacement: sentences=1 draws one sentence, and with a large `count` a short report gives all
    its sentences. `shuffle`: the sentences of a text are in random order, not in the order of the report.
    `prompts`: a file of prompts, or its content (see prompts.py), for records that have none of the sections. Labels
    become sentences: all findings that are present, and up to `absent` findings that are known to be absent.
    """
    for key, value, least in (('length', length, 3), ('count', count, 1), ('absent', absent, 0)):
        if not is_whole(value) or value < least:
            raise UserError(f'{name}.{key}: a whole number of at least {least}, not {value!r}')
    if sentences is not None and (not is_whole(sentences) or sentences < 1):
        raise UserError(
            f'{name}.sentences: None for whole sections, or a whole number of at least 1, not {sentences!r}'
        )
    if isinstance(sections, str) or not all(isinstance(section, str) and section for section in sections):
        raise UserError(f'{name}.sections: a list of names, such as {list(FALLBACKS)}, not {sections!r}')
    if not sections and not prompts:
        raise UserError(f'{name}.sections: empty, and there are no prompts; name a section or a file of prompts')
    if absent and not prompts:
        raise UserError(f'{name}.absent: {absent} without prompts has no effect; name a file of prompts')
    return TextView(
        part=part,
        length=length,
        count=count,
        sections=tuple(tuple(each.strip() for each in section.split('+')) for section in sections),
        sentences=sentences,
        shuffle=bool(shuffle),
        prompts=None if prompts is None else prompt_files.read(prompts, f'{name}.prompts'),
        absent=absent,
        where=name,
    )


def text_key(pools: Iterable[TextPool]) -> bytes:
    """8 bytes that identify the texts of a record; `pools` has its pool for each text view of a part.

    Two records have equal keys if their pools are equal apart from upper and lower case. NO_TEXT: all pools are empty.
    """
    with_text = [pool for pool in pools if pool.has_text]
    content = json.dumps(with_text, ensure_ascii=False).casefold().encode('utf-8', 'surrogatepass')
    return hashlib.sha256(content).digest()[:8] if with_text else NO_TEXT
