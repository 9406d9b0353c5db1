"""The predictor of latent prediction: a small transformer that predicts features at the targets of a mask.

I-JEPA, arXiv 2301.08243, and CheXWorld, 2504.13820. It reads the tokens that the encoder gives for the context, the
patches that a mask of mode 'drop' keeps. For each set of targets it adds one learned token a target, with the position
of the target, and gives the predicted features of the encoder there. Each set of each context is a sequence of its own.

    towers=dict(image=dict(tower='vit', family='ijepa', …), predictor=dict(tower='predictor', reads=['image']))
    masks={'crop~block': dict(mask='multiblock')}
    feature: student/predictor/crop~block/patches@block

With relative positions it also predicts the targets of the other crops of a row, and it can be told how the crop of the
context was changed:

    predictor=dict(tower='predictor', reads=['image'], positions='relative', condition='replace', told=['gamma'])
    feature: student/predictor/crop~block/others@block
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError, suggest
from medjax.models import relative
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import (
    ACTIVATIONS,
    STARTS,
    LayerNorm,
    Linear,
    check_choice,
    parameter,
    scan_blocks,
    weight_init,
)
from medjax.models.relative import Affine
from medjax.models.towers.decoder import check_sizes
from medjax.models.towers.vit import VitTower, sincos_positions
from medjax.plugins import text_list
from medjax.types import ApplyOptions, Input, Mask, Tower, Tree, View

POSITIONS = ('fixed', 'relative', 'relative_scale')
CONDITIONS = (None, 'replace', 'add', 'token')


def build(
    reads: tuple[Tower | None, ...],
    width: int = 384,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    positions: str = 'fixed',
    one_code: bool = False,
    condition: str | None = None,
    told: Sequence[str] = (),
    start: str = 'normal',
    attention: str = 'auto',
    remat: str = 'products',
    dtype: str = 'float32',
) -> Tower:
    """The tower `predictor` of a config.

    reads         one ViT, the encoder
    width, depth, heads, mlp_ratio
                  of the predictor. The published predictors are 384 wide, with 6 or 12 blocks and the heads of the
                  encoder
    positions     of targets. 'fixed': the place in their own crop, in the code of the contexts, as in I-JEPA.
                  'relative': the place that they have in the crop of the context, as in CheXWorld where all crops of a
                  row have one size. 'relative_scale': also the ratio of the two crops' heights and widths
    one_code      with relative positions: whether contexts have the code of targets. If not, as in CheXWorld, the two
                  halves of the code of contexts are swapped, so that a place has two codes
    condition     how the predictor is told the changes of the context's crop. 'replace': a network of three layers
                  reads each target's token and the changes, and its result replaces the token. 'add': its result is
                  added. 'token': each sequence has one token more, a code of the changes. None: it is not told
    told          the changes: names of numbers that the view has drawn for each crop, such as 'gamma' and 'blur'
    start         how the weights start, see the tower `vit`
    attention, remat, dtype
                  as in the tower `vit`

    Its outputs are `patches` [B,V C,K,M,D], the predictions at M targets of each of K sets from each of C contexts of a
    crop, and `cls` [B,V C,D], the mean of each context's predictions. If contexts have sets of their own, `patches` is
    [B,V,K,M,D]. D is the width of the encoder. `patches@block` are the predictions at the mask `block` as terms take
    them. With relative positions `others` holds the predictions of each crop's targets from the contexts of the other
    crops of its row, in the same shape, with C (V - 1) in place of C. Of two crops it is [B,V C,K,M,D].
    """
    encoder = reads[0] if len(reads) == 1 else None
    if not isinstance(encoder, VitTower):
        raise UserError("predictor: it reads one tower, a ViT: reads=['image']")
    check_sizes('predictor', width, depth, heads, mlp_ratio, start, attention, remat, dtype)
    check_choice('predictor', 'positions', positions, POSITIONS)
    told = text_list(told, 'predictor: told', 'gamma')
    if condition not in CONDITIONS:
        raise UserError(f"predictor: condition={condition!r}: must be 'replace', 'add', 'token' or None")
    if bool(condition) != bool(told):
        raise UserError(
            f'predictor: condition={condition!r} and told={list(told)}: give both, or none; told names what the view '
            "draws for each crop, as told=['gamma', 'blur']"
        )
    if one_code and positions == 'fixed':
        raise UserError("predictor: one_code=True is for relative positions; set positions='relative'")
    module = Predictor(
        width=width,
        depth=depth,
        heads=heads,
        hidden=round(width * mlp_ratio),
        out=encoder.width,
        eps=encoder.module.family.eps,
        positions=positions,
        one_code=one_code,
        condition=condition,
        start=start,
        attention=attention,
        remat=remat,
        dtype=jnp.dtype(dtype),
    )
    one = np.zeros((1, 1), np.int32)
    affine = None if positions == 'fixed' else Affine(*np.ones((4, 1), np.float32))
    changes = np.zeros((1, len(told)), np.float32) if told else None
    places = Places(one, one[0], one[None], one, affine, changes)
    example = (np.zeros((1, 1, encoder.width), np.float32), places, (1, 1))
    return PredictorTower(
        width=encoder.width,
        axes=logical_axes(module, example),
        module=module,
        example=example,
        patch=encoder.module.patch,
        told=told,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PredictorTower(FlaxTower):
    """A tower over a ViT around the flax module `Predictor`."""

    module: Predictor
    patch: int  # patch side in pixels
    told: tuple[str, ...]  # names of numbers in the meta of the view

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, encoded),) = inputs
        if mask is None or mask.kept is None or not mask.crop_room or encoded is None:
            raise UserError(
                'predictor: the encoder must read a context, and other patches must be targets, crop by crop; give the '
                "view a mask such as crop~block with dict(mask='multiblock')"
            )
        b, v, contexts, _ = mask.kept.shape
        self.check_view(view, 'others' in options.want)
        shifts = v if 'others' in options.want else 1  # 0: targets of the same crop
        tokens = encoded['patches'].reshape(b, v, contexts, *encoded['patches'].shape[2:])
        height, width = view.image.shape[2:4]
        predicted: Any = self.module.apply(
            {'params': params},
            flat(from_crops(tokens, shifts)),
            self.places_of(view, mask, shifts),
            (height // self.patch, width // self.patch),
        )
        predicted = predicted.reshape(b, v, shifts, contexts, *predicted.shape[1:])
        own = predicted[:, :, 0]
        counts = sets_of_contexts(mask, target_counts(mask))
        there = jnp.arange(mask.crop_room) < counts[..., None]  # bool [B,V,C,K,M]
        mean = jnp.where(there[..., None], own, 0).sum((3, 4)) / jnp.maximum(there.sum((3, 4)), 1)[..., None]
        outputs = dict(cls=mean.reshape(b, v * contexts, -1), patches=by_target(own, mask))
        if shifts > 1:
            outputs['others'] = by_target(predicted[:, :, 1:], mask)
        return outputs

    def places_of(self, view: View, mask: Mask, shifts: int) -> Places:
        """The contexts of all crops with the targets of their own crop and, with several shifts, of other crops."""
        assert mask.kept is not None
        b, v, contexts, m = mask.kept.shape
        lengths = jnp.full((b, v, contexts), m, jnp.int32) if mask.length is None else mask.length
        targets = sets_of_contexts(mask, by_crop(mask, mask.index % mask.bits.shape[-1]))
        counts = sets_of_contexts(mask, target_counts(mask))
        targets, counts = (jnp.repeat(x[:, :, None], shifts, axis=2) for x in (targets, counts))
        affine = changes = None
        if self.module.positions != 'fixed':
            boxes, flips = view.meta['boxes'], view.meta['flip']
            theirs = from_crops(boxes, shifts), from_crops(flips, shifts)  # [B,V,shifts,…], of the contexts
            found = relative.between(*theirs, boxes[:, :, None], flips[:, :, None])
            affine = Affine(*(jnp.repeat(x, contexts, axis=-1).reshape(-1) for x in found))
        if self.told:
            drawn = jnp.stack([view.meta[name].astype(jnp.float32) for name in self.told], axis=-1)
            changes = jnp.repeat(from_crops(drawn, shifts), contexts, axis=2).reshape(-1, len(self.told))
        kept, lengths = (flat(from_crops(x, shifts)) for x in (mask.kept, lengths))
        return Places(kept, lengths, flat(targets), flat(counts), affine, changes)

    def check_view(self, view: View, others: bool) -> None:
        """UserError where the view does not say what the predictor needs to know."""
        for name in self.told:
            if name not in view.meta or view.meta[name].shape != view.present.shape:
                drawn = [key for key, x in view.meta.items() if x.shape == view.present.shape and key != 'flip']
                raise UserError(
                    f'predictor: told names {name!r}, which the view does not draw for each crop{suggest(name, drawn)}'
                )
        if self.module.positions != 'fixed' and 'boxes' not in view.meta:
            raise UserError("predictor: relative positions need the boxes of crops, so the view must be a 'crop'")
        if not others:
            return
        if self.module.positions == 'fixed':
            raise UserError("predictor: for the output 'others' it must know where crops lie; set positions='relative'")
        if view.present.shape[1] < 2:
            raise UserError("predictor: for the output 'others' the view must show two crops or more; set its count")


class Places(NamedTuple):
    """The patches of S contexts and of K sets of targets of each: their numbers, and how many of them count."""

    kept: Array  # int32 [S,M']
    lengths: Array  # int32 [S]
    targets: Array  # int32 [S,K,M]
    counts: Array  # int32 [S,K]
    affine: Affine | None = None  # with relative positions: from the crop of the targets to that of the context, [S]
    changes: Array | None = None  # float32 [S,P], what the predictor is told of the context's crop


def from_crops(x: Array, shifts: int) -> Array:
    """[B,V,…] -> [B,V,shifts,…]: beside each crop what belongs to itself, to the next crop of its row, and so on."""
    return jnp.stack([jnp.roll(x, -shift, axis=1) for shift in range(shifts)], axis=2)


def flat(x: Array) -> Array:
    """[B,V,shifts,C,…] -> [S,…]."""
    return x.reshape(-1, *x.shape[4:])


def by_target(predicted: Array, mask: Mask) -> Array:
    """Predictions [B,V,…,C,K,M,D], by the crop of their targets, as [B,V C,K,M,D]; see `build`."""
    *_, contexts, k, m, d = predicted.shape
    return predicted.reshape(len(predicted), -1, contexts * k if mask.own_sets else k, m, d)


def sets_of_contexts(mask: Mask, x: Array) -> Array:
    """An array [B,V,K,…] of the sets of crops as [B,V,C,K of a context,…]."""
    assert mask.kept is not None
    contexts = mask.kept.shape[2]
    if mask.own_sets:
        return x.reshape(*x.shape[:2], contexts, -1, *x.shape[3:])
    return jnp.repeat(x[:, :, None], contexts, axis=2)


def target_counts(mask: Mask) -> Array:
    """The number of targets of each crop in each set, int32 [B,V,K]."""
    return (by_crop(mask, mask.weight) > 0).sum(-1, dtype=jnp.int32)


def by_crop(mask: Mask, x: Array) -> Array:
    """An array like `Mask.index`, [G,K,M of a group], as [B,V,K,crop_room]."""
    b, v, _ = mask.bits.shape
    return x.reshape(*x.shape[:2], -1, mask.crop_room).swapaxes(1, 2).reshape(b, v, x.shape[1], mask.crop_room)


class Predictor(nn.Module):
    """Tokens of the encoder [S,M',D] and the places of contexts and targets -> predictions [S,K,M,out], float32."""

    width: int
    depth: int
    heads: int
    hidden: int
    out: int  # width of the encoder
    eps: float
    positions: str
    one_code: bool
    condition: str | None
    start: str
    attention: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, places: Places, grid: tuple[int, int]) -> Array:
        d = self.width
        context = self.linear('embed', tokens.shape[-1], d)(tokens).astype(jnp.float32)
        context += self.codes(grid)[places.kept]
        targets = self.targets(places, grid)
        if self.condition == 'token':
            code = relative.fourier(places.changes).reshape(len(context), -1)
            context, places = with_token(context, places, self.changes_net(code, (4 * d, d), 'silu'))
        x, lengths = sequences(context, targets, places)
        x = scan_blocks(
            x.astype(self.dtype),
            self.depth,
            self.remat,
            1,
            inputs=dict(lengths=lengths),
            heads=self.heads,
            hidden=self.hidden,
            layerscale=None,
            eps=self.eps,
            start=self.start,
            attention=self.attention,
            dtype=self.dtype,
        )[0]
        s, k, m = places.targets.shape
        number = jnp.repeat(places.lengths, k)[:, None] + jnp.arange(m)  # of each target in its sequence
        x = LayerNorm(self.eps, name='norm')(jnp.take_along_axis(x, number[..., None], axis=1))
        x = self.linear('project', d, self.out)(x)
        return x.reshape(s, k, m, self.out).astype(jnp.float32)

    def codes(self, grid: tuple[int, int]) -> Array:
        """The positions of all patches as contexts have them, [N,d]."""
        table = sincos_positions(grid, self.width)
        return jnp.asarray(np.roll(table, self.width // 2, axis=1) if self.one_code else table)

    def targets(self, places: Places, grid: tuple[int, int]) -> Array:
        """The tokens of all targets, [S,K,M,d]."""
        d = self.width
        mask_token = parameter(self, 'mask_token', weight_init, (d,), ('embed',))
        if places.affine is None:
            x = mask_token + self.codes(grid)[places.targets]
        else:
            code = relative.code(places.targets, places.affine, grid, d)
            if self.positions == 'relative_scale':
                scale = relative.scale_code(places.affine, d)
                scale = jnp.broadcast_to(scale[:, None, None], code.shape)
                code = self.linear('place', 2 * d, d)(jnp.concatenate([code, scale], axis=-1)).astype(jnp.float32)
            x = mask_token + code
        if self.condition not in ('replace', 'add'):
            return x
        changes = jnp.broadcast_to(places.changes[:, None, None], (*x.shape[:3], places.changes.shape[-1]))
        told = self.changes_net(jnp.concatenate([x, changes], axis=-1), (d, d, d), 'relu')
        return x + told if self.condition == 'add' else told

    def changes_net(self, x: Array, widths: tuple[int, ...], activation: str) -> Array:
        """The network that reads the changes: linear layers with activations between them."""
        for i, width in enumerate(widths):
            x = ACTIVATIONS[activation](x) if i else x
            x = self.linear(f'changes{i + 1}', x.shape[-1], width)(x)
        return x.astype(jnp.float32)

    def linear(self, name: str, inputs: int, outputs: int) -> Linear:
        return Linear((inputs, outputs), ('embed', None), dtype=self.dtype, init=STARTS[self.start], name=name)


def with_token(context: Array, places: Places, token: Array) -> tuple[Array, Places]:
    """One more token [S,d] in front of each context [S,M',d]."""
    context = jnp.concatenate([token[:, None], context], axis=1)
    return context, places._replace(lengths=places.lengths + 1)


def sequences(context: Array, targets: Array, places: Places) -> tuple[Array, Array]:
    """One sequence for each context and set of targets, [S K,M'+M,d], and how many of its tokens count, [S K].

    `context` [S,M',d] and `targets` [S,K,M,d] are tokens with their positions. Each sequence has the tokens of its
    context, then its targets, then padding.
    """
    s, k, m = places.targets.shape
    most = context.shape[1]
    x = jnp.concatenate([jnp.repeat(context, k, axis=0), targets.reshape(s * k, m, -1)], axis=1)
    length, number = jnp.repeat(places.lengths, k)[:, None], jnp.arange(most + m)
    place = jnp.where(number < length, number, jnp.minimum(number + most - length, most + m - 1))
    return jnp.take_along_axis(x, place[..., None], axis=1), length[:, 0] + places.counts.reshape(-1)
