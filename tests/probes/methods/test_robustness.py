"""Robustness: the classifier and its thresholds come from clean records; the figures equal loops over corruptions."""

import collections
import subprocess
import sys
import types

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medjax.probes import aggregate, corruptions, label_splits
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options
from medjax.probes.methods import robustness

pytestmark = pytest.mark.usefixtures('few_strengths')


def features(seed, n, noise=0.0):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 2)) < 0.4).astype(np.int8)
    x = rng.standard_normal((n, 1, 5)).astype(np.float32)
    x[:, 0, :2] += 2 * y
    x += noise * np.random.default_rng(seed + 100).standard_normal(x.shape).astype(np.float32)
    return SplitFeatures(x, x[:, 0] * 1, y, np.arange(n) // 2)


ALL = [(kind, severity) for kind in corruptions.KINDS for severity in corruptions.SEVERITIES]


def given(cache=None):
    splits = dict(train=features(0, 200), val=features(1, 100), test=features(2, 160))
    sizes = {name: len(x.labels) for name, x in splits.items()}
    return splits, types.SimpleNamespace(
        encoder=types.SimpleNamespace(name=8, digest='encoder'),
        data=types.SimpleNamespace(name='data', labels=('a', 'b'), splits=sizes, fingerprint='data'),
        cache=cache,
        features=splits.__getitem__,
        seed=0,
        cases=lambda split, unit: aggregate.plain(splits[split].patients),
        options=Options(draws=100),
    )


@pytest.fixture
def seen(monkeypatch):
    """The corruptions that were encoded."""
    found = []

    def corrupted(inputs, kind, severity):
        found.append((kind, severity))
        return features(2, 160, noise=0.0 if kind == 'rotation' else severity)

    monkeypatch.setattr(robustness, 'corrupted', corrupted)
    return found


@pytest.fixture
def result(seen):
    splits, inputs = given()
    result = robustness.run(inputs)
    assert seen == ALL
    return result, splits


def test_a_killed_job_goes_on(seen, result, tmp_path, monkeypatch):
    """What was encoded is not encoded again, but for a damaged file. Another seed or encoder begins anew."""
    _, inputs = given(tmp_path)
    whole, encode = result[0].content, robustness.corrupted

    def killed(inputs, kind, severity):
        if len(seen) == 7:
            raise KeyboardInterrupt
        return encode(inputs, kind, severity)

    seen.clear()
    monkeypatch.setattr(robustness, 'corrupted', killed)
    with pytest.raises(KeyboardInterrupt):
        robustness.run(inputs)
    monkeypatch.setattr(robustness, 'corrupted', encode)
    (folder,) = (tmp_path / '8' / 'data.corrupted').iterdir()
    kept = sorted(folder.glob('*.npz'))
    assert len(kept) == 7
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    kept[1].write_bytes(b'')
    seen.clear()
    again = robustness.run(inputs).content
    assert len(seen) == len(ALL) - 5 and again['results'] == whole['results']
    assert not folder.exists()

    places = {robustness.place_of(inputs, robustness.linear.choose(inputs.features('train'), inputs.features('val')))}
    inputs.seed = 1
    places.add(robustness.place_of(inputs, robustness.linear.choose(inputs.features('train'), inputs.features('val'))))
    inputs.encoder.digest = 'another'
    places.add(robustness.place_of(inputs, robustness.linear.choose(inputs.features('train'), inputs.features('val'))))
    assert len(places) == 3


def test_figures_equal_loops(result):
    found, given = result
    content, of = found.content, label_splits.label_splits(*given.values(), ('a', 'b'), 0, 'data')
    splits = dict(train=of.train, val=of.val)
    assert list(content['results']['AUROC']) == ['mean', *corruptions.KINDS]
    classifier = robustness.linear.choose(splits['train'], splits['val'])
    val = classifier.log_odds(splits['val'])
    thresholds = []
    for j in range(2):
        chooses = splits['val'].labels[:, j] >= 0
        truth, scores = splits['val'].labels[chooses, j], val[chooses, j]
        thresholds.append(
            max(np.unique(scores), key=lambda t, x=(truth, scores): balanced_accuracy_score(x[0], x[1] >= t))
        )
    for kind in ('noise', 'rotation'):
        aurocs, errors = [], []
        for severity, details in zip(corruptions.SEVERITIES, content['details'][kind], strict=True):
            x = features(2, 160, noise=0.0 if kind == 'rotation' else severity)
            scores = classifier.log_odds(x)
            aurocs.append(np.mean([roc_auc_score(x.labels[:, j], scores[:, j]) for j in range(2)]))
            errors.append(
                1 - np.mean([balanced_accuracy_score(x.labels[:, j], scores[:, j] >= thresholds[j]) for j in range(2)])
            )
            assert details['AUROC']['value'] == pytest.approx(aurocs[-1])
            assert details['error']['value'] == pytest.approx(errors[-1], abs=0.02), 'another threshold between scores'
            assert details['meaning'] == corruptions.meaning(kind, severity)
        rows = {metric: row[kind]['value'] for metric, row in content['results'].items()}
        clean = content['clean']['AUROC']['value'], content['clean']['error']['value']
        assert rows['AUROC'] == pytest.approx(np.mean(aurocs))
        assert rows['drop'] == pytest.approx(clean[0] - rows['AUROC'])
        assert rows['rise'] == pytest.approx(rows['error'] - clean[1])


def test_a_corruption_that_changes_nothing_has_no_drop(result):
    rows = result[0].content['results']
    assert max(map(abs, (rows['drop']['rotation'][x] for x in ('value', 'low', 'high')))) < 1e-12
    assert rows['drop']['noise']['low'] > 0.05


def test_corrupted_images_come_from_the_split():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 1)).astype(np.uint8)
    split = robustness.CorruptedSplit.__new__(robustness.CorruptedSplit)
    split.kind, split.severity, split.seed = 'exposure', 3, 5
    parent = robustness.Split.image
    try:
        robustness.Split.image = lambda self, i, channels=None, bits=None: image
        expected = corruptions.apply('exposure', 3, image, 5, 9)
        assert (split.image(9) == expected).all() and not (expected == image).all()
    finally:
        robustness.Split.image = parent


