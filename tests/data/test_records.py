"""From a source to a data set and back: records, columns, the summary, and comparisons between data sets."""

import csv
import functools
import json
import os
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medjax.data import records
from medjax.data.audit import seen
from medjax.data.builder import chunks, ids, splits, write
from medjax.data.format import Dropped, read_drops, write_drops
from medjax.data.images import decode
from medjax.data.sources import npz, table
from medjax.data.types import SPLIT_NAMES, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

rng = np.random.default_rng(0)
PIXELS = [rng.integers(0, 256, (20 + i % 3, 30, 1)).astype(np.uint8) for i in range(40)]


def source(count: int = 40, **changes) -> Source:
    """Images of 10 invented patients; every seventh cannot be read."""

    def load(i: int) -> Example:
        if i % 7 == 6:
            raise Unreadable('damaged in a test')
        mask = (PIXELS[i][..., 0] > 128).astype(np.uint8) * 255
        return Example(
            image=PIXELS[i],
            role='frontal',
            text={'findings': f'Pläce {i}.'},
            attributes={'sex': 'F', 'age': float(i)} if i % 2 else {'sex': 'M'},
            mask=mask if i % 3 == 0 else mask[1:] if i % 3 == 1 else None,
        )

    entries = [Entry(f'image{i}', f'patient{i % 10}', f'study{i}', None, f'line {i}') for i in range(count)]
    whole = Source(
        'invented', '1', 'invented', ('a', 'b'), 'CC0', entries, lambda i: [i % 2, -2 + i % 4], load, size=None
    )
    return whole._replace(**changes)


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> tuple[pathlib.Path, dict]:
    out = tmp_path_factory.mktemp('built') / 'data'
    return out, write.write(source(dropped=[Drop('gone', 'line 99', 'no such file')]), out)


def test_records_come_back_as_they_were(built):
    out, _ = built
    data = records.open(out)
    assert data.labels == ('a', 'b') and (data.channels, data.bits, data.size) == (1, 8, 30)
    usable = [i for i in range(40) if i % 7 != 6]
    by_split = {s: [i for i in usable if splits.draw('invented', f'patient{i % 10}') == s] for s in SPLIT_NAMES}
    assert data.splits == {s: len(chosen) for s, chosen in by_split.items() if chosen}
    assert len(data.splits) > 1
    for name, chosen in by_split.items():
        if not chosen:
            continue
        split = data.split(name)
        assert len(split) == len(chosen)
        for n, i in enumerate(chosen):
            record = split[n]
            np.testing.assert_array_equal(record.image, PIXELS[i])
            assert record.label.tolist() == [i % 2, -2 + i % 4] and record.label.dtype == np.int8
            assert record.keys['patient'] == ids.hashed(b'a key for tests', 'invented', f'patient{i % 10}')
            assert record.keys['image'] == ids.hashed(b'a key for tests', 'invented', f'image{i}')
            assert record.keys['pixels'] == chunks.pixel_hash(PIXELS[i])
            assert record.attributes['text'] == {'findings': f'Pläce {i}.'}
            assert (record.attributes['split'], record.attributes['role'], record.attributes['sex']) == (
                name,
                'frontal',
                'FM'[i % 2 == 0],
            )
            mask = split.mask(n)
            assert (mask is None) == (i % 3 != 0)
            if mask is not None:
                np.testing.assert_array_equal(mask, (PIXELS[i][..., 0] > 128) * 255)
        np.testing.assert_array_equal(split.labels_array, [[i % 2, -2 + i % 4] for i in chosen])
        np.testing.assert_array_equal(split.column('age'), [float(i) if i % 2 else np.nan for i in chosen])
        np.testing.assert_array_equal(split.keys('pixels'), [chunks.pixel_hash(PIXELS[i]) for i in chosen])


