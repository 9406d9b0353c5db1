"""What a build shows: conditions, windows for CT, square pixels, squares, and remarks on kept pictures."""

import json

import numpy as np
import pytest
from image_files import dicom, file, smooth

from medjax.commands import build
from medjax.data import records
from medjax.data.builder import where
from medjax.data.format import read_drops
from medjax.errors import UserError

CT = dict(Modality='CT', RescaleSlope=1, RescaleIntercept=-1024)


def ramp(height: int, width: int, dtype=np.uint16) -> np.ndarray:
    return np.linspace(0, 3000, width)[None].repeat(height, 0).round().astype(dtype)


@pytest.fixture
def export(tmp_path):
    """A folder of CT slices with a localizer, a raw mammogram and a picture of one value."""
    root = tmp_path / 'export'
    root.mkdir()
    kinds = {
        'a': dict(ImageType=['ORIGINAL', 'PRIMARY', 'AXIAL'], SeriesDescription='Chest 1.5 B70f Doe', **CT),
        'b': dict(ImageType=['ORIGINAL', 'PRIMARY', 'LOCALIZER'], SeriesDescription='SCOUT', **CT),
        'c': dict(ImageType=['DERIVED', 'SECONDARY', 'CSA MPR', 'DOE'], **CT),
        'd': dict(Modality='MG', PresentationIntentType='FOR PROCESSING'),
        'e': dict(Modality='MG', PresentationIntentType='FOR PRESENTATION'),
    }
    for k, (name, facts) in enumerate(kinds.items()):
        facts = dict(SOPInstanceUID=f'1.2.{k}', StudyInstanceUID=f'1.{k}', PatientID=f'MRN{k}') | facts
        (root / name).write_bytes(dicom(ramp(20, 30) + k, **facts))
    return root


def built(root, out, *options) -> tuple[records.DataSet, list]:
    build.main(['dicom', str(root), '--out', str(out), *options])
    data = records.open(out)
    return data, [record for name in data.splits for record in (data.split(name)[i] for i in range(data.splits[name]))]


def column(found, name: str) -> list:
    return sorted(str(record.attributes.get(name, '')) for record in found)


def reasons(out) -> list[str]:
    return sorted(drop.reason for drop in read_drops(out / 'drops.csv') if drop.scope == 'record')


def test_columns_hold_known_words_alone(export, tmp_path):
    _, found = built(export, tmp_path / 'data')
    assert column(found, 'image_type') == [
        '', '', 'DERIVED SECONDARY MPR', 'ORIGINAL PRIMARY AXIAL', 'ORIGINAL PRIMARY LOCALIZER',
    ]  # fmt: skip
    assert column(found, 'series_description') == ['', '', '', 'CHEST', 'SCOUT']
    assert column(found, 'presentation_intent') == ['', '', '', 'FOR PRESENTATION', 'FOR PROCESSING']
    stored = b''.join(path.read_bytes() for path in (tmp_path / 'data').rglob('*') if path.is_file())
    assert b'DOE' not in stored.upper() and b'CSA' not in stored and b'B70' not in stored.upper()


FACTS = dict(  # image type and modality of the files above
    a=('ORIGINAL PRIMARY AXIAL', 'CT'), b=('ORIGINAL PRIMARY LOCALIZER', 'CT'), c=('DERIVED SECONDARY MPR', 'CT'),
    d=('', 'MG'), e=('', 'MG'),
)  # fmt: skip


