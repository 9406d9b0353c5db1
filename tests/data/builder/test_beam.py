"""A build on Apache Beam (here with its DirectRunner) makes the same data set, byte for byte."""

from __future__ import annotations

import pickle
import sys

import pytest
from small_source import content, source

from medjax.commands import build
from medjax.data.builder import beam, chunks, write
from medjax.data.types import Example, Source
from medjax.errors import UserError

MISSING = "Apache Beam is not installed: pip install 'medjax[beam]'"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, 'SIZE', 8)


def on_beam(source, make_source, key, plan, folder):
    beam.run('--runner=DirectRunner', source, make_source, key, plan, folder)


def failing() -> Source:
    def load(i: int) -> Example:
        raise UserError('a mistake')

    return source(load)


def test_the_command_makes_the_same_data_set(tmp_path, monkeypatch):
    pytest.importorskip('apache_beam', reason=MISSING)
    phantom = ['phantom', '--records', '40', '--size', '32', '--out']
    build.main([*phantom, str(tmp_path / 'whole')])
    build.main([*phantom, str(tmp_path / 'data'), '--beam=--runner=DirectRunner'])
    assert content(tmp_path / 'data') == content(tmp_path / 'whole')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'whole']


def test_finished_chunks_are_used(tmp_path, monkeypatch):
    """Beam continues a build that one machine began; a mistake in a worker is one sentence."""
    pytest.importorskip('apache_beam', reason=MISSING)
    write.write(source(), tmp_path / 'whole')
    with pytest.raises(UserError, match='^a mistake$'):
        write.write(source(), tmp_path / 'data', make_source=failing, make_chunks=on_beam)
    write.write(source(), tmp_path / 'data', make_source=source, make_chunks=on_beam)
    assert content(tmp_path / 'data') == content(tmp_path / 'whole')


def test_a_folder_that_workers_do_not_share_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match='a Beam worker cannot read it .* file system that all workers share'):
        beam._make_chunk(str(tmp_path / 'job'), 0)


def test_options_that_cannot_be_read_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--beam --runner='x: these options cannot be read"):
        beam.run("--runner='x", source(), source, b'key', [], tmp_path)


def test_a_worker_makes_the_source_once(tmp_path):
    job = tmp_path / 'job'
    plan = [chunks.Chunk('train', k, (2 * k, 2 * k + 1)) for k in range(3)]
    job.write_bytes(pickle.dumps((CountedFactory(), b'key', plan)))
    calls.clear()
    for number in range(3):
        beam._make_chunk(str(job), number)
    assert calls == [1] and len(list(tmp_path.glob('*.npz'))) == 3


calls: list[int] = []


class CountedFactory:
    def __call__(self) -> Source:
        calls.append(1)
        return source()


def test_without_beam_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    with pytest.raises(UserError, match=r"pip install 'medjax\[beam\]'"):
        build.main(['phantom', '--records', '4', '--size', '32', '--out', str(tmp_path / 'data'), '--beam='])
    assert list(tmp_path.iterdir()) == []