def test_structures_are_bits_of_a_mask_with_names(tmp_path, built):
    split = records.open(built[0]).split('train')
    with_mask = next(i for i in range(len(split)) if split.mask(i) is not None)
    assert split.data.masks == () and split.data.structures == ('mask',)
    np.testing.assert_array_equal(split.structures(with_mask), split.mask(with_mask)[None] > 0)

    def load(i: int) -> Example:
        mask = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5
        return Example(np.full((6, 8), i, np.uint8), mask=mask if i % 2 else None)

    several = source(masks=('lung', 'heart'), load=load)
    write.write(several, tmp_path / 'several')
    write.write(source(masks=('lung',), load=load), tmp_path / 'one')
    values = np.arange(48).reshape(6, 8) % 5
    bits = np.stack([np.isin(values, (1, 3)), np.isin(values, (2, 3))])
    for name, expected in (('several', bits), ('one', values[None] > 0)):
        data = records.open(tmp_path / name)
        assert data.masks == (('lung', 'heart') if name == 'several' else ('lung',))
        for split in map(data.split, data.splits):
            for i in range(len(split)):
                found = split.structures(i)
                assert (found is None) == (split.mask(i) is None)
                assert found is None or (found.dtype == bool and (found == expected).all())


def test_a_data_set_without_names_of_masks_is_read(built):
    file = built[0] / 'medjax.json'
    text = file.read_text()
    facts = json.loads(text)
    del facts['masks']
    try:
        file.write_text(json.dumps(facts))
        assert records.open(built[0]).masks == ()
    finally:
        file.write_text(text)


def test_the_fingerprint_depends_on_masks(tmp_path):
    def load(i: int, mask: int) -> Example:
        return Example(PIXELS[i], mask=np.full(PIXELS[i].shape[:2], mask, np.uint8))

    found = [
        write.write(source(load=functools.partial(load, mask=mask)), tmp_path / f'{mask}')['fingerprint']
        for mask in (0, 1)
    ]
    assert found[0] != found[1]


def test_mean_and_deviation_are_those_of_the_train_pixels(built):
    data = records.open(built[0])
    train = data.split('train')
    values = np.concatenate([train.image(i).ravel() for i in range(len(train))]) / 255.0
    np.testing.assert_allclose([data.mean, data.std], [values.mean(), values.std()], rtol=1e-12)


def test_what_was_set_aside_is_counted_and_listed_without_ids(built):
    out, summary = built
    listed = list(csv.DictReader((out / 'drops.csv').open()))
    dropped = {row['where']: row['reason'] for row in listed if row['scope'] == 'record'}
    assert dropped == {'line 99': 'no such file'} | {f'line {i}': 'damaged in a test' for i in range(6, 40, 7)}
    assert summary['dropped'] == records.open(out).dropped == len(dropped)
    masks = [row for row in listed if row['scope'] == 'detail']
    assert len(masks) == sum(i % 3 == 1 and i % 7 != 6 for i in range(40))
    assert all('the mask is left out: it has' in row['reason'] for row in masks)
    keys = {row['image_key'] for row in listed}
    assert f'{int(ids.hashed(b"a key for tests", "invented", "image6")):016x}' in keys


def test_the_list_of_drops_of_an_older_build_is_read(tmp_path):
    file = tmp_path / 'drops.csv'
    file.write_text('part,where,reason,image_key\nrecord,line 1,lost,\npart,line 2,the mask is left out,0f\n')
    drops = read_drops(file)
    assert drops == [
        Dropped('record', 'line 1', 'lost', ''),
        Dropped('detail', 'line 2', 'the mask is left out', '0f'),
    ]
    write_drops(tmp_path / 'copy.csv', drops)
    assert read_drops(tmp_path / 'copy.csv') == drops
    assert (tmp_path / 'copy.csv').read_text().startswith('scope,where,reason,image_key')


def test_no_plain_id_reaches_the_disk(built):
    for file in built[0].rglob('*'):
        if file.is_file():
            content = file.read_bytes()
            assert b'patient1' not in content and b'image1' not in content and b'study1' not in content, file


def test_any_thread_reads_any_record(built):
    split = records.open(built[0]).split('train')
    expected = [split[i].image.sum() for i in range(len(split))]
    shared = records.open(built[0]).split('train')
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: shared[i].image.sum(), list(range(len(split))) * 8))
    assert got == expected * 8
    assert split[-1].image.sum() == expected[-1]
    with pytest.raises(IndexError):
        split[len(split)]
    assert sum(1 for _ in split) == len(split)


