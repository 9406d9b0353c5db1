"""`medjax encode`: files of images to files of features."""

import json

import jax
import numpy as np
import pytest
from image_files import dicom
from PIL import Image

import medjax
from medjax import cli
from medjax.models import build
from medjax.probes import batches, feature_files
from medjax.weights import export

TOWER = dict(tower='vit', variant='Ti/8', width=32, depth=2, heads=2, native_size=32, layerscale=None)
META = dict(network='teacher', heads={}, image=dict(channels=1, mean=0.5, std=0.25), size=32, seen=None)
ROWS = jax.device_count()  # of the smallest batch


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    params = {'towers': {'image': build.tower(TOWER, 1, where='x').init(jax.random.key(0))}}
    export.save(folder / 'exports' / '5', params, META | dict(step=5, towers=dict(image=TOWER)))
    return folder


@pytest.fixture
def images(tmp_path):
    """19 PNG files, a JPEG and a DICOM file in folders."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for i in range(19):
        Image.fromarray(rng.integers(0, 256, (40 + i, 44), np.uint8)).save(folder / f'{i:02}.png')
    Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(folder / 'sub' / 'x.jpg')
    (folder / 'sub' / 'IM0001').write_bytes(dicom(rng.integers(0, 4_000, (40, 40), np.uint16)))
    return folder


def encode(*args):
    return cli.main(['encode', *map(str, args)])


def read_parquet(path):
    parquet = pytest.importorskip('pyarrow.parquet')
    return parquet.read_table(path)


def column(table, name, *shape):
    """A column of lists as one array."""
    return table[name].combine_chunks().flatten().to_numpy().reshape(len(table), *shape)


def test_parquet(run, images, tmp_path, capsys):
    out = tmp_path / 'new' / 'features.parquet'
    assert encode(run, images, '--out', out, '--batch', ROWS, '--patches') == 0
    assert f'wrote {out}: 21 images, by step 5' in capsys.readouterr().out
    table = read_parquet(out)
    assert table.column_names == ['path', 'cls', 'height', 'width', 'patches'] and len(table) == 21
    paths = table['path'].to_pylist()
    assert paths == [*(f'{i:02}.png' for i in range(19)), 'sub/IM0001', 'sub/x.jpg']
    expected = medjax.load(run).encode([images / path for path in paths])
    np.testing.assert_allclose(column(table, 'cls', 32), expected['cls'], atol=1e-5)
    assert table['height'].to_pylist() == table['width'].to_pylist() == [4] * 21
    np.testing.assert_allclose(column(table, 'patches', 4, 4, 32), expected['patches'], atol=1e-5)
    about = json.loads(table.schema.metadata[b'medjax'])
    assert about['encoder'] == 5 and about['digest'] == medjax.load(run).digest and about['size'] == 32
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    for secret in (b'4711', b'Doe', b'1.2.3'):
        assert secret not in out.read_bytes(), 'nothing of DICOM headers is written'


def test_npz(run, images, tmp_path):
    out = tmp_path / 'features.npz'
    assert encode(run / 'exports' / '5', images, '--out', out, '--batch', ROWS, '--patches', '--fit', 'stretch') == 0
    with np.load(out, allow_pickle=False) as file:
        got = dict(file)
    assert set(got) == {'path', 'cls', 'patches', 'about'}
    expected = medjax.load(run, fit='stretch').encode([images / path for path in got['path']])
    np.testing.assert_allclose(got['cls'], expected['cls'], atol=1e-5)
    np.testing.assert_allclose(got['patches'], expected['patches'], atol=1e-5)
    assert json.loads(str(got['about']))['image']['fit'] == 'stretch'
    assert encode(run, images, '--out', tmp_path / 'small.npz') == 0
    with np.load(tmp_path / 'small.npz') as file:
        assert 'patches' not in file


def test_several_folders_and_files_keep_the_names_that_were_given(run, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert encode(run, 'images/sub', 'images/03.png', 'images/sub/x.jpg', '--out', 'features.npz') == 0
    with np.load('features.npz') as file:
        assert file['path'].tolist() == ['images/sub/IM0001', 'images/sub/x.jpg', 'images/03.png']


def test_unreadable_images_are_told_and_left_out(run, images, tmp_path, capsys):
    whole = (images / '04.png').read_bytes()
    (images / '04.png').write_bytes(whole[: len(whole) // 2])
    (images / 'sub' / 'empty.dcm').write_bytes(b'')
    out = tmp_path / 'features.npz'
    assert encode(run, images, '--out', out, '--batch', ROWS) == 1
    said = capsys.readouterr()
    assert 'left out 04.png: damaged PNG' in said.err and 'left out sub/empty.dcm: an empty file' in said.err
    assert '2 of 22 images are left out' in said.err and '20 images' in said.out and 'Traceback' not in said.err
    with np.load(out) as file:
        paths, cls = file['path'].tolist(), file['cls']
    assert len(paths) == 20 and not {'04.png', 'sub/empty.dcm'} & set(paths)
    np.testing.assert_allclose(
        cls, medjax.load(run).encode([images / path for path in paths], ('cls',))['cls'], atol=1e-5
    )


def test_several_frames_are_told(run, tmp_path, capsys):
    stored = np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8)
    (tmp_path / 'cine.dcm').write_bytes(dicom(stored, frames=3))
    (tmp_path / 'one.dcm').write_bytes(dicom(stored[0]))
    with pytest.warns(batches.FrameWarning, match='1 of 2 images are DICOM files of several frames'):
        assert encode(run, tmp_path, '--out', tmp_path / 'x.npz') == 0
    with np.load(tmp_path / 'x.npz') as file:
        np.testing.assert_allclose(file['cls'][0], file['cls'][1], atol=1e-5)


@pytest.mark.parametrize('name', ['f.npz', 'f.parquet'])
def test_nothing_is_left_of_a_stopped_command(run, images, tmp_path, monkeypatch, name):
    out = tmp_path / 'out' / name
    kind = feature_files.KINDS[out.suffix]
    calls = []

    def write(table, paths, features, real=kind.write):
        calls.append(len(paths))
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(table, paths, features)

    monkeypatch.setattr(kind, 'write', write)
    out.parent.mkdir()
    out.write_bytes(b'what was there before')
    assert encode(run, images, '--out', out, '--batch', ROWS, '--overwrite') == 130
    assert len(calls) == 2 and out.read_bytes() == b'what was there before' and len(list(out.parent.iterdir())) == 1


def test_a_full_disk_is_a_sentence(run, images, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(feature_files.Npz, 'write', full)
    assert encode(run, images, '--out', tmp_path / 'f.npz') == 2
    assert 'f.npz cannot be written: no space is left on the disk' in capsys.readouterr().err
    assert not list(tmp_path.glob('*f.npz*'))


def mistakes(run, images, tmp_path):
    (tmp_path / 'old.npz').write_bytes(b'')
    (tmp_path / 'nothing').mkdir()
    (tmp_path / 'torn').mkdir()
    (tmp_path / 'torn' / 'x.png').write_bytes(b'\x89PNG\r\n\x1a\n')
    (tmp_path / 'built' / '1.0.0').mkdir(parents=True)
    (tmp_path / 'built' / '1.0.0' / 'medjax.json').write_text('{}')
    (tmp_path / 'file').write_text('')
    ok = ['--out', tmp_path / 'x.npz']
    yield [run, images, '--out', tmp_path / 'x.csv'], 'x.csv: the name of a file of features ends in .parquet or .npz'
    yield [run, images, '--out', tmp_path / 'old.npz'], 'exists; choose another name, or add --overwrite'
    yield [run, images, *ok, '--batch', '0'], '--batch 0: at least 1'
    yield [run, tmp_path / 'nowhere', *ok], 'there is no file or folder'
    yield [run, tmp_path / 'nothing', *ok], 'holds no JPEG, PNG or DICOM file'
    yield [run, tmp_path / 'built', *ok], 'is a data set of `medjax build`'
    yield [run, tmp_path / 'torn', *ok], 'none of the 1 images can be read'
    yield [tmp_path / 'nowhere', images, *ok], 'no such file or folder'
    yield [run, images, '--out', tmp_path / 'file' / 'x.npz'], 'cannot be written'
    (tmp_path / 'folder.npz').mkdir()
    (tmp_path / 'link.npz').symlink_to(tmp_path / 'nowhere.npz')
    yield [run, images, '--out', tmp_path / 'folder.npz', '--overwrite'], 'is a folder; name a file'
    yield [run, images, '--out', tmp_path / 'link.npz'], 'link.npz exists'
    yield ['', images, *ok], 'an empty name'
    yield [run, '', *ok], 'an empty name'


def test_mistakes_are_sentences(run, images, tmp_path, capsys):
    for args, words in mistakes(run, images, tmp_path):
        capsys.readouterr()
        assert encode(*args) == 2, words
        said = capsys.readouterr().err
        assert words in said and 'Traceback' not in said, (words, said)
        assert not (tmp_path / 'x.npz').exists() and not list(tmp_path.glob('.x.npz*'))
