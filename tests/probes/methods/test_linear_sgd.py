"""The classifiers of the linear_sgd grid equal classifiers that torch trains one by one; validation chooses."""

import numpy as np
import pytest

from medjax.probes import evaluate
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
    grid = linear_sgd.fit(train, columns, rates, 3, steps)
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
    whole = linear_sgd.fit(train, columns, (0.1,), 0, steps=70)
    monkeypatch.setattr(linear_sgd, 'ON_DEVICE', 0)
    read.clear()
    parts = linear_sgd.fit(train, columns, (0.1,), 0, steps=70)
    assert [len(rows) for rows in read] == [50 * 128, 20 * 128], 'never all rows at once'
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
    train, val, test = with_unknown(examples(0, 400)), with_unknown(examples(1), 6), examples(2)
    out = linear_sgd.learn(train, val, test, 0, steps=200)
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
    train, val, test = map(large, (examples(0), examples(1), examples(2)))
    out = linear_sgd.learn(train, val, test, 0, steps=50)
    diverged = [entry for entry in out.details['grid'] if entry['rate'] == 1e30]
    assert all(entry['validation_auroc'] is None for entry in diverged)
    assert out.chosen['rate'] == 1e-14 and np.isfinite(out.test).all()
