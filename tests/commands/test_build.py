"""`medjax build` from the command line."""

import contextlib
import csv
import io
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from medjax import cli
from medjax.commands import build
from medjax.data import records


def medjax(*argv: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(['build', *map(str, argv)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'clinic'
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ['image,patient_id,mass']
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (16, 24)).astype(np.uint8)).save(folder / f'{i}.jpg')
        lines.append(f'{i}.jpg,SECRET{i // 2},{i % 2}')
    (folder / '4.jpg').write_bytes(b'')
    (folder / '5.jpg').write_bytes((folder / '5.jpg').read_bytes()[:150])
    lines.append('../x.jpg,SECRET1,0')
    (folder / 'metadata.csv').write_text('\n'.join(lines))
    return folder


def test_table(folder, tmp_path):
    code, out, err = medjax('table', folder, '--out', tmp_path / 'data', '--size', 12)
    assert code == 0, err
    data = records.open(tmp_path / 'data')
    assert sum(data.splits.values()) == 28 and data.dropped == 3 and data.size == 12
    assert '28 records' in out and 'labels: mass' in out and 'set aside: 3 images' in out
    assert '14 patients, none in two splits' in out and "namespace of the ids 'clinic'" in out
    for text in ('line 6: an empty file', 'line 7: damaged JPEG', "line 32: the path leaves the folder ('..')"):
        assert text in out
    with (tmp_path / 'data' / 'drops.csv').open() as file:
        assert [row['where'] for row in csv.DictReader(file)] == [f'metadata.csv line {n}' for n in (32, 6, 7)]
    assert 'SECRET' not in out + err
    for file in (tmp_path / 'data').rglob('*'):
        assert not file.is_file() or b'SECRET' not in file.read_bytes()


def test_jpegs_keep_their_bytes_where_no_resize_is_needed(folder, tmp_path):
    assert medjax('table', folder, '--out', tmp_path / 'data')[0] == 0
    data = records.open(tmp_path / 'data')
    originals = {(folder / f'{i}.jpg').read_bytes() for i in range(30) if i not in (4, 5)}
    assert {data.split(s).raw(i)['image'] for s, n in data.splits.items() for i in range(n)} == originals


def test_npz_is_read_and_written(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / 'a.npz', train_images=images, train_labels=np.arange(6)[:, None] % 2)
    code, _, err = medjax('npz', tmp_path / 'a.npz', '--out', tmp_path / 'data', '--npz', tmp_path / 'b.npz')
    assert code == 0, err
    assert records.open(tmp_path / 'data').splits == {'train': 6}
    with np.load(tmp_path / 'b.npz', allow_pickle=False) as file:
        np.testing.assert_array_equal(file['train_images'], images)


@pytest.mark.parametrize('options', [[], ['--size', '20']])
def test_npz_finds_unequal_sizes_before_the_build(folder, tmp_path, options, monkeypatch):
    Image.fromarray(np.zeros((24, 16), np.uint8)).save(folder / '20.jpg')
    monkeypatch.setattr(build.write, 'write', lambda *_: pytest.fail('the build began'))
    code, _, err = medjax('table', folder, '--out', tmp_path / 'data', '--npz', tmp_path / 'b.npz', *options)
    assert code == 2 and 'differ in size' in err and 'pixels' in err and not (tmp_path / 'data').exists()


def test_npz_of_files_that_are_reduced_to_one_size(folder, tmp_path):
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(folder / '20.jpg')
    code, _, err = medjax('table', folder, '--out', tmp_path / 'data', '--npz', tmp_path / 'b.npz', '--size', '12')
    assert code == 0, err
    with np.load(tmp_path / 'b.npz', allow_pickle=False) as file:
        assert file['train_images'].shape[1:] == (8, 12)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['tabel', 'x'], "no kind of source 'tabel'"),
        (['table', 'nowhere', '--out', 'x'], 'is not a folder'),
        (['table', 'nowhere', '--size', '0', '--out', 'x'], 'at least one pixel'),
        (['table', 'nowhere'], 'the folder of the data set is missing: --out DATA'),
        (['npz', 'nowhere.npz', '--out', 'x'], 'does not exist'),
        (['--out', 'x'], 'the kind of the source comes first'),
    ],
)
def test_mistakes_are_one_line(argv, message):
    code, out, err = medjax(*argv)
    assert code == 2 and not out
    assert message in err and err.count('\n') == 1


def test_patients_in_two_splits_are_refused_and_nothing_is_left(folder, tmp_path):
    lines = (folder / 'metadata.csv').read_text().split('\n')
    split = ['split', *(['train', 'test'] * 20)]
    (folder / 'metadata.csv').write_text('\n'.join(f'{a},{b}' for a, b in zip(lines, split, strict=False)))
    code, _, err = medjax('table', folder, '--out', tmp_path / 'data')
    assert code == 2 and '15 of 15 patients are in more than one split' in err and 'SECRET' not in err
    assert [path.name for path in tmp_path.iterdir()] == ['clinic']


def test_help_lists_the_kinds():
    code, out, _ = medjax('--help')
    assert code == 0 and 'npz' in out and 'table' in out
    with pytest.raises(SystemExit) as end:
        medjax('table', '--help')
    assert end.value.code == 0


def test_the_source_of_the_docs(tmp_path, monkeypatch):
    page = (pathlib.Path(__file__).parents[2] / 'docs' / 'add_a_data_set.md').read_text()
    (code,) = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    (tmp_path / 'mypkg').mkdir()
    (tmp_path / 'mypkg' / 'dots.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = medjax('mypkg.dots', '--count', 100, '--out', tmp_path / 'data')
    assert status == 0, err
    data = records.open(tmp_path / 'data')
    assert sum(data.splits.values()) == 99
    assert data.labels == ('large',)
    assert 'dot 13: unlucky' in out


def test_a_resumed_build_sees_another_table_or_option(folder):
    options = dict(folder=str(folder), labels=None, size=None, namespace=None, split='given')
    first = build.make('table', options).stamp
    assert build.make('table', options).stamp == first
    assert build.make('table', options | {'size': 16}).stamp != first
    with (folder / 'metadata.csv').open('a') as file:
        file.write('\n')
    assert build.make('table', options).stamp != first
