"""Similarity to the start: its number, its sentence, and runs that forget and that do not."""

from __future__ import annotations

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_names import to_meta
from safetensors.numpy import load_file, save_file
from test_train import data, lines, medjax, train  # noqa: F401  (data is a fixture)

from medjax import config as configs, train as loop
from medjax.errors import UserError
from medjax.models import build
from medjax.training import forgetting, health

RNG = np.random.default_rng(0)


def features(n=40, d=12):
    return RNG.normal(1.0, 1.0, (n, d)).astype(np.float32)


def by_hand(a, b):
    def cosines(x):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return (unit @ unit.T)[np.triu_indices(len(x), 1)]

    return np.corrcoef(cosines(np.float64(a)), cosines(np.float64(b)))[0, 1]


def similarity(a, b, counts=None):
    return float(forgetting.similarity(a, b, jnp.ones(len(a), bool) if counts is None else jnp.asarray(counts)))


def test_it_is_the_correlation_of_cosines_of_all_pairs():
    a = features()
    for noise in (0.0, 0.3, 1.0, 3.0):
        b = a + noise * features()
        assert similarity(a, b) == pytest.approx(by_hand(a, b), abs=1e-5)
    assert similarity(a, a) == pytest.approx(1, abs=1e-6)


def test_turned_scaled_and_wider_features_are_the_same():
    a = features()
    turn, _ = np.linalg.qr(RNG.normal(size=(20, 20)))
    assert similarity(a, 7 * (a @ turn[:12].astype(np.float32))) == pytest.approx(1, abs=1e-5)


def test_a_collapse_leaves_nothing():
    a = features()
    assert similarity(a, np.ones_like(a)) == 0
    assert similarity(a, np.ones_like(a) + 1e-7 * features()) == 0
    assert similarity(a, np.zeros_like(a)) == 0


def test_absent_images_do_not_count():
    a, b = features(), features()
    counts = np.arange(len(a)) % 3 > 0
    b[~counts] = np.nan_to_num(0.0)
    assert similarity(a, b, counts) == pytest.approx(by_hand(a[counts], b[counts]), abs=1e-5)
    other = np.where(counts[:, None], b, 5.0)
    assert similarity(a, other, counts) == similarity(a, b, counts)


def test_the_spread_of_a_start():
    assert forgetting.spread(np.ones((9, 4), np.float32)) < forgetting.SPREAD
    assert forgetting.spread(features(2)) == 0
    assert forgetting.spread(features()) > 0.1


def measured(*values):
    """The lines of a run that learns. Every second of the last ones has one of these similarities."""
    rows = [
        {'step': 50 * i, 'loss': 6 - i / 20, 'term/cls/loss': 6 - i / 20, 'term/cls/start': 6.0} for i in range(1, 41)
    ]
    for i, value in enumerate(reversed(values)):
        rows[-1 - 2 * i]['similarity/start'] = value
    return rows


@pytest.mark.parametrize(
    ('values', 'said'),
    [
        ((0.9, 0.45, 0.4, 0.38), True),
        ((0.1, 0.0, -0.1), True),
        ((0.9, 0.8, 0.7, 0.4), False),  # one is no state
        ((0.4, 0.4, 0.4, 0.6), False),  # it came back
        ((0.9, 0.7, 0.6, 0.55), False),
        ((0.4,), False),
        ((), False),
    ],
)
def test_the_sentence(values, said):
    found = health.verdict(measured(*values), 2000)
    assert ('It forgets its start' in found['verdict']) == said
    assert found['status'] == 'learning'
    if values:
        assert found['gauges']['similarity/start'] == dict(value=values[-1], max=1.0, peak=None)
    if said:
        words = re.sub(r'\s+', ' ', found['verdict'])
        first = next(row['step'] for row in measured(*values) if row.get('similarity/start', 1) < 0.5)
        assert f'since step {first:,}' in words and f'similarity/start {values[-1]:.2f}' in words
        assert 'a lower optim.lr, layer-wise decay of it' in words