def test_fingerprint_leaves_the_key_out_and_sees_the_content(tmp_path, monkeypatch, built):
    first = records.open(built[0])
    monkeypatch.setenv('MEDJAX_ID_KEY', 'another key')
    write.write(source(), tmp_path / 'other')
    other = records.open(tmp_path / 'other')
    assert other.fingerprint == first.fingerprint and other.key_fingerprint != first.key_fingerprint
    assert other.splits == first.splits
    assert not set(other.split('train').keys('patient')) & set(first.split('train').keys('patient'))

    def relabelled(i):
        example = source().load(i)
        return example._replace(text={'findings': 'else'}) if i == 3 else example

    changed = write.write(source(load=relabelled), tmp_path / 'changed')
    assert changed['fingerprint'] != first.fingerprint
    assert write.write(source(version='2'), tmp_path / 'version')['fingerprint'] != first.fingerprint


def test_the_same_source_gives_the_same_bytes(tmp_path, built):
    write.write(source(dropped=[Drop('gone', 'line 99', 'no such file')]), tmp_path / 'again')
    files = sorted(file.relative_to(built[0]) for file in built[0].rglob('*') if file.is_file())
    assert [(tmp_path / 'again' / file).read_bytes() == (built[0] / file).read_bytes() for file in files] == [
        True
    ] * len(files)


def test_a_fixed_key_of_a_source_is_used(tmp_path):
    write.write(source(key=b'public'), tmp_path / 'data')
    data = records.open(tmp_path / 'data')
    assert data.key_fingerprint == ids.fingerprint(b'public')


def test_images_are_bounded_masks_with_them_and_pixels_hashed_before(tmp_path, built):
    write.write(source(size=15), tmp_path / 'small')
    small, whole = records.open(tmp_path / 'small'), records.open(built[0])
    assert small.size == 15
    a, b = small.split('train'), whole.split('train')
    np.testing.assert_array_equal(a.keys('pixels'), b.keys('pixels'))
    np.testing.assert_array_equal(a[0].image, decode.bounded(b[0].image, 15))
    k = next(i for i in range(len(a)) if a.mask(i) is not None)
    assert a.mask(k).shape == a[k].image.shape[:2] and set(np.unique(a.mask(k))) <= {0, 255}


def test_one_image_in_colour_or_of_16_bits_changes_the_data_set_and_is_noted(tmp_path):
    deep = PIXELS[0].astype(np.uint16) * 200
    images = [PIXELS[0], deep, np.concatenate([PIXELS[0], PIXELS[0], 255 - PIXELS[0]], -1)]
    entries = [Entry(str(i), str(i), str(i), 'train') for i in range(3)]
    mixed = Source('mixed', '1', 'mixed', (), '', entries, lambda i: [], lambda i: Example(images[i]))
    summary = write.write(mixed, tmp_path / 'data')
    data = records.open(tmp_path / 'data')
    assert (data.channels, data.bits, data.labels) == (3, 16, ())
    train = data.split('train')
    np.testing.assert_array_equal(train[0].image, np.repeat(PIXELS[0], 3, 2).astype(np.uint16) * 257)
    np.testing.assert_array_equal(train[1].image, np.repeat(deep, 3, 2))
    values = np.concatenate([train[i].image.ravel() for i in range(3)]) / 65_535
    np.testing.assert_allclose([data.mean, data.std], [values.mean(), values.std()], rtol=1e-9)
    assert any('in colour' in note for note in summary['notes'])
    assert any('16 bits' in note for note in summary['notes'])
    assert any('no record in val and test' in note for note in summary['notes'])


