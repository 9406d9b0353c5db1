"""Every kind of positives against the definition, and what equal texts do to the losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pair_cases import (
    COLUMNS,
    MODULES,
    PLACEMENTS,
    ROWS,
    D,
    N,
    build_term,
    check_term,
    evaluate,
    make_batch,
)
from reference_losses import close

from medjax.data import types
from medjax.errors import UserError
from medjax.objectives import positives as positive_kinds
from medjax.objectives.terms import pair_sigmoid, pair_softmax
from medjax.types import View

CASES = [
    'identity',
    'study',
    'text',
    'label',
    ['identity', 'text'],
    dict(soft='labels'),
    ['identity', dict(soft='labels', alpha=0.3)],
    ['identity', dict(soft='teacher', alpha=0.4)],
    dict(soft='teacher'),
]


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('positives', CASES, ids=str)
@pytest.mark.parametrize('module', MODULES)
def test_every_kind_of_positives(module, positives, placement):
    check_term(module, placement, positives, *make_batch())


def test_a_field_that_the_batch_lacks_is_named():
    features, views = make_batch()
    _, complete = make_batch()
    del views['report'].meta['key/text']
    term = build_term(pair_softmax, positives='text')
    with pytest.raises(UserError, match=r"'text' needs the field 'key/text' of the view 'report'"):
        evaluate(term, 'one_device', features, {**views, 'crop': complete['crop']})


K = 5  # rows with the same text


def equal_texts():
    """N rows, the first K with one text and one embedding of it."""
    rng = np.random.default_rng(3)
    text = np.stack([np.r_[np.ones(K, int), 2 + np.arange(N - K)], np.zeros(N, int)], 1).astype(np.uint32)
    row = np.arange(N, dtype=np.uint32)
    views = {name: View(None, row, np.ones((N, 1), bool), None, {'key/text': text}) for name in ('crop', 'report')}
    y = rng.normal(size=(N, 1, D)).astype(np.float32)
    y[:K] = y[0]
    return {ROWS: rng.normal(size=(N, 1, D)).astype(np.float32), COLUMNS: y}, views


def perfect(cosine=1.0):
    """Every image is at its text, and different texts are at right angles.

    The images of the text that K rows share have this cosine to it.
    """
    text = np.r_[np.zeros(K, int), 1 + np.arange(N - K)]
    y = np.eye(N, dtype=np.float32)[text][:, None]
    x = y.copy()
    x[:K, 0, 0], x[:K, 0, -1] = cosine, math.sqrt(1 - cosine**2)
    return {ROWS: x, COLUMNS: y}


@pytest.mark.parametrize('row_weight', [1.0, 0.0])
def test_the_softmax_loss_of_equal_texts_has_a_floor(row_weight):
    """K rows with one text have a loss of at least ln K each, the mean at least K/N ln K, and perfect outputs reach it.

    The metric `floor` reports this bound with positives='text', and 0 with positives='identity'.
    """
    least = K / N * math.log(K)
    features, views = equal_texts()

    def run(positives, features):
        term = build_term(pair_softmax, positives=positives, temperature=0.01, row_weight=row_weight)
        result = evaluate(term, 'one_device', features, views)
        return result.loss, float(result.metrics['floor'])

    loss, floor = run('identity', features)
    assert loss > least and floor == 0.0
    loss, floor = run('identity', perfect())
    assert loss - floor == pytest.approx(least, rel=1e-5)
    loss, floor = run('text', perfect())
    assert floor == pytest.approx(least, rel=1e-6)
    assert loss - floor == pytest.approx(0.0, abs=1e-5)


def test_equal_embeddings_of_equal_texts_make_both_softmax_losses_one():
    """With positives 'identity' and 'text' value and gradients are equal: by the images, and by the shared text."""
    features, views = equal_texts()

    def run(positives, row_weight):
        term = build_term(pair_softmax, positives=positives, row_weight=row_weight)
        return evaluate(term, 'one_device', features, views)

    identity, text = (run(positives, row_weight=0.3) for positives in ('identity', 'text'))
    assert identity.loss == pytest.approx(text.loss, rel=1e-6)
    close(identity.by_features[ROWS], text.by_features[ROWS], 1e-5, 'by the images')
    a, b = (result.by_features[COLUMNS][:, 0] for result in (identity, text))
    close(a[:K].sum(0), b[:K].sum(0), 1e-5, 'by the shared text')
    close(a[K:], b[K:], 1e-5, 'by the other texts')
    # equal texts with different embeddings, as masked tokens or sampled sentences give them, make two losses
    features[COLUMNS] += 0.3 * np.random.default_rng(4).normal(size=(N, 1, D)).astype(np.float32)
    identity, text = (run(positives, row_weight=0.5) for positives in ('identity', 'text'))
    assert abs(identity.loss - text.loss) > 1e-3


def test_the_sigmoid_loss_of_equal_texts_reaches_zero_only_by_their_keys():
    _, views = equal_texts()

    def loss(positives, similarity=50.0):
        """The loss if the images of the shared text have this similarity s_ij to it."""
        term = build_term(pair_sigmoid, positives=positives, temperature=0.01, bias=-50.0)
        return evaluate(term, 'one_device', perfect(cosine=(similarity + 50) / 100), views).loss

    assert loss('text') == pytest.approx(0.0, abs=1e-6)
    # One positive and K - 1 negatives share one s. Their sum is least at sigmoid(s) = 1 / K.
    least = K / N * (math.log(K) + (K - 1) * math.log(K / (K - 1)))
    assert loss('identity', -math.log(K - 1)) == pytest.approx(least, rel=1e-5)
    assert min(loss('identity', -math.log(K - 1) + shift) for shift in (-0.3, 0.3, 50.0)) > least


def test_conflicting_labels_are_like_blank_ones():
    labels = np.int8([[1, -3], [1, -2], [-3, -3], [-3, -2], [-2, -2], [-1, -3], [0, -3], [-3, 1]])
    assert types.given(labels).any(1).tolist() == [True, True, False, False, False, True, True, True]
    assert types.known(labels).any(1).tolist() == [True, True, False, False, False, False, True, True]
    n = len(labels)
    view = View(None, np.arange(n, dtype=np.uint32), np.ones((n, 1), bool), None, {'label': labels})
    key, has_key = positive_kinds.keys(view, ('label',), 'crop', 'terms.0')
    assert has_key[:, 0, 0].tolist() == types.given(labels).any(1).tolist()
    assert (key[0] == key[1]).all() and not (key[5] == key[6]).all() and not (key[0] == key[7]).all()
    _, labelled = positive_kinds.label_sets(view, 'crop', 'terms.0')
    assert labelled[:, 0].tolist() == types.given(labels).any(1).tolist()
