"""Each verdict on a history made for it, and silence where the wolf is not there."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_losses import context, loss_of, plain_view

from medjax.objectives.terms import distill_cls
from medjax.training import health

LN_K = math.log(4096)


def history(n=40, every=50, **series):
    """n lines of a sound run; a series is an array or a function of the share done, under the keys of metrics.jsonl."""
    x = np.linspace(1 / n, 1, n)
    noise = np.random.default_rng(0).normal(0, 0.004, (2, n))
    sound = {
        'loss': 15 - 5 * x,
        'term/cls/loss': LN_K * (1.01 - 0.3 * x + noise[0]),
        'term/cls/start': LN_K,
        'term/cls/rows': 64,
        'term/cls/entropy': LN_K - 1 - 3 * x,
        'term/cls/entropy_max': LN_K,
        'term/cls/prototypes': 80,
        'term/cls/prototypes_max': 640,
        'term/patch/loss': LN_K / 2 * (1.01 - 0.1 * x + noise[1]),
        'term/patch/start': LN_K / 2,
        'term/patch/rows': 64,
        'term/koleo/loss': 0.4 - x,
        'rank/student/image/global~block/cls': 8 + 30 * x,
        'rank_max/student/image/global~block/cls': 64,
        'skipped': 0,
    }
    columns = {k: np.broadcast_to(v(x) if callable(v) else v, n) for k, v in (sound | series).items()}
    return [
        {'step': every * (i + 1)} | {k: None if not math.isfinite(v[i]) else float(v[i]) for k, v in columns.items()}
        for i in range(n)
    ]


RANK = 'rank/student/image/global~block/cls'
FLAT = {'term/cls/loss': LN_K * 1.001, 'term/patch/loss': LN_K / 2 * 0.999}


def test_learning():
    got = health.verdict(history(), total_steps=2000)
    assert (got['status'], got['since'], got['step']) == ('learning', None, 2000)
    assert got['verdict'] == (
        'Learning: cls loss 6.03 of 8.32 for a constant answer, patch loss 3.80 of 4.16 for a constant answer.'
    )
    assert got['terms']['cls']['ratio'] == pytest.approx(0.72, abs=0.02)
    assert got['gauges'][RANK] == {'value': pytest.approx(36.5, abs=1), 'max': 64.0, 'peak': pytest.approx(36.5, abs=1)}
    assert 'koleo' not in got['terms']
    json.dumps(got, allow_nan=False)


def test_too_early():
    got = health.verdict(history(n=10, every=2, **FLAT), total_steps=2000)
    assert got['status'] == 'too early'
    assert got['verdict'].startswith('Too early to tell: 20 of 2,000 steps.')
    assert health.verdict([], 2000)['status'] == 'too early'
    assert health.verdict(history(n=3, every=500), 1500)['status'] == 'too early', 'three lines are no curve'


def test_not_learning_from_the_start():
    got = health.verdict(history(**FLAT, **{'term/cls/entropy': LN_K - 1e-4}), 2000)
    assert (got['status'], got['since']) == ('not learning', 50)
    assert 'cls loss no better than a constant answer (8.33 of 8.32)' in got['verdict']
    assert 'patch loss' in got['verdict']
    assert 'uniform' in got['verdict']


def test_not_learning_since():
    """Fell, and came back to the start at step 1,000."""
    back = lambda scale: lambda x: scale * np.where(x <= 0.5, 1 - 0.2 * x, 1.0)  # noqa: E731
    got = health.verdict(history(**{'term/cls/loss': back(LN_K), 'term/patch/loss': back(LN_K / 2)}), 2000)
    assert got['status'] == 'not learning'
    assert 1000 < got['since'] <= 1000 + 50 * health.SMOOTH


def test_collapsed_rank_fell():
    """The loss falls, which looks like learning; the rank says that all images are one."""
    got = health.verdict(history(**{RANK: lambda x: np.where(x < 0.4, 20.0, 1.2)}), 2000)
    assert got['status'] == 'collapsed'
    assert 800 <= got['since'] <= 800 + 50 * health.SMOOTH
    assert 'effective rank 1.2 of 64' in got['verdict']


def test_collapsed_rank_never_rose_and_loss_is_flat():
    assert health.verdict(history(**FLAT, **{RANK: 1.1}), 2000)['status'] == 'collapsed'


def test_collapsed_to_one_prototype():
    got = health.verdict(history(**{'term/cls/prototypes': lambda x: np.where(x < 0.5, 80, 1.01)}), 2000)
    assert got['status'] == 'collapsed'
    assert 'the student of cls puts everything on one prototype' in got['verdict']
    assert got['gauges']['term/cls/prototypes'] == {'value': 1.01, 'max': 640.0, 'peak': 80.0}


@pytest.mark.parametrize(('used', 'status'), [(1, 'collapsed'), (32, 'learning')])
def test_a_collapse_as_the_term_itself_tells_it(used, status):
    """distill_cls where student and teacher put 32 rows on so many of 256 prototypes: the loss is zero either way."""
    student, teacher = 'student/image/global/cls>dino', 'teacher/image/global/cls>dino'
    term = distill_cls.build(context(256), student, teacher, centring='centre')
    logits = 20.0 * np.eye(256, dtype=np.float32)[np.arange(32) % used]
    features = {name: jnp.asarray(np.stack([logits, logits], 1)) for name in (student, teacher)}
    _, aux = term.init(jax.random.key(0))
    views = {'global': plain_view(32, 2)}
    loss, metrics, _ = jax.jit(lambda f: loss_of(term, f, views, state=aux))(features)
    assert float(metrics['prototypes']) == pytest.approx(used, rel=1e-3)
    assert float(metrics['prototypes_max']) == 64
    line = {'loss': loss, 'term/cls/loss': loss} | {f'term/cls/{name}': value for name, value in metrics.items()}
    line = {name: float(value) for name, value in line.items()}
    got = health.verdict([{'step': 50 * i} | line for i in range(1, 41)], 2000)
    assert got['status'] == status, got['verdict']


def test_unstable_loss_now():
    got = health.verdict(history(loss=lambda x: np.where(x > 0.9, np.nan, 9.0)), 2000)
    assert got['status'] == 'unstable'
    assert got['since'] == 1850
    assert 'not finite' in got['verdict']


def test_unstable_skips():
    got = health.verdict(history(skipped=lambda x: np.maximum(0, np.round(100 * (x - 0.85)))), 2000)
    assert got['status'] == 'unstable'
    assert 'of the last 500 steps were skipped' in got['verdict']


def test_a_term_that_begins_above_a_constant_answer_is_not_unstable():
    """A decoder of pixels begins at 2.2, where a constant patch has .9; only a loss above its own beginning counts."""
    pixels = {'term/pixels/start': 0.9, 'term/pixels/rows': 64}
    falling = history(**pixels, **{'term/pixels/loss': lambda x: 2.2 - 0.5 * x})
    assert health.verdict(falling, 2000)['status'] != 'unstable'
    rising = history(**pixels, **{'term/pixels/loss': lambda x: 2.2 + 4 * x})
    assert health.verdict(rising, 2000)['status'] == 'unstable'


def test_unstable_worse_than_uniform():
    got = health.verdict(history(**{'term/cls/loss': lambda x: LN_K * np.where(x > 0.7, 1.6, 0.9)}), 2000)
    assert got['status'] == 'unstable'
    assert 'worse than an untrained network' in got['verdict']


class TestNoWolf:
    """What sound runs do, and what must not be called by a bad name."""

    def status(self, total=2000, **series):
        return health.verdict(history(**series), total)['status']

    def test_patch_rises_while_the_temperature_changes(self):
        assert self.status(**{'term/patch/loss': lambda x: LN_K / 2 * (0.96 + 0.08 * np.sin(3 * x))}) == 'learning'

    def test_total_loss_is_not_monotone(self):
        assert self.status(loss=lambda x: 15 - 5 * np.sin(6 * x)) == 'learning'

    def test_one_spike(self):
        assert self.status(**{'term/cls/loss': lambda x: LN_K * np.where(x == x[-1], 3.0, 0.8)}) == 'learning'

    def test_one_skipped_step(self):
        assert self.status(skipped=lambda x: np.where(x > 0.95, 1, 0)) == 'learning'

    def test_skips_of_long_ago(self):
        assert self.status(skipped=lambda x: np.minimum(60, 300 * x)) == 'learning'

    def test_low_rank_of_a_young_encoder_that_learns(self):
        assert self.status(**{RANK: lambda x: 1.3 + 2 * x}) == 'learning'

    def test_few_prototypes_in_a_tiny_batch(self):
        assert self.status(**{'term/cls/prototypes': 2, 'term/cls/rows': 4}) == 'learning'

    def test_sharp_teacher(self):
        assert self.status(**{'term/cls/entropy': 0.3}) == 'learning'

    def test_slightly_above_the_start_in_warm_up(self):
        """dinov2#479: 1.6 % above ln K at the start of the warm-up."""
        series = {key: 1.016 * value for key, value in {'term/cls/loss': LN_K, 'term/patch/loss': LN_K / 2}.items()}
        assert self.status(total=100_000, **series) == 'too early'


