"""A folder of images by class as a source."""

import os
import pathlib
import subprocess

import pytest
from releases_text import all_text, build, dicom, image, labels_of, reasons, save

from medjax import cli
from medjax.data import records
from medjax.data.sources import folder
from medjax.errors import UserError


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / 'kermany'
    save(root / 'train/NORMAL/IM-0115-0001.jpeg', image(0, 'JPEG'))
    save(root / 'train/NORMAL/more/deeper/IM-0117.png', image(1))
    save(root / 'train/Pleural Effusion/person3_bacteria_1.jpeg', image(2, 'JPEG'))
    save(root / 'train/Pleural Effusion/person3_bacteria_2.png', image(3, mode='LA'))
    save(root / 'Testing/Normal/noext', image(4))
    save(root / 'Testing/pleural effusion/person9_virus_1.dcm', dicom())
    save(root / 'Testing/pleural effusion/damaged.png', image(6)[:90])
    save(root / 'Testing/pleural effusion/notes.txt', 'person9 is Jane Doe')
    save(root / 'Testing/pleural effusion/scan.tif', b'II*\0')
    save(root / 'train/.DS_Store', b'\0')
    save(root / '__MACOSX/train/NORMAL/._IM.jpeg', b'\0')
    outside = save(tmp_path / 'secret.png', image(9))
    (root / 'train/NORMAL/link.png').symlink_to(outside)
    (root / 'train/NORMAL/linked').symlink_to(tmp_path)
    os.mkfifo(root / 'train/NORMAL/pipe.png')
    save(pathlib.Path(os.fsdecode(bytes(root / 'train/NORMAL') + b'/b\xff.png')), image(7))
    (root / 'train/NORMAL/same.png').symlink_to(root / 'Testing/Normal/noext')
    return root


def test_classes_and_splits_become_labels_and_splits(tree, tmp_path):
    source = folder.source(str(tree), patient=r'(person\d+)_')
    assert source.labels == ('normal', 'pleural_effusion')  # train/NORMAL and Testing/Normal are one class
    data, rows, summary = build(source, tmp_path / 'out')
    assert data.splits == {'train': 5, 'test': 2}
    assert sorted(label for split, label, _ in rows if split == 'train') == [[0, 1]] * 2 + [[1, 0]] * 3
    assert sorted(label for split, label, _ in rows if split == 'test') == [[0, 1], [1, 0]]
    assert [info['role'] for *_, info in rows if info.get('modality')] == ['frontal']
    assert len({int(key) for key in data.split('train').keys('patient')}) == 4  # person3 has two
    why = '\n'.join(drop.reason for drop in summary['drops'])
    for words in (
        'damaged PNG',
        'a .txt file; images are',
        'a .tif file',
        'symbolic link',
        'link to a folder',
        'a pipe',
        'its name is not UTF-8',
    ):
        assert words in why
    assert len(summary['drops']) == 7
    assert any('2 hidden files' in note for note in summary['notes'])
    assert any('finds nobody in the names of 5 images' in note for note in summary['notes'])
    text = all_text(tmp_path / 'out', rows, summary)
    assert 'person' not in text.replace('(person\\d+)', '') and 'Doe' not in text and 'secret' not in text


def test_drops_count_files_as_find_and_sort_do(tree):
    listed = (
        subprocess.run('find . ! -type d | LC_ALL=C sort', shell=True, cwd=tree, capture_output=True, check=True)
        .stdout.decode(errors='surrogateescape')
        .splitlines()
    )
    where = {listed[int(where.split()[1]) - 1]: reason for where, reason in reasons(folder.source(str(tree))).items()}
    assert 'symbolic link' in where['./train/NORMAL/link.png']
    assert '.tif' in where['./Testing/pleural effusion/scan.tif']


def test_levels(tmp_path):
    for n, name in enumerate(['benign/adenosis/a.png', 'benign/b.png', 'malignant/lobular/p7/c.png', 'd.png']):
        save(tmp_path / 'set' / name, image(n))
    source = folder.source(str(tmp_path / 'set'))
    assert source.labels == ('benign', 'malignant')
    assert labels_of(source) == [[1, 0], [1, 0], [-2, -2], [0, 1]]
    assert any('1 images lie in no class' in note for note in source.notes)
    source = folder.source(str(tmp_path / 'set'), levels=2)
    assert source.labels == ('benign', 'benign/adenosis', 'malignant', 'malignant/lobular')
    assert labels_of(source) == [[1, 1, 0, 0], [1, -2, 0, 0], [-2] * 4, [0, 0, 1, 1]]


def test_images_alone_are_a_set_without_labels(tmp_path):
    for n in range(3):
        save(tmp_path / 'set' / f'{n}.png', image(n))
    source = folder.source(str(tmp_path / 'set'))
    assert source.labels == () and {entry.split for entry in source.entries} == {None}
    assert any('--patient REGEX' in note for note in source.notes)


