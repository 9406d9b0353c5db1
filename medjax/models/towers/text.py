"""The text towers of BERT, CLIP and SigLIP: token and position embeddings, scanned blocks, pooling.

BERT: arXiv 1810.04805. ClinicalBERT, PubMedBERT (2007.15779) and CXR-BERT (2204.09817) differ from BERT in vocabulary
and weights only. CLIP: arXiv 2103.00020. SigLIP: arXiv 2303.15343.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import (
    ACTIVATIONS,
    POOLS,
    LayerNorm,
    Pool,
    check_choice,
    check_compute,
    check_eps,
    parameter,
    scan_blocks,
    sizes,
    weight_init,
)
from medjax.parallel.sharding import constrain_rows
from medjax.types import ApplyOptions, Input, Tower, Tree


class Family(NamedTuple):
    """The settings in which families of text towers differ."""

    vocabulary: int
    context: int
    eps: float  # of the norms
    activation: str
    pool: str
    post_norm: bool = False  # BERT: norms after each branch and after the embeddings, no norm at the end
    causal: bool = False
    padding: bool = False  # padding tokens are read like other tokens, so every text must fill the context


FAMILIES = {
    'bert': Family(30_522, 512, 1e-12, 'gelu', 'cls', post_norm=True),
    'clip': Family(49_408, 77, 1e-5, 'quick_gelu', 'last', causal=True),
    'siglip': Family(32_000, 64, 1e-6, 'gelu_tanh', 'last', padding=True),
}


def build(
    family: str = 'bert',
    variant: str = 'B',
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_ratio: float | None = None,
    activation: str | None = None,
    eps: float | None = None,
    vocabulary: int | None = None,
    context: int | None = None,
    pool: str | None = None,
    attention: str = 'auto',
    remat: str = 'products',
    dtype: str = 'float32',
) -> Tower:
    """A text tower. Its view has token ids x int32 [B,V,T] with T at most `context`.

    A text is the first sum(valid) of the T tokens; `valid` is bool [B,V,T], or None if all tokens belong to the text.
    Attention and pooling leave the other tokens out. The family 'siglip' reads all T tokens, and T must be `context`.

    family       the public models that the tower is like: 'bert', 'clip' or 'siglip', see FAMILIES
    variant      a size in layers.SIZES. The text tower of CLIP ViT-B has width=512, heads=8; that of ViT-L is 'B'
    width, depth, heads, mlp_ratio
                 replace the values of the size
    activation   replaces the activation of the family; most models of open_clip have 'gelu'
    eps          of the norms; replaces the value of the family
    vocabulary   number of token ids; replaces the value of the family
    context      largest number of tokens in a text; replaces the value of the family
    pool         how `cls` comes from the tokens, see layers.Pool: 'cls', 'last' (CLIP's end-of-text token), 'mean',
                 'max' or 'attention'; replaces the pooling of the family
    attention    'xla', 'cudnn' (the flash kernel of NVIDIA GPUs, which needs dtype='bfloat16'), or 'auto': the flash
                 kernel wherever it runs
    remat        what is stored for the backward pass, see layers.REMAT
    dtype        type of the activations; parameters, statistics and outputs are float32

    Output tokens after the end of a text have no meaning. An absent text counts as one token, so that its features are
    finite. Token ids outside of the vocabulary give NaN.
    """
    check_choice('text', 'family', family, FAMILIES)
    replace = dict(activation=activation, eps=eps, vocabulary=vocabulary, context=context, pool=pool)
    chosen = FAMILIES[family]._replace(**{name: value for name, value in replace.items() if value is not None})
    shape = sizes('text', variant, f'unknown variant {variant!r}', dict(
        width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio
    ))  # fmt: skip
    check_choice('text', 'activation', chosen.activation, ACTIVATIONS)
    check_choice('text', 'pool', chosen.pool, POOLS)
    check_eps('text', chosen.eps)
    check_compute('text', attention, remat, dtype)
    for name in ('vocabulary', 'context'):
        if not isinstance(getattr(chosen, name), int) or getattr(chosen, name) < 1:
            raise UserError(f'text: {name}={getattr(chosen, name)!r}: must be a whole number of at least 1')
    module = Text(
        width=shape['width'],
        depth=shape['depth'],
        heads=shape['heads'],
        hidden=round(shape['width'] * shape['mlp_ratio']),
        family=chosen,
        attention=attention,
        remat=remat,
        dtype=jnp.dtype(dtype),
    )

    example = (np.zeros((1, 1), np.int32), np.ones(1, np.int32), 1)
    return TextTower(
        width=module.width,
        axes=logical_axes(module, example),
        vocabulary=chosen.vocabulary,
        context=chosen.context,
        blocks=module.depth,
        module=module,
        example=example,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextTower(FlaxTower):
    """A tower of texts around the flax module `Text`."""

    sees = 'text'
    module: Text

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, _),) = inputs
        if mask is not None and (mask.mode != 'replace' or mask.fill is None):
            raise UserError('text: this tower takes masks of texts only, such as `words`')
        layers, padding = options.layers, self.module.family.padding
        x = view.x if mask is None else jnp.where(mask.bits, mask.fill, view.x)
        b, v, t = x.shape
        if t > self.context or (padding and t < self.context):
            most = 'exactly' if padding else 'at most'
            raise UserError(f'text: texts of {t} tokens, but this tower reads {most} {self.context} (`context`)')
        lengths = None
        if view.valid is not None and not padding:
            lengths = jnp.maximum(view.valid.sum(-1, dtype=jnp.int32), 1).reshape(b * v)
        outputs: Any = self.module.apply({'params': params}, x.reshape(b * v, t), lengths, layers)
        # [layers,B*V,…] -> [B,V,layers,…]
        tokens, pooled = [jnp.moveaxis(x, 0, 1).reshape(b, v, layers, *x.shape[2:]) for x in outputs]
        last = dict(cls=pooled[:, :, -1], tokens=tokens[:, :, -1])
        return last | options.last(cls=pooled, tokens=tokens)


class Text(nn.Module):
    """Token ids [S,T] and lengths [S] -> the results of the last `layers` blocks, in float32.

    They are the tokens [layers,S,T,D] and the pooled feature [layers,S,D].
    """

    width: int
    depth: int
    heads: int
    hidden: int
    family: Family
    attention: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, ids: Array, lengths: Array | None, layers: int) -> tuple[Array, Array]:
        family, d = self.family, self.width
        options = dict(activation=family.activation, eps=family.eps, attention=self.attention, dtype=self.dtype)
        words = parameter(self, 'words', weight_init, (family.vocabulary, d), (None, 'embed'))
        positions = parameter(self, 'positions', weight_init, (family.context, d), (None, 'embed'))
        x = jnp.take(words, constrain_rows(ids), axis=0, mode='fill') + positions[: ids.shape[1]]
        if family.post_norm:
            # BERT marks the first and the second of two texts with one embedding each. Here there is only a first text.
            x += parameter(self, 'segments', weight_init, (2, d), (None, 'embed'))[0]
            x = LayerNorm(family.eps, name='embed_norm')(x)
        tokens = scan_blocks(
            x.astype(self.dtype),
            self.depth,
            self.remat,
            layers,
            inputs=dict(lengths=lengths),
            heads=self.heads,
            hidden=self.hidden,
            layerscale=None,
            causal=family.causal,
            post_norm=family.post_norm,
            **options,
        )
        tokens = tokens.astype(jnp.float32) if family.post_norm else LayerNorm(family.eps, name='norm')(tokens)
        pool = Pool(family.pool, self.heads, self.hidden, **options, name='pool')
        lengths = None if lengths is None else jnp.tile(lengths, layers)
        pooled = pool(tokens.reshape(-1, *tokens.shape[2:]), lengths)
        return tokens, pooled.reshape(layers, -1, d)
