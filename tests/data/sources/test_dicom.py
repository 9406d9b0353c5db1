"""A hospital's export of DICOM files as a source."""

import re
import time

import pytest
from releases_text import all_text, build, dicom, image, labels_of, reasons, save

from medjax.data.sources import dicom as export
from medjax.errors import UserError

PDF, KEY_OBJECTS = '1.2.840.10008.5.1.4.1.1.104.1', '1.2.840.10008.5.1.4.1.1.88.59'
NO_PIXELS = dict(Rows=None, Columns=None, PixelData=None)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / 'export'
    save(root / 'DOE^JANE/20200102/IM1', dicom(SOPInstanceUID='1.2.3'))
    save(root / 'DOE^JANE/20200102/IM2.dcm', dicom(SOPInstanceUID='1.2.4', ViewPosition='LL'))
    save(root / 'DOE^JANE/copy/IM1', dicom(SOPInstanceUID='1.2.3'))
    save(
        root / 'ROE/x.bin',
        dicom(
            SOPInstanceUID='1.5.1', StudyInstanceUID='1.5', PatientID='MRN0815', Modality='MG', ViewPosition='MLO',
            AccessionNumber='A2', ImageLaterality='L', PatientAge='096Y', PatientSex='DOE JANE',
        ),
    )  # fmt: skip
    save(root / 'ROE/anon', dicom(SOPInstanceUID='1.6.1', StudyInstanceUID='1.6', PatientID='ANONYMOUS'))
    save(root / 'ROE/report', dicom(SOPInstanceUID='1.7.1', Modality='SR', SOPClassUID=KEY_OBJECTS, **NO_PIXELS))
    save(root / 'ROE/letter', dicom(SOPInstanceUID='1.7.2', Modality='DOC', SOPClassUID=PDF, **NO_PIXELS))
    save(root / 'ROE/mask', dicom(SOPInstanceUID='1.7.3', Modality='SEG'))
    save(root / 'ROE/odd', dicom(SOPInstanceUID='1.7.4', SOPClassUID='1.3.999.4711', **NO_PIXELS))
    save(root / 'DICOMDIR', dicom(SOPInstanceUID='1.7.5', SOPClassUID='1.2.840.10008.1.3.10', **NO_PIXELS))
    save(root / 'VIEWER/logo.png', image(1))
    save(root / 'VIEWER/empty', b'')
    return root


def test_an_export(tree, tmp_path):
    source = export.source(str(tree))
    data, rows, summary = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 4
    assert sorted(info['role'] for *_, info in rows) == ['frontal', 'frontal', 'lateral', 'mlo']
    breast = next(info for *_, info in rows if info.get('modality') == 'MG')
    assert breast['laterality'] == 'L' and breast['age'] == 90 and 'sex' not in breast
    assert [entry.patient for entry in source.entries] == ['MRN4711', 'MRN4711', None, 'MRN0815']
    assert len({entry.study for entry in source.entries}) == 3
    why = list(reasons(source).values())
    for words in (
        'repeats the instance of file 2', 'Key Object Selection Document Storage', 'Encapsulated PDF Storage',
        'a segmentation', 'an object of an unknown class', 'Media Storage Directory', 'no DICOM file', 'an empty file',
    ):  # fmt: skip
        assert sum(words in reason for reason in why) == 1, (words, why)
    assert len(why) == 8
    assert any('1 images have no PatientID' in note for note in summary['notes'])
    text = all_text(tmp_path / 'out', rows, summary)
    for secret in ('MRN', 'Doe', 'DOE', 'JANE', '1.2.3', '1.5', '20200102', 'A1', '999'):
        assert secret not in text, secret


@pytest.mark.parametrize(
    ('column', 'values'), [('StudyInstanceUID', ('1.2', '1.5')), ('Accession Number', ('A1', 'A2'))]
)
def test_labels_are_joined(tree, tmp_path, column, values):
    jane, roe = values
    table = save(
        tmp_path / 'labels.csv',
        f'{column},PatientName,effusion,mass,nodule\n'
        f'{jane},Doe,1,,0\n{jane},Doe,0,-1,0\n{roe},Roe,,1.0,\n9.9.9,X,1,1,1\n{jane},1\n',
    )
    source = export.source(str(tree), labels=str(table))
    assert source.labels == ('effusion', 'mass', 'nodule')
    anonymous = [-3, -1, 0] if 'Acc' in column else [-2, -2, -2]  # it has Jane's accession number
    assert labels_of(source) == [[-3, -1, 0], [-3, -1, 0], anonymous, [-2, 1, -2]]
    notes = ' '.join(source.notes)
    assert '1 values of' in notes and '1 lines of labels.csv have too few' in notes
    assert ('1 images have no line' in notes) == ('Study' in column)


