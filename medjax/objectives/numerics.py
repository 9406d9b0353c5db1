"""Numerics of prototype losses: distillation in row chunks, Sinkhorn in the log domain, and two gauges.

Everything runs in float32 over global rows. The logits of a head with K = 65,536 prototypes are too large to keep for
all rows. So this module makes them from the normalised bottleneck in chunks of rows and makes them again in the
backward pass. Sinkhorn keeps only its potential [K]. Sums over rows are first taken on each device, [devices,...],
and over devices once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from medjax.parallel.sharding import row_shards, split_rows

CHUNK_ELEMENTS = 2**26  # logits held at once on one device: 256 MiB in float32

Logits = Callable[[Array], Array]  # [...,d] -> [...,K]


ROW_TOTALS = 'row totals'  # the name of what `log_softmax` keeps of each row for the backward pass


def log_softmax(x: Array) -> Array:
    """The logarithms of softmax(x) over the last axis.

    The derivative needs the largest logit and the total of each row. A chunk of rows keeps these two (`over_chunks`),
    so that its backward pass makes the logits again without another search for maxima and totals.
    """
    largest = checkpoint_name(jax.lax.stop_gradient(x.max(-1, keepdims=True)), ROW_TOTALS)
    total = checkpoint_name(jnp.exp(x - largest).sum(-1, keepdims=True), ROW_TOTALS)
    return x - largest - jnp.log(total)


def _by_shard(x: Array) -> Array:
    """[R,...] -> [devices,R/devices,...]; as if on one device where the number of devices does not divide R."""
    devices = row_shards() if x.shape[0] % row_shards() == 0 else 1
    return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])


def over_chunks(f: Callable, rows: Any, width: int, combine: Callable = jnp.add) -> Any:
    """Combines f(chunk) over equal chunks of each device's rows.

    Takes the fewest chunks in which an array [rows of a device, width] has at most CHUNK_ELEMENTS elements. `rows` is a
    tree of arrays [R,...]. `f` returns a tree of arrays [devices,...]. One chunk is a plain call.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    local = count // row_shards() if count % row_shards() == 0 else count
    n = next(n for n in range(1, local + 1) if local % n == 0 and (local // n * width <= CHUNK_ELEMENTS or n == local))
    if n == 1:
        return f(rows)
    chunks = split_rows(rows, n)
    f = jax.checkpoint(f, policy=jax.checkpoint_policies.save_only_these_names(ROW_TOTALS))
    first = f(jax.tree.map(lambda x: x[0], chunks))
    others = jax.tree.map(lambda x: x[1:], chunks)
    result, _ = jax.lax.scan(lambda sums, chunk: (jax.tree.map(combine, sums, f(chunk)), None), first, others)
    return result


def sinkhorn_potential(
    logits: Logits, z: Array, weight: Array, temperature: Array, count: int, iterations: int = 3
) -> Array:
    """The potential c [K] of Sinkhorn-Knopp (arXiv 1306.0895, used as in SwAV, 2006.09882), in the log domain.

    With s = logits(z) / temperature [R,K], the balanced target of row r is softmax_k(s_rk + c_k). Each of the
    `iterations` scales the total of every prototype to 1/K and then the total of every row to 1/R. Rows of weight 0
    (padding) do not count. The original's exp(s) overflows above 88; this does not. No gradient passes.

    z [R,d], weight [R]. `count` is K. `medjax.objectives.formulas.sinkhorn` is the plain formula, and softmax(s + c)
    equals it where all rows count.
    """

    def totals(chunk: tuple[Array, Array], c: Array | None) -> Array:
        """The logarithm of each prototype's total on each device, [devices,K]."""
        z, weight = chunk
        s = logits(z).astype(jnp.float32) / temperature
        if c is not None:  # scales the rows; earlier scales of the prototypes cancel
            s = s - jax.nn.logsumexp(s + c, axis=-1, keepdims=True)
        return jax.nn.logsumexp(_by_shard(jnp.where(weight[:, None] > 0, s, -jnp.inf)), axis=1)

    c = None
    for _ in range(iterations):
        by_shard = over_chunks(lambda chunk, c=c: totals(chunk, c), (z, weight), count, jnp.logaddexp)
        c = -jax.nn.logsumexp(by_shard, axis=0)
        c = jnp.where(jnp.isfinite(c), c, 0.0)  # infinite where no row counts
    return jax.lax.stop_gradient(c)


class Softmax(NamedTuple):
    """The probabilities of the student or of the teacher over the prototypes: softmax(logits(z) / temperature)."""

    logits: Logits
    z: Array  # bottlenecks [R,V,d], V views of each row
    temperature: Array | float


class Distilled(NamedTuple):
    """Sums over all rows, in float32."""

    loss: Array  # [S], one for each student view
    entropy: Array  # of the targets, summed over rows and teacher views with their weight
    student: Array  # [K], the student's probabilities summed over rows and views with any weight
    teacher_logits: Array  # [K], the teacher's logits summed like the entropy; a centre is the mean of these
    targets: Array  # [K], the targets summed like the entropy


def distill(
    student: Softmax,
    teacher: Softmax,
    pair_weight: Array,
    teacher_weight: Array,
    potential: Array,
    count: int,
    student_gradient: bool = False,
) -> Distilled:
    """The weighted cross-entropy of student and teacher, in row chunks: sum_r sum_t w_rst CE(q_rt, p_rs) for each s.

    q = softmax(teacher logits / teacher temperature + potential), without gradient
    p = softmax(student logits / student temperature)

    S and T are the student views and the teacher views of a row.

    pair_weight w [R,S,T]; teacher_weight [R,T], the weight of each target in the entropy and the centre; potential [K].
    `count` is K, the number of prototypes. `student_gradient`: whether a gradient passes through the result `student`.
    """

    def chunk(rows: tuple[Array, Array, Array, Array]) -> Distilled:
        zs, zt, w, wt = rows
        raw = jax.lax.stop_gradient(teacher.logits(zt).astype(jnp.float32))
        log_q = log_softmax(raw / teacher.temperature + potential)
        q = jnp.exp(log_q)
        log_p = log_softmax(student.logits(zs).astype(jnp.float32) / student.temperature)
        # the cross-entropy is linear in q, so the targets of one student view are added up first: [r,S,K]
        loss = -jnp.sum(jnp.einsum('rst,rtk->rsk', w, q) * log_p, axis=-1)
        has_weight = (w.sum(-1) > 0).astype(jnp.float32)
        probabilities = jnp.exp(log_p)
        probabilities = probabilities if student_gradient else jax.lax.stop_gradient(probabilities)
        p = jnp.einsum('rs,rsk->rk', has_weight, probabilities)
        entropy = -jnp.einsum('rt,rtk,rtk->r', wt, q, log_q)
        sums = Distilled(loss, entropy, p, *(jnp.einsum('rt,rtk->rk', wt, x) for x in (raw, q)))
        return jax.tree.map(lambda x: _by_shard(x).sum(1), sums)

    width = count * (student.z.shape[1] + teacher.z.shape[1])
    by_shard = over_chunks(chunk, (student.z, teacher.z, pair_weight, teacher_weight), width)
    return jax.tree.map(lambda x: x.sum(0), by_shard)


def perplexity(p: Array) -> Array:
    """The number of prototypes that p [K] really uses: exp of the entropy of p / sum p, from 1 to K."""
    p = p / jnp.maximum(p.sum(), 1e-30)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-38)), 0.0)))


def effective_rank(x: Array, present: Array) -> Array:
    """Participation ratio (sum of the eigenvalues)^2 / (sum of their squares) of the covariance of x [R,D].

    It is 1 if all rows lie on a line, and min(R - 1, D) if they spread evenly. Only rows that are `present` [R] count.
    """
    x, w = x.astype(jnp.float32), present.astype(jnp.float32)
    x = (x - w @ x / jnp.maximum(w.sum(), 1)) * w[:, None]
    covariance = x.T @ x
    return jnp.trace(covariance) ** 2 / jnp.maximum(jnp.sum(covariance**2), 1e-30)


def unit(x: Array, least: float = 1e-12) -> Array:
    """L2-normalised in float32; norms below `least` count as `least`.

    The bound acts on the squared norm, since the gradient of the norm itself is NaN at 0.
    """
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), least**2))
