"""`medjax reduce`: repeated slices of a volume are left out, and all other records stay the same, byte for byte."""

from __future__ import annotations

import csv
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score

from medjax import cli
from medjax.data import records
from medjax.data.audit import leaks, near_duplicates
from medjax.data.builder import chunks, reduce, write
from medjax.data.format import KINDS
from medjax.data.types import Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError
from medjax.models import build as models
from medjax.weights import export

# The picture of each slice; its first letter is the volume. a and b alternate in train, c is in test, v is in val. x is
# unreadable.
SLICES = ['a0', 'b0', 'a0', 'b0', 'a1', 'single', 'b1', 'a1', 'a0', 'x', 'c0', 'c0', 'c1', 'v0', 'v0']
KEPT = [0, 1, 4, 5, 6]  # of the nine readable records of train: the first one of each picture of a volume
SPLITS = ['train'] * 10 + ['test'] * 3 + ['val'] * 2


def picture(name: str) -> np.ndarray:
    """Random pictures, each similar only to itself; b0 has the pixels of a0."""
    seed = ['a0', 'a1', 'b1', 'single', 'c0', 'c1', 'v0'].index('a0' if name == 'b0' else name)
    return np.random.default_rng(seed).integers(0, 256, (20, 24), np.uint8)


def source(**changes) -> Source:
    def load(i: int) -> Example:
        if SLICES[i] == 'x':
            raise Unreadable('damaged in a test')
        image = picture(SLICES[i])
        info = {'age': float(i)} if i % 2 else {'sex': 'F'}
        return Example(image, text={'report': f'Slice {i}.'}, attributes=info, mask=(image > 99).astype(np.uint8) * 255)

    study = ['c' if split == 'test' else split if split == 'val' else name[0] for name, split in zip(SLICES, SPLITS)]
    entries = [Entry(f'i{k}', f'p{s}', s, split, f'line {k}') for k, (s, split) in enumerate(zip(study, SPLITS))]
    whole = Source(
        'ct', '1', 'ct', ('odd',), 'CC0', entries, lambda i: [i % 2], load, [Drop('gone', 'line 99', 'lost')],
        masks=('bright',),
    )  # fmt: skip
    return whole._replace(**changes)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'ct'
    write.write(source(), folder)
    return records.open(folder)


