"""What the tests of the pair losses share: batches, terms, a way to run them, and the definition of the losses."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_pairs as reference
from reference_losses import close, context, loss_of

from medjax.objectives.terms import pair_sigmoid, pair_softmax
from medjax.parallel import sharding
from medjax.types import View

ROWS, COLUMNS = 'student/image/crop/cls>vi', 'student/text/report/cls>vt'
TEACHER_ROWS, TEACHER_COLUMNS = (name.replace('student', 'teacher') for name in (ROWS, COLUMNS))
STEP = jnp.zeros((), jnp.int32)
N, D = 16, 6  # rows of a batch, length of an embedding

MODULES = [pair_softmax, pair_sigmoid]
PLACEMENTS = ['one_device', 'gathered', 'ring']
"""Where the rows are: on one device; on eight, each of which holds all columns; on eight in a ring."""

OPTIONS = {
    pair_softmax: dict(temperature=dict(learned=0.2), row_weight=0.75),
    pair_sigmoid: dict(temperature=dict(learned=0.2), bias=-3.0),
}


def set_mesh(placement):
    if placement != 'one_device' and jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    if placement == 'one_device':
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    else:
        mesh = sharding.make_mesh(4, 2, 1)
    jax.set_mesh(mesh)
    return mesh


def build_term(module, placement='one_device', rows=ROWS, columns=COLUMNS, **options):
    return module.build(context(1), rows, columns, **{'ring': placement == 'ring', **options})


def make_batch(crops=1, texts=1, rows=N, seed=0):
    """Features of student and teacher, and views.

    Some rows share a text, a study or a set of labels. Row 3 has no image, rows 5 and 6 have no text, row 7 has no key
    of its text, row 9 has no labels.
    """
    rng = np.random.default_rng(seed)

    def embeddings(views):
        return rng.normal(size=(rows, views, D)).astype(np.float32)

    def keys(choices):  # two rows with different keys may agree in one of the two halves
        return np.stack(np.divmod(rng.integers(1, choices, rows), 2), 1).astype(np.uint32)

    features = {ROWS: embeddings(crops), COLUMNS: embeddings(texts)}
    features |= {TEACHER_ROWS: embeddings(crops), TEACHER_COLUMNS: embeddings(texts)}
    study, text = keys(6), keys(4)
    text[7] = 0
    label = rng.choice([1, 0, -1, -2, -3], p=[0.3, 0.4, 0.1, 0.1, 0.1], size=(rows, 3)).astype(np.int8)
    label[9], label[2] = -2, [-3, -2, -3]
    meta = {'label': label, 'key/study': study, 'key/text': text}
    has_image, has_text = np.ones((rows, crops), bool), np.ones((rows, texts), bool)
    has_image[3], has_text[5], has_text[6] = False, False, False
    row = np.arange(rows, dtype=np.uint32)
    return features, {
        'crop': View(None, row, has_image, None, meta),
        'report': View(None, row, has_text, None, meta),
    }


def all_present(views):
    return {name: view._replace(present=np.ones_like(view.present)) for name, view in views.items()}


class Result(NamedTuple):
    """What a term gives for a batch."""

    loss: float
    metrics: dict[str, Any]
    carry: Any
    by_features: dict[str, np.ndarray]  # the gradient by each feature
    by_params: dict[str, np.ndarray]  # the gradient by the term's own parameters


def without_teacher_gradient(features):
    return {name: x if name.startswith('student') else jax.lax.stop_gradient(x) for name, x in features.items()}


def evaluate(term, placement, features, views, params=None, state=None, step=STEP) -> Result:
    """Loss and gradients of a term. Its parameters and state are those of `init` unless they are given."""
    mesh = set_mesh(placement)
    first_params, first_state = term.init(jax.random.key(0))
    params, state = first_params if params is None else params, first_state if state is None else state
    features, views = jax.device_put((features, views), sharding.rows_sharding(mesh))
    params, state = jax.device_get((params, state))  # on no device: the program may run on one or on eight

    def loss(features, params, views, state, step):  # no array is a constant: tests with other numbers share programs
        inputs = without_teacher_gradient(features)
        value, metrics, carry = loss_of(term, inputs, views, params=params, state=state, step=step)
        return value, (metrics, carry)

    (value, (metrics, carry)), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        features, params, views, state, np.int32(step)
    )
    return Result(float(value), metrics, carry, *jax.tree.map(np.asarray, gradients))


# The definition of the losses.


def is_positive(kind, a: View, i: int, b: View, j: int) -> bool:
    """Whether row i of the view `a` and row j of the view `b` are positives of this kind."""
    if kind == 'identity':
        return i == j
    if kind == 'label':
        x, y = a.meta['label'][i], b.meta['label'][j]
        labelled = (x >= -1).any() and (y >= -1).any()
        return bool(labelled and ((x == 1) == (y == 1)).all() and ((x == -1) == (y == -1)).all())
    x, y = a.meta[f'key/{kind}'][i], b.meta[f'key/{kind}'][j]
    return bool(x.any() and (x == y).all())


def label_cosine(a: View, i: int, b: View, j: int) -> float:
    """The cosine of two sets of labels, where "no label is present" is a set of its own; NaN without labels."""
    x, y = a.meta['label'][i], b.meta['label'][j]
    if (x < -1).all() or (y < -1).all():
        return np.nan
    x, y = (np.append(z == 1, not (z == 1).any()).astype(float) for z in (x, y))
    return x @ y / np.sqrt(x.sum() * y.sum())


class Expected(NamedTuple):
    """The loss by its definition, in float64."""

    loss: float
    by_rows: np.ndarray  # the gradient, [N,D]; 0 for rows that do not take part
    by_columns: np.ndarray
    by_params: list[float]  # the gradient by ln scale, and by the bias
    rows: int  # the rows that take part


class Constants(NamedTuple):
    """The numbers in the definition of a loss."""

    scale: float = 5.0
    row_weight: float = 0.75  # of pair_softmax
    bias: float = -3.0  # of pair_sigmoid


CONSTANTS = Constants()


def expected_loss(module, positives, features, views, crop=0, text=0, constants=CONSTANTS) -> Expected:
    """The loss of one crop and one text of each row."""
    scale, row_weight, bias = constants
    entries = positives if isinstance(positives, list) else [positives]
    kinds = [entry for entry in entries if isinstance(entry, str)]
    soft = next((entry for entry in entries if isinstance(entry, dict)), {})
    alpha = soft.get('alpha', 1.0) if soft else 0.0
    a, b = views['crop'], views['report']

    def soft_similarity(i, j):
        if not soft:
            return np.nan
        if soft['soft'] == 'labels':
            return label_cosine(a, i, b, j)
        x, y = np.float64(features[TEACHER_ROWS][i, crop]), np.float64(features[TEACHER_COLUMNS][j, text])
        return scale * reference.normal(x) @ reference.normal(y)

    h, t = np.zeros((N, N)), np.full((N, N), np.nan)
    for i in range(N):
        for j in range(N):
            if a.present[i, crop] and b.present[j, text]:
                h[i, j] = any(is_positive(kind, a, i, b, j) for kind in kinds)
                t[i, j] = soft_similarity(i, j)

    has_partner = h > 0 if kinds else ~np.isnan(t)
    rows, columns = np.flatnonzero(has_partner.any(1)), np.flatnonzero(has_partner.any(0))
    h, t = h[rows][:, columns], t[rows][:, columns]
    x, y = features[ROWS][rows, crop], features[COLUMNS][columns, text]
    if module is pair_softmax:
        p_rows, p_columns = reference.targets(h, t, alpha), reference.targets(h.T, t.T, alpha)
        loss, by_x, by_y, *by_params = reference.pair_softmax(x, y, p_rows, p_columns, scale, row_weight)
    else:
        q = 1 / (1 + np.exp(-(t + bias))) if soft and soft['soft'] != 'labels' else t
        z = reference.decisions(h, q, alpha)
        loss, by_x, by_y, *by_params = reference.pair_sigmoid(x, y, z, scale, bias)
    by_rows, by_columns = np.zeros((N, D)), np.zeros((N, D))
    by_rows[rows], by_columns[columns] = by_x, by_y
    return Expected(loss, by_rows, by_columns, by_params, len(rows))


def check_term(module, placement, positives, features, views):
    """Asserts that loss, gradients and counts of the term are those of the definition.

    With several views the definition is averaged over their combinations.
    """
    term = build_term(module, placement, positives=positives, **OPTIONS[module])
    result = evaluate(term, placement, features, views)
    crops, texts = features[ROWS].shape[1], features[COLUMNS].shape[1]
    share = 1 / (crops * texts)
    loss, by_params = 0.0, 0.0
    by_rows, by_columns = np.zeros((N, crops, D)), np.zeros((N, texts, D))
    for crop in range(crops):
        for text in range(texts):
            expected = expected_loss(module, positives, features, views, crop, text)
            loss += share * expected.loss
            by_rows[:, crop] += share * expected.by_rows
            by_columns[:, text] += share * expected.by_columns
            by_params = by_params + share * np.array(expected.by_params)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    close(result.by_features[ROWS], by_rows, 1e-5, 'by the rows')
    close(result.by_features[COLUMNS], by_columns, 1e-5, 'by the columns')
    names = ['log_scale'] if module is pair_softmax else ['log_scale', 'bias']
    np.testing.assert_allclose([result.by_params[name] for name in names], by_params, rtol=1e-4, atol=1e-6)
    for name in (TEACHER_ROWS, TEACHER_COLUMNS):
        assert not result.by_features[name].any()
    if crops == texts == 1:
        assert int(result.metrics['rows']) == expected.rows
        assert int(result.metrics['left_out']) == N - expected.rows
