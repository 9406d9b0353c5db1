"""Texts in batches, views, features and runs: the host chooses and tokenizes, the same on any number of hosts."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from medjax import config as configs
from medjax.data import records
from medjax.data.builder import vocabulary, write
from medjax.data.stream import Stream
from medjax.data.text import tokenizer
from medjax.data.types import Entry, Example, Source
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.step import gradients, make_step
from medjax.views import make
from medjax.weights import export

ROOT = Path(__file__).parents[2]
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', 'no', 'effusion', 'nodule', 'mass', 'normal', 'one', 'two']
WORDS += ['three', 'caption', *'0123456789', *(f'##{n}' for n in range(10))]
PROMPTS = {
    'present': {'effusion': ['effusion.', 'effusion one.', 'effusion two.'], 'nodule': ['nodule.']},
    'normal': ['normal.'],
}
VIEWS = {
    'report': dict(view='text', part='cxr', length=12, prompts=PROMPTS),
    'sentence': dict(view='text', part='cxr', length=8, count=3, sentences=1, sections=['findings']),
}


def report(i):
    if i % 5 == 4:
        return {}
    if i % 5 == 3:
        return {'impression': 'no effusion.'}
    return {'findings': f'effusion one. nodule two. mass {i}.', 'impression': f'mass {i}.'}


def data_set(folder, name, count, text=lambda i: {}, labels=(), label=lambda i: []):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, 16, 16), np.uint8)
    entries = [Entry(f'{i}', f'{i}', f'{i}', 'train') for i in range(count)]
    write.write(
        Source(name, '1', name, labels, '', entries, label, lambda i: Example(images[i], text=text(i))), folder / name
    )
    return records.open(folder / name)


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('texts')
    labels = ('effusion', 'nodule')
    return {
        'paired': data_set(folder, 'paired', 20, report),
        'labelled': data_set(folder, 'labelled', 6, labels=labels, label=lambda i: [[1, 0], [0, 0], [-2, -2]][i % 3]),
        'bare': data_set(folder, 'bare', 5),
        'captions': data_set(folder, 'captions', 5, lambda i: {'caption': f'caption {i}.'}),
        'foreign': data_set(folder, 'foreign', 4, lambda i: {'report': '胸部'}),
    }


@pytest.fixture(scope='module')
def words(tmp_path_factory):
    path = tmp_path_factory.mktemp('words') / 'vocab.txt'
    path.write_text('\n'.join(WORDS) + '\n')
    return tokenizer.load(path)


def part(rows=8, **sources):
    return {'cxr': dict(rows=rows, sources=sources or dict(paired=0.5, labelled=0.25, bare=0.25))}


def take(stream, steps, start=0, rows=None):
    return [batch['cxr'] for batch in itertools.islice(stream.batches(start, rows), steps)]


def said(ids, length):
    return ' '.join(WORDS[k] for k in ids[1 : max(length - 1, 1)]).replace(' ##', '')


def test_a_batch_holds_the_texts_of_its_records(datasets, words):
    stream = Stream(part(), datasets, 3, views=VIEWS, tokenizer=words)
    order, kinds = stream.parts['cxr'].order, set()
    for step, batch in enumerate(take(stream, 12)):
        assert batch['text/report'].dtype == np.int32 and batch['text/report'].shape == (8, 1, 12)
        assert batch['text/sentence'].shape == (8, 3, 8) and batch['text/sentence/length'].dtype == np.int32
        for r in range(8):
            source, record, _ = order[step * 8 + r]
            ids, length = batch['text/report'][r, 0], batch['text/report/length'][r, 0]
            assert (ids[length:] == 0).all()  # filled up
            assert length == 0 or (ids[0], ids[length - 1]) == (2, 3)
            text = said(ids, length)
            labels = dict(zip(('effusion', 'nodule'), datasets['labelled'].split('train').labels_array[record % 6]))
            expected = {
                0: {str(report(record).get('impression', '')).replace('.', ' .')},
                1: {1: {'effusion .', 'effusion one .', 'effusion two .'}, 0: {'normal .'}, -2: {''}}[
                    labels['effusion']
                ],
                2: {''},
            }[source]
            assert text in expected
            assert batch['key/text'][r].any() == (length > 0)
            kinds.add((source, length > 0))
            lengths = batch['text/sentence/length'][r]
            findings = report(record).get('findings') if source == 0 else None
            assert (lengths > 0).tolist() == [findings is not None] * 3
            if findings:
                assert sorted(said(ids, n) for ids, n in zip(batch['text/sentence'][r], lengths)) == sorted(
                    ['effusion one .', 'nodule two .', f'mass {record} .']
                )
    assert kinds == {(0, True), (0, False), (1, True), (1, False), (2, False)}


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('threads', [1, 3])
def test_hosts_and_threads_change_nothing(datasets, words, hosts, threads):
    whole = take(Stream(part(), datasets, 7, threads=1, views=VIEWS, tokenizer=words), 5)
    stream = Stream(part(), datasets, 7, threads=threads, views=VIEWS, tokenizer=words)
    shuffled = np.random.default_rng(1).permutation(8).reshape(hosts, -1)
    fed = [take(stream, 3, start=2, rows={'cxr': rows}) for rows in shuffled]
    for step in range(3):
        for name in whole[0]:
            joined = np.concatenate([fed[h][step][name] for h in range(hosts)])[np.argsort(shuffled.ravel())]
            np.testing.assert_array_equal(joined, whole[2 + step][name], err_msg=name)


def test_draws_depend_on_seed_view_epoch_and_record_alone(datasets, words):
    views = {name: dict(VIEWS['sentence'], count=1) for name in ('one', 'two')}

    def drawn(seed=0, rows=20, epochs=2, views=views, **sources):
        found = {}
        stream = Stream(part(rows, **(sources or dict(paired=1.0))), datasets, seed, views=views, tokenizer=words)
        order = stream.parts['cxr'].order
        for step, batch in enumerate(take(stream, 20 * epochs // rows)):
            for r in range(rows):
                source, record, epoch = order[step * rows + r]
                if source == 0:
                    found[epoch, record] = {name: tuple(batch[f'text/{name}'][r, 0]) for name in views}
        return found

    first = drawn()
    assert len(first) == 40
    assert drawn(rows=5) == first == drawn(rows=10)  # another batch size
    alone = drawn(views={'two': views['two']})  # another config around it
    assert all(alone[at] == {'two': first[at]['two']} for at in first)
    mixed = drawn(paired=0.5, bare=0.5)  # another mixture
    assert all(mixed[at] == first[at] for at in mixed)

    def differ(a, b):
        return any(x != y for x, y in zip(a, b, strict=True))

    assert differ([first[0, i] for i in range(20)], [first[1, i] for i in range(20)])
    assert differ([first[0, i]['one'] for i in range(20)], [first[0, i]['two'] for i in range(20)])
    assert differ(first.values(), drawn(seed=1).values())


def test_parts_without_texts(datasets, words):
    """A part that no text view reads has no text fields; image-only rows of a part that has texts are absent."""
    two = {**part(8, paired=0.5, labelled=0.5), 'images': dict(rows=4, sources=dict(bare=1.0))}
    batch = next(Stream(two, datasets, 0, views=VIEWS, tokenizer=words).batches())
    assert not any(name.startswith('text/') for name in batch['images']) and not batch['images']['key/text'].any()
    views = {'report': dict(view='text', part='cxr', length=12)}
    mixed = take(Stream(part(8, paired=0.5, bare=0.5), datasets, 0, views=views, tokenizer=words), 1)[0]
    order = Stream(part(8, paired=0.5, bare=0.5), datasets, 0).parts['cxr'].order
    bare = np.array([order[r][0] == 1 for r in range(8)])
    assert bare.sum() == 4 and not mixed['text/report/length'][bare].any() and mixed['text/report/length'][~bare].any()


def test_captions_and_texts_that_the_tokenizer_does_not_know(datasets, words):
    views = {'report': dict(view='text', part='cxr', length=12)}
    for batch in take(Stream(part(4, captions=0.5, foreign=0.5), datasets, 0, views=views, tokenizer=words), 3):
        lengths = batch['text/report/length'][:, 0]
        assert (lengths > 0).sum() == 2
        assert {said(ids, n)[:8] for ids, n in zip(batch['text/report'][:, 0], lengths) if n} == {'caption '}


@pytest.mark.parametrize(
    ('views', 'sources', 'sentence'),
    [
        (dict(), dict(bare=1.0), 'sources of data.cxr (bare): their records have no text'),
        (dict(), dict(bare=1.0), 'views.report: no text for impression, findings, report, caption in the'),
        (dict(sections=['impression']), dict(captions=0.5, bare=0.5), 'no text for impression in the sources of'),
        (dict(sections=['impression']), dict(captions=1.0), '(captions): their records have the sections caption'),
        (dict(prompts=PROMPTS), dict(paired=1.0), "report.prompts: present: the data have no label 'effusion'; known"),
        (dict(prompts={'present': {'nodul': ['x']}}), dict(labelled=1.0), "'nodul'; did you mean 'nodule'"),
        (dict(count=0), dict(paired=1.0), 'views.report.count'),
    ],
)
def test_mistakes_are_sentences(datasets, words, views, sources, sentence):
    with pytest.raises(UserError) as error:
        Stream(
            part(8, **sources),
            datasets,
            0,
            views={'report': dict(view='text', part='cxr', length=12, **views)},
            tokenizer=words,
        )
    assert sentence in str(error.value)


def test_a_text_view_needs_a_tokenizer_and_room(datasets, words):
    with pytest.raises(UserError, match=r'views.report: a text view needs a tokenizer; see tokenizer.path'):
        Stream(part(), datasets, 0, views=VIEWS)
    views = {'report': dict(view='text', part='cxr', length=3)}
    around = words._replace(around=3)
    with pytest.raises(UserError, match='views.report.length: 3 tokens have no room for a word: .* puts 3 around'):
        Stream(part(), datasets, 0, views=views, tokenizer=around)


# The view, its features, the step.


def recipe(**changes):
    tiny = recipes.tiny()
    return (
        dict(
            tiny,
            views={'global': tiny['views']['global'], **VIEWS},
            masks={},
            towers=dict(tiny['towers'], text=dict(tower='tests.text_tower', vocabulary=len(WORDS), context=12)),
            heads=dict(vt=dict(head='dino_head', prototypes=8, hidden=16, bottleneck=8)),
            teachers={},
            terms=[
                dict(term='koleo', name='images', of='student/image/global/cls'),
                dict(term='koleo', name='reports', of='student/text/report/cls'),
                dict(term='koleo', name='sentences', of='student/text/sentence/cls>vt'),
            ],
        )
        | changes
    )


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def batch(datasets, words):
    (batch,) = take(Stream(part(), datasets, 3, views=VIEWS, tokenizer=words), 1)
    return {'cxr': batch}


def test_a_text_view_is_what_the_stream_chose(batch):
    views = dict(recipe()['views'])
    made, _ = make.build(views, {}, recipe()['image'], {}, 1)(batch, jax.random.key(0), jnp.zeros((), jnp.int32))
    assert list(made) == list(views)
    for name in VIEWS:
        view, rows = made[name], batch['cxr']
        np.testing.assert_array_equal(view.x, rows[f'text/{name}'])
        np.testing.assert_array_equal(view.present, rows[f'text/{name}/length'] > 0)
        np.testing.assert_array_equal(view.valid.sum(-1), rows[f'text/{name}/length'])
        assert not view.valid[..., 1:][~np.asarray(view.valid)[..., :-1]].any()  # the first tokens
        np.testing.assert_array_equal(view.meta['length'], rows[f'text/{name}/length'])
        for key in ('key/text', 'key/study', 'key/patient', 'label'):
            np.testing.assert_array_equal(view.meta[key], rows[key])
    np.testing.assert_array_equal(made['global'].meta['key/text'], batch['cxr']['key/text'])


def test_features_of_a_text_view_by_the_text_tower(batch, importable):
    objective, make_views, state = started(recipe())
    views, masks = make_views(batch, state.key, state.step)
    found, _ = objective.features(state.params, state.aux, views, masks, state.key, state.step)
    assert found['student/text/report/cls'].shape == (8, 1, 16)
    assert found['student/text/sentence/cls>vt'].shape == (8, 3, 8)
    p = state.params['towers']['text']
    rows = batch['cxr']
    for r in range(8):
        n = rows['text/report/length'][r, 0]
        mean = np.asarray(p['embedding'])[rows['text/report'][r, 0, :n]].sum(0) / max(n, 1)
        np.testing.assert_allclose(found['student/text/report/cls'][r, 0], mean @ np.asarray(p['kernel']), atol=1e-4)
    _, (metrics, _) = objective.loss(state.params, state.aux, found, views, masks, state.key, state.step)
    assert metrics['term/reports/rows'] == (rows['text/report/length'] > 0).sum()  # absent texts are not counted


def test_micro_batches_of_texts_give_one_gradient(datasets, words, importable):
    # no two texts of the batch are equal: of equal ones KoLeo, the logarithm of their distance, knows only rounding
    views = {'report': dict(view='text', part='cxr', length=12, sections=['findings'])}
    (batch,) = take(Stream(part(8, paired=1.0), datasets, 3, views=views, tokenizer=words), 1)
    batch = {'cxr': batch}
    towers, terms = {'text': recipe()['towers']['text']}, recipe()['terms'][1:2]
    objective, make_views, state = started(recipe(views=views, towers=towers, terms=terms, heads={}))

    def run(n):
        prepare = lambda b: make_views(b, state.key, state.step)  # noqa: E731
        return jax.jit(lambda s, b: gradients(objective, s, b, prepare, s.key, n))(state, batch)

    (loss, _, _, one), (loss2, _, _, two) = run(1), run(2)
    assert abs(loss - loss2) <= 1e-5 * abs(loss)
    assert recipes.worst(two, one) <= 1e-5
    assert float(jnp.abs(one['towers']['text']['embedding']).max()) > 0


ODD = {
    'empty': '',
    'one word': 'effusion',
    'ten thousand words': 'no effusion. ' * 5_000,
    'non-Latin': '胸部X線。異常なし。',
    'control characters': 'no\x00 effu\x07sion\x1b[0m \u200b\ud800',
    'nothing but control characters': '\x00\x07\x1f\u200b',
    'an ordinary one': 'nodule two.',
    'the same again': 'nodule two.',
}
PAIRED = [
    dict(term=term, rows='student/image/global/cls>vi', columns='student/text/report/cls>vt', positives=positives)
    for term, positives in [('pair_softmax', ['identity', 'text']), ('pair_sigmoid', 'text')]
]
"""Both terms over pairs; by their texts alone, rows without one have no key either."""


def pair_recipe():
    one = dict(head='linear', out=8)
    views = dict(recipes.tiny()['views'])
    views = {'global': dict(views['global'], count=1), 'report': dict(view='text', part='cxr', length=12)}
    optim = dict(lr=1e-2, weight_decay=0.0)
    return recipe(views=views, heads=dict(vi=one, vt=one), terms=PAIRED, optim=optim)


def one_step(cfg, batch):
    objective, make_views, state = started(cfg)
    optim = call(optimizer, cfg['optim'], 'optim', params=state.params, total_steps=cfg['total_steps'])
    after, metrics = jax.jit(make_step(objective, optim, make_views).train_step)(state, batch)
    return state, after, jax.device_get(metrics)


def test_odd_texts_through_a_train_step(tmp_path, words, importable):
    """Every text is trained on or is absent and counted, and the step is finite."""
    source = data_set(tmp_path, 'odd', len(ODD), lambda i: {'impression': [*ODD.values()][i]})
    cfg = pair_recipe()
    stream = Stream(
        {'cxr': dict(rows=8, sources=dict(odd=1.0))}, {'odd': source}, 0, views=cfg['views'], tokenizer=words
    )
    (batch,) = take(stream, 1)
    lengths = dict(zip([[*ODD][i] for i in batch['index']], batch['text/report/length'][:, 0].tolist()))
    assert {name for name, length in lengths.items() if not length} == {
        'empty',
        'non-Latin',  # this vocabulary knows nothing of it; test_tokenizer.py has one that does
        'nothing but control characters',
    }
    assert lengths['one word'] == 3 and lengths['ten thousand words'] == 12  # cut to the view's length
    assert batch['text/report'].max() < words.tokens.vocabulary
    state, after, metrics = one_step(cfg, {'cxr': batch})
    assert metrics['skipped'] == 0 and all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, after.params)))
    assert metrics['term/pair_softmax/rows'] == metrics['term/pair_sigmoid/rows'] == 5
    assert metrics['term/pair_softmax/left_out'] == metrics['term/pair_sigmoid/left_out'] == 3
    assert metrics['term/pair_softmax/start'] == pytest.approx(np.log(5))
    assert metrics['term/pair_sigmoid/positives'] == pytest.approx((3 * 1 + 2 * 2) / 5)  # two texts are equal
    assert recipes.worst(after.params, state.params) > 0


def test_a_batch_without_a_positive_through_a_train_step(batch, importable):
    """No text at all: both terms are 0 and count no row; the step counts and moves nothing."""
    rows = dict(batch['cxr'])
    rows['text/report/length'] = np.zeros_like(rows['text/report/length'])
    rows['key/text'] = np.zeros_like(rows['key/text'])
    state, after, metrics = one_step(pair_recipe(), {'cxr': rows})
    for name in ('pair_softmax', 'pair_sigmoid'):
        assert metrics[f'term/{name}/loss'] == metrics[f'term/{name}/start'] == metrics[f'term/{name}/rows'] == 0
        assert metrics[f'term/{name}/left_out'] == 8
    assert metrics['loss'] == 0 and metrics['skipped'] == 0 and metrics['grad_norm/all'] == 0
    assert recipes.worst(after.params, state.params) == 0 and int(after.step) == 1


def started(cfg):
    objective = compose(cfg)
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    optim = call(optimizer, cfg['optim'], 'optim', params=shapes, total_steps=cfg['total_steps'])
    return objective, make.build(cfg['views'], {}, cfg['image'], {}, 1), recipes.start(objective, optim)


def reads(feature):
    return lambda r: r['terms'][1].update(of=feature)


def text_tower(**changes):
    return lambda r: r['towers']['text'].update(changes)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (reads('student/image/report/cls'), "the tower 'image' sees images, and the view 'report' has none"),
        (reads('student/text/global/cls'), "the tower 'text' sees texts, and the view 'global' has none"),
        (text_tower(context=11), "views.report.length=12: the tower 'text' takes at most 11 tokens"),
        (text_tower(vocabulary=30), 'towers.text: the tower knows 30 token ids and the tokenizer words/vocab.txt (tok'),
    ],
)
def test_towers_and_views_that_do_not_fit(change, sentence, importable):
    cfg = recipe(tokenizer=dict(path='words/vocab.txt', tokens=dict(vocabulary=len(WORDS))))
    change(cfg)
    with pytest.raises(UserError) as error:
        compose(cfg)
    assert sentence in str(error.value)


def test_masks_are_of_images():
    with pytest.raises(UserError, match=r'masks.report~block: .* no view of images .report.'):
        make.build(VIEWS, {'report~block': dict(mask='blocks')}, recipe()['image'], {}, 1)


# Configs and runs.


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        total_steps=2, batch_size=8, image=dict(channels=1, mean=None, std=None),
        data=dict(cxr=dict(sources=dict(paired=.5, bare=.5))),
        views={'global': dict(view='crop', part='cxr', size=16),
               'report': dict(view='text', part='cxr', length=12, count=2, prompts=None)},
        towers=dict(image=dict(tower='vit', variant='Ti/8', width=32, depth=1, heads=2),
                    text=dict(tower='tests.text_tower', vocabulary=64)),
        terms=[dict(term='koleo', name='images', of='student/image/global/cls'),
               dict(term='koleo', name='reports', of='student/text/report/cls')],
        optim=dict(lr=1e-3), export=dict(network='student', towers=['image', 'text'], heads=[], every=2),
    ))
"""