def test_a_split_whose_images_are_all_unreadable_is_left_out(tmp_path):
    def load(i):
        if i == 1:
            raise Unreadable('damaged')
        return Example(PIXELS[i])

    entries = [Entry(str(i), str(i), str(i), s) for i, s in enumerate(['train', 'val', 'test'])]
    write.write(source(entries=entries, load=load), tmp_path / 'data')
    data = records.open(tmp_path / 'data')
    assert data.splits == {'train': 1, 'test': 1}
    with pytest.raises(UserError, match="no record in the split 'val'; there are train 1, test 1"):
        data.split('val')


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path):
    def load(i):
        raise Unreadable('damaged')

    with pytest.raises(UserError, match=r'no usable image.*40 x damaged'):
        write.write(source(load=load), tmp_path / 'data')
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_and_the_old_data_set(tmp_path):
    write.write(source(), tmp_path / 'data')
    before = (tmp_path / 'data' / 'medjax.json').read_text()

    def load(i):
        if i == 20:
            raise RuntimeError('a bug')
        return source().load(i)

    with pytest.raises(RuntimeError, match='a bug'):
        write.write(source(load=load), tmp_path / 'data', overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ['data']
    assert (tmp_path / 'data' / 'medjax.json').read_text() == before


def test_only_a_data_set_is_overwritten_and_only_when_asked(tmp_path):
    write.write(source(), tmp_path / 'data')
    with pytest.raises(UserError, match='--overwrite'):
        write.write(source(), tmp_path / 'data')
    write.write(source(version='2'), tmp_path / 'data', overwrite=True)
    assert records.open(tmp_path / 'data').version == '2'
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'thesis.txt').write_text('years of work')
    with pytest.raises(UserError, match='is no data set'):
        write.write(source(), tmp_path / 'other', overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'other']


def test_patients_in_two_splits_are_refused(tmp_path):
    entries = [Entry('a', 'p', 's', 'train'), Entry('b', 'p', 's', 'test')]
    with pytest.raises(UserError, match='1 of 1 patients'):
        write.write(source(entries=entries), tmp_path / 'data')
    assert list(tmp_path.iterdir()) == []


def test_opening_a_folder_that_is_no_data_set(tmp_path, built):
    with pytest.raises(UserError, match='no such folder; make one with medjax build'):
        records.open(tmp_path / 'none')
    with pytest.raises(UserError, match=r'no medjax\.json'):
        records.open(tmp_path)
    facts = json.loads((built[0] / 'medjax.json').read_text())
    (tmp_path / 'medjax.json').write_text(json.dumps(facts | {'format': 99}))
    with pytest.raises(UserError, match='format 99'):
        records.open(tmp_path)
    (tmp_path / 'medjax.json').write_text(json.dumps(facts))
    with pytest.raises(UserError, match='incomplete'):
        records.open(tmp_path)
    (tmp_path / 'medjax.json').write_text('{')
    with pytest.raises(UserError, match='damaged'):
        records.open(tmp_path)


def test_overlap_finds_people_images_and_pixels(tmp_path, built):
    data = records.open(built[0])
    seen.write_seen({'main': data}, tmp_path / 'run' / 'seen.npz')
    assert seen.overlap(tmp_path / 'run' / 'seen.npz', data.split('train')) == dict(
        patient=1.0, image=1.0, pixels=1.0, near=1.0, comparable=True
    )
    assert seen.overlap(tmp_path / 'run' / 'seen.npz', data.split('test')) == dict(
        patient=0.0, image=0.0, pixels=0.0, near=0.0, comparable=True
    )
    with np.load(tmp_path / 'run' / 'seen.npz', allow_pickle=False) as file:
        for kind in ('patient', 'image', 'pixels'):
            assert file[kind].dtype == np.uint64 and (np.diff(file[kind].astype(object)) > 0).all()
        assert file['split'].tolist() == ['train'] and file['keys'].tolist() == [data.key_fingerprint]


def test_patients_are_never_compared_across_keys(tmp_path, built):
    train = records.open(built[0])
    write.write(source(key=b'public'), tmp_path / 'public')
    other = records.open(tmp_path / 'public')
    seen.write_seen({'main': train}, tmp_path / 'seen.npz')
    got = seen.overlap(tmp_path / 'seen.npz', other.split('train'))
    assert got == dict(patient=None, image=None, pixels=1.0, near=1.0, comparable=False)
    seen.write_seen({'a': train, 'b': other}, tmp_path / 'both.npz')
    got = seen.overlap(tmp_path / 'both.npz', other.split('train'))
    assert got == dict(patient=1.0, image=1.0, pixels=1.0, near=1.0, comparable=False)


def test_equal_data_give_an_equal_seen_file(tmp_path, built):
    data = records.open(built[0])
    seen.write_seen({'x': data}, tmp_path / 'a.npz')
    seen.write_seen({'y': data}, tmp_path / 'b.npz')
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()


