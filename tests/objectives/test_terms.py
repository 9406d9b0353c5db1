"""Terms against float64 formulas, absent rows, and the example of docs/add_a_term.md."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from reference_losses import context, loss_of, plain_view

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.terms import distill_cls, distill_patch, koleo
from medjax.types import View
from medjax.views.masks import from_bits


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def plain_sinkhorn(logits, temperature, iterations):
    q = np.exp(np.float64(logits) / temperature)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0, keepdims=True) * q.shape[1]
        q /= q.sum(1, keepdims=True) * q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize('elements', [2**26, 64])
def test_sinkhorn_and_distillation_in_chunks(elements, monkeypatch):
    """Values and gradients are those of the float64 formula, whether the rows come in one chunk or in many."""
    monkeypatch.setattr(numerics, 'CHUNK_ELEMENTS', elements)
    rng = np.random.default_rng(0)
    b, s, t, d, k = 8, 3, 2, 5, 16
    zs, zt = rng.normal(size=(b, s, d)), rng.normal(size=(b, t, d))
    ws, wt = rng.normal(size=(d, k)), rng.normal(size=(d, k))
    weight = rng.random((b, s, t))

    def ours(zs, ws):
        c = numerics.sinkhorn_potential(
            lambda z: z @ jnp.float32(wt), jnp.float32(zt.reshape(-1, d)), jnp.ones(b * t), jnp.float32(0.5), k
        )
        sums = numerics.distill(
            numerics.Softmax(lambda z: z @ ws, zs, 0.1),
            numerics.Softmax(lambda z: z @ jnp.float32(wt), jnp.float32(zt), jnp.float32(0.5)),
            jnp.float32(weight), jnp.ones((b, t)), c, k,
        )  # fmt: skip
        return sums.loss.sum(), sums

    (loss, sums), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(jnp.float32(zs), jnp.float32(ws))
    q = plain_sinkhorn((zt @ wt).reshape(-1, k), 0.5, 3).reshape(b, t, k)
    log_p = log_softmax(zs @ ws / 0.1)
    assert float(loss) == pytest.approx(-np.einsum('bst,btk,bsk->', weight, q, log_p), rel=1e-5)
    assert float(sums.entropy) == pytest.approx(-(q * np.log(q)).sum(), rel=1e-5)
    np.testing.assert_allclose(sums.teacher_logits, (zt @ wt).sum((0, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.student, np.exp(log_p).sum((0, 1)), rtol=1e-4, atol=1e-5)
    # d loss / d logits = (p sum_t w_t - sum_t w_t q_t) / temperature
    to_logits = (np.exp(log_p) * weight.sum(-1)[..., None] - np.einsum('bst,btk->bsk', weight, q)) / 0.1
    np.testing.assert_allclose(grads[0], to_logits @ ws.T, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(grads[1], np.einsum('bsd,bsk->dk', zs, to_logits), rtol=1e-3, atol=1e-3)


def test_padding_does_not_enter_sinkhorn():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(9, 7)).astype(np.float32)
    balance = jax.jit(lambda z, w: numerics.sinkhorn_potential(lambda z: z, z, w, jnp.float32(0.3), 7))
    c = balance(jnp.asarray(logits), jnp.ones(9))
    padded = np.concatenate([logits, 50 * np.ones((3, 7), np.float32)])
    weight = np.r_[np.ones(9), np.zeros(3)]
    again = balance(jnp.asarray(padded), jnp.asarray(weight))
    np.testing.assert_allclose(again, c, rtol=1e-5, atol=1e-5)


def test_a_crop_alone_has_no_pair():
    name, target = 'student/image/global/cls>dino', 'teacher/image/global/cls>dino'
    for crops, student in (
        ({'global': 2}, name),
        ({'global': 1, 'local': 1}, name.replace('global', 'local')),
    ):
        distill_cls.build(dataclasses.replace(context(8), crops=crops), student, target)
    with pytest.raises(UserError, match=r"the only crop of 'global' is the one of the teacher.*give the view count=2"):
        distill_cls.build(dataclasses.replace(context(8), crops={'global': 1}), name, target)


def test_absent_rows_count_nowhere():
    """A batch with absent rows gives the losses and gradients of the batch without them."""
    rng = np.random.default_rng(2)
    names = ['student/image/global/cls>dino', 'student/image/local/cls>dino', 'teacher/image/global/cls>dino']
    shapes = dict(zip(names, [(6, 2, 8), (6, 3, 8), (6, 2, 8)]))
    whole = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    keep = np.array([0, 2, 3, 5])
    term = distill_cls.build(context(8), names[:2], names[2])
    spread = koleo.build(context(8), names[0])

    def loss(features, present):
        views = {
            v: View(None, None, jnp.repeat(present[:, None], n, 1), None, {}) for v, n in (('global', 2), ('local', 3))
        }
        a, metrics, _ = loss_of(term, features, views)
        b, _, _ = loss_of(spread, features, views)
        return a + b, metrics

    present = np.isin(np.arange(6), keep)
    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (with_absent, metrics), grads = both(whole, jnp.asarray(present))
    (without, expected), fewer = both({n: x[keep] for n, x in whole.items()}, jnp.ones(4, bool))
    assert float(with_absent) == pytest.approx(float(without), rel=1e-5)
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=1e-4), name
    for name in names[:2]:
        np.testing.assert_allclose(np.asarray(grads[name])[keep], fewer[name], rtol=1e-3, atol=1e-6)
        assert not np.asarray(grads[name])[~present].any()
    (nothing, metrics), _ = both(whole, jnp.zeros(6, bool))
    assert float(nothing) == 0.0 and float(metrics['rows']) == 0


def test_patch_term_with_absent_crops():
    rng = np.random.default_rng(3)
    s, t = 'student/image/global~block/patches@block>dino', 'teacher/image/global/patches@block>dino'
    bits = rng.random((4, 2, 9)) < 0.4
    term = distill_patch.build(context(8), s, t)

    def run(bits, present, zs, zt, groups=1):
        views = {'global': plain_view(len(bits), 2)._replace(present=present)}

        def loss(zs, zt, where):
            mask = from_bits(where, groups, int(bits.sum()))
            return loss_of(term, {s: zs, t: zt}, views, {'global~block': mask})

        return jax.jit(loss)(zs[bits][None, None], zt[bits][None, None], bits)

    zs, zt = rng.normal(size=(2, 4, 2, 9, 8)).astype(np.float32)
    present = np.ones((4, 2), bool)
    present[1] = False
    ours, metrics, _ = run(bits, present, zs, zt)
    keep = np.array([0, 2, 3])
    theirs, expected, _ = run(bits[keep], present[keep], zs[keep], zt[keep])
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    assert float(metrics['rows']) == float(expected['rows']) == bits[keep].sum()


def test_koleo_in_groups_is_koleo_of_each_group():
    x = np.random.default_rng(4).normal(size=(8, 2, 6)).astype(np.float32)
    of = 'student/image/global/cls'

    def value(x, within, rows_per_group=4):
        term = koleo.build(dataclasses.replace(context(1), rows_per_group=rows_per_group), of, within)
        loss = jax.jit(lambda x: loss_of(term, {of: x}, {'global': plain_view(len(x), 2)})[0])
        return float(loss(x))

    halves = [value(x[:4], 'batch'), value(x[4:], 'batch')]
    assert value(x, 'group') == pytest.approx(np.mean(halves), rel=1e-5)
    assert value(x, 'group') != pytest.approx(value(x, 'batch'), rel=1e-3)


def test_effective_rank():
    rng = np.random.default_rng(5)
    rank = jax.jit(lambda x: numerics.effective_rank(x, jnp.ones(500, bool)))
    assert float(rank(rng.normal(size=(500, 8)))) == pytest.approx(8, rel=0.05)
    line = rng.normal(size=(500, 1)) @ rng.normal(size=(1, 8)) + 3.0
    assert float(rank(line)) == pytest.approx(1, rel=1e-3)


def test_the_term_of_the_docs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / 'docs' / 'add_a_term.md').read_text()
    code = re.search(r'```python\n(""".*?)```', text, re.DOTALL)[1]
    (tmp_path / 'mypkg').mkdir()
    (tmp_path / 'mypkg/__init__.py').touch()
    (tmp_path / 'mypkg/variance.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop('mypkg', None)
    recipe = recipes.tiny()
    recipe['terms'] = [dict(term='mypkg.variance', of='student/image/global~block/cls', weight=0.1)]
    recipe['heads'] = {}
    recipe['teachers'] = {}
    objective, _, _ = recipes.parts(recipe)
    assert list(objective.declared) == ['student/image/global~block/cls']
    from mypkg import variance

    of = 'student/image/global/cls'
    x = np.random.default_rng(6).normal(size=(50, 2, 4)).astype(np.float32) * np.array([0.1, 0.5, 1, 2], np.float32)
    loss, _, _ = loss_of(variance.build(context(1), of), {of: jnp.asarray(x)}, {'global': plain_view(50, 2)})
    expected = np.maximum(0, 1 - np.sqrt(x.astype(np.float64).var(0) + 1e-4)).mean(-1).sum()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_unit_divides_by_the_root_as_the_original_koleo():
    """sqrt(x^2) is |x| to the last bit and x times its reciprocal root is not, so a row of one number becomes +-1.

    Not under jit: there XLA is free to write one as the other, and only the gradients differ.
    """
    x = np.random.default_rng(0).normal(size=(1000, 1)).astype(np.float32)
    assert np.array_equal(numerics.unit(x), np.sign(x))
    gradient = jax.grad(lambda x: numerics.unit(x, 1e-8).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()