@pytest.fixture
def command(tmp_path, datasets):
    (tmp_path / 'config.py').write_text(CONFIG)
    data = [f'{name}={datasets[name].path}' for name in ('paired', 'bare')]
    return tmp_path / 'config.py', data


def train(file, data, run, tokenizer):
    """`medjax train` in a process with one device."""
    argv = ['-m', 'medjax', 'train', '--config', file, '--workdir', run, '--data', data[0], '--data', data[1]]
    argv += [f'--config.tokenizer.path={tokenizer}']
    env = os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_run_with_texts_and_what_it_exports(command, words, tmp_path):
    file, data = command
    done = train(file, data, tmp_path / 'run', words.path)
    assert done.returncode == 0, done.stderr
    used = json.loads((tmp_path / 'run' / 'config.json').read_text())['tokenizer']
    assert used['fingerprint'] == words.fingerprint and used['tokens'] == words.tokens._asdict()
    _, meta = export.load(tmp_path / 'run' / 'exports' / '2')
    there = tmp_path / 'run' / 'exports' / '2' / meta['tokenizer']['file']
    assert tokenizer.load(there).fingerprint == meta['tokenizer']['fingerprint'] == words.fingerprint
    assert meta['tokenizer']['length'] == 12 and meta['size'] == 16
    last = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    assert 0 < last['term/reports/rows'] <= 16

    # another tokenizer is another run, the same one at another place is not
    (tmp_path / 'moved.txt').write_bytes(words.path.read_bytes())
    (tmp_path / 'other.txt').write_bytes(words.path.read_bytes() + b'more\n')
    (tmp_path / 'run' / 'DONE').unlink()
    done = train(file, data, tmp_path / 'run', tmp_path / 'other.txt')
    assert done.returncode == 2 and 'differ in tokenizer.fingerprint' in done.stderr
    moved, same = (
        configs.load(str(file), data, [f'tokenizer.path={path}'])[0] for path in (tmp_path / 'moved.txt', words.path)
    )
    assert configs.fingerprint(moved) == configs.fingerprint(same)


