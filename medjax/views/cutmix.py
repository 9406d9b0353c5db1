"""CutMix: a box of a crop comes from another row of its group (arXiv 1905.04899).

    views=dict(crop=dict(view='crop', …, cutmix=0.5))     half of the crops are mixed

The partner of a row is drawn among the other rows of its group, so no image crosses devices. A box of the size
(H sqrt(1-a), W sqrt(1-a)) lies around a random pixel and is cut at the border, with a uniform a, as in the paper. The
view says what its crops show, for the term `supervised`: 'mix/share' float32 [B,V], the share of the pixels that are
the row's own, and the facts of the partner as 'mix/row', 'mix/label', 'mix/key/patient', ….
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from medjax.types import View
from medjax.views.kinds import facts

SHARE, PREFIX = 'mix/share', 'mix/'


def mix(view: View, keys: Array, share: float, rows_per_group: int) -> View:
    """`view` with a `share` of its crops mixed; `keys` [B] are random keys of the rows.

    An absent row is neither mixed nor a partner.
    """
    b, v = view.present.shape
    u = jax.vmap(lambda key: jax.random.uniform(key, (v, 5)))(keys)
    others = jnp.floor(u[:, 0, 4] * (rows_per_group - 1)).astype(jnp.int32)
    partner = (jnp.arange(b) + 1 + others) % rows_per_group  # its place in the group; groups begin at multiples

    def of_partner(x: Array) -> Array:
        grouped = x.reshape(b // rows_per_group, rows_per_group, -1)
        places = partner.reshape(-1, rows_per_group, 1)
        return jnp.take_along_axis(grouped, places, axis=1).reshape(x.shape)

    both = view.present & of_partner(view.present)
    inside = boxes(u, view.x.shape[3:5]) & (both & (u[..., 3] < share))[..., None, None]
    x = jnp.where(inside[:, :, None, ..., None], of_partner(view.x), view.x)
    own = 1 - inside.mean((2, 3), dtype=jnp.float32)
    told = {PREFIX + name: of_partner(fact) for name, fact in (facts(view.meta) | dict(row=view.row)).items()}
    return view._replace(x=x, meta={**view.meta, SHARE: own, **told})


def boxes(u: Array, size: tuple[int, int]) -> Array:
    """bool [B,V,H,W]: the pixels of a random box, from uniform numbers [B,V,3 or more]."""
    inside = []
    for side, at in zip(size, (u[..., 1], u[..., 2]), strict=True):
        half = jnp.floor(jnp.floor(side * jnp.sqrt(1 - u[..., 0])) / 2)
        centre, pixel = jnp.floor(side * at)[..., None], jnp.arange(side)
        inside.append((pixel >= centre - half[..., None]) & (pixel < centre + half[..., None]))
    return inside[0][..., :, None] & inside[1][..., None, :]
