"""The cache of features: killed jobs go on, jobs share the work, and damaged files are encoded anew."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.probes import features, locks

N, SHARD = 83, 8
ROWS = dict(cls=((2, 3), 'float32'), patches=((3,), 'float32'))
GRID = dict(grid=((2, 2, 3), 'float16'))


def arrays(numbers):
    """The features of records: each has its number in it."""
    number = np.asarray(numbers, np.float32)
    make = lambda shape: number.reshape(-1, *[1] * len(shape)) + np.linspace(0, 0.5, int(np.prod(shape))).reshape(shape)  # noqa: E731
    return {name: make(shape).astype(dtype) for name, (shape, dtype) in (ROWS | GRID).items()}


WHOLE = arrays(range(N))


def encoder(log, batch=5, wait=0.0, names=('cls', 'patches'), at=None):
    """An encoder of `features.fill` that notes the numbers of its records; at(number) is called before each."""

    def encode(numbers, done):
        found = []
        for number in numbers:
            if at is not None:
                at(number)
            with open(log, 'a') as file:
                file.write(f'{number}\n')
            time.sleep(wait)
            found.append(number)
            if len(found) == batch:
                yield np.array(found), {name: arrays(found)[name] for name in names}
                found = []
        if found:
            yield np.array(found), {name: arrays(found)[name] for name in names}

    return encode


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(features, 'SHARD', SHARD)
    monkeypatch.setattr(locks, 'POLL', 0.02)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / 'cache' / '7' / 'clinic.train'


@pytest.fixture
def log(tmp_path):
    return tmp_path / 'encoded'


def encoded(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def fill(cache, log, key='a', **options):
    features.fill(cache, key, N, ROWS, ['features'], encoder(log, **options))


def check(cache, key='a', part='features'):
    content = features.read(cache, key, N, part)
    assert content is not None and content.bad == 0
    for name in features.PARTS[part]:
        assert content.arrays[name].dtype == (ROWS | GRID)[name][1]
        np.testing.assert_array_equal(np.asarray(content.arrays[name]), WHOLE[name])
    return content


@pytest.mark.parametrize('batch', [1, 5, 8, 40, 200])
def test_a_split_is_encoded_once(cache, log, batch):
    assert features.read(cache, 'a', N, 'features') is None
    fill(cache, log, batch=batch)
    check(cache)
    assert encoded(log) == [*range(N)]
    fill(cache, log)
    assert len(encoded(log)) == N
    assert sorted(path.name for path in cache.iterdir()) == [
        '.lock',
        'about.json',
        'cls.npy',
        'patches.npy',
        'shards.npy',
    ]
    assert json.loads((cache / 'about.json').read_text())['records'] == N


KEYS = {
    'all': slice(None),
    'layer': (slice(None), -1),
    'some': slice(3, 70),
    'steps': slice(70, 3, -4),
    'none': slice(5, 5),
    'one': 7,
    'last': -1,
    'number': (4, 1, 2),
    'mask': np.arange(N) % 3 == 0,
    'rows and layer': (np.array([5, 80, 5, -2]), 0),
    'ellipsis': (..., -1),
    'new axis': (None, slice(2)),
    'table': np.array([[1, 2], [3, 4]]),
}


@pytest.mark.parametrize('key', KEYS.values(), ids=KEYS)
@pytest.mark.parametrize('bytes_at_once', [1, 1 << 20])
def test_a_stored_array_is_read_like_an_array(cache, log, monkeypatch, key, bytes_at_once):
    monkeypatch.setattr(features, 'READ', bytes_at_once)
    fill(cache, log)
    stored, whole = check(cache).arrays['cls'], WHOLE['cls']
    assert stored.shape == whole.shape and len(stored) == N and stored.ndim == 3
    np.testing.assert_array_equal(stored[key], whole[key])
    some = np.arange(N) % 2 == 0
    if not isinstance(key, np.ndarray | tuple):
        np.testing.assert_array_equal(stored.take(some)[key], whole[some][key])
    np.testing.assert_array_equal(np.asarray(stored.take(some).take(np.array([3, 1]))), whole[some][[3, 1]])


def test_reading_a_layer_takes_little_more_memory_than_the_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(features, 'READ', 1 << 16)
    np.save(tmp_path / 'x.npy', np.zeros((4_000, 16, 64), np.float32))
    stored = features.stored(tmp_path / 'x.npy', (4_000, 16, 64), 'float32')
    before = resident()
    layer = stored[:, -1]
    assert layer.nbytes == 4_000 * 64 * 4
    assert resident() - before < 2 * layer.nbytes + (1 << 20), 'all 16 layers stayed in memory'


def test_a_file_that_becomes_shorter_is_an_error(cache, log):
    fill(cache, log)
    cls = check(cache).arrays['cls']
    truncate(cache / 'cls.npy')
    with pytest.raises(UserError, match='cls.npy is shorter than it was; run again to encode its records anew'):
        cls[-1]


def resident():
    """Bytes of this process in memory, files included."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


