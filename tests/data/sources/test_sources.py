"""Tables and npz files as sources: what is read, what is set aside, what is refused."""

import numpy as np
import pytest
from PIL import Image

from medjax.data import records
from medjax.data.builder import npz_export, write
from medjax.data.images import decode
from medjax.data.releases import folders, tables
from medjax.data.sources import npz, table
from medjax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'clinic'
    (folder / 'images').mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.full((8, 10), 10 * i, np.uint8)).save(folder / 'images' / f'{i}.png')
    return folder


def csv(folder, text: str, encoding: str = 'utf-8') -> None:
    (folder / 'metadata.csv').write_bytes(text.encode(encoding))


def labels_of(source) -> list[list[int]]:
    return [list(source.label(i)) for i in range(len(source.entries))]


def test_recognised_columns_and_default_labels(folder):
    csv(
        folder,
        'image,patient_id,study_id,split,text,age,sex,view,license,effusion,mass,empty,followup\n'
        'images/0.png,p1,1,train,"Clear, lungs",061Y,F,PA,CC0,0,1.0,,0\n'
        'images/1.png,p1,2,train,,44.5,M,Lateral,CC0,-1,,,3\n'
        'images/2.png,p2,1,valid,,unknown,,,CC0,1,0,,1\n',
    )
    source = table.source(str(folder))
    assert source.name == source.namespace == 'clinic' and source.license == 'CC0'
    assert source.labels == ('effusion', 'mass')  # not the empty column, not the counting one
    assert labels_of(source) == [[0, 1], [-1, -2], [1, 0]]
    assert [entry.split for entry in source.entries] == ['train', 'train', 'val']
    assert len({entry.study for entry in source.entries}) == 3  # study 1 of p1 is not study 1 of p2
    first, second, third = (source.load(i) for i in range(3))
    assert first.text == {'report': 'Clear, lungs'} and second.text == {}
    assert (first.role, second.role, third.role) == ('frontal', 'lateral', 'image')
    assert first.attributes == {'age': 61.0, 'sex': 'F', 'view': 'PA', 'license': 'CC0'}
    assert third.attributes == {'license': 'CC0'}


def test_named_labels(folder):
    csv(folder, 'image,kind,mass\nimages/0.png,a,1\nimages/1.png,b,0\nimages/2.png,,0\n')
    source = table.source(str(folder), labels='mass,kind')
    assert source.labels == ('mass', 'kind=a', 'kind=b')
    assert labels_of(source) == [[1, 1, 0], [0, 0, 1], [0, -2, -2]]
    with pytest.raises(UserError, match="no column 'knd'; did you mean 'kind'"):
        table.source(str(folder), labels='knd')


def test_ages_and_sexes_are_stored_as_in_other_sources(folder):
    ages = {'104': 90.0, '090Y': 90.0, '148': None, '-1': None}
    sexes = {'female': 'F', 'm': 'M', 'Other': 'Other', 'Jane Doe, 4711': None}
    cells = zip(ages, sexes, strict=True)
    csv(folder, 'image,age,sex\n' + ''.join(f'images/{n}.png,{a},"{s}"\n' for n, (a, s) in enumerate(cells)))
    source = table.source(str(folder))
    assert [source.load(n).attributes.get('age') for n in range(4)] == list(ages.values())
    assert [source.load(n).attributes.get('sex') for n in range(4)] == list(sexes.values())


def test_a_label_with_hundreds_of_values_is_refused(folder):
    csv(folder, 'image,who\n' + ''.join(f'images/{i % 6}.png,name{i}\n' for i in range(6)))
    assert len(table.source(str(folder), labels='who').labels) == 6
    for i in range(200):
        Image.fromarray(np.zeros((1, 1), np.uint8)).save(folder / f'{i}.png')
    csv(folder, 'image,who\n' + ''.join(f'{i}.png,name{i}\n' for i in range(200)))
    with pytest.raises(UserError, match='200 different values'):
        table.source(str(folder), labels='who')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_encodings_and_delimiters(folder, encoding, delimiter, newline):
    rows = [['Image', 'Patient_ID', 'röntgen'], ['images/0.png', 'p1', '1'], [], ['images/1.png', 'p2', '']]
    csv(folder, newline.join(delimiter.join(row) for row in rows) + newline, encoding)
    source = table.source(str(folder))
    assert source.labels == ('röntgen',) and labels_of(source) == [[1], [-2]]
    assert [entry.patient for entry in source.entries] == ['p1', 'p2']


