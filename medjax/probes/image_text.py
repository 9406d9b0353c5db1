"""The image and the text tower of an export: vectors of images and of texts in one space.

encoder = image_text.load(encode.load('RUN/exports/1000'))
images = unit(encoder.image_vectors(features.cls[:, -1]))
texts = unit(encoder.text_vectors(['No pleural effusion.']))
cosines = images @ texts.T
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.data.text import language, tokenizer as tokenizers, views as text_views
from medjax.data.text.tokenizer import Tokenizer
from medjax.errors import UserError
from medjax.models import build as models
from medjax.parallel.sharding import make_mesh, replicated, rows_sharding
from medjax.probes.encode import Encoder, image_tower, pair_of
from medjax.types import Head, Input, Tower, Tree, View

TEXTS_PER_DEVICE = 32


@dataclasses.dataclass(frozen=True)
class Branch:
    """One tower of an export and the head that projects its features into the common space."""

    tower: str  # its name
    towers: str  # the configs of all towers as JSON
    params: Tree
    head: Head | None  # None: the features are the vectors
    head_params: Tree | None

    def project(self, features: jax.Array) -> jax.Array:
        return features if self.head is None else self.head.apply(self.head_params, features)


@dataclasses.dataclass(frozen=True)
class ImageTextEncoder:
    """Both towers of the first contrastive term of a recipe. Its vectors are not normalised."""

    image: Branch
    text: Branch
    tokenizer: Tokenizer
    length: int  # tokens of a text that the text tower reads
    temperature: float  # of cosines, as trained
    text_view: text_views.TextView  # selects the text of a record from its sections

    def image_vectors(self, features: np.ndarray) -> np.ndarray:
        """Features [...,D] of the image tower -> float32 [...,d]."""
        return np.asarray(self.image.project(jnp.asarray(features)))

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 [n,d]. Each text needs at least one token that the tokenizer has."""
        tokens = [self.tokens(text) for text in texts]
        cls = _encode_texts(self.text, tokens, self.length, self.tokenizer.tokens.pad)
        return np.asarray(self.text.project(jnp.asarray(cls)))

    def tokens(self, text: str) -> list[int]:
        """The tokens that the tower reads of a text; [] if the tokenizer has none of its words."""
        return self.tokenizer.encode(_clean(text), self.length)

    def fits(self, text: str) -> bool:
        """True if the tower reads the whole text; False if the end is cut off."""
        return len(self.tokenizer.encode(_clean(text), self.length + 1)) <= self.length


def settings(encoder: Encoder) -> dict[str, Any]:
    """The settings that the vectors depend on besides the encoder's weights; UserError without a text tower."""
    if encoder.export is None:
        raise UserError('raw pixels share no space with texts')
    if not encoder.meta.get('pairs'):
        raise UserError(
            'the export holds no pair of an image and a text tower; a recipe with a term such as pair_softmax exports '
            "one if its `export` names both towers and their heads: towers=['image', 'text'], heads=[…]"
        )
    pair = pair_of(encoder.meta)
    if pair is None:
        raise UserError(
            f'no term brought the image tower {image_tower(encoder.meta)!r} and a text tower into one space; probe '
            'another tower (export.encoder)'
        )
    if not encoder.meta.get('tokenizer'):
        raise UserError(f'{encoder.folder} has no tokenizer, so its text tower cannot read sentences')
    names = {pair[side]['head'] for side in ('image', 'text')} - {None}
    heads = {head: encoder.meta['heads'][head] for head in sorted(names)}
    tower = encoder.meta['towers'][pair['text']['tower']]
    return dict(pair=pair, heads=heads, text_tower=tower, tokenizer=encoder.meta['tokenizer']['fingerprint'])


def load(encoder: Encoder) -> ImageTextEncoder:
    """Loads the towers, heads and tokenizer of the export's first image-text term; UserError as `settings`."""
    pair = settings(encoder)['pair']
    length, sections = int(pair['text']['length']), pair['text']['sections'] or text_views.FALLBACKS
    return ImageTextEncoder(
        image=_branch(encoder, pair['image']),
        text=_branch(encoder, pair['text']),
        tokenizer=_tokenizer(encoder),
        length=length,
        temperature=float(pair['temperature']),
        text_view=text_views.text('', length, sections=sections, name='the text view'),
    )


def _branch(encoder: Encoder, names: Mapping[str, Any]) -> Branch:
    """The tower and head that `names` names."""
    name, head = names['tower'], names['head']
    cfg, params = json.dumps(encoder.meta['towers']), encoder.export['towers'][name]
    if head is None:
        return Branch(name, cfg, params, None, None)
    width = _towers(cfg)[name].width
    return Branch(
        name,
        cfg,
        params,
        models.head(encoder.meta['heads'][head], width, f'heads.{head}'),
        encoder.export['heads'][head],
    )


def _clean(text: str) -> str:
    """The text in one line and without control characters, as the reports of training were cleaned."""
    return ' '.join(language.clean(text).split())


def _tokenizer(encoder: Encoder) -> Tokenizer:
    """The tokenizer in the export's folder; UserError if it is not the one of the training."""
    meta, path = encoder.meta['tokenizer'], encoder.folder / encoder.meta['tokenizer']['file']
    if not path.is_file():
        raise UserError(f'the export lacks its tokenizer {path}; copy the whole folder of the export')
    if tokenizers.fingerprint(path.read_bytes()) != meta['fingerprint']:
        raise UserError(f'{path} is damaged or not the tokenizer of this export; copy the folder of the export again')
    return tokenizers.load(path, meta['pad'])


@functools.cache
def _towers(cfg: str) -> dict[str, Tower]:
    return models.towers(json.loads(cfg), 1)


@functools.cache  # all exports of a run share one function, so it is compiled once
def compiled_tower(name: str, cfg: str) -> jax.stages.Wrapped:
    """(params, ids [n,T], lengths [n]) -> float32 [n,D]: the cls of a text tower; `cfg` are all towers as JSON."""

    def cls(params: Tree, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        rows = jnp.arange(len(ids), dtype=jnp.uint32)
        valid = jnp.arange(ids.shape[1]) < lengths[:, None]
        view = View(ids[:, None], rows, lengths[:, None] > 0, valid[:, None], {})
        return _towers(cfg)[name].apply(params, Input(view))['cls'][:, 0].astype(jnp.float32)

    return jax.jit(cls)


def _encode_texts(branch: Branch, tokens: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
    """float32 [n,D]: cls of n texts, given as token ids, in batches over all devices of this machine."""
    mesh = make_mesh()
    size = TEXTS_PER_DEVICE * mesh.size
    batches = []
    with jax.set_mesh(mesh):
        params = jax.device_put(branch.params, replicated(mesh))
        for start in range(0, len(tokens), size):
            ids, lengths = np.full((size, length), pad, np.int32), np.ones(size, np.int32)
            for i, text in enumerate(tokens[start : start + size]):
                ids[i, : len(text)], lengths[i] = text, len(text)
            texts = jax.device_put((ids, lengths), rows_sharding(mesh))
            cls = compiled_tower(branch.tower, branch.towers)(params, *texts)
            batches.append(np.asarray(cls)[: len(tokens) - start])
    return np.concatenate(batches)
