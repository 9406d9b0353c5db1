"""Positives as data: which elements of the two sides of a batch belong together.

In a config, `positives` is one of these or a list of them:

    'identity'    elements of the same row of the same part: the diagonal
    'study'       elements of the same study ('key/study')
    'text'        elements with the same text ('key/text'): all reports "no acute findings" are positives of each other.
                  The key covers everything that the text views of the part read or draw from. With a view of
                  impressions alone, equal impressions match. With a view of findings beside it, both must be equal.
    'label'       elements with the same set of present labels and the same set of uncertain labels. Absent, blank and
                  conflicting labels count alike, but elements whose labels are all blank or conflicting match nothing.
    dict(soft='labels')              soft positives: the cosines of label sets (MedCLIP, arXiv 2210.10163)
    dict(soft='teacher', alpha=.4)   soft positives: the similarities that the teacher `teacher` gives (ALBEF, arXiv
                                     2107.07651; X-VL, 2208.05140)

Two elements are positives (h = 1) if any listed kind matches. Key 0 means "missing" and never matches. `alpha` (default
1, may be a schedule) is the weight of the soft positives. For example, `pair_softmax` has the targets
P = (1 - alpha) h / sum h + alpha softmax(similarities).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.data.types import POSITIVE, UNCERTAIN, given
from medjax.errors import UserError, suggest
from medjax.objectives.schedules import SHARE, Schedule, schedule
from medjax.plugins import call
from medjax.types import View

KINDS = ('identity', 'study', 'text', 'label')
LABELS = 'labels'  # soft positives by labels, in the place of a network's name


class Positives(NamedTuple):
    """The config's `positives`, checked."""

    kinds: tuple[str, ...]  # K entries of KINDS
    soft: str | None  # LABELS, the name of a network, or None without soft positives
    alpha: Schedule


def positives(spec: Any, total_steps: int, where: str) -> Positives:
    """Checks a config's `spec`; `where` is the config path that messages name."""

    kinds, soft = [], []
    for entry in spec if isinstance(spec, (list, tuple)) else [spec]:
        if isinstance(entry, Mapping):
            soft.append(call(soft_positives, entry, where, total_steps=total_steps, where=where))
        elif entry in KINDS:
            kinds.append(entry)
        else:
            raise UserError(
                f'{where}: {entry!r} is no kind of positives{suggest(entry, KINDS)}; or dict(soft=…, alpha=…)'
            )
    if len(soft) > 1 or not (kinds or soft):
        raise UserError(f'{where}: takes any of {", ".join(map(repr, KINDS))}, and at most one dict(soft=…, alpha=…)')
    name, alpha = soft[0] if soft else (None, schedule(0.0, total_steps, where))
    return Positives(tuple(dict.fromkeys(kinds)), name, alpha)


def soft_positives(soft: str, alpha: Any = 1.0, *, total_steps: int, where: str) -> tuple[str, Schedule]:
    """Checks dict(soft=…, alpha=…) of a config."""
    if not isinstance(soft, str):
        raise UserError(f"{where}.soft={soft!r}: must be 'labels' or the name of a network")
    return soft, schedule(alpha, total_steps, f'{where}.alpha', SHARE)


def keys(view: View, kinds: tuple[str, ...], name: str, where: str) -> tuple[Array, Array]:
    """The keys of every element of a view, uint32 [B,V,K,2], and whether it has them, bool [B,V,K].

    K counts kinds of positives here, not prototypes. Elements with equal keys are positives. `name` is the view's name,
    for messages.
    """
    shape = view.present.shape
    if not kinds:
        return jnp.zeros((*shape, 0, 2), jnp.uint32), jnp.zeros((*shape, 0), bool)
    by_kind, has_key = [], []
    for kind in kinds:
        key, present = _key(view, kind, name, where)
        by_kind.append(jnp.broadcast_to(key if key.ndim == 3 else key[:, None], (*shape, 2)))
        has_key.append(jnp.broadcast_to(present if present.ndim == 2 else present[:, None], shape))
    return jnp.stack(by_kind, 2), jnp.stack(has_key, 2)


def label_sets(view: View, name: str, where: str) -> tuple[Array, Array]:
    """The sets of present labels as unit vectors [B,V,L+1], and whether any label is given, bool [B,V].

    The last number of a vector stands for "no label is present".
    """
    label = _field(view, 'label', LABELS, name, where)
    sets = jnp.asarray(label == POSITIVE, jnp.float32)
    sets = jnp.concatenate([sets, ~sets.any(-1, keepdims=True)], axis=-1)
    sets *= jax.lax.rsqrt(sets.sum(-1, keepdims=True))
    return (
        jnp.broadcast_to(sets[:, None], (*view.present.shape, sets.shape[-1])),
        jnp.broadcast_to(given(label).any(-1)[:, None], view.present.shape),
    )


def _key(view: View, kind: str, name: str, where: str) -> tuple[Array, Array]:
    """The key of one kind, uint32 [B,2] or [B,V,2], and whether there is one, bool [B] or [B,V]."""
    if kind == 'identity':
        row = view.row.astype(jnp.uint32)
        return jnp.stack([row, jnp.zeros_like(row)], -1), jnp.ones(row.shape, bool)
    if kind == 'label':
        label = _field(view, 'label', kind, name, where)
        value = jnp.where(label == POSITIVE, 1, jnp.where(label == UNCERTAIN, 2, 0)).astype(jnp.uint32)
        # two sums of random numbers modulo 2^32: the probability that two different sets get one key is 2^-62
        factors = np.random.default_rng(0).integers(2**32, size=(label.shape[-1], 2), dtype=np.uint32)
        return (value[..., None] * factors).sum(-2, dtype=jnp.uint32), given(label).any(-1)
    key = _field(view, f'key/{kind}', kind, name, where)
    if key.ndim == 3 and key.shape[1] != view.present.shape[1]:
        raise UserError(
            f'{where}: key/{kind} of the view {name!r} has {key.shape[1]} keys a row, but the view has '
            f'{view.present.shape[1]} elements a row; give one key a row, [B,2], or one an element, [B,V,2]'
        )
    return key, (key != 0).any(-1)


def _field(view: View, field: str, kind: str, name: str, where: str) -> Array:
    if field not in view.meta:
        raise UserError(
            f'{where}: {kind!r} needs the field {field!r} of the view {name!r}, which its part of the batch lacks'
            f'{suggest(field, view.meta)}'
        )
    return view.meta[field]
