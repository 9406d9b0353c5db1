"""NIH ChestX-ray14 from a small folder like the release, with faults in it."""

import pytest
from releases_cxr import built, examples, image, labels, on_disk, table

from medjax.data.releases import published_splits
from medjax.data.sources import nih
from medjax.errors import UserError

HEAD = (
    'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
    'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],'  # the last comma is the release's
)


def line(name: str, finding: str, age: str = '58', sex: str = 'M', view: str = 'PA', patient: str | None = None) -> str:
    follow_up = int(name[9:12])
    return f'{name},{finding},{follow_up},{patient or int(name[:8])},{age},{sex},{view},2682,2749,0.143,0.143,'


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'nih'
    lines = [
        line('00000001_000.png', 'Cardiomegaly|Effusion'),
        line('00000001_001.png', 'No Finding', '411'),
        line('00000013_000.png', 'Pleural_Thickening', '058Y', 'F', 'AP'),
        line('00000013_000.png', 'Pleural_Thickening|Mass', '058Y', 'F', 'AP'),
        line('00000014_000.png', 'No Finding|Mass', '94'),
        line('00000015_000.png', 'Nodule|Gremlin'),
        line('00000016_000.png', ''),
        line('00000017_000.png', 'Hernia'),  # in no list
        line('00000018_000.png', 'Hernia'),  # no file
        line('00000019_000.png', 'Hernia', patient='?'),
        line('00000020_000.png', 'Hernia', patient='20'),
        line('00000020_000.png', 'Hernia', patient='21'),
        '00000022_000.png,Edema',
        line('00000023_000.png', 'Hernia', patient='²'),
    ]
    table(folder / 'Data_Entry_2017.csv', [HEAD, *lines], bom=True)
    table(folder / 'train_val_list.txt', '00000001_000.png\n00000001_001.png\n\n00000013_000.png\n00000018_000.png\n')
    table(folder / 'test_list.txt', '00000014_000.png\r\n00000015_000.png\r\n00000016_000.png\r\n')
    for n, name in enumerate(('00000001_000', '00000001_001', '00000013_000', '00000014_000')):
        image(folder / 'images_001' / 'images' / f'{name}.png', 10 * n, mode='RGBA' if n == 1 else 'L')
    for n, name in enumerate(('00000015_000', '00000016_000', '00000017_000', '00000020_000', '00000099_000')):
        image(folder / 'images_002' / 'images' / f'{name}.png', 50 + 10 * n)
    (folder / 'images_002' / 'images' / '._00000015_000.png').write_bytes(b'junk of a Mac')
    (folder / 'images_001' / 'images' / '00000018_000.png').symlink_to('/etc/hostname')
    return folder


def test_a_release_becomes_records(folder, tmp_path):
    source = nih.source(str(folder))
    made, data = built(source, tmp_path / 'out')
    assert data.splits == {'train': 3, 'test': 3}  # patients 1 and 13 are not among the eighth that is val
    assert source.splits == 'nih/official, altered' and made['license'] == nih.LICENSE
    assert (data.channels, data.bits) == (1, 8)  # alpha is gone
    assert [entry.patient for entry in source.entries] == ['1', '1', '13', '14', '15', '16']
    assert len({entry.study for entry in source.entries}) == 6

    got = labels(source)
    assert got['00000001_000.png'] == {name: int(name in ('cardiomegaly', 'pleural_effusion')) for name in nih.LABELS}
    assert got['00000001_001.png'] == {name: int(name == 'no_finding') for name in nih.LABELS}
    assert got['00000013_000.png']['pleural_thickening'] == 1 and got['00000013_000.png']['mass'] == -3
    assert got['00000014_000.png']['no_finding'] == got['00000014_000.png']['mass'] == -3
    assert got['00000014_000.png']['hernia'] == 0
    assert got['00000015_000.png']['nodule'] == 1
    assert set(got['00000016_000.png'].values()) == {-2}

    opened = examples(source)
    assert opened['00000001_000.png'].attributes == {'age': 58.0, 'sex': 'M', 'view': 'PA'}
    assert opened['00000001_001.png'].attributes == {'sex': 'M', 'view': 'PA'}  # nobody is 411
    assert opened['00000013_000.png'].attributes == {'age': 58.0, 'sex': 'F', 'view': 'AP'}
    assert opened['00000014_000.png'].attributes['age'] == 90.0
    assert {example.role for example in opened.values()} == {'frontal'}

    reasons = {
        drop.where.removeprefix('Data_Entry_2017.csv line '): (drop.scope, drop.reason) for drop in made['drops']
    }
    assert reasons == {
        '7': ('detail', 'unknown findings are left out: Gremlin'),
        '9': ('record', 'not in the lists of the split official'),
        '10': ('record', 'there is no such file'),  # a link that leaves the folder is none
        '11': ('record', 'the Patient ID is not a number'),
        '12': ('record', 'its lines name several patients'),
        '14': ('record', '2 cells where the header has 12'),
        '15': ('record', 'the Patient ID is not a number'),
    }
    assert any('3 of the 9 images' in note for note in made['notes'])
    assert any('3 image files are not used' in note for note in made['notes'])
    assert any('nih/official has 86524 train images, this list 4' in note for note in made['notes'])
    assert b'00000013_000' not in on_disk(tmp_path / 'out')