def test_patch_still_at_its_start_is_a_note():
    got = health.verdict(history(**{'term/patch/loss': LN_K / 2}), 2000)
    assert got['status'] == 'learning'
    assert 'The patch loss is still no better than a constant answer.' in got['verdict']


def test_flat_targets_that_the_student_equals_are_a_note():
    # As measured: teacher_temperature .04 to .07 on a small run, entropy 6.28 and loss 6.29 of 6.93 (BUILD_NOTES.md).
    flat = {'term/cls/entropy': 0.906 * LN_K, 'term/cls/loss': 0.908 * LN_K}
    got = health.verdict(history(**flat), total_steps=2000)
    assert got['status'] == 'learning'
    assert 'The cls targets are nearly uniform (entropy 7.54 of 8.32)' in got['verdict']
    sharp = {'term/cls/entropy': 0.6 * LN_K, 'term/cls/loss': 0.61 * LN_K}
    ahead = {'term/cls/entropy': 0.85 * LN_K, 'term/cls/loss': 0.95 * LN_K}
    for sound in (sharp, ahead):
        assert 'uniform' not in health.verdict(history(**sound), total_steps=2000)['verdict']


def test_a_little_is_called_a_little():
    """Sixty steps of the demo on the phantom: the patch loss leaves its start, the kNN probe is at chance."""
    got = health.verdict(history(**{'term/cls/loss': LN_K, 'term/patch/loss': 0.979 * LN_K / 2}), 2000)
    assert got['verdict'].startswith('Learning a little so far: patch loss 4.07 of 4.16 for a constant answer.')