JOB = """
import pathlib, sys, time, types
import numpy as np
from medjax.probes import locks
from medjax.probes.methods import robustness
locks.POLL, place, log = 0.02, pathlib.Path(sys.argv[1]), open(sys.argv[2], 'a')
def corrupted(inputs, kind, severity):
    print(kind, severity, file=log, flush=True)
    time.sleep(0.01)
    return severity
robustness.corrupted = corrupted
inputs = types.SimpleNamespace(encoder=types.SimpleNamespace(name=8), data=types.SimpleNamespace(splits=dict(test=3)))
classifier = types.SimpleNamespace(log_odds=lambda severity: np.full((3, 1), severity))
print('ready', flush=True)
sys.stdin.readline()
found = robustness.all_scores(inputs, classifier, place)
assert all((scores == severity).all() for (_, severity), scores in found.items())
print(len(found))
"""


def test_jobs_at_once_divide_the_corruptions(tmp_path):
    command = [sys.executable, '-c', JOB, str(tmp_path / 'place')]
    jobs = [
        subprocess.Popen([*command, str(tmp_path / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in 'ab'
    ]
    assert [job.stdout.readline() for job in jobs] == ['ready\n', 'ready\n']
    for job in jobs:
        job.stdin.write('go\n')
        job.stdin.flush()
    assert [job.communicate(timeout=120)[0] for job in jobs] == [f'{len(ALL)}\n'] * 2
    done = [(tmp_path / name).read_text().splitlines() for name in 'ab']
    assert min(map(len, done)) > 5
    assert collections.Counter(done[0] + done[1]) == {f'{kind} {severity}': 1 for kind, severity in ALL}