def test_validation_patients_are_an_eighth_of_train_and_never_of_test():
    splits = [nih._image_split(str(patient), 'train', 'official') for patient in range(1, 20_001)]
    assert abs(splits.count('val') / 20_000 - 0.125) < 0.01
    assert nih._image_split('6', 'train', 'official_val') == 'train'
    assert nih._image_split('6', 'test', 'official') == 'test'
    assert [n + 1 for n in range(40) if splits[n] == 'val'] == [5, 19, 24, 25]  # the same for ever, on every machine


def test_lists_that_the_user_gives(folder, tmp_path):
    lists = tmp_path / 'lists'
    table(lists / 'train_list.txt', '00000014_000.png 0 0 1\n00000015_000.png 0 1 0\n')
    table(lists / 'val_list.txt', 'images/00000016_000.png 0\n')
    table(lists / 'test_list.txt', '00000001_000.png\n00000001_001.png\n')
    source = nih.source(str(folder), split='chestmnist', lists=str(lists))
    assert {entry.image[6:8]: entry.split for entry in source.entries} == {
        '01': 'test', '14': 'train', '15': 'train', '16': 'val'
    }  # fmt: skip
    assert source.splits == 'nih/chestmnist, altered' and 'nih/chestmnist has 78468 train images' in source.notes[0]
    with pytest.raises(UserError, match='--lists DIR with train.txt'):
        nih.source(str(folder), split='official_val')
    table(lists / 'val_list.txt', '00000014_000.png\n')
    with pytest.raises(UserError, match='1 images are in more than one list'):
        nih.source(str(folder), split='chestmnist', lists=str(lists))
    (lists / 'val_list.txt').unlink()
    with pytest.raises(UserError, match=r'val\.txt or val_list\.txt or Xray14_val_official\.txt is missing'):
        nih.source(str(folder), split='chestmnist', lists=str(lists))


def test_the_newer_table_is_taken_and_splits_can_be_drawn(folder):
    head = HEAD.removesuffix(',')
    table(folder / 'Data_Entry_2017_v2020.csv', [head, line('00000017_000.png', 'Hernia').removesuffix(',')])
    source = nih.source(str(folder), split='drawn')
    assert [(entry.image, entry.split) for entry in source.entries] == [('00000017_000.png', None)]
    assert source.splits == ''


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match='is not a folder'):
        nih.source(str(tmp_path / 'none'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'2020\.csv or Data_Entry_2017\.csv is missing; give the folder'):
        nih.source(str(tmp_path / 'empty'))
    (folder / 'test_list.txt').unlink()
    with pytest.raises(UserError, match=r'test_list\.txt is missing.*--split drawn'):
        nih.source(str(folder))
    for path in folder.rglob('*.png'):
        path.unlink()
    with pytest.raises(UserError, match='none of the 9 images that Data_Entry_2017.csv names is there'):
        nih.source(str(folder), split='drawn')


def test_a_list_that_is_the_published_one_has_its_name(folder, monkeypatch):
    names = [(f'{name}.png', 'train') for name in ('00000001_000', '00000001_001', '00000013_000', '00000018_000')]
    names += [(f'{name}.png', 'test') for name in ('00000014_000', '00000015_000', '00000016_000')]
    whole = published_splits.Published('', {'train': 4, 'test': 3}, published_splits.digest(names))
    monkeypatch.setitem(published_splits.LISTS, 'nih/official', whole)
    assert nih.source(str(folder)).splits == 'nih/official'
    table(folder / 'test_list.txt', '00000014_000.png\n00000015_000.png\n')  # a partial list
    assert nih.source(str(folder)).splits == 'nih/official, altered'


def test_the_published_lists_have_digests():
    assert all(len(published_splits.LISTS[f'nih/{name}'].digest) == 64 for name in nih.SPLITS)
    assert all(sum(published_splits.LISTS[f'nih/{name}'].images.values()) == 112_120 for name in nih.SPLITS)
