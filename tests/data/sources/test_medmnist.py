"""MedMNIST: named classes, volumes whose slices stay together, notes on files that are not published ones."""

import hashlib
import os
import pathlib
import tempfile

import numpy as np
import pytest
from releases_dicom import build

from medjax.data.releases import published_splits
from medjax.data.sources import medmnist, nih, npz
from medjax.data.types import BLANK
from medjax.errors import UserError


def real(name: str) -> pathlib.Path:
    folder = os.environ.get('MEDJAX_REAL_DATA')
    if not folder or not (path := pathlib.Path(folder) / 'medmnist' / name).is_file():
        pytest.skip(f'set MEDJAX_REAL_DATA to a folder that holds medmnist/{name}')
    return path


def save(path: pathlib.Path, shape=(28, 28), counts=(6, 2, 3), classes=2, **changed) -> str:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in zip(('train', 'val', 'test'), counts, strict=True):
        arrays[f'{split}_images'] = rng.integers(0, 256, (n, *shape), np.uint8)
        arrays[f'{split}_labels'] = (np.arange(n)[:, None] % classes).astype(np.uint8)
    np.savez_compressed(path, **(arrays | changed))
    return str(path)


def test_classes_have_their_names(tmp_path):
    source = medmnist.source(save(tmp_path / 'bloodmnist_64.npz', (64, 64, 3), classes=8))
    assert source.labels[3] == 'immature_granulocytes' and len(source.labels) == 8
    assert [list(source.label(i)).index(1) for i in range(6)] == [0, 1, 2, 3, 4, 5] and sum(source.label(3)) == 1
    assert {entry.patient for entry in source.entries} == {None} and source.namespace == 'bloodmnist'
    assert source.entries[2].image == 'train/2 of 6'  # not the published train/2
    notes = ' '.join(source.notes)
    assert 'none of the published ones' in notes and 'bloodmnist has 11959 train images, this list 6' in notes
    data, _ = build(source, tmp_path / 'out')
    assert data.splits == {'train': 6, 'val': 2, 'test': 3} and data.channels == 3 and data.size == 64

    source = medmnist.source(save(tmp_path / 'pneumoniamnist.npz'))
    assert source.labels == ('pneumonia',) and [*map(list, map(source.label, range(3)))] == [[0], [1], [0]]
    assert medmnist.source(save(tmp_path / 'dermamnist.npz', (28, 28, 3), classes=7)).license == 'CC BY-NC 4.0'


def test_several_findings_and_missing_labels(tmp_path):
    several = np.zeros((6, 14), np.uint8)
    several[1, [2, 12]] = 1
    path = save(tmp_path / 'chestmnist.npz', train_labels=several, val_labels=several[:2], test_labels=several[:3])
    source = medmnist.source(path)
    assert [source.labels[k] for k in np.flatnonzero(source.label(1))] == ['pleural_effusion', 'pleural_thickening']
    assert sorted(source.labels) == sorted(set(nih.LABELS) - {'no_finding'})  # a finding has one name in all sets
    assert any('NIH' in note for note in source.notes)
    arrays = dict(np.load(path))
    np.savez(path, **{name: array for name, array in arrays.items() if name != 'val_labels'})
    assert medmnist.source(path).label(6) == [BLANK] * 14


def test_volumes_become_slices_of_one_study(tmp_path):
    source = medmnist.source(save(tmp_path / 'fracturemnist3d.npz', (28, 28, 28), classes=3))
    assert len(source.entries) == 11 * 28 and source.labels[1] == 'nondisplaced_rib_fracture'
    first, last = source.entries[28], source.entries[55]
    assert first.study == last.study == first.patient and first.image != last.image
    assert last.where == 'train_images[1] slice 27' and source.entries[56].study != last.study
    assert source.label(28) == source.label(55) == [0, 1, 0]
    images = np.load(tmp_path / 'fracturemnist3d.npz')['val_images']
    np.testing.assert_array_equal(source.load(7 * 28 + 5).image, images[1, 5])
    drawn = source._replace(entries=[entry._replace(split=None) for entry in source.entries])
    data, _ = build(drawn, tmp_path / 'out')
    keys = [set(data.split(split).keys('study').tolist()) for split in data.splits]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 11


def test_a_published_file_is_recognised_by_its_md5(tmp_path, monkeypatch):
    path = save(tmp_path / 'nodulemnist3d_64.npz', (64, 64, 64), (1, 1, 1))
    md5 = hashlib.md5(pathlib.Path(path).read_bytes()).hexdigest()
    known = medmnist.SETS['nodulemnist3d']._replace(md5=('0' * 32, md5))
    monkeypatch.setitem(medmnist.SETS, 'nodulemnist3d', known)
    assert medmnist.source(path).notes[0].startswith('the file is the published one of 64 px')


