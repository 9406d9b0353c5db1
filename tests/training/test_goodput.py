"""Goodput: seconds of a run by kind, over several sessions; the Prometheus file; profile windows."""

from __future__ import annotations

import json
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from medjax.errors import UserError
from medjax.training import goodput, profile, prometheus
from medjax.training.goodput import Times


class Result:
    """A number that the device gives after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def block_until_ready(self) -> None:
        time.sleep(max(self.end - time.monotonic(), 0))


@pytest.fixture
def times():
    times = Times()
    yield times
    times.close()


def test_only_idle_devices_are_lost_time(times):
    time.sleep(0.2)
    with times.training():
        with times.of('compile'):
            time.sleep(0.2)
        times.dispatched(1, Result(0.3))
        with times.of('export'):  # the device works all the while
            time.sleep(0.1)
        with times.of('input'):  # and for .2 seconds of these
            time.sleep(0.6)
        with times.of('step'):
            time.sleep(0.1)
    seconds = times.seconds()
    assert seconds['setup'] == pytest.approx(0.2, abs=0.1)
    assert seconds['compile'] == pytest.approx(0.2, abs=0.1)
    assert seconds['export'] == 0
    assert seconds['input'] == pytest.approx(0.4, abs=0.1)
    assert seconds['steps'] == pytest.approx(0.4, abs=0.1)
    share = times.interval()
    assert share['input_stall'] == pytest.approx(0.4 / 1.0, abs=0.1)
    assert share['goodput'] == pytest.approx(0.4 / 1.2, abs=0.1)
    assert times.interval()['input_stall'] == 0  # since the last line


def test_sessions_add_up_and_repeated_steps_are_lost(times, tmp_path):
    seconds = dict.fromkeys(goodput.KINDS, 0.0) | {'steps': 100.0, 'compile': 5.0, 'setup': 3.0}
    file = dict(seconds=seconds, sessions=1, step=50, counted=50, repeated=0, time=time.time() - 60, goodput=0.9)
    (tmp_path / 'goodput.json').write_text(json.dumps(file))
    times.go_on(tmp_path, 40)
    with times.training():
        times.dispatched(41, Result(0))
    times.write(tmp_path, 41)
    found = json.loads((tmp_path / 'goodput.json').read_text())
    assert found['sessions'] == 2 and found['repeated'] == 10 and found['counted'] == 41 and found['step'] == 41
    assert found['seconds']['steps'] == pytest.approx(80, abs=1)
    assert found['seconds']['restart'] == pytest.approx(20, abs=1)
    assert found['seconds']['stopped'] == pytest.approx(60, abs=1)
    assert found['seconds']['setup'] == 3
    assert found['goodput'] == pytest.approx(80 / 108, abs=0.01)


@pytest.mark.parametrize('content', ['', '{}', '[1]', 'null', '{"seconds": 3}', '\x80'])
def test_a_damaged_record_stops_no_run(times, tmp_path, content):
    (tmp_path / 'goodput.json').write_text(content)
    times.go_on(tmp_path, 40)
    times.write(tmp_path, 41)
    assert goodput.read(tmp_path)['sessions'] == 1


def test_the_file_for_prometheus(tmp_path):
    """Prometheus' own parser reads every number, whatever a name holds."""
    folder = tmp_path / 'a "run"\\'
    folder.mkdir()
    beat = dict(process=0, host='a', step=3, phase='step', time=1.5)
    line = {'step': 4, 'loss': 0.25, 'term/x/loss': None, 'mfu': 1e-12}
    prometheus.write(folder, line, {'steps': 7.0}, [beat])
    families = text_string_to_metric_families((folder / 'metrics.prom').read_text())
    samples = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
    run = ('run', folder.name)
    assert samples == {
        ('medjax_steps_total', run): 4,
        ('medjax_metric', ('name', 'loss'), run): 0.25,
        ('medjax_metric', ('name', 'mfu'), run): 1e-12,
        ('medjax_seconds_total', ('kind', 'steps'), run): 7,
        ('medjax_heartbeat_time', ('host', 'a'), ('process', '0'), run): 1.5,
        ('medjax_heartbeat_step', ('host', 'a'), ('process', '0'), run): 3,
    }


@pytest.mark.parametrize('text', ['5', '5:', ':5', '9:5', '0:3', 'a:b', '1:2:3', '-1:4'])
def test_a_window_that_is_none(text):
    with pytest.raises(UserError, match='FIRST:LAST'):
        profile.parse(text)


def test_a_window_outside_of_the_session():
    window = profile.parse('3:5')
    window.check(2, 5)
    for start, total in ((3, 8), (0, 4)):
        with pytest.raises(UserError, match=f'does the steps {start + 1} to {total}'):
            window.check(start, total)
