"""Both sides of an export that learned from pairs: images, by their features, and texts, by their words, in one space.

both = image_text.load(encoder)
unit(both.images(features.cls[:, -1])) @ unit(both.texts(['No pleural effusion.'])).T      # cosines
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medjax.data.text import language, tokenizer, views as text_views
from medjax.data.text.tokenizer import Tokenizer
from medjax.errors import UserError
from medjax.models import build as models
from medjax.parallel.sharding import make_mesh, replicated, rows_sharding
from medjax.probes.encode import Encoder
from medjax.types import Tree, View

TEXTS_PER_DEVICE = 32


class Pair(NamedTuple):
    """What the first pair of an export computes; vectors are not normalised yet."""

    images: Callable[[np.ndarray], np.ndarray]  # features [...,D] of the image tower -> float32 [...,d]
    texts: Callable[[Sequence[str]], np.ndarray]  # n texts with at least one known token each -> float32 [n,d]
    tokens: Callable[[str], list[int]]  # what the tower reads of a text; [] where its tokenizer knows no word of it
    whole: Callable[[str], bool]  # whether it reads all of a text, or only the beginning
    temperature: float
    sections: text_views.Texts  # which words of a record are its text


def about(encoder: Encoder) -> dict[str, Any]:
    """All that the vectors depend on beside the encoder's weights; UserError where it has no pair."""
    if encoder.parts is None:
        raise UserError('raw pixels share no space with texts')
    if not encoder.meta.get('pairs'):
        raise UserError(
            'the export holds no pair of an image and a text tower; a recipe with a term such as pair_softmax exports '
            "one if its `export` names both towers and their heads: towers=['image', 'text'], heads=[…]"
        )
    pair = encoder.meta['pairs'][0]
    named = {pair[side]['head'] for side in ('image', 'text')} - {None}
    heads = {head: encoder.meta['heads'][head] for head in sorted(named)}
    tower = encoder.meta['towers'][pair['text']['tower']]
    return dict(pair=pair, heads=heads, text_tower=tower, tokenizer=encoder.meta['tokenizer']['fingerprint'])


def load(encoder: Encoder) -> Pair:
    """The first pair of the encoder's export, which is that of the first such term in its recipe."""
    settings = about(encoder)
    image, text = settings['pair']['image'], settings['pair']['text']
    words, length = _tokenizer(encoder), int(text['length'])
    width = {side['tower']: _tower(json.dumps(encoder.meta['towers'][side['tower']])).width for side in (image, text)}

    def project(side: Mapping[str, Any], x: jax.Array) -> jax.Array:
        if side['head'] is None:
            return x
        head = models.head(settings['heads'][side['head']], width[side['tower']], f'heads.{side["head"]}')
        return head.apply(encoder.parts['heads'][side['head']], x)

    def tokens(one: str) -> list[int]:
        return words.encode(_clean(one), length)

    def embed(many: Sequence[str]) -> np.ndarray:
        tower = encoder.parts['towers'][text['tower']]
        cls = _cls(json.dumps(settings['text_tower']), tower, [tokens(one) for one in many], length, words.tokens.pad)
        return np.asarray(project(text, jnp.asarray(cls)))

    return Pair(
        images=lambda x: np.asarray(project(image, jnp.asarray(x))),
        texts=embed,
        tokens=tokens,
        whole=lambda one: len(words.encode(_clean(one), length + 1)) <= length,
        temperature=float(settings['pair']['temperature']),
        sections=text_views.text('', length, sections=text['sections'] or text_views.FALLBACKS, name='the text view'),
    )


def _clean(one: str) -> str:
    """In one line, without control characters, as the sentences of reports are."""
    return ' '.join(language.clean(one).split())


def _tokenizer(encoder: Encoder) -> Tokenizer:
    """The tokenizer beside the weights, if it is the one that the towers were trained with."""
    said, where = encoder.meta['tokenizer'], encoder.folder / encoder.meta['tokenizer']['file']
    if not where.is_file():
        raise UserError(f'the export lacks its tokenizer {where}; copy the whole folder of the export')
    if tokenizer.fingerprint(where.read_bytes()) != said['fingerprint']:
        raise UserError(f'{where} is damaged or not the tokenizer of this export; copy the folder of the export again')
    return tokenizer.load(where, said['pad'])


@functools.cache
def _tower(cfg: str) -> Any:
    return models.tower(json.loads(cfg), 1, where='the towers of the export')


@functools.cache  # the exports of a run share one function, so it is compiled once
def _compiled(cfg: str) -> Callable[..., jax.Array]:
    def cls(params: Tree, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        rows = jnp.arange(len(ids), dtype=jnp.uint32)
        valid = jnp.arange(ids.shape[1]) < lengths[:, None]
        view = View(ids[:, None], rows, lengths[:, None] > 0, valid[:, None], {})
        return _tower(cfg).apply(params, view)['cls'][:, 0].astype(jnp.float32)

    return jax.jit(cls)


def _cls(cfg: str, params: Tree, many: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
    """cls float32 [n,D] of n texts as token ids, in batches over all devices of this machine."""
    mesh, found = make_mesh(), []
    size = TEXTS_PER_DEVICE * mesh.size
    with jax.set_mesh(mesh):
        params = jax.device_put(params, replicated(mesh))
        for start in range(0, len(many), size):
            ids, lengths = np.full((size, length), pad, np.int32), np.ones(size, np.int32)
            for i, one in enumerate(many[start : start + size]):
                ids[i, : len(one)], lengths[i] = one, len(one)
            out = _compiled(cfg)(params, *jax.device_put((ids, lengths), rows_sharding(mesh)))
            found.append(np.asarray(out)[: len(many) - start])
    return np.concatenate(found)