def test_sinking_rank_is_a_note():
    got = health.verdict(history(**{RANK: lambda x: np.where(x < 0.5, 50, 10)}), 2000)
    assert got['status'] == 'learning'
    assert 'Effective rank fell from 50.0 to 10.0' in got['verdict']


def test_without_start_values_it_says_so():
    lines = [{'step': 10 * i, 'loss': 1.0, 'term/koleo/loss': 0.1, 'term/koleo/start': None} for i in range(1, 30)]
    got = health.verdict(lines, 290)
    assert got['status'] == 'unknown'
    assert 'probes' in got['verdict']


def test_published_trajectory():
    """dinov2#479, logged local loss 10.02 -> 7.49 and iBOT 2.81 -> 2.59 in 83 k of 625 k steps, 65,536 prototypes."""
    ln_k = math.log(65536)
    x = np.linspace(0, 1, 200)
    lines = [
        {
            'step': int(83_000 * t) + 1,
            'loss': 14 - 3 * t,
            'term/cls/loss': 10.02 - 2.53 * t,
            'term/cls/start': 16 / 18 * ln_k,
            'term/patch/loss': 2.81 - 0.22 * t,
            'term/patch/start': ln_k / 4,
        }
        for t in x
    ]
    got = health.verdict(lines, 625_000)
    assert got['verdict'] == (
        'Learning: cls loss 7.52 of 9.86 for a constant answer, patch loss 2.59 of 2.77 for a constant answer.'
    )


def test_writing_is_whole_or_not_at_all(tmp_path):
    health.write(tmp_path, health.verdict(history(), 2000))
    with pytest.raises(ValueError, match='JSON'):
        health.write(tmp_path, {'bad': math.nan})
    assert json.loads((tmp_path / 'health.json').read_text())['status'] == 'learning'
    assert [p.name for p in tmp_path.iterdir()] == ['health.json']