# Jobs that are killed, and jobs that share.

JOB = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_features as t
from medjax.probes import features, locks
features.SHARD, locks.POLL = t.SHARD, 0.02
cache, log, wait, kill = t.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at(number):
    if kill == f'row {{number}}':
        die()

if kill.startswith('call '):
    calls = [0]
    def counted(function):
        def call(*args):
            calls[0] += 1
            if kill == f'call {{calls[0]}}':
                die()
            return function(*args)
        return call
    os.pwrite, os.fdatasync, os.replace = map(counted, (os.pwrite, os.fdatasync, os.replace))
    os.posix_fallocate = counted(os.posix_fallocate)
t.fill(cache, log, wait=wait, at=at)
"""


def job(cache, log, wait=0.0, kill=''):
    """A job in a process of its own."""
    return subprocess.Popen([sys.executable, '-c', JOB, str(cache), str(log), str(wait), kill])


@pytest.mark.parametrize('kill', ['row 0', 'row 12', 'row 82'])
def test_a_killed_job_loses_the_shards_that_it_was_encoding(cache, log, kill):
    assert job(cache, log, kill=kill).wait() == -signal.SIGKILL
    before = encoded(log)
    fill(cache, log)
    check(cache)
    again = encoded(log)[len(before) :]
    assert sorted({*before, *again}) == [*range(N)] and len(again) == len({*again})
    assert len({*before} & {*again}) <= 2 * SHARD, 'the shard, and the batch that reaches into the next one'


@pytest.mark.parametrize('call', [1, 2, 3, 4, 5, 8, 9, 20])
def test_a_job_that_is_killed_while_it_writes(cache, log, call):
    """Whatever file it was making or writing, the next job ends with the right features."""
    assert job(cache, log, kill=f'call {call}').wait() == -signal.SIGKILL
    assert features.read(cache, 'a', N, 'features') is None
    fill(cache, log)
    check(cache)
    assert not [path for path in cache.iterdir() if path.name.endswith('.part')]


@pytest.mark.filterwarnings('ignore:.*waits for another job')
def test_jobs_share_the_work_and_never_do_it_twice(cache, log):
    jobs = [job(cache, log, wait=0.01) for _ in range(2)]
    fill(cache, log, wait=0.01)
    check(cache)
    assert [each.wait() for each in jobs] == [0, 0]
    check(cache)
    assert sorted(encoded(log)) == [*range(N)], 'each record once'


def test_a_job_waits_for_another_one_and_takes_over_when_it_is_killed(cache, log):
    other = job(cache, log, wait=1000)
    while not encoded(log):
        time.sleep(0.01)
    killing = threading.Timer(1, other.kill)
    killing.start()
    with pytest.warns(features.CacheWarning, match='waits for another job, which encodes the last records'):
        fill(cache, log)
    check(cache)
    assert other.wait() == -signal.SIGKILL and encoded(log).count(0) == 2 and len(encoded(log)) == N + 1


# What is not used as it is.


def truncate(path):
    path.write_bytes(path.read_bytes()[:150])


DAMAGES = {
    'short array': lambda at: truncate(at / 'cls.npy'),
    'empty array': lambda at: (at / 'patches.npy').write_bytes(b''),
    'another shape': lambda at: np.save(at / 'cls.npy', WHOLE['cls'][:, :1]),
    'another dtype': lambda at: np.save(at / 'cls.npy', WHOLE['cls'].astype(np.float64)),
    'no array': lambda at: (at / 'cls.npy').unlink(),
    'short markers': lambda at: truncate(at / 'shards.npy'),
    'other markers': lambda at: np.save(at / 'shards.npy', np.ones((3, 2), np.int32)),
    'no markers': lambda at: (at / 'shards.npy').unlink(),
    'no JSON': lambda at: (at / 'about.json').write_text('{"key": '),
    'other JSON': lambda at: (at / 'about.json').write_text('[1]'),
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_encoded_anew_and_this_is_said(cache, log, damage):
    fill(cache, log)
    damage(cache)
    assert features.read(cache, 'a', N, 'features') is None
    with pytest.warns(features.CacheWarning, match=r'clinic.train is damaged \(.*\); its records are encoded anew'):
        fill(cache, log)
    check(cache)
    assert len(encoded(log)) == 2 * N


def test_another_key_replaces_a_cache_and_its_readers_go_on(cache, log):
    cache.parent.mkdir(parents=True)
    old = cache.with_name('clinic.train.npz')
    old.write_bytes(b'of an earlier version')
    fill(cache, log)
    assert not old.exists()
    reader = check(cache).arrays['cls']
    features.fill(cache, 'a', N, ROWS | GRID, ['features', 'grid'], encoder(log, names=('cls', 'patches', 'grid')))

    def zeros(numbers, done):
        return ((np.array([i]), dict(cls=np.zeros((1, 4), np.float32))) for i in numbers)

    features.fill(cache, 'b', 20, dict(cls=((4,), 'float32')), ['features'], zeros)
    assert features.read(cache, 'a', N, 'features') is None and not (cache / 'grid.npy').exists()
    assert features.read(cache, 'b', 20, 'features').arrays['cls'].shape == (20, 4)
    np.testing.assert_array_equal(np.asarray(reader), WHOLE['cls'])


def test_the_grid_is_added_without_encoding_cls_again(cache, log):
    fill(cache, log)
    assert features.read(cache, 'a', N, 'grid') is None
    stamp = (cache / 'cls.npy').stat().st_mtime_ns
    both = ['features', 'grid']
    features.fill(cache, 'a', N, ROWS | GRID, both, encoder(log, names=('cls', 'patches', 'grid')))
    check(cache)
    check(cache, part='grid')
    assert (cache / 'cls.npy').stat().st_mtime_ns == stamp and len(encoded(log)) == 2 * N
    fill(cache, log)
    assert len(encoded(log)) == 2 * N


def test_both_parts_at_once_are_one_pass(cache, log):
    assert job(cache, log, kill='row 30').wait() == -signal.SIGKILL
    log.unlink()
    features.fill(cache, 'a', N, ROWS | GRID, ['features', 'grid'], encoder(log, names=('cls', 'patches', 'grid')))
    check(cache)
    check(cache, part='grid')
    assert encoded(log) == [*range(N)]


def test_features_that_are_not_finite_are_counted(cache):
    def encode(numbers, done):
        for number in numbers:
            found = arrays([number])
            found['patches'][0, 1] = np.nan if number % 10 == 3 else 0
            found['cls'][0, 0, 0] = np.inf if number % 20 == 3 else 0  # of records that have a nan too
            yield np.array([number]), dict(cls=found['cls'], patches=found['patches'])

    features.fill(cache, 'a', N, ROWS, ['features'], encode)
    assert features.read(cache, 'a', N, 'features').bad == 8


@pytest.mark.parametrize('limit', [100, 1500])
def test_a_full_disk(cache, log, limit):
    """No array is begun for which there is no space, and the next job goes on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match='the features .*clinic.train cannot be written: it is larger'):
            fill(cache, log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not encoded(log)
    fill(cache, log)
    check(cache)


def test_writing_keeps_only_a_shard_in_memory(cache, log):
    def encode(numbers, done):
        for number in numbers:
            yield np.array([number]), dict(cls=np.full((1, 50_000), number, np.float32))

    tracemalloc.start()
    features.fill(cache, 'a', N, dict(cls=((50_000,), 'float32')), ['features'], encode)
    peak, _ = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert peak < 4 * SHARD * 50_000 * 4
