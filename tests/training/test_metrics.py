"""The run's numbers on the host: one story in metrics.jsonl, whatever happens to the run."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from medjax.training import metrics


def lines(run):
    def refuse(word):
        raise AssertionError(f'{word} is not JSON')

    return [json.loads(line, parse_constant=refuse) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def train(run, first, last, every=5, total=20, **kwargs):
    writer = metrics.Writer(run, total, every, start_step=first, **kwargs)
    for step in range(first + 1, last + 1):
        writer.step(step, {'loss': jnp.float32(step), 'skipped': jnp.int32(step // 4)}, images=8)
    writer.close()
    return writer


def test_lines_are_means_over_the_interval(tmp_path):
    train(tmp_path, 0, 20)
    got = lines(tmp_path)
    assert [line['step'] for line in got] == [5, 10, 15, 20]
    assert [line['loss'] for line in got] == [3.0, 8.0, 13.0, 18.0]
    assert [line['skipped'] for line in got] == [1, 2, 3, 5], 'a count is not averaged'
    assert all(line['images_per_s'] > 0 for line in got)


def test_last_step_is_written_even_inside_an_interval(tmp_path):
    train(tmp_path, 0, 7, total=7)
    assert [line['step'] for line in lines(tmp_path)] == [5, 7]


def test_not_finite_becomes_null_and_does_not_hide_the_finite_steps(tmp_path):
    writer = metrics.Writer(tmp_path, 4, 2)
    for step, loss in enumerate([math.nan, 3.0, math.nan, math.inf], start=1):
        writer.step(step, {'loss': jnp.float32(loss)}, images=1)
    writer.close()
    assert [line['loss'] for line in lines(tmp_path)] == [3.0, None]


def test_steps_without_rows_do_not_count_for_a_term():
    steps = [
        {'term/cls/loss': 8.0, 'term/cls/rows': 4.0, 'loss': 8.0},
        {'term/cls/loss': 0.0, 'term/cls/rows': 0.0, 'loss': 2.0},
    ]
    assert metrics.means(steps) == {'term/cls/loss': 8.0, 'term/cls/rows': 2.0, 'loss': 5.0}


def test_resume_keeps_one_story(tmp_path):
    train(tmp_path, 0, 20)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 25, "lo')  # killed while writing
    writer = train(tmp_path, 12, 20)
    got = lines(tmp_path)
    assert [line['step'] for line in got] == [5, 10, 15, 20]
    assert got[2]['loss'] == np.mean([13, 14, 15]), 'the line of step 15 comes from the second life of the run'
    assert [line['step'] for line in writer.history] == [5, 10, 15, 20]
    assert not list(tmp_path.glob('.metrics*'))


def test_first_step_is_not_timed(tmp_path, monkeypatch):
    """A clock that jumps by 100 s while the first step compiles and by 1 s with every later reading."""
    now = iter([100.0, 104.0, 109.0])
    monkeypatch.setattr(metrics.time, 'perf_counter', lambda: next(now))
    peak = metrics.Peak(1000.0, 'test')
    writer = metrics.Writer(tmp_path, 10, 5, flops=80.0, peak=peak)
    for step in range(1, 11):
        writer.step(step, {'loss': jnp.float32(0)}, images=8)
    writer.close()
    first, second = lines(tmp_path)
    assert first['images_per_s'] == 4 * 8 / 4  # four steps in four seconds; the first is left out
    assert second['images_per_s'] == 5 * 8 / 5
    assert second['mfu'] == pytest.approx(1.0 * 80 / 1000)  # one step of 80 FLOPs a second


def test_mfu_over_one_is_unknown_for_the_rest_of_the_run(tmp_path, monkeypatch, capfd):
    """Steps of 80 FLOPs; the peak of 100 FLOP/s was measured on a busy CPU. Steps take 2 s, 0.5 s, 2 s."""
    now = iter([100.0, 100.0, 102.0, 102.5, 104.5])
    monkeypatch.setattr(metrics.time, 'perf_counter', lambda: next(now))
    writer = metrics.Writer(tmp_path, 4, 1, flops=80.0, peak=metrics.Peak(100.0, 'CPU, measured'))
    for step in range(1, 5):
        writer.step(step, {'loss': jnp.float32(0)}, images=8)
    writer.close()
    assert [line.get('mfu', 'none') for line in lines(tmp_path)] == ['none', 0.4, None, None]
    stderr = capfd.readouterr().err
    assert stderr.count('MFU is unknown from here on') == 1 and 'CPU, measured' in stderr
    assert stderr.count('MFU') == 2, 'one number before'


def test_the_first_line_of_one_step_states_no_speed(tmp_path):
    train(tmp_path, 0, 2, every=1, total=2)
    first, second = lines(tmp_path)
    assert 'images_per_s' not in first
    assert second['images_per_s'] > 0


def test_other_processes_write_nothing(tmp_path, capfd):
    writer = train(tmp_path / 'run', 0, 20, enabled=False)
    writer.say('nobody hears this')
    assert writer.flush(8) is None
    assert not (tmp_path / 'run').exists()
    assert capfd.readouterr().err == ''


def test_without_a_terminal_one_plain_line_per_interval(tmp_path, capfd):
    train(tmp_path, 0, 10)
    got = capfd.readouterr().err.splitlines()
    assert [line.split(':')[0] for line in got] == ['step 5/20', 'step 10/20']
    assert 'loss 3' in got[0]
    assert 'images/s' in got[0]
    assert 'left' in got[0]


def test_flush_before_a_run_stops(tmp_path):
    writer = metrics.Writer(tmp_path, 20, 5)
    for step in (1, 2):
        writer.step(step, {'loss': jnp.float32(step)}, images=1)
    assert writer.flush(1)['loss'] == 1.5
    assert writer.flush(1) is None
    writer.close()


def test_tensorboard_holds_the_same_numbers(tmp_path):
    train(tmp_path, 0, 10)
    (events,) = (tmp_path / 'tensorboard').glob('events*')
    data, at, seen = events.read_bytes(), 0, {}
    while at < len(data):  # TFRecord framing: uint64 length, crc, payload, crc
        size = int.from_bytes(data[at : at + 8], 'little')
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            seen[value.tag, event.step] = value.simple_value
    assert seen['loss', 5] == 3.0
    assert seen['loss', 10] == 8.0


def test_means_fetch_once_per_interval(tmp_path, monkeypatch):
    calls = []
    fetch = jax.device_get
    monkeypatch.setattr(metrics.jax, 'device_get', lambda x: calls.append(1) or fetch(x))
    train(tmp_path, 0, 20)
    assert len(calls) == 4


class FakeDevice:
    platform = 'gpu'

    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(
    ('kind', 'peak'),
    [
        ('NVIDIA H100 80GB HBM3', 989e12),
        ('NVIDIA H100 PCIe', 756e12),
        ('NVIDIA A100-SXM4-40GB', 312e12),
        ('TPU v4', 275e12),
        ('TPU v5 lite', 197e12),
        ('TPU v5', 459e12),
        ('TPU v6 lite', 918e12),
    ],
)
def test_known_peaks(kind, peak):
    assert metrics.peak_flops([FakeDevice(kind)] * 2).flops == 2 * peak
    assert 'float32' in metrics.peak_flops([FakeDevice(kind)], 'float32').description


def test_unknown_device_gives_no_mfu(tmp_path):
    peak = metrics.peak_flops([FakeDevice('Banana 3')])
    assert peak.flops is None
    assert 'Banana 3' in peak.description
    train(tmp_path, 0, 10, flops=1e9, peak=peak)
    assert 'mfu' not in lines(tmp_path)[-1]


def test_cpu_peak_is_measured_and_counts_once():
    one, eight = metrics.peak_flops(jax.devices()[:1]), metrics.peak_flops(jax.devices())
    assert one.flops == eight.flops
    assert 1e9 < one.flops < 1e14
    assert 'measured' in one.description
