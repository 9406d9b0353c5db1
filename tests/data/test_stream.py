"""The stream: a batch depends on the step, and not on the host or thread that decodes it."""

import itertools
import threading
import time

import numpy as np
import pytest

from medjax.data import mixing, records
from medjax.data.builder import write
from medjax.data.images import decode
from medjax.data.stream import Stream
from medjax.data.types import Entry, Example, Source
from medjax.errors import UserError

rng = np.random.default_rng(0)


def data_set(
    folder, name: str, count: int, size: int = 12, labels=('a', 'b'), deep=False, colour=False, split='train',
    attributes=None,
):  # fmt: skip
    """Image i has height 5 + i % 3 and holds i in its first pixel; `attributes` has those of each record."""
    top, kind = (65_535, np.uint16) if deep else (255, np.uint8)
    images = [rng.integers(1, top, (5 + i % 3, size, 3 if colour else 1)).astype(kind) for i in range(count)]
    for i, image in enumerate(images):
        image[0, 0, 0] = i
    entries = [Entry(f'{i}', f'{i // 2}', f'{i}', split) for i in range(count)]
    attributes = attributes or [{}] * count
    source = Source(
        name, '1', name, labels, '', entries, lambda i: [i % 2] * len(labels),
        lambda i: Example(images[i], attributes=attributes[i]),
    )  # fmt: skip
    write.write(source, folder / name)
    return records.open(folder / name)


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stream')
    return {
        'many': data_set(folder, 'many', 50),
        'few': data_set(folder, 'few', 3, size=20, labels=('b', 'c')),
        'deep': data_set(folder, 'deep', 10, deep=True),
        'colour': data_set(folder, 'colour', 10, colour=True),
        'tests': data_set(folder, 'tests', 4, split='test'),
    }


def parts(**sources) -> dict:
    return {'cxr': dict(rows=8, sources=sources or dict(many=1.0))}


def take(stream: Stream, steps: int, start: int = 0, rows=None) -> list:
    return list(itertools.islice(stream.batches(start, rows), steps))


def equal(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_batch_holds_its_records(datasets):
    stream = Stream(parts(many=1.0, few=1.0), datasets, 0)
    assert stream.vocabulary == ('a', 'b', 'c') and stream.rows == {'cxr': 8}
    splits = {name: datasets[name].split('train') for name in ('many', 'few')}
    met = set()
    for batch in take(stream, 4):
        batch = batch['cxr']
        assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
            'row': (np.uint32, (8,)),
            'image': (np.uint8, (8, 1, 20, 20, 1)),
            'image/present': (bool, (8, 1)),
            'image/extent': (np.int32, (8, 1, 2)),
            'label': (np.int8, (8, 3)),
            'key/patient': (np.uint32, (8, 2)),
            'key/study': (np.uint32, (8, 2)),
            'key/text': (np.uint32, (8, 2)),
            'index': (np.uint32, (8,)),
        }
        np.testing.assert_array_equal(batch['row'], np.arange(8))
        assert batch['image/present'].all()
        for r in range(8):
            height, width = batch['image/extent'][r, 0]
            name = 'many' if width == 12 else 'few'
            met.add(name)
            record = splits[name][int(batch['index'][r])]
            np.testing.assert_array_equal(batch['image'][r, 0, :height, :width], record.image)
            assert not batch['image'][r, 0, height:].any() and not batch['image'][r, 0, :, width:].any()
            expected = [*record.label, -2] if name == 'many' else [-2, *record.label]
            assert batch['label'][r].tolist() == expected
            high, low = map(int, batch['key/patient'][r])
            assert high * 2**32 + low == record.keys['patient']
    assert met == {'many', 'few'}


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('threads', [1, 3])
def test_hosts_and_threads_change_nothing(datasets, hosts, threads):
    whole = take(Stream(parts(many=0.6, few=0.4), datasets, 7, threads=1), 5)
    stream = Stream(parts(many=0.6, few=0.4), datasets, 7, threads=threads)
    shuffled = np.random.default_rng(1).permutation(8).reshape(hosts, -1)  # a mesh may assign any rows to a host
    fed = [take(stream, 3, start=2, rows={'cxr': rows}) for rows in shuffled]
    for step in range(3):
        joined = {
            name: np.concatenate([fed[h][step]['cxr'][name] for h in range(hosts)])[np.argsort(shuffled.ravel())]
            for name in whole[0]['cxr']
        }
        equal(joined, whole[2 + step]['cxr'])