def test_labels_of_single_images(tree, tmp_path):
    table = save(tmp_path / 'labels.csv', '\ufeffsop_instance_uid;StudyInstanceUID;mass\n1.2.4;1.2;1\n1.2.3;1.2;0\n')
    assert labels_of(export.source(str(tree), labels=str(table))) == [[0], [1], [-2], [-2]]


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('who,mass\n1,1\n', 'none of its columns is SOPInstanceUID'),
        ('patient,mass\n1,1\n', 'no PatientID of it is in a header'),
        ('AccessionNumber,mass\n1.2E+12,1\n', 'has shortened numbers'),
        ('AccessionNumber,mass\nA9,1\n', 'no AccessionNumber of it is in a header'),
        ('AccessionNumber,mass\nA1,big\n', 'no column holds only 0, 1'),
        ('AccessionNumber,split\nA1,blue\n', 'line 2 does not; use train'),
        ('AccessionNumber,Partition\nA1,train\nA2,test\nA3,tarin\n', "line 4 holds 'tarin'; did you mean 'train'"),
    ],
)
def test_label_tables_that_are_refused(tree, tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        export.source(str(tree), labels=str(save(tmp_path / 'labels.csv', text)))


def test_folders_and_tables_that_are_refused(tree, tmp_path):
    with pytest.raises(UserError, match='there is no such file'):
        export.source(str(tree), labels=str(tmp_path / 'none.csv'))
    save(tmp_path / 'other/readme.txt', 'nothing')
    with pytest.raises(UserError, match='none of its 1 files is a DICOM file'):
        export.source(str(tmp_path / 'other'))


def test_one_patient_id_for_everybody_gives_a_note(tmp_path):
    for n in range(3):
        save(
            tmp_path / 'x' / str(n),
            dicom(SOPInstanceUID=f'1.{n}.1', StudyInstanceUID=f'1.{n}', PatientID='TRIAL-X'),
        )
    assert any('all 3 studies have one PatientID' in note for note in export.source(str(tmp_path / 'x')).notes)


@pytest.fixture
def people(tmp_path):
    """Three patients with two studies of two images each; each image is a series."""
    for n in range(12):
        person, study, number = n // 4, n // 2, n % 2
        save(
            tmp_path / 'clinic' / f'{person}/IM_{n}.dcm',
            dicom(
                SOPInstanceUID=f'1.{n}.1', SeriesInstanceUID=f'1.{n}', StudyInstanceUID=f'2.{study}',
                AccessionNumber=f'00{study}', PatientID=f'{person:03d}', ViewPosition='PA' if number else 'LL',
            ),
        )  # fmt: skip
    return tmp_path / 'clinic'


@pytest.mark.parametrize(
    ('column', 'value', 'each'),
    [
        ('SOPInstanceUID', '1.{0}.1', 1), ('image_id', '1.{0}.1', 1), ('file', '{2}/IM_{0}.dcm', 1),
        ('Filename', 'D:\\export\\{2}\\im_{0}', 1), ('image', 'IM_{0}', 1), ('series_uid', '1.{0}', 1),
        ('Study UID', '2.{1}', 2), ('accession', '{1}', 2), ('AccessionNumber', '00{1}', 2), ('MRN', '{2}.0', 4),
        ('Patient ID', '00{2}', 4),
    ],
)  # fmt: skip
def test_a_line_may_describe_anything(people, tmp_path, column, value, each):
    lines = [f'{value.format(n, n // 2, n // 4)},{n // each % 2},BI-RADS {n // each % 3}' for n in range(0, 12, each)]
    table = save(tmp_path / 'labels.csv', f'{column},mass,birads\n' + '\n'.join(lines) + '\nnot.there,1,BI-RADS 9\n')
    source = export.source(str(people), labels=str(table), label_columns='mass,birads')
    assert source.labels[0] == 'mass' and set(source.labels[1:]) == {f'birads={k}' for k in range(min(3, 12 // each))}
    numbers = [int(re.search(r'^1\.(\d+)\.', entry.image)[1]) for entry in source.entries]
    for n, codes in zip(numbers, labels_of(source), strict=True):
        assert codes[0] == n // each % 2 and codes[1 + n // each % 3] == 1 and sum(codes[1:]) == 1
    assert any('1 values of' in note for note in source.notes)
    key = next(use for use in source.columns if use.column == column)
    assert key.cells == 12 // each and ('count as equal' in key.why) == (value in ('{1}', '{2}.0'))


def test_splits_texts_and_categories_of_a_table(people, tmp_path):
    splits, density = ['train', 'dev', 'holdout'], ['B', 'b', 'C', 'N/A']
    lines = [
        f'00{n},2.{n},{splits[n // 2]},"FINDINGS: Study {n}.|IMPRESSION: Fine.",{density[n % 4]},{n}' for n in range(5)
    ]
    table = save(tmp_path / 'l.csv', 'accession,study,SplitName,text,density,number\n' + '\n'.join(lines) + '\n')
    source = export.source(str(people), labels=str(table), label_columns='density')
    assert source.labels == ('density=B', 'density=C')
    assert [entry.split for entry in source.entries] == ['train'] * 4 + ['val'] * 4 + ['test'] * 2
    assert [drop.reason for drop in source.dropped] == [
        'its split in the table of labels is blank, or it has no line there'
    ] * 2
    assert source.load(4).text == {'findings': 'Study 2.', 'impression': 'Fine.'}
    assert labels_of(source)[:8:2] == [[1, 0], [1, 0], [0, 1], [-2, -2]]
    uses = {use.column: use for use in source.columns}
    assert uses['study'].use == 'StudyInstanceUID' and 'StudyInstanceUID says' in uses['accession'].why
    assert uses['SplitName'].words == {'dev': ('val', 2), 'holdout': ('test', 1)}
    assert 'numbers, 5 values; --label-columns' in uses['number'].why
    data, _, _ = build(source, tmp_path / 'out')
    assert data.split_list == 'given' and data.splits == {'train': 4, 'val': 4, 'test': 2}


def test_readers_disagree_and_splits_conflict(people, tmp_path):
    table = save(
        tmp_path / 'l.csv',
        'PatientID;birads;split\n000;2;train\n000;4;train\n001;2;val\n001;;test\n002;N.A.;test\n',
    )
    source = export.source(str(people), labels=str(table), label_columns='birads')
    assert source.labels == ('birads=2', 'birads=4')
    assert labels_of(source) == [[-3, -3]] * 4 + [[-2, -2]] * 4
    assert {drop.reason for drop in source.dropped} == {'the table of labels names several splits for it'}
    with pytest.raises(UserError, match="no column 'bi'"):
        export.source(str(people), labels=str(table), label_columns='bi')
    with pytest.raises(UserError, match='give the table with --labels'):
        export.source(str(people), label_columns='birads')


def test_files_of_one_uid_are_repeats_only_if_patient_and_pixels_are_equal(tmp_path):
    root, pixels = tmp_path / 'export', bytes(range(120))
    one = dict(SOPInstanceUID='1.9', StudyInstanceUID='1', PixelData=pixels)
    save(root / 'a', dicom(**one))
    save(root / 'b', dicom(**one, StudyDescription='sent again'))  # another header
    save(root / 'c', dicom(**one, PatientID='other'))
    save(root / 'd', dicom(**one | dict(PixelData=pixels[::-1])))
    save(root / 'e', dicom(**one | dict(PixelData=pixels[::-1]), StationName='x'))
    save(root / 'f', dicom(**one | dict(PixelData=pixels[::-1] * 2, NumberOfFrames=2)))
    table = save(tmp_path / 'l.csv', 'SOPInstanceUID,PatientID,mass\n1.9,other,1\n')
    source = export.source(str(root), labels=str(table))
    assert reasons(source) == {
        'file 2': 'repeats the instance of file 1', 'file 5': 'repeats the instance of file 4'
    }  # fmt: skip
    assert [entry.image for entry in source.entries] == [
        '1.9', '1.9 copy 2', '1.9 copy 3', '1.9 copy 4 frame 1', '1.9 copy 4 frame 2'
    ]  # fmt: skip
    assert [entry.patient for entry in source.entries] == ['MRN4711', 'other', 'MRN4711', 'MRN4711', 'MRN4711']
    assert any('3 files have the SOPInstanceUID of another file' in note for note in source.notes)
    assert labels_of(source) == [[-2], [1], [-2], [-2], [-2]]  # the UID does not say which file is meant
    assert sum(build(source, tmp_path / 'out')[0].splits.values()) == 5


def test_a_label_of_several_files_is_told(tmp_path):
    for i in range(3):
        save(tmp_path / 'x' / f'{i}', dicom(SOPInstanceUID='7.1' if i < 2 else '7.2', PatientID=f'K{i}'))
    both = save(tmp_path / 'both.csv', 'SOPInstanceUID,mass\n7.1,1\n7.2,0\n')
    source = export.source(str(tmp_path / 'x'), labels=str(both))
    assert labels_of(source) == [[-2], [-2], [0]]
    assert (
        '1 line of both.csv: one SOPInstanceUID belongs to several files, so these files get no label' in source.notes
    )
    one = save(tmp_path / 'one.csv', 'SOPInstanceUID,mass\n7.1,1\n')
    with pytest.raises(UserError, match='one SOPInstanceUID belongs to several files.*give a column file'):
        export.source(str(tmp_path / 'x'), labels=str(one))


def test_real_files(tmp_path, real_dicom):
    names = ['emri_small.dcm', 'RG1_UNCR.dcm', 'liver.dcm', 'JPEG2000_UNC.dcm', 'US1_J2KR.dcm', 'MR2_UNCR.dcm']
    for n, name in enumerate(names):
        save(tmp_path / 'real' / f'IM{n}', real_dicom(name))
    save(tmp_path / 'real' / 'cut', real_dicom('RG3_UNCR.dcm')[:2000])
    save(tmp_path / 'real' / 'frames', dicom(SOPInstanceUID='1.9', NumberOfFrames=10**8))
    source = export.source(str(tmp_path / 'real'), size=64)
    images = [entry.image for entry in source.entries]
    assert len(images) == len(set(images)) and sum(' frame ' in name for name in images) == 10
    assert 'no picture but a segmentation' in reasons(source).values()  # liver.dcm
    _, rows, _ = build(source, tmp_path / 'out')
    assert {'MR', 'CR', 'US'} <= {info.get('modality') for *_, info in rows}


def test_many_files_of_one_uid_take_seconds(tmp_path):
    side = 256
    for n in range(200):
        pixels = bytes([n % 100, 5]) * (side * side // 2)  # each picture twice, under other times
        fields = dict(Rows=side, Columns=side, PixelData=pixels, ContentTime=f'{n:06d}')
        save(tmp_path / 'x' / f'{n:03d}', dicom(SOPInstanceUID='1.9', **fields))
    start = time.monotonic()
    source = export.source(str(tmp_path / 'x'))
    assert time.monotonic() - start < 20
    assert len(source.entries) == 100 and len({entry.image for entry in source.entries}) == 100
    assert reasons(source)['file 143'] == 'repeats the instance of file 43'


@pytest.mark.parametrize(
    'other',
    [
        dict(PhotometricInterpretation='MONOCHROME1'), dict(Rows=5, Columns=24), dict(BitsStored=7, HighBit=6),
        dict(PixelRepresentation=1), dict(WindowCenter=90, WindowWidth=30), dict(PixelPaddingValue=3),
        dict(RescaleSlope=2, RescaleIntercept=1, WindowCenter=90, WindowWidth=30), dict(PixelSpacing=[1, 2]),
        dict(PatientID='other'),
    ],
)  # fmt: skip
def test_equal_pixel_data_that_show_another_picture_are_no_repeat(tmp_path, other):
    plain = dict(SOPInstanceUID='1.9', PixelData=bytes(range(120)))
    for name, fields in (('a', plain), ('b', plain | other), ('c', plain | other | dict(ContentTime='1'))):
        save(tmp_path / 'x' / name, dicom(**fields))
    source = export.source(str(tmp_path / 'x'))
    assert [entry.where for entry in source.entries] == ['file 1', 'file 2']
    assert reasons(source) == {'file 3': 'repeats the instance of file 2'}


def test_a_picture_in_another_coding_is_a_repeat(tmp_path):
    import pydicom

    for name, value in (('a', 1), ('c', 2)):
        save(tmp_path / 'x' / name, dicom(SOPInstanceUID='1.9', PixelData=bytes([value, 9, 40]) * 40))
        packed = pydicom.dcmread(tmp_path / 'x' / name)
        packed.compress('1.2.840.10008.1.2.5', encoding_plugin='pydicom', generate_instance_uid=False)
        packed.save_as(tmp_path / 'x' / (name + ' packed'))
    source = export.source(str(tmp_path / 'x'))
    assert reasons(source) == {'file 2': 'repeats the instance of file 1', 'file 4': 'repeats the instance of file 3'}