def test_the_tokenizer_beside_the_data_is_found(command, words, datasets, tmp_path):
    file, data = command
    with pytest.raises(UserError, match='tokenizer.path: text views need a tokenizer, and no data set has one'):
        configs.load(str(file), data)
    beside = datasets['paired'].path / tokenizer.NAME
    made = vocabulary.train([datasets['paired']], 100)
    beside.write_text(made)
    try:
        config, _ = configs.load(str(file), data)
        assert config['tokenizer']['path'] == str(beside)
        (datasets['bare'].path / tokenizer.NAME).write_text(made + ' ')
        with pytest.raises(UserError, match='the sources paired and bare have different ones'):
            configs.load(str(file), data)
    finally:
        beside.unlink()
        (datasets['bare'].path / tokenizer.NAME).unlink(missing_ok=True)


def test_mistakes_in_a_config_are_sentences(command, words, tmp_path, monkeypatch):
    file, data = command
    load = lambda *overrides: configs.load(str(file), data, [f'tokenizer.path={words.path}', *overrides])  # noqa: E731
    (tmp_path / 'prompts.json').write_text(json.dumps(PROMPTS))
    config, _ = load(f'views.report.prompts={tmp_path / "prompts.json"}')
    assert config['views']['report']['prompts']['normal'] == ('normal.',)  # the run holds them
    assert 'views.report.prompts.normal.0' in configs.difference(config, load()[0])
    for text, sentence in [
        ('views.report.length=1', 'views.report.length: a whole number of at least 3'),
        ('views.report.part=ct', "views.report.part: there is no 'ct'"),
        ('tokenizer.pad=</s>', "has no token '</s>'"),
        ('tokenizer.pat=x', "no key 'pat'; did you mean 'path'?"),
        ('views.report.prompts=nowhere.json', 'views.report.prompts=nowhere.json: cannot be read'),
    ]:
        with pytest.raises(UserError) as error:
            load(text)
        assert sentence in str(error.value)
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(
        UserError, match=f'the tower knows 20 token ids and the tokenizer .* has {len(WORDS)}; give the'
    ):
        compose(load('towers.text.vocabulary=20')[0])
    (tmp_path / 'config.py').write_text(CONFIG.replace('length=12', 'lenght=12'))
    with pytest.raises(UserError, match=r"views.report: unknown key 'lenght'; did you mean 'length'"):
        load()
