"""ROCO and ROCOv2: captions, licences, articles in several splits."""

import pytest
from releases_text import all_text, build, image, reasons, save

from medjax.data.releases import published_splits
from medjax.data.sources import roco
from medjax.errors import UserError


@pytest.fixture
def first(tmp_path):
    root = tmp_path / 'data'

    def part(name: str, lines: dict[str, str]) -> None:
        captions = ''.join(f'{key}\t {text}\n' for key, text in lines.items())
        save(root / name / 'captions.txt', captions)
        licences = ''.join(
            f'{key},PMC{100 + n}_cro-{n}-g01.jpg,{"CC BY-NC" if n else "NO-CC CODE"}\n' for n, key in enumerate(lines)
        )
        save(root / name / 'licences.txt', f'ROCO_ID,PMC_ID,CC\n{licences}')

    part('train/radiology', {'ROCO_00002': 'CT, "axial" view.', 'ROCO_00003': 'MRI', 'ROCO_00004': '', 'junk': 'x'})
    part('train/non-radiology', {'ROCO_81826': 'Model bone'})
    part('validation/radiology', {'ROCO_00020': 'Pelvis'})
    part('test/radiology', {'ROCO_00001': 'Axial MRI (coronal view).', 'ROCO_00006': 'Lost link'})
    for n, name in enumerate(
        [
            'train/radiology/images/ROCO_00002.jpg',
            'train/radiology/images/PMC101_cro-1-g01.jpg',  # ROCO_00003 in the copy all_data
            'train/radiology/images/ROCO_00004.jpg',
            'train/non-radiology/images/ROCO_81826.jpg',
            'validation/radiology/images/ROCO_00020.jpg',
            'test/radiology/images/ROCO_00001.jpg',
        ]
    ):
        save(root / name, image(n, 'JPEG', 'RGB'))
    return root


def test_roco(first, tmp_path):
    source = roco.source(str(first))
    assert source.splits == 'roco/v1, altered'
    assert any('roco/v1 has 70343 train images, this list 4' in note for note in source.notes)
    data, rows, summary = build(source, tmp_path / 'out')
    assert data.splits == {'train': 4, 'val': 1, 'test': 1} and data.labels == ()
    texts = sorted(info['text'].get('caption', '') for *_, info in rows)
    assert texts == ['', 'Axial MRI (coronal view).', 'CT, "axial" view.', 'MRI', 'Model bone', 'Pelvis']
    assert {info['group'] for *_, info in rows} == {'radiology', 'non-radiology'}
    assert {info['license'] for *_, info in rows} == {'CC BY-NC', 'NO-CC CODE'}
    assert reasons(source) == {
        'train/radiology/captions.txt line 4': 'not an id of ROCO',
        'test/radiology/captions.txt line 2': 'there is no such file',
    }
    assert any('1 of 3 articles have figures in more than one split' in note for note in summary['notes'])
    assert [entry.study for entry in source.entries[:2]] == ['PMC100', 'PMC101']
    assert {entry.patient for entry in source.entries} == {None}
    text = all_text(tmp_path / 'out', rows, summary)
    assert 'PMC10' not in text and 'ROCO_0' not in text


def test_a_whole_list_has_its_name(first, monkeypatch):
    parts = {
        'ROCO_00002': 'train', 'ROCO_00003': 'train', 'ROCO_00004': 'train', 'ROCO_81826': 'train',
        'ROCO_00020': 'val', 'ROCO_00001': 'test', 'ROCO_00006': 'test',
    }  # fmt: skip
    whole = published_splits.Published('', {'train': 4, 'val': 1, 'test': 2}, published_splits.digest(parts.items()))
    monkeypatch.setitem(published_splits.LISTS, 'roco/v1', whole)
    assert roco.source(str(first)).splits == 'roco/v1'  # the image of one was lost, its line was not