def test_frames_are_records_of_one_study(tmp_path, real_dicom):
    save(tmp_path / 'set/mr/ten', real_dicom('emri_small.dcm'))
    source = folder.source(str(tmp_path / 'set'))
    assert len(source.entries) == 10 and len({entry.study for entry in source.entries}) == 1
    assert source.load(3).frame == 3 and source.entries[3].where == 'file 1 frame 4'


@pytest.mark.parametrize(
    ('view', 'role'),
    [
        ('AP SUPINE', 'frontal'),
        ('SUPINE AP', 'frontal'),
        ('LEFT LATERAL', 'lateral'),
        ('LEFT LATERAL DECUBITUS', 'image'),
    ],
)
def test_the_role_is_by_the_word_that_names_a_projection(tmp_path, view, role):
    save(tmp_path / 'set/a/one', dicom(ViewPosition=view))
    assert folder.source(str(tmp_path / 'set')).load(0).role == role


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(patient='person'), '0 groups; put one around'),
        (dict(patient='(a)(b)'), '2 groups'),
        (dict(patient='(a'), 'not a regular expression'),
        (dict(levels=0), 'at least one level'),
    ],
)
def test_options_that_are_refused(tree, options, words):
    with pytest.raises(UserError, match=words):
        folder.source(str(tree), **options)


def test_folders_that_are_refused(tree, tmp_path):
    with pytest.raises(UserError, match='is not a folder'):
        folder.source(str(tmp_path / 'nowhere'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='none of its 0 files'):
        folder.source(str(tmp_path / 'empty'))
    save(tree / 'extra/x.png', image(8))
    with pytest.raises(UserError, match='for test, train, but 1 images lie outside'):
        folder.source(str(tree))


def test_the_layout_of_kaggle(tmp_path, capsys):
    root = tmp_path / 'archive/chest_xray'
    for n, split in enumerate(('train', 'train', 'val', 'test')):
        for person in range(4):
            for place in ('', 'chest_xray/'):
                save(root / place / split / f'PNEUMONIA/person{person}_virus_{n}.jpeg', image(4 * n + person, 'JPEG'))
                save(root / place / split / f'NORMAL/IM-{person}{n}-0001.jpeg', image(90 + 4 * n + person, 'JPEG'))
    save(root / '__MACOSX/train/NORMAL/._IM-00.jpeg', b'\0')
    argv = ['build', 'folder', str(root), '--patient', r'(person\d+|IM-\d+)', '--out', str(tmp_path / 'out')]
    assert cli.main(argv) == 2
    assert 'add --split drawn: then medjax draws a split for each patient' in capsys.readouterr().err
    assert cli.main([*argv, '--split', 'drawn']) == 0
    data = records.open(tmp_path / 'out')
    assert data.labels == ('normal', 'pneumonia') and sum(data.splits.values()) == 32 and data.unknown_patients == 0
    assert data.split_list == 'drawn' and data.dropped == 32
    around = folder.source(str(tmp_path / 'archive'))
    assert [entry.image for entry in around.entries] == [entry.image for entry in folder.source(str(root)).entries]
    assert around.labels == data.labels and {entry.split for entry in around.entries} == {'train', 'val', 'test'}
    save(root / 'chest_xray/train/NORMAL/IM-00-0001.jpeg', image(99, 'JPEG'))  # now it is no copy
    with pytest.raises(UserError, match='32 images lie outside'):
        folder.source(str(root))


def test_other_words_for_splits_and_one_folder_alone(tmp_path):
    for name, split in (('Training', 'train'), ('tune', 'val'), ('hold-out', 'test')):
        save(tmp_path / 'a' / name / 'mass/1.png', image(len(name)))
        assert split
    source = folder.source(str(tmp_path / 'a'))
    assert source.labels == ('mass',) and [entry.split for entry in source.entries] == ['train', 'test', 'val']
    save(tmp_path / 'b/only/x/1.png', image(1))
    save(tmp_path / 'b/only/y/2.png', image(2))
    assert folder.source(str(tmp_path / 'b')).labels == ('only',)  # no splits below: it is the class
    save(tmp_path / 'c/train/x/1.png', image(1))
    assert [entry.split for entry in folder.source(str(tmp_path / 'c')).entries] == ['train']


def test_a_group_around_everything_is_told(tmp_path):
    for n in range(12):
        save(tmp_path / 'set' / f'a/patient_{n}.png', image(n))
    source = folder.source(str(tmp_path / 'set'), patient='(patient)_')
    assert any('finds one patient in 12 of 12 images' in note for note in source.notes)
    assert not any('finds one' in note for note in folder.source(str(tmp_path / 'set'), patient=r'_(\d+)').notes)
