"""The classifiers of the linear_sgd grid equal classifiers that torch trains one by one; validation chooses."""

import numpy as np
import pytest

from medjax.probes import evaluate, label_splits
from medjax.probes.encode import SplitFeatures
from medjax.probes.methods import linear, linear_sgd


def examples(seed, n=200, d=6, labels=3, layers=4):
    """The last block's CLS decides the labels; the other features are noise."""
    weight = np.random.default_rng(99).standard_normal((d, labels))
    rng = np.random.default_rng(seed)
    cls = rng.standard_normal((n, layers, d)).astype(np.float32)
    y = (cls[:, -1] @ weight + 0.3 * rng.logistic(size=(n, labels)) > 0).astype(np.int8)
    return SplitFeatures(cls, rng.standard_normal((n, d)).astype(np.float32), y, np.arange(n))


def with_unknown(split, seed=5):
    rng = np.random.default_rng(seed)
    codes = rng.choice(np.int8([-1, -2, -3]), split.labels.shape)
    return split._replace(labels=np.where(rng.random(split.labels.shape) < 0.3, codes, split.labels))


def splits_of(train, val, test):
    """The splits as a label probe gets them: half of the patients of val choose."""
    return label_splits.label_splits(train, val, test, tuple('abc')[: train.labels.shape[1]], 0, 'drawn')


