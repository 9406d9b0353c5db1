"""Positives as data: which elements of the two sides of a batch belong together.

In a config, `positives` is one of these or a list of them:

    'identity'    elements of the same row of the same part: the diagonal
    'study'       elements of the same study ('key/study')
    'text'        elements with the same text ('key/text'): all reports "no acute findings" are positives of each other.
                  The key covers everything that the text views of the part read or draw from. With a view of
                  impressions alone, equal impressions match; with a view of findings beside it, both must be equal.
    'label'       elements with the same set of present labels and the same set of uncertain labels. Elements whose
                  labels are all blank match nothing. Absent and blank labels count alike.
    dict(soft='labels')              a softmax over the other side of the cosines of label sets (MedCLIP, 2210.10163)
    dict(soft='teacher', alpha=.4)   the similarities that the teacher `teacher` gives (ALBEF, 2107.07651; X-VL,
                                     2208.05140)

Two elements are positives if any listed kind matches (h = 1). `alpha` (default 1, may be a schedule) is the weight of
the soft targets: P = (1 - alpha) h / sum h + alpha soft. Key 0 means "missing" and never matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError, suggest
from medjax.objectives.schedules import Schedule, schedule
from medjax.plugins import call
from medjax.types import View

KINDS = ('identity', 'study', 'text', 'label')
LABELS = 'labels'  # stands in the place of a network's name


class Positives(NamedTuple):
    """The config's `positives`, checked."""

    kinds: tuple[str, ...]  # K of KINDS
    soft: str | None  # LABELS, or the name of a network
    alpha: Schedule


def positives(spec: Any, total_steps: int, where: str) -> Positives:
    """`spec` as in a config; `where` is the path that errors name."""

    def soft_part(soft: str, alpha: Any = 1.0) -> tuple[str, Schedule]:
        if not isinstance(soft, str):
            raise UserError(f"{where}.soft: 'labels' or the name of a network, got {soft!r}")
        return soft, schedule(alpha, total_steps, f'{where}.alpha')

    kinds, soft = [], []
    for one in spec if isinstance(spec, (list, tuple)) else [spec]:
        if isinstance(one, Mapping):
            soft.append(call(soft_part, one, where))
        elif one in KINDS:
            kinds.append(one)
        else:
            raise UserError(f'{where}: {one!r} is no kind of positives{suggest(one, KINDS)}; or dict(soft=…, alpha=…)')
    if len(soft) > 1 or not (kinds or soft):
        raise UserError(f'{where}: any of {", ".join(map(repr, KINDS))}, and at most one dict(soft=…, alpha=…)')
    name, alpha = soft[0] if soft else (None, schedule(0.0, total_steps, where))
    return Positives(tuple(dict.fromkeys(kinds)), name, alpha)


def keys(view: View, kinds: tuple[str, ...], name: str, where: str) -> tuple[Array, Array]:
    """Equal keys are positives: uint32 [B,V,K,2], and bool [B,V,K] where there is one."""
    shape = view.present.shape
    found = [_key(view, kind, name, where) for kind in kinds]
    both = [jnp.broadcast_to(k if k.ndim == 3 else k[:, None], (*shape, 2)) for k, _ in found]
    known = [jnp.broadcast_to(k if k.ndim == 2 else k[:, None], shape) for _, k in found]
    empty = jnp.zeros((*shape, 0, 2), jnp.uint32), jnp.zeros((*shape, 0), bool)
    return (jnp.stack(both, 2), jnp.stack(known, 2)) if kinds else empty


def label_sets(view: View, name: str, where: str) -> tuple[Array, Array]:
    """Unit vectors [B,V,L+1] of the labels that are present, or of "none of them", and where any label is given."""
    label = _field(view, 'label', LABELS, name, where)
    here = jnp.asarray(label == 1, jnp.float32)
    here = jnp.concatenate([here, ~here.any(-1, keepdims=True)], axis=-1)
    here *= jax.lax.rsqrt(here.sum(-1, keepdims=True))
    return (
        jnp.broadcast_to(here[:, None], (*view.present.shape, here.shape[-1])),
        jnp.broadcast_to((label != -2).any(-1)[:, None], view.present.shape),
    )


def _key(view: View, kind: str, name: str, where: str) -> tuple[Array, Array]:
    """uint32 [B,2] or [B,V,2], and where it is known."""
    if kind == 'identity':
        row = view.row.astype(jnp.uint32)
        return jnp.stack([row, jnp.zeros_like(row)], -1), jnp.ones(row.shape, bool)
    if kind == 'label':
        label = _field(view, 'label', kind, name, where)
        value = jnp.where(label == 1, 1, jnp.where(label == -1, 2, 0)).astype(jnp.uint32)
        # a sum of random numbers modulo 2^32, twice: two different sets meet with probability 2^-62
        factors = np.random.default_rng(0).integers(2**32, size=(label.shape[-1], 2), dtype=np.uint32)
        return (value[..., None] * factors).sum(-2, dtype=jnp.uint32), (label != -2).any(-1)
    key = _field(view, f'key/{kind}', kind, name, where)
    if key.ndim == 3 and key.shape[1] != view.present.shape[1]:
        raise UserError(
            f'{where}: key/{kind} of the view {name!r} has {key.shape[1]} keys a row and the view '
            f'{view.present.shape[1]} elements; a key belongs to a row, [B,2], or to each element, [B,V,2]'
        )
    return key, (key != 0).any(-1)


def _field(view: View, field: str, kind: str, name: str, where: str) -> Array:
    if field not in view.meta:
        raise UserError(
            f'{where}: {kind!r} needs the field {field!r} of the view {name!r}, and the batch of its part has none'
            f'{suggest(field, view.meta)}'
        )
    return view.meta[field]
