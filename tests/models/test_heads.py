"""The DINO head against the weight norm of torch, zero inputs, dtypes, mistakes, and a head of the user."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import published_names
import pytest
from programs import run

from medjax.errors import UserError
from medjax.models import build
from medjax.models.heads import dino_head


def torch_head(layers: int, bias: bool):
    """The same head of torch modules: linear layers with GELU between them, a linear layer with weight norm."""
    torch = pytest.importorskip('torch')
    nn = torch.nn
    torch.manual_seed(layers)
    widths = [12, *[16] * (layers - 1), 8]
    parts = []
    for i in range(layers):
        parts += [nn.Linear(widths[i], widths[i + 1], bias=bias), nn.GELU()]
    model = nn.Module()
    model.mlp = nn.Sequential(*parts[:-1]) if layers > 1 else parts[0]
    model.last_layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 20, bias=False))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(('layers', 'bias'), [(3, True), (2, False), (1, True)])
def test_logits_and_gradients_equal_torch(layers, bias):
    torch = pytest.importorskip('torch')
    model = torch_head(layers, bias)
    x = torch.randn(6, 12, requires_grad=True)
    cotangent = torch.randn(6, 20)
    logits = model.last_layer(torch.nn.functional.normalize(model.mlp(x), dim=-1))
    (logits * cotangent).sum().backward()

    params = published_names.head({name: p.detach().numpy() for name, p in model.named_parameters()})
    head = dino_head.build(12, 20, hidden=16, bottleneck=8, layers=layers, bias=bias)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(head.init, jax.random.key(0)))

    def ours(params, x):
        return head.prototypes(params)(head.apply(params, x))

    def loss(params, x):
        y = ours(params, x)
        return jnp.sum(y * cotangent.numpy()), y

    grads, got = run(jax.grad(loss, (0, 1), has_aux=True), params, x.detach().numpy())
    np.testing.assert_allclose(got, logits.detach().numpy(), rtol=2e-5, atol=2e-5)
    expected = published_names.head({name: p.grad.numpy() for name, p in model.named_parameters()})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()), grads, (expected, x.grad.numpy())
    )


def test_the_bottleneck_has_norm_one_and_a_zero_input_a_finite_gradient():
    head = dino_head.build(12, 20, hidden=16, bottleneck=8, bias=False)
    params = run(head.init, jax.random.key(0))
    z = run(head.apply, params, np.random.default_rng(1).normal(size=(3, 5, 12)).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, rtol=1e-5)
    slope = run(jax.grad(lambda x: head.apply(params, x).sum()), np.zeros((2, 12), np.float32))
    assert np.isfinite(slope).all()
    logits = run(lambda params, z: head.prototypes(params)(z), params, z)
    assert logits.shape == (3, 5, 20)
    assert np.abs(logits).max() <= 1 + 1e-6, 'cosines at the start, as the gain is 1'


def test_axes_name_every_dimension():
    head = dino_head.build(12, 20, hidden=16, bottleneck=8)
    params = jax.eval_shape(head.init, jax.random.key(0))
    assert all(jax.tree.leaves(jax.tree.map(lambda p, names: len(names) == p.ndim, params, head.axes)))
    assert head.prototype_count == 20


def test_bfloat16_products_give_float32_results():
    head, half = (dino_head.build(12, 20, hidden=16, bottleneck=8, dtype=d) for d in ('float32', 'bfloat16'))
    params = jax.tree.map(lambda p: 10 * np.asarray(p), run(head.init, jax.random.key(0)))
    x = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    expected, got = run(lambda p, x: [one.prototypes(p)(one.apply(p, x)) for one in (head, half)], params, x)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_mistakes_get_a_sentence():
    with pytest.raises(UserError, match=r"heads\.dino: unknown key 'prototype'; did you mean 'prototypes'"):
        build.head(dict(head='dino_head', prototype=8), 12, 'heads.dino')
    with pytest.raises(UserError, match=r"heads\.dino\.head: there is no head 'dinohead'.*did you mean 'dino_head'"):
        build.head(dict(head='dinohead', prototypes=8), 12, 'heads.dino')
    with pytest.raises(UserError, match='bottleneck=0: must be a whole number of at least 1'):
        build.head(dict(head='dino_head', prototypes=8, bottleneck=0), 12, 'heads.dino')


def test_a_head_of_the_user_is_a_module_with_build(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'my_heads').mkdir()
    (tmp_path / 'my_heads' / '__init__.py').touch()
    (tmp_path / 'my_heads' / 'square.py').write_text(
        'from medjax.models.heads import linear\ndef build(width, dtype): return linear.build(width, width)'
    )
    head = build.head(dict(head='my_heads.square'), 3, 'heads.dino')
    assert jax.eval_shape(head.init, jax.random.key(0))['fc1']['kernel'].shape == (3, 3)
    with pytest.raises(UserError, match=r"there is no head 'my_heads.cube' \(looked for the module my_heads.cube"):
        build.head(dict(head='my_heads.cube'), 3, 'heads.dino')
    with pytest.raises(UserError, match=r'the module medjax.models.heads is no head: it has no function build\(\)'):
        build.head(dict(head='medjax.models.heads'), 3, 'heads.dino')