# real data ---------------------------------------------------------------------------------------------------------


def test_nih_table(real_data, tmp_path):
    write.write(table.source(str(real_data / 'nih_cxr64')), tmp_path / 'nih')
    data = records.open(tmp_path / 'nih')
    assert data.splits == {'train': 427, 'val': 85, 'test': 159} and data.dropped == 0
    assert (data.channels, data.bits, data.size) == (1, 8, 64) and len(data.labels) == 15
    positives = sum((data.split(s).labels_array == 1).sum(0) for s in data.splits)
    assert positives[data.labels.index('infiltration')] == 121 and positives[data.labels.index('no_finding')] == 337
    patients = [set(data.split(s).keys('patient').tolist()) for s in data.splits]
    assert len(set.union(*patients)) == sum(map(len, patients)) == 156
    views = np.concatenate([data.split(s).column('view') for s in data.splits])
    assert (views == 'PA').sum() == 409


def test_covid_table(real_data, tmp_path):
    write.write(
        table.source(str(real_data / 'covid_cxr'), labels='category', size=512, masks='lungs'), tmp_path / 'covid'
    )
    data = records.open(tmp_path / 'covid')
    assert data.splits == {'train': 155, 'val': 33, 'test': 67} and data.size == 512
    all_splits = [data.split(s) for s in data.splits]
    labels = np.concatenate([split.labels_array for split in all_splits])
    assert (labels[:, data.labels.index('covid19')] == 1).sum() == 153 and (labels[:, 0] == -2).sum() == 35
    texts = [split[i].attributes['text'] for split in all_splits for i in range(len(split))]
    assert (
        sum(bool(text) for text in texts) == 184 and sum('report' in text for text in texts) == 174
    )  # others have headings
    masks = [(split.mask(i), split.image(i)) for split in all_splits for i in range(len(split))]
    assert sum(mask is not None for mask, _ in masks) == 171 and data.masks == ('lungs',)
    assert all(
        mask.shape == image.shape[:2] and set(np.unique(mask)) <= {0, 255} for mask, image in masks if mask is not None
    )


@pytest.mark.parametrize(
    ('name', 'counts', 'across'), [('breastmnist', (546, 78, 156), 1), ('pneumoniamnist_trimmed', (3882, 524, 624), 8)]
)
def test_medmnist(real_data, tmp_path, name, counts, across):
    summary = write.write(npz.source(str(real_data / 'medmnist' / f'{name}.npz')), tmp_path / name)
    data = records.open(tmp_path / name)
    assert tuple(data.splits.values()) == counts and data.labels == ('label_0',)
    leaks = summary['audit']['leaks']
    assert sum(leak['records'] for leak in leaks if leak['kind'] == 'pixels') == across
    with np.load(real_data / 'medmnist' / f'{name}.npz', allow_pickle=False) as file:
        np.testing.assert_array_equal(data.split('test')[7].image[..., 0], file['test_images'][7])
        np.testing.assert_array_equal(data.split('test').labels_array, file['test_labels'])


@pytest.mark.parametrize('damage', ['lost', 'cut', 'changed'])
def test_a_file_of_records_that_is_lost_or_damaged_later_is_one_sentence(built, tmp_path, damage):
    """The data set was whole when it was opened. The disk fails while a run reads."""
    out = shutil.copytree(built[0], tmp_path / 'data')
    split = records.open(out).split('train')
    (file,) = (out / 'records').glob('records-train.array_record-*')
    if damage == 'lost':
        file.unlink()
    elif damage == 'cut':
        os.truncate(file, file.stat().st_size // 2)
    else:
        content = bytearray(file.read_bytes())
        content[64:-64] = bytes(len(content) - 128)
        file.write_bytes(content)
    whole = records.open(built[0]).split('train')

    def read_all() -> None:
        for i in range(len(split)):
            assert split.raw(i)['image'] == whole.raw(i)['image']  # what is left of a file that was cut

    with pytest.raises(UserError, match='record [0-9]+ of train cannot be read .* is lost or damaged: copy it again'):
        read_all()