@pytest.mark.parametrize(
    ('conditions', 'kept'),
    [
        (['image_type!=LOCALIZER'], 'acde'),
        (['image_type=localizer'], 'b'),
        (['modality=CT', 'image_type!=LOCALIZER'], 'ac'),
        (['image_type = ORIGINAL PRIMARY'], 'ab'),
        (['presentation_intent!=FOR PROCESSING'], 'abce'),
        (['series_description=chest'], 'a'),
        (['modality==MG'], 'de'),
    ],
)
def test_conditions(export, tmp_path, conditions, kept):
    options = [option for condition in conditions for option in ('--where', condition)]
    data, found = built(export, tmp_path / 'data', *options)
    assert len(found) == len(kept)
    stored = {(str(record.attributes.get('image_type', '')), str(record.attributes['modality'])) for record in found}
    assert stored == {FACTS[name] for name in kept}
    left_out = reasons(tmp_path / 'data')
    assert len(left_out) == 5 - len(kept) and all('left out by --where' in reason for reason in left_out)


def test_a_condition_on_nothing_is_told(export, tmp_path, capsys):
    built(export, tmp_path / 'data', '--where', 'image_tpye!=LOCALIZER')
    assert "no image of the data set has an attribute image_tpye; did you mean 'image_type'" in capsys.readouterr().out
    with pytest.raises(UserError, match=r'left out by --where modalty=CT \(it has no modalty\)'):
        built(export, tmp_path / 'none', '--where', 'modalty=CT')
    for text in ('modality', '=CT', 'modality=', 'modality>3', ''):
        with pytest.raises(UserError, match='a condition is name=value'):
            built(export, tmp_path / 'none', '--where', text)


def test_conditions_on_numbers():
    assert where.parse('age=61')({'age': 61.0}) and not where.parse('age=61')({'age': 6.1})
    assert where.parse('age!=DOE')({'age': 61.0}) and where.parse('age!=61')({})


def test_windows(export, tmp_path, capsys):
    data, found = built(export, tmp_path / 'one', '--window', 'lung', '--where', 'modality=CT')
    assert data.channels == 1 and data.bits == 16 and len(found) == 3 and data.windows == [[-600, 1500]]
    k = min(int(record.image[0, 0, 0]) for record in found)
    assert k == round((-1024 + 1350) / 1500 * 65_535)
    data, found = built(export, tmp_path / 'three', '--window=-600/1500,mediastinum,bone')
    assert data.channels == 3 and data.bits == 8 and len(found) == 3
    assert len(reasons(tmp_path / 'three')) == 2 and '--window is for CT' in reasons(tmp_path / 'three')[0]
    assert one_of(data).image[0, -1].tolist() == [255, 255, 255]
    with pytest.raises(UserError, match="did you mean 'lung'"):
        built(export, tmp_path / 'none', '--window', 'lungs')
    assert not (tmp_path / 'none').exists()


def one_of(data):
    return data.split(next(iter(data.splits)))[0]


# Square pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('facts', 'shape', 'spacing'),
    [
        (dict(PixelSpacing=[1.0, 0.5]), (40, 30), 0.5),
        (dict(PixelSpacing=[0.2, 0.3]), (20, 45), 0.2),
        (dict(ImagerPixelSpacing=[0.5, 1.0]), (20, 60), 0.5),
        (dict(PixelAspectRatio=['2', '1']), (40, 30), None),
        (dict(PixelSpacing=[0.3, 0.3001]), (20, 30), 0.3),
        (dict(PixelSpacing=[0.3, 0.0]), (20, 30), None),
        (dict(PixelSpacing=[0.3, 30]), (20, 30), 0.3),  # impossible
        (dict(PixelSpacing=[0.5, 0.5], PixelAspectRatio=['2', '1']), (20, 30), 0.5),
    ],
)
def test_pixels_become_square(tmp_path, facts, shape, spacing):
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'a').write_bytes(dicom(ramp(20, 30), **facts))
    data, (record,) = built(tmp_path / 'export', tmp_path / 'data')
    assert record.image.shape[:2] == shape
    assert record.attributes.get('spacing') == (None if spacing is None else pytest.approx(spacing, abs=1e-4))
    assert sum(data.remarks.values()) == (shape != (20, 30))
    np.testing.assert_allclose(record.image[3, [0, -1], 0] / 65_535, [0, 1], atol=0.02)


