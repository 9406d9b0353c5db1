"""Each crop finds the other crops of its image among all crops of the batch (SimCLR, arXiv 2002.05709: NT-Xent).

With unit embeddings z_i of all N V crops of the batch and s_ij = z_i . z_j / temperature,

    loss = mean_i  ( ln sum_{j != i} exp s_ij  -  mean_{p} s_ip ),   p: the other crops of the same image

Candidates are all crops but i itself, those of the same kind of crop included. `pair_softmax` differs: there a crop
chooses among the crops of one other kind. With three crops and more the positives count as in SupCon (arXiv
2004.11362). Images count if all their crops are present.

`start` is ln(N V - 1), the loss of equal embeddings. Compared with google-research/simclr, objective.py, which adds the
means of two crops and so has twice this loss: give weight=2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives.crops import crop_features, embeddings, feature_names, shape_of
from medjax.objectives.features import Feature
from medjax.objectives.numerics import unit
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.parallel.sharding import everywhere
from medjax.types import is_number


def build(context: TermContext, of: str | Sequence[str], temperature: float = 0.1) -> Term:
    """The term `nt_xent` of a config.

    of           one or more features [B,V,D], with two crops or more together
    temperature  divides the cosines
    """
    if not is_number(temperature) or temperature <= 0:
        raise UserError(f'{context.where}.temperature={temperature!r}: must be a number above 0')
    return NtXent(context, crop_features(context, feature_names(context, of, 'of')), temperature)


@dataclasses.dataclass(frozen=True, eq=False)
class NtXent(Term):
    """The term `nt_xent`; see the top of this file."""

    of: tuple[Feature, ...]
    temperature: float

    @property
    def least_rows(self) -> int:
        return 2

    def loss(self, x: TermInputs) -> TermOutput:
        z, here = embeddings(x, self.of)
        z = unit(z)
        # every device compares its own crops with all crops, and so holds all of them
        loss = nt_xent(z, everywhere(z), here, everywhere(here), self.temperature)
        rows = here.sum()
        start = jnp.log(jnp.maximum(rows * z.shape[1] - 1.0, 1.0))
        return TermOutput(loss, {'rows': rows}, start)

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        v, d = shape_of(shapes, self.of)
        return rows * (2 * v * d + 1) + 64  # the crops, the gradient back, and which rows are there


def nt_xent(z: Array, others: Array, here: Array, others_here: Array, temperature: float) -> Array:
    """The loss of unit embeddings z [B,V,D] among `others`, which has the values of z but may lie on other devices.

    Only rows that are `here` [B] count.
    """
    b, v = z.shape[:2]
    s = jnp.einsum('bvd,cwd->bvcw', z, others, precision='highest') / temperature
    same_row = np.eye(b, dtype=bool)[:, None, :, None]
    itself = same_row & np.eye(v, dtype=bool)[None, :, None, :]
    candidate = others_here[None, None, :, None] & ~itself
    positive = same_row & ~itself
    s = jnp.where(candidate, s, -jnp.inf)
    total = jax.nn.logsumexp(jnp.where(here[:, None, None, None], s, 0.0), axis=(2, 3))
    right = jnp.where(positive & candidate, s, 0.0).sum((2, 3)) / (v - 1)
    return jnp.where(here[:, None], total - right, 0.0).sum() / jnp.maximum(here.sum() * v, 1)
