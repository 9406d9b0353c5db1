"""Few-shot: the draws, the classifier against scikit-learn, the statistics over draws."""

import types

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medjax.errors import UserError
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options
from medjax.probes.methods import few_shot


def features(seed, n, labels=3, d=12, records_each=2):
    weight = np.random.default_rng(99).standard_normal((d, labels))
    rng = np.random.default_rng(seed)
    cls = rng.standard_normal((n, 4, d)).astype(np.float32) * 2 + 1
    y = ((cls[:, -1] - 1) @ weight + rng.logistic(size=(n, labels)) > 0).astype(np.int8)
    return SplitFeatures(cls, None, y, np.arange(n) // records_each)


def inputs_of(train, test):
    names = tuple(f'finding {j}' for j in range(train.labels.shape[1]))
    return types.SimpleNamespace(
        data=types.SimpleNamespace(
            name='data', labels=names, splits=dict(train=len(train.labels), test=len(test.labels))
        ),
        features=dict(train=train, test=test).__getitem__,
        seed=0,
        options=Options(draws=100),
    )


def test_each_draw_has_k_patients_of_each_class_and_none_twice():
    rng = np.random.default_rng(0)
    labels, patients = rng.choice(np.int8([-1, 0, 0, 0, 1]), 400), np.arange(400) // 3
    drawn = few_shot.draw(labels, patients, 10, [0, 10, 0])
    assert drawn.shape == (5, 20)
    for rows in drawn:
        assert (labels[rows[:10]] == 1).all() and (labels[rows[10:]] == 0).all()
        assert len(set(patients[rows])) == 20
    assert len({tuple(rows) for rows in drawn}) == 5
    assert (few_shot.draw(labels, patients, 10, [0, 10, 0]) == drawn).all()
    assert few_shot.draw(labels, patients, 134, [0, 10, 0]) is None


def test_the_rarer_class_gets_its_patients_first():
    labels, patients = np.int8([1, 0, 1, 0] + [0] * 6), np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    assert few_shot.draw(labels, patients, 2, [0]) is not None, 'both patients with a positive record also have others'


def test_the_classifier_equals_sklearn():
    train, queries = features(0, 100), features(1, 50).cls[:, -1]
    drawn = {j: few_shot.draw(train.labels[:, j], train.patients, 5, [j])[0] for j in (0, 2)}
    scores = few_shot.learn(train.cls[:, -1], drawn, queries)
    rows = np.unique(np.concatenate([*drawn.values()]))
    mean, std = train.cls[rows, -1].mean(0), train.cls[rows, -1].std(0)
    for column, (j, of_label) in enumerate(drawn.items()):
        model = LogisticRegression(C=1 / 12, tol=1e-8, max_iter=1000)
        model.fit((train.cls[of_label, -1] - mean) / std, train.labels[of_label, j])
        np.testing.assert_allclose(scores[:, column], model.decision_function((queries - mean) / std), atol=1e-3)


def test_the_result_is_the_mean_over_draws():
    train, test = features(0, 300), features(1, 120)
    train.labels[9:, 2] = -1  # three to five patients are left for this label
    test.labels[:, 1] = 1
    result = few_shot.run(inputs_of(train, test))
    rows = result.content['results']
    assert [metric for metric in rows if 'AUROC' in metric] == [f'AUROC@{k}' for k in (50, 20, 10, 5, 1)]
    assert result.content['skipped_labels'] == {'finding 1': 'no negative record in test'}
    assert set(rows['AUROC@50']) == {'mean', 'finding 0'} and set(rows['AUROC@1']) == {'mean', 'finding 0', 'finding 2'}
    assert rows['AUROC@1']['mean']['labels'] == 2
    for k in (50, 1):
        scores = result.arrays[f'scores@{k}']
        aurocs = [roc_auc_score(test.labels[:, 0], scores[i, :, 0]) for i in range(5)]
        row = rows[f'AUROC@{k}']['finding 0']
        assert row['value'] == pytest.approx(np.mean(aurocs)) and row['deviation'] == pytest.approx(
            np.std(aurocs, ddof=1)
        )
        assert row['low'] < row['value'] < row['high']
        assert result.arrays[f'drawn@{k}/finding 0'].shape == (5, 2 * k)
    assert rows['AUROC@50']['mean']['value'] > rows['AUROC@1']['finding 0']['value'], 'more records teach more'


def test_labels_that_cannot_be_learned_are_named():
    train, test = features(0, 30, labels=1), features(1, 30, labels=1)
    with pytest.raises(UserError, match='no label to learn .finding 0: train has no two patients'):
        few_shot.run(inputs_of(train._replace(labels=np.ones_like(train.labels)), test))
