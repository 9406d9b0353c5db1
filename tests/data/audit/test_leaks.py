"""The audit finds planted leaks of each kind and no others, and its result does not identify a patient."""

from __future__ import annotations

import io
import json
import pathlib

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
    """A data set of pictures, each of its own patient; changes['entries'] has new values by number of entry."""
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


def leak_set(result) -> set[tuple[str, str, str, int]]:
    return {(leak['kind'], leak['known'], leak['held_out'], leak['records']) for leak in result['leaks']}


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    return build(tmp_path_factory.mktemp('clean'), 'clean', PICTURES)


def test_one_patient_with_nearly_all_studies_is_a_doubt(tmp_path):
    train = ['train'] * len(PICTURES)
    for others, is_doubt in ((0, True), (3, True), (8, False)):
        one = {i: dict(patient='p') for i in range(others, len(PICTURES))}
        data = build(tmp_path, f'others{others}', PICTURES, train, entries=one)
        verdict = leaks.audit([data])['verdict']
        assert verdict[0].startswith('leaks cannot be ruled out' if is_doubt else 'no leak found')
        assert any(f'{40 - others} of 40 studies' in sentence for sentence in verdict) == is_doubt


def test_another_namespace_is_a_doubt_unless_both_origins_are_known(tmp_path):
    half = len(PICTURES) // 2
    known = {i: dict(origin=Origin('nih', f'n{i}', f'q{i}')) for i in range(half)}
    sets = {
        'a': build(tmp_path, 'a', PICTURES[:half]),
        'derived': build(tmp_path, 'derived', PICTURES[half:], entries=known),
        'release': build(tmp_path, 'release', PICTURES[:half], namespace='chexpert'),
        'partly': build(tmp_path, 'partly', PICTURES[half:], entries={0: known[0]}),
    }
    for first, second, is_doubt in (('a', 'partly', True), ('release', 'partly', True), ('release', 'derived', False)):
        verdict = leaks.audit([sets[first], sets[second]])['verdict']
        assert verdict[0].startswith('leaks cannot be ruled out' if is_doubt else 'no leak found'), verdict
        assert sum('different namespaces' in sentence for sentence in verdict) == 1


def test_namespaces_of_releases():
    sources = pathlib.Path(npz.__file__).parent
    for name in leaks.RELEASES:
        assert f"namespace='{name}'" in (sources / f'{name}.py').read_text()


def test_nothing_is_found_where_nothing_is_planted(clean, tmp_path):
    result = leaks.audit([clean])
    assert result['leaks'] == result['shared'] == [] and result['verdict'] == ['no leak found']
    assert json.loads((clean.path / 'audit.json').read_text()) == json.loads(json.dumps(result))
    others = [phantom.record(i, phantom.Settings(size=128)).image for i in range(400, 440, 4)]
    result = leaks.audit([clean, build(tmp_path, 'other', others)])
    assert result['leaks'] == result['shared'] == []


def test_equal_pixels_and_near_duplicates(tmp_path):
    pictures = list(PICTURES)
    pictures[30] = pictures[3]  # a test image equals a training image
    pictures[31] = jpeg(pictures[24])  # another is a validation image, coded again
    pictures[25] = smaller(pictures[4])  # a validation image is a training image of half the size
    pictures[33] = cropped(pictures[5])
    pictures[7] = pictures[6]
    result = leaks.audit([build(tmp_path, 'leaky', pictures, label=lambda i: [int(i in (6, 33))])])
    assert leak_set(result) == {
        ('pixels', 'leaky/train', 'leaky/test', 1),
        ('near', 'leaky/train', 'leaky/val', 1),
        ('near', 'leaky/val', 'leaky/test', 1),
        ('near', 'leaky/train', 'leaky/test', 1),
    }
    by = {(leak['kind'], leak['held_out']): leak['pairs'] for leak in result['leaks']}
    assert by['pixels', 'leaky/test'] == [[3, 0, 1.0]] and by['near', 'leaky/val'][0][:2] == [4, 1]
    assert [f['records'] for f in result['shared']] == [1] and 'another record of leaky/train' in result['verdict'][4]
    assert result['labels']['contradictions'] == 2  # records 6 and 7, and 5 and 33
    assert result['labels']['pairs'][0][:4] == ['leaky/train', 6, 'leaky/train', 7]