def test_older_files_are_recognised_by_their_counts(tmp_path, monkeypatch):
    old = published_splits.LISTS['medmnist/organamnist before 2.2.4']._replace(images={'train': 6, 'val': 2, 'test': 3})
    monkeypatch.setitem(published_splits.LISTS, 'medmnist/organamnist before 2.2.4', old)
    source = medmnist.source(save(tmp_path / 'organamnist.npz', classes=11))
    assert 'before MedMNIST 2.2.4' in source.notes[0] and source.splits == 'medmnist/organamnist before 2.2.4'


def test_large_arrays_are_mapped_from_a_temporary_file_that_is_removed(tmp_path, monkeypatch):
    path = save(tmp_path / 'pathmnist_64.npz', (64, 64, 3), classes=9)
    small = medmnist.source(path)
    monkeypatch.setattr(npz, 'IN_MEMORY', 10_000)
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr(tempfile, 'tempdir', None)
    held = npz.arrays(pathlib.Path(path))
    assert isinstance(held['train_images'], np.memmap) and not isinstance(held['train_labels'], np.memmap)
    large = medmnist.source(path)
    np.testing.assert_array_equal(large.load(4).image, small.load(4).image)
    assert [file.name for file in tmp_path.iterdir()] == ['pathmnist_64.npz']


def test_every_set_has_labels_counts_and_md5s():
    assert len(medmnist.SETS) == 18 and sum(name.endswith('3d') for name in medmnist.SETS) == 6
    for name, known in medmnist.SETS.items():
        assert f'medmnist/{name}' in published_splits.LISTS
        assert len(known.md5) == (2 if name.endswith('3d') else 4) and {len(md5) for md5 in known.md5} == {32}
        assert all(label.isidentifier() for label in known.labels) and len({*known.labels}) == len(known.labels)
    assert len({md5 for known in medmnist.SETS.values() for md5 in known.md5}) == 12 * 4 + 6 * 2


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the name of a MedMNIST file; did you mean 'pathmnist'.*medjax build npz"):
        medmnist.source(save(tmp_path / 'pathmnis.npz'))
    with pytest.raises(UserError, match='does not exist'):
        medmnist.source(str(tmp_path / 'breastmnist.npz'))
    with pytest.raises(UserError, match='labels from 0 to 8; this set counts its 4 classes'):
        medmnist.source(save(tmp_path / 'octmnist.npz', classes=9, counts=(9, 9, 9)))
    with pytest.raises(UserError, match='which does not fit organmnist3d'):
        medmnist.source(save(tmp_path / 'organmnist3d.npz'))
    with pytest.raises(UserError, match='which does not fit octmnist'):
        medmnist.source(save(tmp_path / 'octmnist.npz', (28, 28, 28)))
    with pytest.raises(UserError, match='2 val_images but 1 val_labels'):
        medmnist.source(save(tmp_path / 'breastmnist.npz', val_labels=np.zeros((1, 1), np.uint8)))
    with pytest.raises(UserError, match='of Python objects'):
        medmnist.source(save(tmp_path / 'breastmnist.npz', val_labels=np.array([[None]], object)))


def test_the_real_official_file(tmp_path):
    source = medmnist.source(str(real('breastmnist.npz')))
    assert source.notes[0].startswith('the file is the published one of 28 px')
    assert source.entries[0].image == 'train/0' and source.splits == 'medmnist/breastmnist'
    data, summary = build(source, tmp_path / 'out')
    assert data.splits == {'train': 546, 'val': 78, 'test': 156} and data.labels == ('normal_benign',)
    assert [int(data.split(split).labels_array.sum()) for split in data.splits] == [399, 57, 114]
    assert any(leak['kind'] == 'pixels' for leak in summary['audit']['leaks'])


def test_the_real_trimmed_file(tmp_path):
    source = medmnist.source(str(real('pneumoniamnist_trimmed.npz')))
    assert source.notes[:2] == [
        'the file is none of the published ones (MD5 f5b994ec7c2fe8bc81ae15cbab7c3df8)',
        'medmnist/pneumoniamnist has 4708 train images, this list 3882',
    ]
    assert source.splits == 'medmnist/pneumoniamnist, altered'
    assert source.entries[0].image == 'train/0 of 3882' and source.entries[-1].image == 'test/623'
    data, _ = build(source, tmp_path / 'out')
    assert data.splits == {'train': 3882, 'val': 524, 'test': 624}
    assert int(data.split('train').labels_array.sum()) == 3494