def test_every_epoch_is_another_permutation(datasets):
    stream = Stream({'cxr': dict(rows=10, sources=dict(many=1.0))}, datasets, 0)
    epochs = np.concatenate([batch['cxr']['index'] for batch in take(stream, 15)]).reshape(3, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    other = Stream({'cxr': dict(rows=10, sources=dict(many=1.0))}, datasets, 1)
    assert (np.concatenate([b['cxr']['index'] for b in take(other, 5)]) != epochs[0]).any()


@pytest.mark.parametrize('share', [0.1, 0.3, 0.5])
def test_mixtures_are_exact_over_windows(datasets, share):
    elements = Stream(parts(many=1 - share, few=share), datasets, 0).parts['cxr'].mixing
    for start in (0, 1234, 10**9):
        drawn = np.array([elements[start + i][0] for i in range(200)])
        assert abs(drawn.sum() - 200 * share) <= 1


@pytest.mark.parametrize(
    ('rows', 'weights'),
    [
        (8, dict(many=0.5, few=0.25, deep=0.25)),
        (13, dict(many=6.0, few=7.0)),  # shares without a finite binary form
        (6, dict(many=1 / 3, few=2 / 3)),
        (7, dict(many=5, few=1, deep=1)),
    ],
)
def test_every_batch_has_the_same_composition(datasets, rows, weights):
    """Over many epochs of the short sources, and far into a run. Each source goes through its own permutations."""
    elements = Stream({'cxr': dict(rows=rows, sources=weights)}, datasets, 0).parts['cxr'].mixing
    wanted = [round(rows * w / sum(weights.values())) for w in weights.values()]
    drawn = {}
    for step in (*range(50), *range(10**9, 10**9 + 20)):
        batch = [elements[step * rows + r] for r in range(rows)]
        assert np.bincount([source for source, _, _ in batch], minlength=len(weights)).tolist() == wanted
        for source, record, epoch in batch:
            if step < 50:
                drawn.setdefault((source, epoch), []).append(record)
    assert max(epoch for source, epoch in drawn if source == 1) > 10
    for source, name in enumerate(weights):
        length, epochs = len(datasets[name].split('train')), [e for s, e in drawn if s == source]
        for epoch in epochs[:-1]:
            assert sorted(drawn[source, epoch]) == list(range(length))


def test_compositions_where_shares_are_not_whole():
    """A source has the next lower or next higher number of rows, and its share over any number of batches."""
    draw = np.random.default_rng(0)
    for trial in range(100):
        rows, n = int(draw.integers(1, 40)), int(draw.integers(1, 8))
        weights = draw.integers(1, 10, n).astype(float) if trial % 4 else draw.random(n)
        table = mixing.compositions(rows, {str(s): float(w) for s, w in enumerate(weights)}, 'data.cxr.sources')
        quota = rows * weights / weights.sum()
        assert (table.sum(1) == rows).all() and (np.abs(table - quota) < 1).all()
        after = np.arange(1, len(table) + 1)[:, None]
        assert np.abs(table.cumsum(0) - after * table.mean(0)).max() < 1.1
        assert np.abs(table.mean(0) - quota).max() <= 2 / mixing.PERIOD
    with pytest.raises(
        UserError, match=r'data.cxr.sources.rare: the weight 1e-09 gives it less than one row in 10,000'
    ):
        mixing.compositions(8, dict(all=1.0, rare=1e-9), 'data.cxr.sources')


def test_rows_of_a_source_are_spread_over_the_batch(datasets):
    """A device holds consecutive rows, so every device gets a similar share of each source."""
    three = {'cxr': dict(rows=16, sources=dict(many=0.5, few=0.25, deep=0.25))}
    elements = Stream(three, datasets, 0).parts['cxr'].mixing
    sources = np.array([elements[r][0] for r in range(16)]).reshape(4, 4)
    assert (np.sort(sources) == [0, 0, 1, 2]).all()


def test_a_source_smaller_than_the_batch_repeats(datasets):
    batch = take(Stream(parts(few=1.0), datasets, 0), 1)[0]['cxr']
    assert set(batch['index'][:3]) == set(batch['index'][3:6]) == {0, 1, 2}


def test_parts_draw_their_own_order(datasets):
    two = {name: dict(rows=8, sources=dict(many=1.0)) for name in ('cxr', 'ct')}
    batch = take(Stream(two, datasets, 0), 1)[0]
    assert (batch['cxr']['index'] != batch['ct']['index']).any()


def test_channels_and_bits_of_a_part_are_made_equal(datasets):
    stream = Stream(parts(many=1.0, deep=1.0, colour=1.0), datasets, 0)
    batches = [batch['cxr']['image'] for batch in take(stream, 3)]
    assert batches[0].dtype == np.uint16 and batches[0].shape == (8, 1, 12, 12, 3)
    elements = [stream.parts['cxr'].mixing[i] for i in range(8)]
    for (source, record, _), index, image in zip(elements, range(8), batches[0][:, 0], strict=True):
        pixels = datasets[('many', 'deep', 'colour')[source]].split('train')[record].image
        wide = pixels if source == 1 else pixels.astype(np.uint16) * 257
        np.testing.assert_array_equal(
            image[: len(pixels)], np.broadcast_to(wide, (*pixels.shape[:2], 3)), err_msg=str(index)
        )


def test_the_canvas_can_be_larger_or_smaller(datasets):
    cfg = parts()
    cfg['cxr']['canvas'] = 32
    assert take(Stream(cfg, datasets, 0), 1)[0]['cxr']['image'].shape == (8, 1, 32, 32, 1)
    cfg['cxr']['canvas'] = 6
    batch = take(Stream(cfg, datasets, 0), 1)[0]['cxr']
    assert batch['image'].shape == (8, 1, 6, 6, 1) and (batch['image/extent'][:, 0, 1] == 6).all()
    first = datasets['many'].split('train')[int(batch['index'][0])].image
    small = decode.bounded(first, 6)
    np.testing.assert_array_equal(batch['image'][0, 0, : len(small)], small)


@pytest.mark.parametrize(
    ('cfg', 'words'),
    [
        (dict(rows=8, sources=dict(mny=1.0)), "no data for the source 'mny'; did you mean 'many'"),
        (dict(rows=8, source=dict(many=1.0)), "data.cxr: unknown key 'source'; did you mean 'sources'"),
        (dict(rows=8), "data.cxr: the key 'sources' is missing"),
        (dict(rows=0, sources=dict(many=1.0)), 'at least one row'),
        (dict(rows=8, sources={}), 'name a source'),
        (dict(rows=8, sources=dict(many=0.0)), 'weights are above 0'),
        (dict(rows=8, sources=dict(many=float('nan'))), 'weights are above 0'),
        (dict(rows=8, sources=dict(many=1.0), canvas=0), 'canvas'),
        (dict(rows=8, sources=dict(tests=1.0)), "no record in the split 'train'; there are test 4"),
    ],
)
def test_mistakes_are_sentences(datasets, cfg, words):
    with pytest.raises(UserError, match=words):
        Stream({'cxr': cfg}, datasets, 0)


def decoding_threads() -> int:
    return sum(thread.name.startswith('decode') for thread in threading.enumerate())


def wait_for_the_end(limit: float = 5.0) -> bool:
    end = time.monotonic() + limit
    while decoding_threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not decoding_threads()


def test_threads_end_when_the_iterator_is_closed_or_dropped(datasets):
    batches = Stream(parts(), datasets, 0, threads=3).batches()
    next(batches)
    assert decoding_threads()
    batches.close()
    assert wait_for_the_end()
    batches = Stream(parts(), datasets, 0, threads=3).batches()
    next(batches)
    del batches
    assert wait_for_the_end()


def test_a_decoding_error_is_raised_at_its_batch_and_ends_the_threads(datasets, monkeypatch):
    stream = Stream(parts(), datasets, 0, threads=2)
    bad = stream.parts['cxr'].mixing[2 * 8 + 5][1]
    raw = records.Split.raw

    def damaged(self, i):
        if i == bad:
            raise OSError('the disk is gone')
        return raw(self, i)

    monkeypatch.setattr(records.Split, 'raw', damaged)
    batches = stream.batches()
    good = [next(batches), next(batches)]
    assert len(good) == 2
    with pytest.raises(OSError, match='the disk is gone'):
        next(batches)
    assert wait_for_the_end()


def test_rows_outside_the_batch_are_a_bug(datasets):
    with pytest.raises(ValueError, match='below 8'):
        Stream(parts(), datasets, 0).batches(0, {'cxr': np.array([8])})


# Columns.


def with_columns(folder, name: str, attributes: list[dict]):
    """A data set whose records have these attributes."""
    return data_set(folder, name, len(attributes), attributes=attributes)


@pytest.fixture(scope='module')
def described(tmp_path_factory):
    folder = tmp_path_factory.mktemp('columns')
    return {
        'one': with_columns(folder, 'one', [dict(age=50.0, sex='F'), dict(age=61.0), dict(sex='M', site='a')]),
        'two': with_columns(folder, 'two', [dict(sex='O', site='b'), dict(site='c')]),
        'words': with_columns(folder, 'words', [dict(age='old'), dict(age='young')]),
        'many': with_columns(folder, 'many', [dict(sex=f'word {i}') for i in range(101)]),
    }


def test_columns_are_found_in_the_data(described):
    both = parts(one=1.0, two=1.0)
    assert records.column_words('age', None, both, described) == 'number'
    assert records.column_words('sex', None, both, described) == ('F', 'M', 'O')
    assert records.column_words('site', None, parts(two=1.0), described) == ('b', 'c')
    assert records.column_words('sex', ('M', 'F'), both, described) == ('M', 'F')


@pytest.mark.parametrize(
    ('name', 'given', 'sources', 'sentence'),
    [
        ('agee', None, ['one', 'two'], "columns.agee: the records have no column of this name; did you mean 'age'"),
        ('age', None, ['one', 'words'], 'it holds numbers in one source and words in another'),
        ('sex', None, ['many'], '101 different words there, and at most 100 can be learned'),
        ('site', None, ['one'], "only the word 'a' there, so there is nothing to learn"),
        ('age', ('old', 'young'), ['one'], "the records have numbers there; write 'number'"),
        ('sex', 'number', ['one'], 'the records have words there, such as F, M'),
        ('sex', ('F', 'X'), ['one'], "no record has the word 'X'"),
        ('nothere', 'number', ['one'], 'the records have no column of this name'),
    ],
)
def test_columns_that_cannot_be_learned_are_a_sentence(described, name, given, sources, sentence):
    with pytest.raises(UserError, match=sentence):
        records.column_words(name, given, parts(**dict.fromkeys(sources, 1.0)), described)


def test_a_batch_holds_columns(described):
    columns = dict(age='number', sex=('F', 'M'))
    stream = Stream(parts(one=1.0, two=1.0), described, 0, columns=columns)
    batch = take(stream, 1)[0]['cxr']
    part = stream.parts['cxr']
    expected = {('one', 0): [50, 0], ('one', 1): [61, np.nan], ('one', 2): [np.nan, 1]}  # the word 'O' does not count
    for row in range(8):
        source, number, _ = part.mixing[row]
        values = expected.get((part.sources[source], number), [np.nan, np.nan])
        np.testing.assert_array_equal(batch['column'][row], np.float32(values))
    assert 'column' not in take(Stream(parts(one=1.0), described, 0), 1)[0]['cxr']


def test_masks_are_read_only_for_terms_and_keep_their_names(tmp_path):
    """Two sources mark other structures in another order; a canvas smaller than the image; records without a mask."""
    import dense_cases

    one = dense_cases.data(tmp_path / 'a', counts=(6, 2, 2), names=('disc', 'bar'))
    two = dense_cases.data(tmp_path / 'b', counts=(6, 2, 2), names=('rib', 'disc'))
    part = dict(cxr=dict(rows=12, canvas=16, sources=dict(one=0.5, two=0.5)))
    datasets = dict(one=one, two=two)
    plain = take(Stream(part, datasets, 0), 1)[0]['cxr']
    assert not any(field.startswith('mask') for field in plain)
    stream = Stream(part, datasets, 0, structures=dict(cxr=('bar', 'disc')))
    fields = take(stream, 1)[0]['cxr']
    assert all(np.array_equal(fields[name], plain[name]) for name in plain)
    bits, known = fields['mask'][:, 0], fields['mask/known'][:, 0]
    sources = [stream.parts['cxr'].mixing[row][0] for row in range(12)]
    for row, source in enumerate(sources):
        split = (one, two)[source].split('train')
        planes = split.structures(int(fields['index'][row]))
        if planes is None:
            assert known[row] == 0 and not bits[row].any()
            continue
        small = planes[:, 1::2, 1::2]  # nearest pixels of a grid of half the size
        disc = small[0 if source == 0 else 1]
        assert known[row] == (3 if source == 0 else 2)
        np.testing.assert_array_equal(bits[row] >> 1 & 1, disc)
        np.testing.assert_array_equal(bits[row] & 1, small[1] if source == 0 else np.zeros_like(disc))
    assert set(known.tolist()) == {0, 2, 3}