@pytest.mark.slow
def test_all_copies_are_counted_however_many(tmp_path):
    """The search keeps only the nearest matches of a picture, but the audit counts the whole cluster."""
    copies = [jpeg(np.asarray(Image.fromarray(PICTURES[3]).resize((n, n)))) for n in range(80, 125)]
    pictures = [*PICTURES[:24], *copies]
    result = leaks.audit([build(tmp_path, 'copies', pictures, ['train'] * 24 + ['test'] * len(copies))])
    assert leak_set(result) == {('near', 'copies/train', 'copies/test', len(copies))}


def test_sets_together_have_the_leaks_that_each_has_alone(tmp_path):
    pictures = [*PICTURES[:30], *(jpeg(picture) for picture in PICTURES[:10])]
    one = build(tmp_path, 'one', pictures)
    other = build(tmp_path, 'other', pictures)
    alone = leak_set(leaks.audit([one]))
    assert alone == {('near', 'one/train', 'one/test', 10)}
    both = leak_set(leaks.audit([one, other]))
    assert both == leak_set(leaks.audit([other, one]))
    assert alone < both and ('near', 'other/train', 'other/test', 10) in both
    assert ('near', 'one/train', 'other/test', 10) in both


def test_a_copy_without_a_patient_stays_with_the_patient_that_is_known(tmp_path):
    pictures = [*PICTURES[:20], *(smaller(picture) for picture in PICTURES[:20])]
    blank = {i: dict(patient=None, study=f'x{i}') for i in range(20, 40)}
    result = leaks.audit([build(tmp_path, 'mixed', pictures, [None] * 40, entries=blank)])
    assert result['leaks'] == []


def test_what_was_not_compared_is_reported(clean, tmp_path):
    other = build(tmp_path, 'elsewhere', PICTURES[:2], ['test'] * 2, entries={0: dict(patient=None)})
    sentences = leaks.audit([clean, other])['unknown']
    assert any("'clean' and 'elsewhere'" in sentence for sentence in sentences)
    assert any('1 of 2 images names no patient' in sentence for sentence in sentences)


def test_patients_and_derived_images_between_sets(clean, tmp_path):
    others = [phantom.record(i, phantom.Settings(size=128)).image for i in range(800, 840, 4)]
    test = ['test'] * len(others)
    shared = build(tmp_path, 'followup', others, test, namespace='clean', entries={0: dict(patient='p1', image='x')})
    # the other images of followup have the ids '1', '2', … in the namespace of clean, so they count as clean's images
    result = leaks.audit([clean, shared])
    assert ('patient', 'clean/train', 'followup/test', 10) in leak_set(result)
    origin = Origin('clean', '2', 'p2')
    derived = build(tmp_path, 'derived', others, test, entries={4: dict(origin=origin)})
    result = leaks.audit([clean, derived])
    assert leak_set(result) == {
        ('patient', 'clean/train', 'derived/test', 1),
        ('image', 'clean/train', 'derived/test', 1),
    }
    assert result['leaks'][1]['pairs'] == [[2, 4, 1.0]]


def test_ids_are_not_compared_across_keys_but_pixels_are(clean, tmp_path):
    other = build(tmp_path, 'clean', PICTURES[:3], ['test'] * 3, key=b'another')
    result = leaks.audit([clean, other])
    assert leak_set(result) == {('pixels', 'clean#1/train', 'clean#2/test', 3)}
    assert 'hashed with different keys' in result['unknown'][0]


def test_texts_that_repeat_are_counted(tmp_path):
    texts = {0: 'No acute findings.', 1: 'no  acute findings.', 2: 'Effusion.'}
    result = leaks.audit([build(tmp_path, 'texts', PICTURES, texts=texts)])
    assert result['texts'] == {'texts/train': dict(records=3, distinct=2, most=2, record=0)}


def test_drops_are_counted_by_reason(tmp_path):
    pictures = [*PICTURES[:30], *[b'nothing', b''] * 5]
    result = leaks.audit([build(tmp_path, 'damaged', pictures)])
    reasons = {drop['reason']: drop['count'] for drop in result['sets'][0]['drops']}
    assert reasons == {'neither JPEG, PNG nor DICOM': 5, 'an empty file': 5}


@pytest.mark.parametrize(('name', 'pixels'), [('breastmnist', 1), ('pneumoniamnist_trimmed', 8)])
def test_leaks_of_public_files(real_data, tmp_path, name, pixels):
    write.write(npz.source(str(real_data / 'medmnist' / f'{name}.npz')), tmp_path / name)
    result = json.loads((tmp_path / name / 'audit.json').read_text())
    assert sum(leak['records'] for leak in result['leaks'] if leak['kind'] == 'pixels') == pixels
    near = sum(leak['records'] for leak in result['leaks'] if leak['kind'] == 'near')
    assert near > 50 if name == 'breastmnist' else near < 50
