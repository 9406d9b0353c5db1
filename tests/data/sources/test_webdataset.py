"""Images with captions in tar shards as a source."""

import gzip
import io
import json
import tarfile

import pytest
from releases_text import all_text, build, image, reasons, save

from medjax.data.sources import webdataset
from medjax.data.types import Unreadable
from medjax.errors import UserError


def shard(*members: tuple[str, bytes | str], **special) -> bytes:
    """The bytes of a tar file; `special`: name -> change of its header."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in special.get(name.replace('.', '_'), {}).items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return file.getvalue()


def meta(**facts) -> str:
    return json.dumps({'article_title': 'By Jane Doe', **facts})


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'pairs'
    tall = 'deep/' * 40 + 'long_name'  # longer than the 100 characters of a plain header
    save(
        root / '00000.tar',
        shard(
            ('a.jpg', image(0, 'JPEG')),
            ('a.txt', ' Chest, frontal. '),
            ('a.json', meta(article_accession_id='PMC7', article_license='CC BY')),
            ('b.PNG', image(1)),
            ('b.json', meta(caption='From JSON', pmcid='8', license='CC-BY-NC 4.0')),
            ('b.cls', '3'),
            ('10.1186_doe.jpg', image(6)),
            (f'{tall}.jpg', image(2, 'JPEG')),
            ('a.jpg', image(3, 'JPEG')),
            ('a.png', image(4)),
            ('lonely.txt', 'no image'),
            ('../out.jpg', image(5)),
            ('/abs.jpg', image(5)),
            ('link.jpg', b''),
            ('hard.jpg', b''),
            ('.hidden.jpg', image(5)),
            ('\udcff.jpg', image(5)),
            ('noextension', b''),
            ('folder', b''),
            link_jpg=dict(type=tarfile.SYMTYPE, linkname='/etc/passwd'),
            hard_jpg=dict(type=tarfile.LNKTYPE, linkname='a.jpg'),
            folder=dict(type=tarfile.DIRTYPE),
        ),
    )
    save(
        root / 'more' / '00000.tar',
        shard(
            ('a.jpg', image(10, 'JPEG')),
            ('a.txt', b'\xff\xfe\x00bad'),
            ('c.jpg', image(11, 'JPEG')[:60]),
            ('d.jpg', image(12, 'JPEG')),
            ('d.json', '[' * 50_000),
            ('e.jpg', image(13, 'JPEG')),
            ('e.json', meta(caption=['a', 'list'])),
            ('f.jpg', image(14, 'JPEG')),
        ),
    )
    return root


def test_pairs(folder, tmp_path):
    source = webdataset.source(str(folder))
    first = [entry.image for entry in source.entries]
    assert first[:2] == ['00000.tar/a', '00000.tar/b'] and 'more/00000.tar/a' in first and len(set(first)) == 8
    assert [entry.study for entry in source.entries[:2]] == ['PMC7', 'PMC8']
    data, rows, summary = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 7
    texts = sorted(info['text'].get('caption', '') for *_, info in rows)
    assert texts == [''] * 5 + ['Chest, frontal.', 'From JSON']
    assert sorted(info['license'] for *_, info in rows if 'license' in info) == ['CC BY', 'CC BY-NC']
    why = {where.removeprefix('shard 1 member '): reason for where, reason in reasons(source).items()}
    expected = {
        '9': 'has this already, member 1', '10': 'has this already, member 1', '11': 'a text without', '12': "'..'",
        '13': 'absolute', '14': 'a link', '15': 'a link', '16': 'no key', '17': 'not UTF-8', '18': 'no key',
    }  # fmt: skip
    assert why.keys() == expected.keys()
    for number, words in expected.items():
        assert words in why[number]
    later = {drop.where: drop.reason for drop in summary['drops'] if drop.where not in reasons(source)}
    assert later.pop('shard 2 member 3').startswith('damaged JPEG')
    assert {where[-1]: reason.partition(': ')[2] for where, reason in later.items()} == {
        '1': 'it is not UTF-8 text', '4': 'its JSON cannot be read', '6': 'it is not a text',
    }  # fmt: skip
    assert any('3 images have neither' in note for note in source.notes)
    assert any('1 members key.cls, 1 members key.*.jpg' in note for note in source.notes)
    text = all_text(tmp_path / 'out', rows, summary)
    for secret in ('.tar', 'PMC7', 'passwd', 'lonely'):
        assert secret not in text, secret
    assert 'doe' not in text.lower()


def test_splits_by_the_names_of_shards(tmp_path):
    root = tmp_path / 'x'
    for n, name in enumerate(['train/0.tar', 'train/1.tar', 'sub/val-000.tar', 'TEST_1.tar']):
        save(root / name, shard(('a.png', image(n))))
    save(root / 'train/0.tar.idx', 'an index of another reader')
    assert [entry.split for entry in webdataset.source(str(root)).entries] == ['test', 'val', 'train', 'train']
    for n, name in enumerate(['Training/0.tar', 'testing-1.tar', 'validation_2.tar']):
        save(tmp_path / 'y' / name, shard(('a.png', image(n))))
    assert [entry.split for entry in webdataset.source(str(tmp_path / 'y')).entries] == ['train', 'test', 'val']
    save(root / '7.tar', shard(('a.png', image(9))))
    with pytest.raises(UserError, match='for test, train, val, but 1 shards lie outside'):
        webdataset.source(str(root))


@pytest.mark.parametrize('style', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_formats_agree_with_tarfile(tmp_path, style):
    path = tmp_path / 'x' / '0.tar'
    path.parent.mkdir()
    with tarfile.open(path, 'w', format=style) as tar:
        for n in range(4):
            info = tarfile.TarInfo(f'{"sub/" * (10 * n)}ä{n}.png')
            info.size = len(image(n))
            tar.addfile(info, io.BytesIO(image(n)))
    source = webdataset.source(str(tmp_path / 'x'))
    assert [source.load(i).image for i in (3, 1, 0, 2)] == [image(n) for n in (3, 1, 0, 2)]


def test_damaged_shards(tmp_path):
    whole = shard(*((f'{n}.png', image(n)) for n in range(4)))
    step = 512 + -(-len(image(0)) // 512) * 512
    save(tmp_path / 'x/0_whole.tar', whole)
    save(tmp_path / 'x/1_within.tar', whole[: 2 * step + 600])
    save(tmp_path / 'x/2_header.tar', whole[: 2 * step + 100])
    save(tmp_path / 'x/3_between.tar', whole[: 2 * step])
    save(tmp_path / 'x/4_garbled.tar', whole[: 2 * step] + b'x' * 512 + whole[2 * step + 512 :])
    save(tmp_path / 'x/5_none.tar', 'no tar at all')
    save(tmp_path / 'x/6_empty.tar', b'')
    huge = tarfile.TarInfo('huge.png')
    huge.size = 10**12
    save(tmp_path / 'x/7_huge.tar', shard(('0.png', image(0))).rstrip(b'\0').ljust(step, b'\0') + huge.tobuf())
    source = webdataset.source(str(tmp_path / 'x'))
    counts = [sum(entry.image.startswith(f'{n}_') for entry in source.entries) for n in range(8)]
    assert counts == [4, 2, 2, 2, 2, 0, 0, 1]
    why = ' '.join(f'{drop.where}: {drop.reason}.' for drop in source.dropped)
    assert 'shard 2 member 3: the shard ends within it' in why
    assert 'shard 3: the rest of it cannot be read' in why
    assert 'shard 5: the rest of it cannot be read as a tar file: a damaged header' in why
    assert 'shard 6: it cannot be read' in why and 'shard 7: it cannot be read' in why
    assert 'shard 8 member 2: it has 953674 MB' in why
    assert any('1 shards have no end mark' in note for note in source.notes)
    (tmp_path / 'x/0_whole.tar').write_bytes(whole[:600])
    with pytest.raises(Unreadable, match='the shard ends within it'):
        source.load(3)


def test_sparse_members(tmp_path):
    info = tarfile.TarInfo('s.png')
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    save(tmp_path / 'x/0.tar', shard(('a.png', image(0)))[:1024] + info.tobuf() + b'\0' * 2048)
    source = webdataset.source(str(tmp_path / 'x'))
    assert 'a sparse file' in reasons(source)['shard 1 member 2']


def test_refused(folder, tmp_path):
    save(tmp_path / 'none/a.jpg', image(0, 'JPEG'))
    with pytest.raises(UserError, match=r'there is no \.tar file'):
        webdataset.source(str(tmp_path / 'none'))
    save(tmp_path / 'none/0.tar', shard(('a.txt', 'x')))
    with pytest.raises(UserError, match=r'no shard holds a JPEG or PNG \(1 x a text without'):
        webdataset.source(str(tmp_path / 'none'))
    save(folder / '1.tar.gz', gzip.compress(shard(('a.png', image(0)))))
    with pytest.raises(UserError, match=r'1\.tar\.gz is compressed'):
        webdataset.source(str(folder))
