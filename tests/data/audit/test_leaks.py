"""The audit: planted leaks of each kind are found, unplanted ones are not, and nothing tells who a patient is."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from medjax.data import phantom, records
from medjax.data.audit import leaks
from medjax.data.builder import write
from medjax.data.sources import npz
from medjax.data.types import Entry, Example, Origin, Source

PICTURES = [phantom.record(i, phantom.Settings(size=128)).image for i in range(0, 160, 4)]  # of different patients
SPLIT = ['train'] * 24 + ['val'] * 6 + ['test'] * 10


def build(folder, name, pictures, split=SPLIT, label=lambda i: [0], key=None, **changes):
    """A data set of pictures, each of a patient of its own but for `changes` of entries."""
    entries = [Entry(f'{i}', f'p{i}', f's{i}', s) for i, s in zip(range(len(pictures)), split)]
    for i, change in changes.get('entries', {}).items():
        entries[i] = entries[i]._replace(**change)
    texts = changes.get('texts', {})
    load = lambda i: Example(pictures[i], text={'report': texts[i]} if i in texts else {})  # noqa: E731
    space = changes.get('namespace', name)
    write.write(Source(name, '1', space, ('sick',), '', entries, label, load, key=key), folder / name)
    return records.open(folder / name)


def jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=50)
    return np.asarray(Image.open(file))


def smaller(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC))


def cropped(picture: np.ndarray) -> np.ndarray:
    return picture[4:124, 2:122]


def found_leaks(found) -> set[tuple[str, str, str, int]]:
    return {(leak['kind'], leak['known'], leak['held_out'], leak['records']) for leak in found['leaks']}


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    return build(tmp_path_factory.mktemp('clean'), 'clean', PICTURES)


def test_nothing_is_found_where_nothing_is_planted(clean, tmp_path):
    found = leaks.audit([clean])
    assert found['leaks'] == found['shared'] == [] and found['verdict'] == ['no leak found']
    assert json.loads((clean.path / 'audit.json').read_text()) == json.loads(json.dumps(found))
    others = [phantom.record(i, phantom.Settings(size=128)).image for i in range(400, 440, 4)]
    found = leaks.audit([clean, build(tmp_path, 'other', others)])
    assert found['leaks'] == found['shared'] == []


def test_equal_pixels_and_near_duplicates(tmp_path):
    pictures = list(PICTURES)
    pictures[30] = pictures[3]  # a test image is a training image
    pictures[31] = jpeg(pictures[24])  # … a validation image, coded again
    pictures[25] = smaller(pictures[4])  # a validation image is a training image of half the size
    pictures[33] = cropped(pictures[5])
    pictures[7] = pictures[6]
    found = leaks.audit([build(tmp_path, 'leaky', pictures, label=lambda i: [int(i in (6, 33))])])
    assert found_leaks(found) == {
        ('pixels', 'leaky/train', 'leaky/test', 1),
        ('near', 'leaky/train', 'leaky/val', 1),
        ('near', 'leaky/val', 'leaky/test', 1),
        ('near', 'leaky/train', 'leaky/test', 1),
    }
    by = {(leak['kind'], leak['held_out']): leak['pairs'] for leak in found['leaks']}
    assert by['pixels', 'leaky/test'] == [[3, 0, 1.0]] and by['near', 'leaky/val'][0][:2] == [4, 1]
    assert [f['records'] for f in found['shared']] == [1] and 'another record of leaky/train' in found['verdict'][4]
    assert found['labels']['contradictions'] == 2  # records 6 and 7, and 5 and 33
    assert found['labels']['pairs'][0][:4] == ['leaky/train', 6, 'leaky/train', 7]


@pytest.mark.slow
def test_all_copies_are_counted_however_many(tmp_path):
    """The search keeps some of the nearest pairs of a picture; the audit tells the whole group."""
    copies = [jpeg(np.asarray(Image.fromarray(PICTURES[3]).resize((n, n)))) for n in range(80, 125)]
    pictures = [*PICTURES[:24], *copies]
    found = leaks.audit([build(tmp_path, 'copies', pictures, ['train'] * 24 + ['test'] * len(copies))])
    assert found_leaks(found) == {('near', 'copies/train', 'copies/test', len(copies))}


def test_sets_together_say_what_each_says_alone(tmp_path):
    pictures = [*PICTURES[:30], *(jpeg(picture) for picture in PICTURES[:10])]
    one = build(tmp_path, 'one', pictures)
    other = build(tmp_path, 'other', pictures)
    alone = found_leaks(leaks.audit([one]))
    assert alone == {('near', 'one/train', 'one/test', 10)}
    both = found_leaks(leaks.audit([one, other]))
    assert both == found_leaks(leaks.audit([other, one]))
    assert alone < both and ('near', 'other/train', 'other/test', 10) in both
    assert ('near', 'one/train', 'other/test', 10) in both


def test_a_copy_without_a_patient_stays_with_the_patient_that_is_known(tmp_path):
    pictures = [*PICTURES[:20], *(smaller(picture) for picture in PICTURES[:20])]
    blank = {i: dict(patient=None, study=f'x{i}') for i in range(20, 40)}
    found = leaks.audit([build(tmp_path, 'mixed', pictures, [None] * 40, entries=blank)])
    assert found['leaks'] == []


def test_what_was_not_compared_is_said(clean, tmp_path):
    other = build(tmp_path, 'elsewhere', PICTURES[:2], ['test'] * 2, entries={0: dict(patient=None)})
    said = leaks.audit([clean, other])['unknown']
    assert any("'clean' and 'elsewhere'" in sentence for sentence in said)
    assert any('1 image names no patient' in sentence for sentence in said)


def test_patients_and_derived_images_between_sets(clean, tmp_path):
    others = [phantom.record(i, phantom.Settings(size=128)).image for i in range(800, 840, 4)]
    test = ['test'] * len(others)
    shared = build(tmp_path, 'followup', others, test, namespace='clean', entries={0: dict(patient='p1', image='x')})
    # unnamed images of followup are '1', '2', …: ids of clean's images too, in one namespace
    found = leaks.audit([clean, shared])
    assert ('patient', 'clean/train', 'followup/test', 10) in found_leaks(found)
    origin = Origin('clean', '2', 'p2')
    derived = build(tmp_path, 'derived', others, test, entries={4: dict(origin=origin)})
    found = leaks.audit([clean, derived])
    assert found_leaks(found) == {
        ('patient', 'clean/train', 'derived/test', 1),
        ('image', 'clean/train', 'derived/test', 1),
    }
    assert found['leaks'][1]['pairs'] == [[2, 4, 1.0]]


def test_ids_are_not_compared_across_keys_but_pixels_are(clean, tmp_path):
    other = build(tmp_path, 'clean', PICTURES[:3], ['test'] * 3, key=b'another')
    found = leaks.audit([clean, other])
    assert found_leaks(found) == {('pixels', 'clean#1/train', 'clean#2/test', 3)}
    assert 'hashed with different keys' in found['unknown'][0]


def test_texts_that_repeat_are_counted(tmp_path):
    texts = {0: 'No acute findings.', 1: 'no  acute findings.', 2: 'Effusion.'}
    found = leaks.audit([build(tmp_path, 'texts', PICTURES, texts=texts)])
    assert found['texts'] == {'texts/train': dict(records=3, distinct=2, most=2, record=0)}


def test_what_was_set_aside_is_told_by_reason(tmp_path):
    pictures = [*PICTURES[:30], *[b'nothing', b''] * 5]
    found = leaks.audit([build(tmp_path, 'damaged', pictures)])
    reasons = {drop['reason']: drop['count'] for drop in found['sets'][0]['drops']}
    assert reasons == {'neither JPEG, PNG nor DICOM': 5, 'an empty file': 5}


@pytest.mark.parametrize(('name', 'pixels'), [('breastmnist', 1), ('pneumoniamnist_trimmed', 8)])
def test_what_is_known_of_public_files(real_data, tmp_path, name, pixels):
    write.write(npz.source(str(real_data / 'medmnist' / f'{name}.npz')), tmp_path / name)
    found = json.loads((tmp_path / name / 'audit.json').read_text())
    assert sum(leak['records'] for leak in found['leaks'] if leak['kind'] == 'pixels') == pixels
    near = sum(leak['records'] for leak in found['leaks'] if leak['kind'] == 'near')
    assert near > 50 if name == 'breastmnist' else near < 50
