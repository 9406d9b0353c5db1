"""The head `words` against BERT's head for masked words of transformers, with random weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run

from medjax.models import build

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

WIDTH, VOCABULARY = 12, 21


def ours_of(model, read):
    """Our tree of some arrays of theirs, with the tied embeddings."""
    dense, norm = model.transform.dense, model.transform.LayerNorm
    return dict(
        dense=dict(kernel=read(dense.weight).T, bias=read(dense.bias)),
        norm=dict(scale=read(norm.weight), bias=read(norm.bias)),
        bias=read(model.decoder.bias),
        tied=read(model.decoder.weight),
    )


def test_values_and_gradients_equal_transformers():
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    torch.manual_seed(0)
    model = BertLMPredictionHead(transformers.BertConfig(hidden_size=WIDTH, vocab_size=VOCABULARY))
    model.decoder.bias = model.bias  # BertForMaskedLM ties the two in the same way
    for p in model.parameters():
        p.data = torch.randn_like(p)
    rng = np.random.default_rng(0)
    x, cotangent = (rng.normal(size=(3, 2, 5, n)).astype(np.float32) for n in (WIDTH, VOCABULARY))
    head = build.head(dict(head='words', vocabulary=VOCABULARY, tie='towers/text/words'), WIDTH, 'heads.words')
    assert head.tie == 'towers/text/words'
    params = ours_of(model, lambda p: p.detach().numpy())
    start = jax.eval_shape(head.init, jax.random.key(0))
    assert jax.tree.structure(start) == jax.tree.structure({k: v for k, v in params.items() if k != 'tied'})
    assert all(jax.tree.leaves(jax.tree.map(lambda p, names: len(names) == p.ndim, start, head.axes)))

    theirs_x = torch.tensor(x, requires_grad=True)
    theirs = model(theirs_x)
    (theirs * torch.tensor(cotangent)).sum().backward()

    def value(params, x):
        y = head.apply(params, x)
        return (y * cotangent).sum(), y

    grads, y = run(jax.grad(value, (0, 1), has_aux=True), params, x)
    close = lambda a, b, share: np.testing.assert_allclose(a, b, atol=share * np.abs(b).max())  # noqa: E731
    close(y, theirs.detach().numpy(), 2e-5)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), grads[0], ours_of(model, lambda p: p.grad.numpy()))
    close(grads[1], theirs_x.grad.numpy(), 1e-4)


def test_features_of_another_width_are_brought_to_that_of_the_embeddings():
    options = dict(head='words', vocabulary=VOCABULARY, out=8, tie='towers/text/words')
    head = build.head(options, WIDTH, 'heads.words', 'bfloat16')
    params = jax.eval_shape(head.init, jax.random.key(0)) | dict(tied=jnp.ones((VOCABULARY, 8)))
    logits = jax.eval_shape(head.apply, params, jnp.ones((2, 1, 3, WIDTH)))
    assert logits.shape == (2, 1, 3, VOCABULARY) and logits.dtype == jnp.float32