def test_a_damaged_file_is_a_sentence(tmp_path):
    assert forgetting.first_step(tmp_path) is None
    file = tmp_path / forgetting.FILE
    file.parent.mkdir()
    np.savez(file, cls=features(), step=7)
    assert forgetting.first_step(tmp_path) == 7
    whole = file.read_bytes()
    for damaged in (b'', whole[: len(whole) // 2], b'other', whole[:-30]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match='start_features.npz cannot be read .*; put it back, or delete it'):
            forgetting.first_step(tmp_path)


# Runs.

OFTEN = ('--config.log.every=10', '--config.export.every=1000', '--config.checkpoint.every=1000')
LEARNS = (
    '--config.batch_size=16',
    '--config.towers.image.width=64',
    '--config.terms.0.student=student/image/global~block/cls>dino',
    "--config.optim.schedule=dict(rule='cosine',start=1.,end=1.,warmup=20)",
    '--config.terms.0.teacher_temperature=0.02',
    '--config.terms.1.teacher_temperature=0.02',
)


@pytest.mark.long
def test_ten_times_the_rate_forgets_and_its_own_does_not(tmp_path):
    """A small encoder, pretrained for 250 steps, continued for 150. Figures of other seeds are in BUILD_NOTES.md."""
    records = tmp_path / 'data'
    medjax('build', 'phantom', '--records', '256', '--size', '32', '--out', records)
    medjax(*train(records, tmp_path / 'first', '--config.total_steps=250', *LEARNS, *OFTEN)[3:])
    start = f"--config.init_from=dict(path='{tmp_path}/first/exports/250')"
    for rate, forgets in ((1e-3, False), (1e-2, True)):
        run = tmp_path / f'{rate}'
        told = medjax(
            *train(records, run, '--config.total_steps=150', f'--config.optim.lr={rate}', start, *LEARNS, *OFTEN)[3:]
        )
        found = [line['similarity/start'] for line in lines(run) if 'similarity/start' in line]
        assert len(found) == 3, 'every 50 steps'
        said = json.loads((run / 'health.json').read_text())['verdict']
        assert ('It forgets its start' in said) == forgets, (found, said)
        assert ('It forgets its start' in told) == forgets, 'printed at the end'
    assert not any('similarity/start' in line for line in lines(tmp_path / 'first')), 'a new run has no start to keep'


@pytest.fixture(scope='module')
def public(tmp_path_factory):
    """A tower of `tiny` in the names of Meta, with larger weights than a new one, so that images look different."""
    tower = build.tower(dict(tower='vit', variant='Ti/8', width=32, depth=2, heads=2), 1, 'x').init(jax.random.key(5))
    shaken = jax.tree.map(lambda x: np.float32(x + 0.1 * RNG.normal(size=x.shape)), tower)
    path = tmp_path_factory.mktemp('public') / 'dinov2.safetensors'
    save_file(to_meta(shaken), path)
    return path


@pytest.mark.long
def test_the_gauge_changes_no_number_of_the_training(data, public, tmp_path, monkeypatch):  # noqa: F811
    """Also with features in micro-batches. Without its file, or with half of it, a run that goes on says so."""

    def go(name, *overrides):
        given = [f"init_from=dict(path='{public}')", 'optim.lr=1e-2', 'batch_size=16', 'export.every=4', *overrides]
        config, datasets = configs.load('tiny', [str(data)], given)
        assert loop.run(config, datasets, tmp_path / name) == 0
        return load_file(tmp_path / name / 'exports/8/weights.safetensors')

    monkeypatch.setattr(forgetting, 'RHYTHM', 2)
    one, _ = go('one'), go('two', 'micro_batches=2')
    with monkeypatch.context() as without:
        without.setattr(forgetting, 'begin', lambda *_: None)
        other = go('other')
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    with_gauge, plain, micro = (lines(tmp_path / name) for name in ('one', 'other', 'two'))
    assert [line['loss'] for line in with_gauge] == [line['loss'] for line in plain]
    found = [line['similarity/start'] for line in with_gauge]
    assert len(found) == 4 and 1 > found[0] > 0
    assert not any('similarity/start' in line for line in plain)
    np.testing.assert_allclose([line['similarity/start'] for line in micro], found, atol=1e-3)
    starts = [np.load(tmp_path / name / forgetting.FILE) for name in ('one', 'two')]
    assert starts[0]['cls'].shape == (16, 32) and int(starts[0]['step']) == 0
    np.testing.assert_allclose(starts[0]['cls'], starts[1]['cls'], atol=1e-5)

    shutil.rmtree(tmp_path / 'one/checkpoints/8')
    (tmp_path / 'one/DONE').unlink()
    (tmp_path / 'one' / forgetting.FILE).write_bytes(b'half')
    with pytest.raises(UserError, match='start_features.npz cannot be read'):
        go('one')
    (tmp_path / 'one' / forgetting.FILE).unlink()
    again = go('one')
    for name in one:
        np.testing.assert_array_equal(one[name], again[name], err_msg=name)
    assert 'similarity/start' not in lines(tmp_path / 'one')[-1]
