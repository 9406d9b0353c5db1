"""BERT's head for masked words (arXiv 1810.04805): a layer, then logits with the word embeddings of a text tower."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError, suggest
from medjax.models.layers import ACTIVATIONS, weight_init
from medjax.types import Head, Tree, is_whole

EPS = 1e-12  # of the norm


def build(
    width: int, vocabulary: int, out: int | None = None, activation: str = 'gelu', dtype: str = 'float32'
) -> Head:
    """logits = norm(activation(dense x)) W^T + bias, float32 [...,vocabulary], for features of `width` numbers.

    W [vocabulary,out] are the word embeddings that the head is tied to: give it tie='towers/text/words'.

    vocabulary  number of words, that of the text tower
    out         width of the word embeddings; None: `width`, as in BERT
    activation  a name in layers.ACTIVATIONS
    """
    if activation not in ACTIVATIONS:
        raise UserError(f'words: unknown activation {activation!r}{suggest(activation, ACTIVATIONS)}')
    out = width if out is None else out
    for name, size in dict(vocabulary=vocabulary, out=out).items():
        if not is_whole(size) or size < 1:
            raise UserError(f'words: {name}={size!r}: must be a whole number of at least 1')
    axes = dict(
        dense=dict(kernel=('embed', None), bias=(None,)),
        norm=dict(scale=('embed',), bias=('embed',)),
        bias=(None,),
    )
    return Words(axes=axes, width=width, out=out, vocabulary=vocabulary, activation=activation, dtype=dtype)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Words(Head):
    """The head `words`. The factors of products have `dtype`; sums, the norm and logits are float32."""

    width: int
    out: int
    vocabulary: int
    activation: str
    dtype: str

    def init(self, key: Array) -> Tree:
        return dict(
            dense=dict(kernel=weight_init(key, (self.width, self.out)), bias=jnp.zeros(self.out)),
            norm=dict(scale=jnp.ones(self.out), bias=jnp.zeros(self.out)),
            bias=jnp.zeros(self.vocabulary),
        )

    def apply(self, params: Tree, x: Array, *, present: Array | None = None, train: bool = False) -> Array:
        if 'tied' not in params:
            raise UserError("words: the key 'tie' is missing: it names word embeddings, as tie='towers/text/words'")
        words, shape = params['tied'], (self.vocabulary, self.out)
        if words.shape != shape:
            raise UserError(
                f'words: it is tied to {list(words.shape)} numbers and is made for {list(shape)}; give it vocabulary='
                f'{words.shape[0]}, out={words.shape[-1]}'
            )
        x = self._product('...i,io->...o', x, params['dense']['kernel']) + params['dense']['bias']
        x = ACTIVATIONS[self.activation](x)
        x -= x.mean(-1, keepdims=True)
        x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS)
        x = x * params['norm']['scale'] + params['norm']['bias']
        return self._product('...o,wo->...w', x, words) + params['bias']

    def _product(self, form: str, a: Array, b: Array) -> Array:
        return jnp.einsum(form, a.astype(self.dtype), b.astype(self.dtype), preferred_element_type=jnp.float32)
