"""Crops predict each other's balanced assignment to prototypes (SwAV, arXiv 2006.09882).

With unit embeddings z_bv of S crops, of which the first T are assigned, and K unit prototypes:

    q_ba = Sinkhorn( z_ba . prototypes / epsilon )         without gradient, over the rows of the batch, for each crop a
    p_bv = softmax( z_bv . prototypes / temperature )
    loss = mean_a  mean_{v != a}  mean_b  CE( q_ba, p_bv )

Sinkhorn balances the rows of one kind of crop at a time. With a queue, the last `queue` embeddings of that kind stand
beside them from the step on at which the queue is full; their scores are those of today's prototypes. Queue and batch
are compared before the batch enters the queue.

The prototypes are parameters of this term, [d,K]. They are unit vectors, normalised after each step. Before step
`frozen` no gradient reaches them: with LARS they have no momentum and no decay, and stand still.

`start` is ln K. Compared with arrays of facebookresearch/swav, main_swav.py: tests/reference_swav.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.crops import crop_features, feature_names
from medjax.objectives.features import Feature
from medjax.objectives.targets import gauges
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.parallel.sharding import everywhere
from medjax.types import Tree, is_number, is_whole


def build(
    context: TermContext,
    of: str | Sequence[str],
    others: str | Sequence[str] = (),
    prototypes: int = 3000,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue: int = 0,
    queue_from: int = 0,
    frozen: int = 0,
) -> Term:
    """The term `swav` of a config.

    of           one or more features [B,V,d] of the crops that are assigned, and predicted by the other crops' scores
    others       features of crops that predict, and are not assigned: the local crops
    prototypes   K
    temperature  of the predictions; `epsilon` is that of the assignments
    iterations   of Sinkhorn
    queue        past rows of each assigned crop that Sinkhorn balances too; 0 for none
    queue_from   the step from which the queue is filled
    frozen       the step from which the prototypes learn
    """
    where = context.where
    for name, value in dict(temperature=temperature, epsilon=epsilon).items():
        if not is_number(value) or value <= 0:
            raise UserError(f'{where}.{name}={value!r}: must be a number above 0')
    for name, value, least in (
        ('prototypes', prototypes, 2), ('iterations', iterations, 1), ('queue', queue, 0),
        ('queue_from', queue_from, 0), ('frozen', frozen, 0),
    ):  # fmt: skip
        if not is_whole(value) or value < least:
            raise UserError(f'{where}.{name}={value!r}: must be a whole number of at least {least}')
    first = feature_names(context, of, 'of')
    features = crop_features(context, [*first, *feature_names(context, others, 'others')])
    return Swav(context, features, len(first), prototypes, temperature, epsilon, iterations, queue, queue_from, frozen)


@dataclasses.dataclass(frozen=True, eq=False)
class Swav(Term):
    """The term `swav`; see the top of this file."""

    of: tuple[Feature, ...]
    assigned_features: int  # the first of them
    prototypes: int
    temperature: float
    epsilon: float
    iterations: int
    queue: int
    queue_from: int
    frozen: int

    @property
    def assigned(self) -> int:
        """T, the number of crops that are assigned."""
        return sum(self.context.crops.get(f.view, 1) for f in self.of[: self.assigned_features])

    @property
    def least_rows(self) -> int:
        return 1 if self.queue else 2  # Sinkhorn gives one row the uniform assignment

    def loss(self, x: TermInputs) -> TermOutput:
        z = numerics.unit(jnp.concatenate([x.feature(f, 'BVD') for f in self.of], axis=1))
        here = jnp.concatenate([x.present(f) for f in self.of], axis=1)
        (_, s), t = here.shape, self.assigned
        logits = self.scores(x.params['prototypes'], x.step)
        chosen, chosen_here = jax.lax.stop_gradient(z[:, :t]), here[:, :t]
        potential = self.potentials(x.state, logits, chosen, chosen_here)

        other = 1 - np.eye(s, t, dtype=np.float32)
        counts = here[:, :, None] * chosen_here[:, None, :] * other  # [B,S,T]
        rows = counts.sum(0)
        weight = counts / jnp.maximum(rows, 1) / jnp.maximum((rows > 0).sum(), 1)
        sums = numerics.distill(
            numerics.Softmax(logits, z, self.temperature),
            numerics.Softmax(logits, chosen, self.epsilon),
            weight, chosen_here.astype(jnp.float32), potential, self.prototypes,
        )  # fmt: skip
        any_rows = rows.sum() > 0
        metrics = {
            'rows': jnp.any(counts > 0, axis=(1, 2)).sum(),
            **gauges(sums, chosen_here.astype(jnp.float32), self.prototypes, here.sum()),
        }
        if self.queue:
            metrics['queue'] = x.state['queue']['present'].sum(1).min()
        carry = (everywhere(chosen), everywhere(chosen_here)) if self.queue else None
        return TermOutput(sums.loss.sum(), metrics, jnp.log(float(self.prototypes)) * any_rows, carry)

    def scores(self, prototypes: Array, step: Array) -> Callable[[Array], Array]:
        """The function from unit embeddings [...,d] to their cosines with the prototypes [...,K]."""
        if self.frozen:
            prototypes = jnp.where(step < self.frozen, jax.lax.stop_gradient(prototypes), prototypes)
        return lambda z: jnp.matmul(z, prototypes, precision='highest')

    def potentials(self, state: Tree, logits: Callable[[Array], Array], z: Array, here: Array) -> Array:
        """The potential of each assigned crop [T,K], from the rows z [B,T,d] that are `here` [B,T] and the queue."""
        if self.queue:
            self.context.check_queue(self.queue, len(z), 'rows')
            past, full = state['queue']['z'], state['queue']['present'].all(1)  # [T,L,d], [T]
            z, here = everywhere(z), everywhere(here)
        found = []
        for crop in range(z.shape[1]):
            rows, weight = z[:, crop], here[:, crop].astype(jnp.float32)
            if self.queue:
                rows = jnp.concatenate([past[crop], rows])
                weight = jnp.concatenate([jnp.full(self.queue, full[crop], jnp.float32), weight])
            found.append(
                numerics.sinkhorn_potential(logits, rows, weight, self.epsilon, self.prototypes, self.iterations)
            )
        return jnp.stack(found)

    # Prototypes and queue.

    def init(self, key: Array) -> tuple[Tree, Tree]:
        width = self.context.width(self.of[0].name)
        params = {'prototypes': jax.random.uniform(key, (width, self.prototypes), minval=-1.0, maxval=1.0)}
        if not self.queue:
            return self.project(params), {}
        shape = self.assigned, self.queue
        return self.project(params), {
            'queue': dict(z=jnp.zeros((*shape, width), jnp.float32), present=jnp.zeros(shape, bool))
        }

    @property
    def axes(self) -> tuple[Tree, Tree]:
        queue = {'queue': dict(z=(None, None, None), present=(None, None))} if self.queue else {}
        return {'prototypes': ('bottleneck', 'prototypes')}, queue

    def project(self, params: Tree) -> Tree:
        """Keeps the prototypes unit vectors."""
        return {**params, 'prototypes': numerics.unit(params['prototypes'].T).T}

    def update(self, state: Tree, carry: tuple[Array, Array] | None, step: Array) -> Tree:
        """The queue of each assigned crop after a batch: the newest rows that were there."""
        if not self.queue:
            return state
        z, here = (jnp.swapaxes(x, 0, 1) for x in carry)  # [T,B,…]
        z = jnp.concatenate([z, state['queue']['z']], axis=1)
        present = jnp.concatenate([here, state['queue']['present']], axis=1)
        newest = jnp.argsort(~present, axis=1, stable=True)[:, : self.queue]
        moved = dict(
            z=jnp.take_along_axis(z, newest[..., None], axis=1), present=jnp.take_along_axis(present, newest, axis=1)
        )
        return {
            'queue': jax.tree.map(lambda new, old: jnp.where(step >= self.queue_from, new, old), moved, state['queue'])
        }

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        t, d = self.assigned, shapes[self.of[0].name][2]
        s = sum(shapes[f.name][1] for f in self.of)
        of_queue = rows * t * (d + 1) if self.queue else 0
        return of_queue + self.prototypes * (2 * t * self.iterations + 5) + 4 * s * t + 64
