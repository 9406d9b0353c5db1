"""Which words of a record a text view sees: sections, sentences, prompts. Chosen on the host, before tokenizing.

views={'report': dict(view='text', part='cxr', length=128),                      # impression, else findings, …
       'sentence': dict(view='text', part='cxr', length=64, sentences=1),        # ConVIRT: one sentence, drawn
       'both': dict(view='text', part='cxr', length=256, count=2, sections=['findings', 'impression'])}  # CXR-CLIP
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.text import prompts as prompt_files
from medjax.data.text.language import sentences as cut
from medjax.errors import UserError
from medjax.plugins import call

FALLBACKS = ('impression', 'findings', 'report', 'caption')
NO_KEY = bytes(8)


class Texts(NamedTuple):
    """A text view of a config: R texts of each row of a part, of at most T tokens."""

    part: str
    length: int  # T
    number: int  # R
    sections: tuple[tuple[str, ...], ...]  # in order of preference; those of one entry are joined
    sentences: int | None
    shuffle: bool
    prompts: prompt_files.Prompts | None
    absent: int
    where: str


class Words(NamedTuple):
    """What a record's texts are drawn from: sentences of its sections, or pools of prompts."""

    sections: list[list[str]]
    prompts: prompt_files.Pools | None


def of_views(views: Mapping[str, Mapping[str, Any]]) -> dict[str, Texts]:
    """The text views among a config's views, checked; a UserError names the key."""
    found = {}
    for name, cfg in views.items():
        if cfg.get('view') == 'text':
            given = {key: value for key, value in cfg.items() if key != 'view'}
            found[name] = call(text, given, f'views.{name}', name=f'views.{name}')
    return found


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
) -> Texts:
    """`count` texts of each record of `part`, of at most `length` tokens, first and last token included.

    `sections`: names in order of preference, 'impression+findings' joins two. The texts of a record are the first
    `count` of those sections that it has: one text is the best section, and two of ['findings', 'impression'] are both.
    `sentences`: instead, the sentences of the best section are dealt in random packs of so many, without putting back:
    1 is a drawn sentence, and with a large `count` every sentence of a short report. Within a text they keep their
    order unless `shuffle`. A record with fewer texts than `count` has the others absent (length 0).
    `prompts`: for records that have none of the sections, sentences from their labels (see prompts.py: a file
    or its content), of all findings that are present, and of up to `absent` that are known to be absent.
    """
    for key, value, least in (('length', length, 3), ('count', count, 1), ('absent', absent, 0)):
        if not _whole(value) or value < least:
            raise UserError(f'{name}.{key}: a whole number of at least {least}, not {value!r}')
    if sentences is not None and (not _whole(sentences) or sentences < 1):
        raise UserError(
            f'{name}.sentences: None for whole sections, or a whole number of at least 1, not {sentences!r}'
        )
    if isinstance(sections, str) or not all(isinstance(section, str) and section for section in sections):
        raise UserError(f'{name}.sections: a list of names, such as {list(FALLBACKS)}, not {sections!r}')
    if not sections and not prompts:
        raise UserError(f'{name}.sections: empty, and there are no prompts; name a section or a file of prompts')
    if absent and not prompts:
        raise UserError(f'{name}.absent: {absent} without prompts has no effect; name a file of prompts')
    return Texts(
        part=part,
        length=length,
        number=count,
        sections=tuple(tuple(one.strip() for one in section.split('+')) for section in sections),
        sentences=sentences,
        shuffle=bool(shuffle),
        prompts=None if prompts is None else prompt_files.read(prompts, f'{name}.prompts'),
        absent=absent,
        where=name,
    )


def words(texts: Texts, said: Mapping[str, str], labels: Mapping[str, int]) -> Words:
    """What the view draws from, of a record with the sections `said` and the `labels` by name."""
    joined = ([s for name in names for s in cut(said.get(name, ''))] for names in texts.sections)
    sections = [whole for whole in joined if whole][: 1 if texts.sentences else texts.number]
    from_labels = texts.prompts and not sections
    return Words(sections, prompt_files.pools(texts.prompts, labels, texts.absent > 0) if from_labels else None)


def draw(texts: Texts, of: Words, rng: np.random.Generator) -> list[str]:
    """At most `number` texts."""
    found = of.sections
    if of.prompts:
        found = [
            prompt_files.draw(of.prompts, texts.absent, rng) for _ in range(1 if texts.sentences else texts.number)
        ]
        found = [whole for whole in found if whole]
    if texts.sentences and found:
        best, n = found[0], texts.sentences
        order = rng.permutation(len(best))
        packs = [order[at : at + n] for at in range(0, len(best), n)][: texts.number]
        found = [[best[k] for k in (pack if texts.shuffle else sorted(pack))] for pack in packs]
    elif texts.shuffle:
        found = [[whole[k] for k in rng.permutation(len(whole))] for whole in found]
    return [' '.join(whole) for whole in found]


def key(of: Iterable[Words]) -> bytes:
    """8 bytes, equal where the views of a part draw from equal words, but for case; NO_KEY where there are none."""
    of = [one for one in of if one.sections or (one.prompts and any(one.prompts))]
    told = json.dumps(of, ensure_ascii=False).casefold().encode('utf-8', 'surrogatepass')
    return hashlib.sha256(told).digest()[:8] if of else NO_KEY


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)