@pytest.fixture(scope='module')
def less(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('less') / 'ct'
    assert cli.main(['reduce', str(data.path), '--out', str(out), '--by', 'hash', '--threshold', '0']) == 0
    return records.open(out)


def rows(folder) -> list[dict[str, str]]:
    with (folder / 'drops.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_duplicates_of_a_volume_are_left_out_and_all_else_stays(data, less):
    assert data.splits == {'train': 9, 'val': 2, 'test': 3}
    assert less.splits == {'train': 5, 'val': 2, 'test': 3}, 'b0 is of another volume than a0'
    for split, numbers in (('train', KEPT), ('val', [0, 1]), ('test', [0, 1, 2])):
        old, new = data.split(split), less.split(split)
        assert new.stored(range(len(new))) == old.stored(numbers), 'bytes on disk'
        assert old.column_names == new.column_names
        for name in old.column_names:
            np.testing.assert_array_equal(new.column(name), np.asarray(old.column(name))[numbers])
        np.testing.assert_array_equal(new.labels_array, np.asarray(old.labels_array)[numbers])
        for kind in KINDS:
            np.testing.assert_array_equal(new.keys(kind), np.asarray(old.keys(kind))[numbers])
        for n, i in enumerate(numbers):
            a, b = new[n], old[i]
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(new.mask(n), old.mask(i))
            np.testing.assert_array_equal(new.structures(n), old.structures(i))
            assert str(a.attributes) == str(b.attributes) and a.keys == b.keys


def test_the_metadata_of_the_new_data_set(data, less):
    pixels = np.concatenate([less.split('train').image(i).ravel() for i in range(5)]) / 255
    assert (less.mean, less.std) == (pytest.approx(pixels.mean()), pytest.approx(pixels.std()))
    assert less.mean != data.mean
    assert less.version == '1, train reduced by hash: at most 0 bits from a kept record'
    assert less.fingerprint != data.fingerprint and less.key_fingerprint == data.key_fingerprint
    assert (less.name, less.license, less.labels, less.split_list) == ('ct', 'CC0', ('odd',), 'given')
    assert less.patients == data.patients and less.dropped == data.dropped + 4 == 6
    audit = json.loads((less.path / 'audit.json').read_text())
    assert audit == json.loads(json.dumps(leaks.audit([less])))
    reasons = {drop['reason']: drop['count'] for drop in audit['sets'][0]['drops']}
    assert reasons['at most 0 bits from a kept record of its study'] == 4, (
        'the reasons are equal, because reports count them'
    )


def test_the_list_of_drops(data, less):
    old, new = rows(data.path), rows(less.path)
    assert len(old) == 2 and new[:2] == old
    where = f'of ct ({data.fingerprint}): 0 bits from train/'
    images = data.split('train').keys('image')
    nearest = {2: 0, 3: 1, 7: 4, 8: 0}
    assert [(row['scope'], row['where'], row['image_key']) for row in new[2:]] == [
        ('record', f'train/{i} {where}{kept}', f'{images[i]:016x}') for i, kept in nearest.items()
    ]


def test_the_same_result_again_and_with_another_key(less, data, tmp_path):
    for name in ('same key', 'other key'):
        if name == 'other key':
            write.write(source(key=b'another'), tmp_path / 'ct')
            data = records.open(tmp_path / 'ct')
        reduce.make(data, tmp_path / name, reduce.MEASURES['hash'], 0)
        assert records.open(tmp_path / name).fingerprint == less.fingerprint
    repeats, _ = reduce.make(less, tmp_path / 'twice', reduce.MEASURES['hash'], 0)
    assert (repeats.nearest < 0).all() and repeats.kept_counts.tolist() == repeats.sizes.tolist() == [2, 2]
    assert records.open(tmp_path / 'twice').fingerprint != less.fingerprint, 'another version'


def test_many_chunks_and_shards(data, tmp_path, monkeypatch, less):
    monkeypatch.setattr(chunks, 'SIZE', 2)
    monkeypatch.setattr(reduce, 'COMPARE_BATCH', 1)
    monkeypatch.setattr(reduce, 'COPY_BATCH', 1)
    write.write(source(), tmp_path / 'ct')
    reduce.make(records.open(tmp_path / 'ct'), tmp_path / 'less', reduce.MEASURES['hash'], 0)
    small = records.open(tmp_path / 'less')
    assert small.fingerprint == less.fingerprint and small.mean == pytest.approx(less.mean)
    assert small.split('train').stored(range(5)) == less.split('train').stored(range(5))
    assert len(list((tmp_path / 'less' / 'records').glob('records-train*'))) == 3


def test_what_is_printed(data, tmp_path, capsys):
    assert cli.main(['reduce', str(data.path), '--out', str(tmp_path / 'o'), '--by', 'information']) == 0
    printed = capsys.readouterr().out
    for text in (
        'train: 5 of 9 records are kept (55.6 %)',
        'volumes (studies of several records): 2, with 4 of 8 records kept (50.0 %): 2 to 2 of each volume, median 2',
        'studies of one record: 1, all kept',
        'val 2, test 3: unchanged',
        'audit: no leak found',
    ):
        assert text in printed, text


# The measures


def test_hash_is_imagehash_dhash_of_the_thumbnail():
    thumbs = np.stack([near_duplicates.thumbnail(picture(name)[..., None]) for name in ('a0', 'a1', 'b1')])
    hashes = reduce.dhash(thumbs)
    for thumb, hashed in zip(thumbs, hashes):
        small = np.asarray(Image.fromarray(thumb).resize((9, 8), Image.Resampling.LANCZOS)).astype(int)
        bits = [int(small[y, x + 1] > small[y, x]) for y in range(8) for x in range(8)]
        assert np.unpackbits(hashed).tolist() == bits
    unpacked = np.unpackbits(hashes, axis=1).astype(int)
    np.testing.assert_array_equal(reduce.hamming(hashes[0], hashes), abs(unpacked - unpacked[0]).sum(1))


def test_cosine():
    many = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    expected = [float(np.dot(many[2].astype(float), x) / np.sqrt((many[2] ** 2).sum() * (x**2).sum())) for x in many]
    np.testing.assert_allclose(reduce.cosine(many[2], many), expected, atol=1e-6)
    assert reduce.cosine(many[2], many)[2] == 1


def test_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 16, 1024).astype(np.uint8)
    flat = np.zeros(1024, np.uint8)
    many = np.stack([one, 15 - one, np.where(rng.random(1024) < 0.3, rng.integers(0, 16, 1024), one), one // 4, flat])
    many = many.astype(np.uint8)
    expected = [normalized_mutual_info_score(one, x) for x in many]
    np.testing.assert_allclose(reduce.mutual_information(one, many), expected, atol=1e-6)
    assert reduce.mutual_information(one, many)[:2].tolist() == [1, 1], 'a negative has the same information'
    assert reduce.mutual_information(flat, many)[[0, 4]].tolist() == [0, 1]


def test_slices_are_compared_with_all_kept_slices():
    hashes = np.array([[0b0], [0b11], [0b1111], [0b0], [0b111], [0b1]], np.uint8)
    nearest, value = reduce.repeats_in_volume(hashes, reduce.MEASURES['hash'], 1)
    assert nearest.tolist() == [-1, -1, -1, 0, 1, 0] and value[3:].tolist() == [0, 1, 1]
    nearest, _ = reduce.repeats_in_volume(hashes, reduce.MEASURES['hash'], 2)
    assert nearest.tolist() == [-1, 0, -1, 0, 2, 0], 'the nearest one of the kept slices, not of all'
    features = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    nearest, _ = reduce.repeats_in_volume(features, reduce.MEASURES['embedding'], 0.9)
    assert nearest.tolist() == [-1, 0, -1]


def test_volumes_are_studies_of_several_records():
    studies = np.array([9, 3, 5, 3, 9, 9, 1], np.uint64)
    assert [volume.tolist() for volume in reduce.volumes(studies)] == [[0, 4, 5], [1, 3]]
    batches = list(reduce._batches([np.arange(n) for n in (700, 700, 3)]))
    assert [[len(volume) for volume in batch] for batch in batches] == [[700, 700], [3]]


def test_by_the_embedding_of_an_export(data, tmp_path):
    tower = dict(tower='vit', variant='S/8', width=16, depth=4, heads=2, native_size=32)
    params = models.tower(tower, 1, 'tower').init(jax.random.key(0))
    params = jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype), params
    )
    meta = dict(step=7, size=32, image=dict(channels=1, mean=0.5, std=0.25), towers=dict(image=tower))
    folder = export.save(tmp_path / 'exports' / '7', {'towers': {'image': params}}, meta)
    assert cli.main(
        ['reduce', str(data.path), '--out', str(tmp_path / 'o'), '--by', 'embedding', '--export', str(folder),
         '--threshold', '1']
    ) == 0  # fmt: skip
    less = records.open(tmp_path / 'o')
    assert less.splits['train'] == 5 and 'reduced by embedding of step 7 (' in less.version


# Mistakes and failures leave nothing


def test_mistakes_are_one_sentence_and_leave_nothing(data, tmp_path, capsys):
    alone = source(entries=[e._replace(study=e.image) for e in source().entries])
    write.write(alone, tmp_path / 'alone')
    write.write(source(entries=[e._replace(split='test') for e in source().entries]), tmp_path / 'held out')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'x').touch()
    before = sorted(tmp_path.rglob('*'))
    out = ['--out', str(tmp_path / 'out')]
    here, by = str(data.path), ['--by', 'hash']
    for argv, message in (
        ([here, *out, '--by', 'hahs'], "no 'hahs'; did you mean 'hash'"),
        ([here, *out, '--by', 'embedding'], '--export RUN/exports/STEP'),
        ([here, *out, '--by', 'embedding', '--export', str(tmp_path)], 'holds neither an export'),
        ([here, *out, *by, '--export', 'x'], '--by hash needs no encoder'),
        ([here, *out, *by, '--threshold', '64'], 'a whole number of bits from 0 to 63'),
        ([here, *out, *by, '--threshold', '1.5'], 'a whole number of bits from 0 to 63'),
        ([here, *out, *by, '--threshold', 'nan'], 'from 0 to 63'),
        ([here, *out, '--by', 'information', '--threshold', '-1'], 'a number from 0 to 1'),
        ([str(tmp_path / 'nowhere'), *out, *by], 'no such folder'),
        ([str(tmp_path / 'alone'), *out, *by], 'every study of train has one record: nothing to reduce'),
        ([str(tmp_path / 'held out'), *out, *by], 'no record in train'),
        ([here, '--out', str(tmp_path / 'alone'), *by], 'exists; choose another --out, or add --overwrite'),
        ([here, '--out', str(tmp_path / 'photos'), *by, '--overwrite'], 'is no data set of medjax'),
        ([here, '--out', here, *by, '--overwrite'], 'is the data set itself'),
    ):
        assert cli.main(['reduce', *argv]) == 2, argv
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count('\n') == 1 and not printed.out, argv
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('step', ['find_repeats', '_copy_kept', '_list_drops'])
@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError(28, 'No space left on device'), RuntimeError('a bug')])
def test_nothing_is_left_after_a_failure(data, tmp_path, monkeypatch, step, error):
    whole = getattr(reduce, step)

    def fails(*args):
        whole(*args)
        raise error

    monkeypatch.setattr(reduce, step, fails)
    with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
        reduce.make(data, tmp_path / 'out', reduce.MEASURES['hash'], 0)
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_a_data_set(data, less, tmp_path):
    write.write(source(), tmp_path / 'out')
    reduce.make(data, tmp_path / 'out', reduce.MEASURES['hash'], 0, overwrite=True)
    assert records.open(tmp_path / 'out').fingerprint == less.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_nearer_thresholds_keep_more():
    """In a smooth volume, a wider threshold keeps fewer slices."""
    z, y, x = np.mgrid[:40, :32, :32] / 32
    stack = np.sin(5 * x + 3 * z) + np.cos(4 * y * z + 2 * x) + np.sin(9 * y - 4 * z)
    thumbs = np.stack([near_duplicates.thumbnail((50 * (s + 3)).astype(np.uint8)[..., None]) for s in stack])
    for name, described, thresholds in (
        ('hash', reduce.dhash(thumbs), (0, 3, 6, 12)),
        ('information', reduce.grey_levels(thumbs), (0.99, 0.7, 0.5, 0.3)),
    ):
        kept = [(reduce.repeats_in_volume(described, reduce.MEASURES[name], t)[0] < 0).sum() for t in thresholds]
        assert all(a > b for a, b in itertools.pairwise(kept)) and kept[-1] >= 1, (name, kept)