def test_quotes(folder):
    csv(folder, 'image,text\nimages/0.png,"one\r\ntwo, ""three"""\nimages/1.png,5" wide\nimages/2.png,""\n')
    source = table.source(str(folder))
    assert [source.load(i).text for i in range(3)] == [{'report': 'one two, "three"'}, {'report': '5" wide'}, {}]
    csv(folder, 'image,text\nimages/0.png,"one\ntwo"\nimages/1.png,"open\nimages/2.png,x\nimages/3.png,y\n')
    with pytest.raises(UserError, match=r'metadata\.csv, line 4: a quote opens there and is never closed'):
        table.source(str(folder))
    csv(folder, 'image,text\nimages/0.png,"a "quoted" word"\n')
    with pytest.raises(UserError, match=r"metadata\.csv, line 2: something other than ',' follows a closed quote"):
        table.source(str(folder))


@pytest.mark.parametrize('encoding', ['utf-16-le', 'utf-16-be'])
def test_utf_16_without_its_mark_is_refused(folder, encoding):
    csv(folder, 'image,mass\nimages/0.png,1\n', encoding)
    with pytest.raises(UserError, match=r'metadata\.csv looks like UTF-16 without a byte order mark; save it'):
        table.source(str(folder))


def test_lines_that_cannot_be_used_are_set_aside_with_their_reason(folder, tmp_path):
    secret = tmp_path / 'secret.png'
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(secret)
    (folder / 'link.png').symlink_to(secret)
    csv(
        folder,
        'image,patient_id,mass\n'
        'images/0.png,p1,1\n'
        'images/0.png,p1,1\n'
        'images/./0.png,p9,0\n'
        '../secret.png,p1,1\n'
        f'{secret},p1,1\n'
        'link.png,p1,1\n'
        'C:\\x.png,p1,1\n'
        'images/none.png,p1,1\n'
        ',p1,1\n'
        'images/1.png,p1\n'
        'images,p1,0\n'
        'images\\2.png,p1,0\n' + 'x' * 300 + '.png,p1,1\n',
    )
    source = table.source(str(folder))
    assert [entry.image for entry in source.entries] == ['images/0.png', 'images\\2.png']
    reasons = {drop.where.removeprefix('metadata.csv line '): drop.reason for drop in source.dropped}
    expected = {
        '3': 'repeats the image of line 2', '4': 'line 2 with other values', '5': "'..'", '6': 'absolute',
        '7': 'symbolic link', '8': 'absolute', '9': 'no such file', '10': 'no file is named',
        '11': '2 cells where the header has 3', '12': 'no such file', '14': 'cannot be followed',
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    for line, words in expected.items():
        assert words in reasons[line], (line, reasons[line])


def test_the_stamp_of_a_line_is_that_of_image_and_mask(folder):
    csv(folder, 'image,mask\nimages/0.png,images/1.png\nimages/2.png,images/none.png\nimages/3.png,\n')
    before = [entry.stamp for entry in table.source(str(folder)).entries]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / 'images' / '1.png')
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / 'images' / '3.png')
    after = [entry.stamp for entry in table.source(str(folder)).entries]
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_masks_of_a_table_get_names(folder):
    values = np.zeros((12, 12), np.uint8)
    values[2:4], values[6:8] = 1, 7
    Image.fromarray(values).save(folder / 'images' / 'mask.png')
    csv(folder, 'image,mask\nimages/0.png,images/mask.png\n')
    plain = table.source(str(folder))
    assert plain.masks == () and any('1 masks: --masks lungs' in note for note in plain.notes)
    one = table.source(str(folder), masks='lungs')
    assert one.masks == ('lungs',) and not any('--masks' in note for note in one.notes)
    np.testing.assert_array_equal(decode.mask(one.load(0).mask), values)
    two = table.source(str(folder), masks='heart=7, lung=1')
    assert two.masks == ('heart', 'lung')
    np.testing.assert_array_equal(two.load(0).mask, (values == 7) * 1 + (values == 1) * 2)
    left = table.source(str(folder), masks='lung=1').load(0)
    assert left.mask is None and 'the value 7' in left.note


@pytest.mark.parametrize(
    ('masks', 'words'),
    [
        ('', 'a name is missing'), ('a,,b', 'a name is missing'), ('a,b', 'needs its value'), ('a=0', '1 to 255'),
        ('a=300', '1 to 255'), ('a=1,a=2', 'twice'), ('a=1,b=1', 'twice'), ('mean', 'the name of a mean'),
        (','.join(f'm{i}={i}' for i in range(1, 10)), 'at most 8'),
    ],
)  # fmt: skip
def test_names_of_masks_that_cannot_be_read(folder, masks, words):
    csv(folder, 'image,mask\nimages/0.png,images/1.png\n')
    with pytest.raises(UserError, match=words):
        table.source(str(folder), masks=masks)