@pytest.mark.parametrize(('size', 'shape'), [(30, (30, 22)), (100, (40, 30))])
def test_square_pixels_within_a_bound_with_a_mask(tmp_path, size, shape):
    folder = tmp_path / 'table'
    folder.mkdir()
    (folder / 'a.dcm').write_bytes(dicom(ramp(20, 30), PixelSpacing=[1.0, 0.5]))
    mask = np.zeros((20, 30, 1), np.uint8)
    mask[5:10] = 255
    (folder / 'm.png').write_bytes(file(mask, 'PNG'))
    (folder / 'metadata.csv').write_text('image,patient_id,mask\na.dcm,p,m.png\n')
    build.main(['table', str(folder), '--out', str(tmp_path / 'data'), '--size', str(size)])
    data = records.open(tmp_path / 'data')
    record, mask = one_of(data), data.split(next(iter(data.splits))).mask(0)
    assert record.image.shape[:2] == mask.shape == shape
    rows = np.flatnonzero(mask.any(1)) / shape[0]
    assert abs(rows[0] - 0.25) < 0.05 and abs(rows[-1] - 0.5) < 0.06
    assert record.attributes['spacing'] == pytest.approx(20 / shape[0], rel=0.02)


# Squares -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Pictures of 40 x 40, 40 x 30, 160 x 32 and 32 x 160 pixels (width x height), with masks."""
    folder = tmp_path / 'table'
    folder.mkdir()
    lines = ['image,patient_id,mask']
    for k, (width, height) in enumerate([(40, 40), (40, 30), (160, 32), (32, 160)]):
        pixels = smooth(height, width)
        (folder / f'{k}.png').write_bytes(file(pixels, 'PNG'))
        mask = np.zeros((height, width, 1), np.uint8)
        mask[height // 4 : height // 2, width // 4 : width // 2] = 255
        (folder / f'{k}m.png').write_bytes(file(mask, 'PNG'))
        lines.append(f'{k}.png,p{k},{k}m.png')
    (folder / 'metadata.csv').write_text('\n'.join(lines) + '\n')
    return folder


def by_shape(path) -> list:
    data = records.open(path)
    places = [(data.split(name), i) for name in data.splits for i in range(data.splits[name])]
    return [(split.image(i), split.mask(i)) for split, i in places]


def test_crops(table, tmp_path, capsys):
    build.main(['table', str(table), '--out', str(tmp_path / 'data'), '--fit', 'crop'])
    out = capsys.readouterr().out
    assert '2 x the crop loses more than a third of its area' in out and 'centre square' not in out
    data = records.open(tmp_path / 'data')
    assert data.fit == 'crop' and list(data.remarks.values()) == [2]
    found = by_shape(tmp_path / 'data')
    assert sorted(image.shape for image, _ in found) == [(30, 30, 1), (32, 32, 1), (32, 32, 1), (40, 40, 1)]
    assert all(mask.shape == image.shape[:2] for image, mask in found)
    wide = smooth(32, 160)[:, 64:96]
    assert any(image.shape == wide.shape and (image == wide).all() for image, _ in found)


def test_pads(table, tmp_path, capsys):
    build.main(['table', str(table), '--out', str(tmp_path / 'data'), '--fit', 'pad', '--size', '80'])
    assert 'a third' not in capsys.readouterr().out
    data = records.open(tmp_path / 'data')
    assert data.fit == 'pad' and data.remarks == {}
    found = by_shape(tmp_path / 'data')
    assert sorted(image.shape[:2] for image, _ in found) == [(40, 40), (40, 40), (80, 80), (80, 80)]
    for image, mask in found:
        assert mask.shape == image.shape[:2] and mask.any()
        lit = [int(image.any((axis, 2)).sum()) for axis in (0, 1)]
        assert min(lit) in ((16, 17, 18) if len(image) == 80 else (30, 40)) and max(lit) > 0.9 * len(image)
        # the mask is where it was: between a quarter and a half of what is lit
        for axis, length in zip((1, 0), lit[::-1], strict=True):
            start = (len(image) - length) / 2 / len(image)
            inside = np.flatnonzero(mask.any(axis)) / len(image)
            assert abs(inside[0] - start - length / len(image) / 4) < 0.04


def test_long_pictures_are_counted_without_a_fit(table, tmp_path, capsys):
    build.main(['table', str(table), '--out', str(tmp_path / 'data')])
    assert '2 of 4 images are so long that their centre square loses more than a third' in capsys.readouterr().out
    data = records.open(tmp_path / 'data')
    assert data.fit is None and data.remarks == {}
    lines = (table / 'metadata.csv').read_text().splitlines()
    (table / 'metadata.csv').write_text('\n'.join(lines[:-1]) + '\n')
    build.main(['table', str(table), '--out', str(tmp_path / 'three')])
    assert '1 of 3 images is so long that its centre square loses' in capsys.readouterr().out


@pytest.mark.parametrize('fit', ['crop', 'pad'])
def test_square_jpegs_keep_their_coded_image(tmp_path, fit):
    folder = tmp_path / 'table'
    folder.mkdir()
    coded = file(smooth(40, 40), 'JPEG', quality=90)
    (folder / 'a.jpg').write_bytes(coded)
    (folder / 'metadata.csv').write_text('image,patient_id\na.jpg,p\n')
    build.main(['table', str(folder), '--out', str(tmp_path / 'data'), '--fit', fit])
    data = records.open(tmp_path / 'data')
    assert data.split(next(iter(data.splits))).raw(0)['image'] == coded


def test_a_fit_changes_the_fingerprint(table, tmp_path):
    prints = set()
    for fit in ([], ['--fit', 'crop'], ['--fit', 'pad']):
        build.main(['table', str(table), '--out', str(tmp_path / 'data'), '--overwrite', *fit])
        prints.add(records.open(tmp_path / 'data').fingerprint)
    assert len(prints) == 3


def test_data_sets_without_these_facts_are_read(table, tmp_path):
    build.main(['table', str(table), '--out', str(tmp_path / 'data')])
    path = tmp_path / 'data' / 'medjax.json'
    facts = {
        name: fact for name, fact in json.loads(path.read_text()).items() if name not in ('fit', 'windows', 'remarks')
    }
    path.write_text(json.dumps(facts))
    data = records.open(tmp_path / 'data')
    assert data.fit is None and data.windows == [] and data.remarks == {}


def test_square_crops_in_millimetres(tmp_path):
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'a').write_bytes(dicom(ramp(20, 60), PixelSpacing=[1.0, 0.5]))
    for fit, shape in (('crop', (40, 40)), ('pad', (60, 60))):
        _, (record,) = built(tmp_path / 'export', tmp_path / fit, '--fit', fit)
        assert record.image.shape[:2] == shape and record.attributes['spacing'] == pytest.approx(0.5)


@pytest.mark.parametrize('spacing', [[0.7, 0.43], [0.31, 0.9], [1.0, 1.07]])
@pytest.mark.parametrize('shape', [(37, 58), (61, 40), (50, 51)])
def test_a_fit_stores_squares_whatever_the_spacing(tmp_path, spacing, shape):
    (tmp_path / 'export').mkdir()
    (tmp_path / 'export' / 'a').write_bytes(dicom(ramp(*shape), PixelSpacing=spacing))
    for fit in ('crop', 'pad'):
        _, (record,) = built(tmp_path / 'export', tmp_path / fit, '--fit', fit)
        side = (min if fit == 'crop' else max)(shape[0] * spacing[0], shape[1] * spacing[1]) / min(spacing)
        assert record.image.shape[0] == record.image.shape[1] == pytest.approx(side, abs=1)
        assert record.attributes['spacing'] == pytest.approx(min(spacing), rel=0.03)