def trained_alone(split, columns, rates, seed, steps):
    """{(set, rate, label): float64 weights, bias}, each trained by torch with its own optimizer and schedule."""
    torch = pytest.importorskip('torch')
    x = torch.tensor(linear_sgd.row(split, slice(None)), dtype=torch.float64)
    n, labels = split.labels.shape
    batch, rng = min(128, n), np.random.default_rng(seed)
    starts = [rng.normal(scale=0.01, size=(stop - start, len(rates), labels)) for start, stop in columns]
    order = np.concatenate([rng.permutation(n) for _ in range(-(-steps * batch // n) + 1)])
    found = {}
    for s, (start, stop) in enumerate(columns):
        for r, rate in enumerate(rates):
            for label in range(labels):
                one = torch.nn.Linear(stop - start, 1, dtype=torch.float64)
                one.weight.data[:] = torch.tensor(starts[s][:, r, label].astype(np.float32))
                one.bias.data.zero_()
                optimizer = torch.optim.SGD(one.parameters(), rate * batch / 256, momentum=0.9)
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
                for i in range(steps):
                    rows = order[i * batch : (i + 1) * batch]
                    rows = rows[split.labels[rows, label] >= 0]
                    y = torch.tensor(split.labels[rows, label], dtype=torch.float64)
                    losses = torch.nn.functional.binary_cross_entropy_with_logits(
                        one(x[rows, start:stop])[:, 0], y, reduction='sum'
                    )
                    optimizer.zero_grad()
                    (losses / batch).backward()
                    optimizer.step()
                    schedule.step()
                found[s, r, label] = one.weight.data.numpy()[0], float(one.bias.data)
    return found


@pytest.mark.parametrize('n', [200, 90], ids=['whole batches', 'fewer records than a batch'])
def test_the_grid_equals_classifiers_that_torch_trains_one_by_one(n):
    train, steps, rates = with_unknown(examples(0, n, labels=2)), 25, (1e-2, 1.0)
    columns = tuple(linear_sgd.feature_sets(train).values())
    grid = linear_sgd.fit([train], columns, rates, 3, steps)
    for (s, r, label), (weight, bias) in trained_alone(train, columns, rates, 3, steps).items():
        kernel = grid[s].kernel.reshape(len(weight), len(rates), 2)[:, r, label]
        np.testing.assert_allclose(kernel, weight, atol=1e-5 * (1 + np.abs(weight).max()))
        assert grid[s].bias.reshape(len(rates), 2)[r, label] == pytest.approx(bias, abs=1e-5)


def test_rows_that_come_step_by_step_give_the_same_classifiers(monkeypatch):
    train = with_unknown(examples(0))
    read = []
    real = linear_sgd.row
    monkeypatch.setattr(linear_sgd, 'row', lambda split, rows: read.append(rows) or real(split, rows))
    columns = tuple(linear_sgd.feature_sets(train).values())
    splits = [train, with_unknown(examples(1, 60))]
    whole = linear_sgd.fit(splits, columns, (0.1,), 0, steps=70)
    monkeypatch.setattr(linear_sgd, 'ON_DEVICE', 0)
    read.clear()
    parts = linear_sgd.fit(splits, columns, (0.1,), 0, steps=70)
    pairs = zip(read[::2], read[1::2], strict=True)
    assert [len(a) + len(b) for a, b in pairs] == [50 * 128, 20 * 128], 'never all rows at once'
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.kernel, b.kernel, rtol=1e-5, atol=1e-6)


def test_each_record_comes_once_before_any_comes_again():
    parts = list(linear_sgd._batches(130, 50, 120, np.random.default_rng(0)))
    assert [first for first, _ in parts] == [0, 50, 100] and sum(len(numbers) for _, numbers in parts) == 120
    order = np.concatenate([numbers.ravel() for _, numbers in parts])
    for epoch in range(len(order) // 130):
        assert sorted(order[epoch * 130 : (epoch + 1) * 130]) == list(range(130))


def test_feature_sets_are_those_of_the_linear_probe():
    train = examples(0)
    rows, expected = linear_sgd.row(train, slice(None)), linear.feature_sets(train)
    for name, (start, stop) in linear_sgd.feature_sets(train).items():
        np.testing.assert_array_equal(rows[:, start:stop], expected[name][:])
    assert len(expected) == 4
    pixels = SplitFeatures(train.cls[:, -1:], None, train.labels, train.patients)
    assert list(linear_sgd.feature_sets(pixels)) == ['pixels']
    one_layer = train._replace(cls=train.cls[:, -1:])
    assert list(linear_sgd.feature_sets(one_layer)) == ['cls of the last block', 'cls of the last block + mean patch']


def test_validation_chooses_among_52_settings():
    splits = splits_of(with_unknown(examples(0, 400)), with_unknown(examples(1), 6), examples(2))
    out, val, test = linear_sgd.learn(splits, 0, steps=200), splits.val, splits.test
    grid = out.details['grid']
    assert len(grid) == 52
    assert out.chosen['validation_auroc'] == max(entry['validation_auroc'] for entry in grid)
    assert out.chosen['validation_auroc'] == pytest.approx(evaluate.mean_auroc(out.val, val.labels))
    assert out.chosen['features'].startswith('cls of the last block') and out.test.shape == test.labels.shape
    assert evaluate.mean_auroc(out.test, test.labels) > 0.9


def test_a_rate_that_diverges_is_not_chosen(monkeypatch):
    def large(split):
        return split._replace(cls=split.cls * 1e6)

    monkeypatch.setattr(linear_sgd, 'RATES', (1e-14, 1e30))
    out = linear_sgd.learn(splits_of(*map(large, (examples(0), examples(1), examples(2)))), 0, steps=50)
    diverged = [entry for entry in out.details['grid'] if entry['rate'] == 1e30]
    assert all(entry['validation_auroc'] is None for entry in diverged)
    assert out.chosen['rate'] == 1e-14 and np.isfinite(out.test).all()


@pytest.fixture(scope='module')
def retrained():
    """(splits, scores, the chosen columns): two labels are divided; the third is too rare, so all of val chooses."""
    train, val, test = with_unknown(examples(0, 300)), with_unknown(examples(1, 160), 6), examples(2)
    rare = np.flatnonzero(val.labels[:, 2] == 1)[:15]
    val.labels[np.setdiff1d(np.arange(160), rare), 2] = 0
    splits = splits_of(train, val, test)
    assert list(splits.whole_val.halves.reasons) == ['c']
    out = linear_sgd.learn(splits, 0, steps=60)
    return splits, out, linear_sgd.feature_sets(train)[out.chosen['features']]


def test_the_chosen_setting_is_trained_again_with_the_records_that_chose(retrained):
    splits, out, columns = retrained
    added = (splits.val.labels >= 0).any(1)
    joined = SplitFeatures(*(
        np.concatenate([a, b[added]])
        for a, b in zip(splits.train[:3], splits.val[:3], strict=True)
    ), np.arange(len(splits.train.labels) + added.sum()))  # fmt: skip
    alone = trained_alone(joined, [columns], (out.chosen['rate'],), 0, 60)
    expected = np.stack([
        linear_sgd.row(splits.test, slice(None))[:, slice(*columns)] @ alone[0, 0, label][0] + alone[0, 0, label][1]
        for label in range(3)
    ], 1)  # fmt: skip
    np.testing.assert_allclose(out.test, expected, atol=1e-4 * np.abs(expected).max())
    assert out.chosen['retrained_on'] == f'train and the {added.sum()} records of validation that chose'


def test_no_score_that_fits_something_is_of_a_record_that_taught_it(retrained):
    splits, out, columns = retrained
    chooses, (train, val) = splits.whole_val.halves.chooses, (splits.train, splits.val)
    assert chooses[:, 2].all() and not chooses[:, :2].all() and (val.labels[~chooses] < 0).all()
    sets = linear_sgd.feature_sets(train)
    grid = linear_sgd.fit([train], tuple(sets.values()), linear_sgd.RATES, 0, 60)
    of_set = dict(zip(sets, grid, strict=True))[out.chosen['features']]
    r = linear_sgd.RATES.index(out.chosen['rate'])
    (final,) = linear_sgd.fit(
        [train, label_splits.take(val, (val.labels >= 0).any(1))], (columns,), (out.chosen['rate'],), 0, 60
    )
    first = linear_sgd.log_odds(of_set, val, columns)[:, r * 3 : (r + 1) * 3]
    np.testing.assert_array_equal(out.val[chooses], first[chooses])
    np.testing.assert_array_equal(out.val[~chooses], linear_sgd.log_odds(final, val, columns)[~chooses])