def test_names_of_masks_need_masks(folder):
    csv(folder, 'image\nimages/0.png\n')
    with pytest.raises(UserError, match='no line names a mask'):
        table.source(str(folder), masks='lungs')


def test_what_a_source_reads_is_recorded(folder):
    csv(folder, 'image\nimages/0.png\n')
    (folder / 'list.txt').write_text('a\n')
    (folder / 'facts.json').write_text('{}')
    (folder / 'lines.jsonl').write_text('{}\n')
    with tables.recorded_reads() as files:
        table.source(str(folder))
        with tables.recorded_reads() as inner:
            tables.read_list(folder / 'list.txt')
        tables.read_json(folder / 'facts.json')
        list(tables.read_json_lines(folder / 'lines.jsonl'))
    tables.numbered_lines(folder / 'list.txt')  # too late
    names = ('metadata.csv', 'facts.json', 'lines.jsonl')
    assert files == [f'{name} {folders.stamp(folder / name)}' for name in names]
    assert inner == [f'list.txt {folders.stamp(folder / "list.txt")}']


def test_lines_of_one_image_are_joined(folder):
    csv(folder, 'image,who,age,sex\na,p1,61,F\nb,p2,,\na,p1,62,F\nc,p3,,\n,p4,,\nc,p5,,\n')
    read = tables.read_table(folder / 'metadata.csv')
    files = {'a': 'x/a.png', 'c': 'x/c.png'}
    images, dropped = tables.by_image(read, 'image', files, patient='who')
    assert [(image.image, image.file, image.where) for image in images] == [('a', 'x/a.png', 'metadata.csv line 2')]
    assert [line.number for line in images[0].lines] == [2, 4]
    assert images[0].shared_cells == {'image': 'a', 'who': 'p1', 'sex': 'F'} and images[0].cells['age'] == '61'
    assert [(drop.image, drop.where, drop.reason) for drop in dropped] == [
        ('b', 'metadata.csv line 3', 'there is no such file'),
        ('c', 'metadata.csv line 5', 'its lines name several patients'),
        ('', 'metadata.csv line 6', 'no file is named'),
    ]
    assert len(tables.by_image(read, lambda line: line.cells['image'].upper(), {'C': 'x/c.png'})[0][0].lines) == 2


def test_a_blank_split_among_given_ones_is_set_aside(folder):
    csv(folder, 'image,patient_id,split\nimages/0.png,p1,train\nimages/1.png,p2,\n')
    source = table.source(str(folder))
    assert len(source.entries) == 1 and 'split is blank' in source.dropped[0].reason
    csv(folder, 'image,patient_id,split\nimages/0.png,p1,\nimages/1.png,p2,\n')
    assert [entry.split for entry in table.source(str(folder)).entries] == [None, None]


def test_images_without_a_patient_stand_alone_and_a_note_says_so(folder):
    csv(folder, 'image,mass\nimages/0.png,1\nimages/1.png,0\n')
    source = table.source(str(folder))
    assert [entry.patient for entry in source.entries] == [None, None]
    assert 'no column patient_id' in source.notes[0]


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('img,mass\na,1\n', "column image is missing; did you mean 'img'"),
        ('image,a,a\nx,1,0\n', "'a' is there twice, and line 2 differs"),
        ('image,split\nimages/0.png,blue\n', 'line 2 does not; use train, val or test'),
        ('image,split\nimages/0.png,dev\n', "'dev' beside train is val"),
        ('', 'column image is missing'),
    ],
)
def test_tables_that_are_refused(folder, text, words):
    csv(folder, text)
    with pytest.raises(UserError, match=words):
        table.source(str(folder))


def test_missing_folder_table_and_encoding(folder, tmp_path):
    with pytest.raises(UserError, match='is not a folder'):
        table.source(str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match=r'metadata\.csv is missing'):
        table.source(str(folder))
    csv(folder, 'image\nimages/ü.png\n', 'latin-1')
    with pytest.raises(UserError, match='line 2: not UTF-8'):
        table.source(str(folder))


# npz ---------------------------------------------------------------------------------------------------------------

grey = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)


