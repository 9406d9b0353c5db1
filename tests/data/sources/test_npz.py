"""Damaged, hostile and unusual .npz files: each is read, or refused with a sentence."""

from __future__ import annotations

import contextlib
import pathlib
import random
import shutil
import struct
import zipfile

import numpy as np
import pytest

from medjax.data.sources import npz
from medjax.errors import UserError


def refused(path: pathlib.Path) -> str:
    with pytest.raises(UserError) as error:
        npz.source(str(path))
    return str(error.value)


def with_header(header: str, version: bytes = b'\1\0', body: bytes = bytes(16)) -> bytes:
    text = header.encode().ljust(118)[:117] + b'\n'
    return b'\x93NUMPY' + version + struct.pack('<H', len(text)) + text + body


@pytest.mark.parametrize(
    'member',
    [
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000)}"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4)}"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -4, 4)}"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4)}"),
        with_header("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}"),
        with_header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}"),
        with_header("{'descr': '|u1', 'shape': (2,)}"),
        with_header('(' * 100),
        with_header("__import__('os').abort()"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4)}", version=b'\7\0'),
        b'\x93NUMPY',
        b'no array',
        b'',
    ],
)
def test_npz_headers_are_not_believed(member, tmp_path):
    with zipfile.ZipFile(tmp_path / 'set.npz', 'w') as archive:
        archive.writestr('train_images.npy', member)
    assert 'not read' in refused(tmp_path / 'set.npz')


def test_a_sound_npz_header_is_read(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4)}"
    with zipfile.ZipFile(tmp_path / 'set.npz', 'w') as archive:
        archive.writestr('train_images.npy', with_header(header))
        archive.writestr('notes.txt', 'not read')
    assert npz.source(str(tmp_path / 'set.npz')).load(0).image.shape == (4, 4)


def test_npz_archives_damaged_anywhere(tmp_path):
    stack = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    np.savez_compressed(tmp_path / 'sound.npz', train_images=stack, train_labels=np.array([0, 1, 1]))
    sound = (tmp_path / 'sound.npz').read_bytes()
    dice, path = random.Random(0), tmp_path / 'set.npz'
    for _ in range(600):
        data = bytearray(sound)
        for _ in range(dice.choice((1, 3))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data[: dice.randrange(len(data))] if dice.random() < 0.3 else data)
        with contextlib.suppress(UserError):
            source = npz.source(str(path))
            if source.entries:  # a changed name may lose the labels, but no pixel may change
                np.testing.assert_array_equal([source.load(k).image for k in range(3)], stack)


def test_an_npz_bomb(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / 'set.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1024, 128, 128)}"
        archive.writestr('train_images.npy', with_header(header, body=bytes(1 << 24)))
    assert (tmp_path / 'set.npz').stat().st_size < 1 << 17
    assert len(npz.source(str(tmp_path / 'set.npz')).entries) == 1024
    monkeypatch.setattr(npz, 'MOST_OF_MEMORY', 1e-6)
    assert 'there is room for 0.0 GB in memory' in refused(tmp_path / 'set.npz')
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(npz, 'IN_MEMORY', 1000)  # larger arrays are mapped
    assert len(npz.source(str(tmp_path / 'set.npz')).entries) == 1024
    monkeypatch.setattr(npz.shutil, 'disk_usage', lambda folder: room._replace(free=0))
    assert 'TMPDIR' in refused(tmp_path / 'set.npz')


@pytest.mark.parametrize(
    ('arrays', 'words'),
    [
        (dict(train_images=np.zeros((2, 0, 4), np.uint8)), 'a picture of 4 x 0 pixels'),
        (dict(train_images=np.zeros((0, 9_000, 9_000), np.uint8)), '80 million'),
        (dict(train_images=np.zeros((2, 4, 4), np.uint8), train_labels=np.array(1)), 'one number'),
        (dict(train_images=np.array(1, np.uint8)), 'shape'),
    ],
)
def test_npz_arrays_of_odd_shapes(arrays, words, tmp_path):
    np.savez(tmp_path / 'set.npz', **arrays)
    assert words in refused(tmp_path / 'set.npz')


def test_an_empty_split_is_no_mistake(tmp_path):
    full, none = np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4), np.uint8)
    np.savez(
        tmp_path / 'set.npz',
        train_images=full,
        train_labels=np.array([[0], [1]]),
        val_images=none,
        val_labels=np.zeros((0, 1), int),
    )
    assert len(npz.source(str(tmp_path / 'set.npz')).entries) == 2