def test_roco_with_links_alone_and_without_a_split(first):
    for file in first.rglob('licences.txt'):
        file.unlink()
    link = 'wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/66/bf/PMC101.tar.gz -P /path/to/Dir'
    save(first / 'train/radiology/dlinks.txt', f'ROCO_00003\t{link}\tcro-1-g01.jpg\n')
    (first / 'train/non-radiology/captions.txt').unlink()
    (first / 'validation/radiology/captions.txt').unlink()
    source = roco.source(str(first))
    assert source.splits == 'roco/v1_radiology, altered' and len(source.entries) == 4
    assert source.entries[1].study == 'PMC101' and 'license' not in source.load(1).attributes
    assert any('no captions of validation' in note for note in source.notes)


@pytest.fixture
def second(tmp_path):
    root = tmp_path / 'rocov2'
    name = 'ROCOv2_2023_{}_{:06d}'.format
    for s, rows in dict(
        train=f'{name("train", 1)},"Head CT, axial"\n{name("train", 2)},Chest\n{name("train", 2)},Chest\n'
        f'{name("train", 2)},Heart\n../x,bad\n{name("train", 9)},a,b\n',
        valid=f'{name("valid", 1)},Knee\n{name("valid", 2)},Missing\n',
        test=f'{name("test", 1)},Hip\n',
    ).items():
        save(root / f'{s}_captions.csv', '\ufeffID,Caption\n' + rows)
    save(root / 'train_concepts.csv', f'ID,CUIs\n{name("train", 1)},C0040405;C1306645\n')
    save(root / 'train_concepts_manual.csv', f'ID,CUIs\n{name("train", 1)},C0040405\n')
    save(
        root / 'license_information.csv',
        'ID,PMCID,Attribution,Link\n'
        f'{name("train", 1)},PMC7,"CC BY [Doe et al. (2020)]",https://x/1\n'
        f'{name("test", 1)},PMC7,CC BY-NC [Roe (2019)],https://x/2\n',
    )
    for n, path in enumerate(
        [f'train_images/train/{name("train", 1)}', f'train_images/train/{name("train", 2)}',
         f'valid/{name("valid", 1)}', f'test_images/{name("test", 1)}']
    ):  # fmt: skip
        save(root / f'{path}.jpg', image(n, 'JPEG'))
    return root


def test_rocov2(second, tmp_path):
    source = roco.source(str(second))
    assert source.name == 'rocov2' and source.splits == 'roco/v2, altered'
    data, rows, summary = build(source, tmp_path / 'out')
    assert data.splits == {'train': 2, 'val': 1, 'test': 1}
    head, chest = (info for split, _, info in rows if split == 'train')
    assert head['concepts'] == 'C0040405;C1306645' and head['concepts_manual'] == 'C0040405'
    assert head['license'] == 'CC BY' and head['text'] == {'caption': 'Head CT, axial'}
    assert chest['text'] == {'caption': 'Chest\nHeart'} and 'license' not in chest
    why = reasons(source)
    assert why['valid_captions.csv line 3'] == 'there is no such file'
    assert why['train_captions.csv line 6'] == 'not an id of ROCOv2'
    assert '3 cells' in why['train_captions.csv line 7']
    assert any('1 of 1 articles' in note for note in summary['notes'])
    text = all_text(tmp_path / 'out', rows, summary)
    assert 'PMC7' not in text and 'Doe' not in text and 'ROCOv2_2023' not in text


def test_refused(first, second, tmp_path):
    with pytest.raises(UserError, match='no captions; give the folder that holds train/'):
        roco.source(str(tmp_path))
    for file in second.iterdir():
        file.rename(first / file.name)
    with pytest.raises(UserError, match='both ROCO and ROCOv2'):
        roco.source(str(first))
    save(tmp_path / 'bare/test_captions.csv', 'ID,Caption\nROCOv2_2023_test_000001,x\n')
    with pytest.raises(UserError, match=r'no image of rocov2 is there \(1 x there is no such file\)'):
        roco.source(str(tmp_path / 'bare'))
    save(tmp_path / 'bare/test_captions.csv', 'ID,Text\na,x\n')
    with pytest.raises(UserError, match='column Caption is missing'):
        roco.source(str(tmp_path / 'bare'))