def saved(tmp_path, **arrays) -> str:
    np.savez(tmp_path / 'set.npz', **arrays)
    return str(tmp_path / 'set.npz')


def test_npz_keeps_official_splits_and_binary_labels(tmp_path):
    path = saved(
        tmp_path, train_images=grey, train_labels=np.array([[0], [1], [1], [0], [1]], np.uint8),
        val_images=grey[:1], val_labels=np.array([[1]]), test_images=grey[:2], test_labels=np.array([[1], [0]]),
    )  # fmt: skip
    source = npz.source(path)
    assert source.labels == ('label_0',)
    assert [entry.split for entry in source.entries] == ['train'] * 5 + ['val'] + ['test'] * 2
    assert [list(label) for label in labels_of(source)] == [[0], [1], [1], [0], [1], [1], [1], [0]]
    assert {entry.patient for entry in source.entries} == {None}
    np.testing.assert_array_equal(source.load(1).image, grey[1])


def test_npz_classes_and_several_labels(tmp_path):
    source = npz.source(saved(tmp_path, train_images=grey, train_labels=np.array([0, 2, 1, 1, 3])))
    assert source.labels == ('label_0', 'label_1', 'label_2', 'label_3')
    np.testing.assert_array_equal(labels_of(source), np.eye(4, dtype=int)[[0, 2, 1, 1, 3]])
    many = np.random.default_rng(0).integers(0, 2, (5, 7))
    source = npz.source(saved(tmp_path, train_images=np.stack([grey] * 3, -1), train_labels=many))
    np.testing.assert_array_equal(labels_of(source), many)
    assert source.load(0).image.shape == (4, 4, 3)


@pytest.mark.parametrize(
    ('arrays', 'words'),
    [
        (dict(x=grey), 'holds x; MedMNIST has train_images'),
        (dict(train_images=grey.astype(np.float32)), 'dtype float32'),
        (dict(train_images=grey[..., None, None]), 'shape'),
        (dict(train_images=grey, train_labels=np.zeros((3, 1), int)), '5 train_images but 3 train_labels'),
        (dict(train_images=grey, train_labels=np.zeros(5)), 'whole numbers'),
        (dict(train_images=grey, train_labels=np.full((5, 2), 4)), 'from 4 to 4 in several columns'),
        (dict(train_images=np.array([{}, {}], object)), 'Python objects'),
    ],
)
def test_npz_files_that_are_refused(tmp_path, arrays, words):
    with pytest.raises(UserError, match=words):
        npz.source(saved(tmp_path, **arrays))


def test_npz_missing_or_no_archive(tmp_path):
    with pytest.raises(UserError, match='does not exist'):
        npz.source(str(tmp_path / 'none.npz'))
    (tmp_path / 'set.npz').write_text('no archive')
    with pytest.raises(UserError, match=r'not an \.npz archive'):
        npz.source(str(tmp_path / 'set.npz'))


def test_npz_round_trip(tmp_path):
    source = npz.source(
        saved(tmp_path, train_images=grey, train_labels=np.array([0, 1, 1, 0, 1]), test_images=grey[:2])
    )
    write.write(source, tmp_path / 'data')
    data = records.open(tmp_path / 'data')
    npz_export.write(data, str(tmp_path / 'again.npz'))
    again = npz.source(str(tmp_path / 'again.npz'))
    np.testing.assert_array_equal([again.load(i).image for i in range(7)], [source.load(i).image for i in range(7)])
    np.testing.assert_array_equal(labels_of(again), labels_of(source))
    with pytest.raises(UserError, match='exists'):
        npz_export.write(data, str(tmp_path / 'again.npz'))


def test_frames_of_a_dicom_file_are_records_of_one_patient(folder, tmp_path, real_dicom):
    (folder / 'ten.dcm').write_bytes(real_dicom('emri_small.dcm'))
    csv(folder, 'image,mask,ill\nten.dcm,images/1.png,1\nimages/1.png,,0\n')
    source = table.source(str(folder))
    assert len(source.entries) == 11
    assert len({entry.image for entry in source.entries}) == 11
    assert len({entry.patient for entry in source.entries[:10]}) == 1
    assert source.entries[3].where == 'metadata.csv line 2 frame 4'
    third, fourth = source.load(2), source.load(3)
    assert (third.frame, fourth.frame, source.label(3)) == (2, 3, [1])
    assert 'frames' in fourth.note and fourth.mask is None
    assert fourth.attributes['modality'] == 'MR'
    summary = write.write(source, tmp_path / 'out')
    assert sum(summary['splits'].values()) == 11
