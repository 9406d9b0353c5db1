"""Text views in training: the view, its features, the step, the config and the run."""

from __future__ import annotations

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
from text_batches import PROMPTS, VIEWS, WORDS, data_set, datasets_in, part, take, tokenizer_in

from medjax import config as configs
from medjax.data.builder import vocabulary
from medjax.data.stream import Stream
from medjax.data.text.tokenizer import NAME, load as load_tokenizer
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.step import gradients, make_step
from medjax.views import make
from medjax.weights import export

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
    return datasets_in(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    return tokenizer_in(tmp_path_factory.mktemp('vocabulary'))


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
def batch(datasets, tokenizer):
    (batch,) = take(Stream(part(), datasets, 3, views=VIEWS, tokenizer=tokenizer), 1)
    return {'cxr': batch}


def test_a_text_view_holds_the_texts_of_the_stream(batch):
    views = dict(recipe()['views'])
    make_views = jax.jit(make.build(make.kinds(views), {}, recipe()['image'], {}, 1))
    built, _ = make_views(batch, jax.random.key(0), jnp.zeros((), jnp.int32))
    assert list(built) == list(views)
    for name in VIEWS:
        view, rows = built[name], batch['cxr']
        np.testing.assert_array_equal(view.x, rows[f'text/{name}'])
        np.testing.assert_array_equal(view.present, rows[f'text/{name}/length'] > 0)
        np.testing.assert_array_equal(view.valid.sum(-1), rows[f'text/{name}/length'])
        assert not view.valid[..., 1:][~np.asarray(view.valid)[..., :-1]].any()  # the first tokens
        np.testing.assert_array_equal(view.meta['length'], rows[f'text/{name}/length'])
        for key in ('key/text', 'key/study', 'key/patient', 'label'):
            np.testing.assert_array_equal(view.meta[key], rows[key])
    np.testing.assert_array_equal(built['global'].meta['key/text'], batch['cxr']['key/text'])


def test_features_of_a_text_view_by_the_text_tower(batch, importable):
    objective, make_views, state = started(recipe())
    views, masks = jax.jit(make_views)(batch, state.key, state.step)
    computed, _ = jax.jit(objective.features)(state.params, state.aux, views, masks, state.key, state.step)
    features = computed.features
    assert features['student/text/report/cls'].shape == (8, 1, 16)
    assert features['student/text/sentence/cls>vt'].shape == (8, 3, 8)
    p = state.params['towers']['text']
    rows = batch['cxr']
    for r in range(8):
        n = rows['text/report/length'][r, 0]
        mean = np.asarray(p['embedding'])[rows['text/report'][r, 0, :n]].sum(0) / max(n, 1)
        np.testing.assert_allclose(features['student/text/report/cls'][r, 0], mean @ np.asarray(p['kernel']), atol=1e-4)
    _, (metrics, _) = jax.jit(objective.loss)(state.params, state.aux, computed, views, masks, state.key, state.step)
    assert metrics['term/reports/rows'] == (rows['text/report/length'] > 0).sum()  # absent texts are not counted


def test_micro_batches_of_texts_give_one_gradient(datasets, tokenizer, importable):
    # All texts of the batch differ. With equal texts, KoLeo is the logarithm of a distance that is only rounding.
    views = {'report': dict(view='text', part='cxr', length=12, sections=['findings'])}
    (batch,) = take(Stream(part(8, paired=1.0), datasets, 3, views=views, tokenizer=tokenizer), 1)
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
"""Both terms over pairs. Rows without a text have no text key either."""


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


@pytest.mark.slow
def test_odd_texts_through_a_train_step(tmp_path, tokenizer, importable):
    """Every text is either trained on, or absent and counted. The step is finite."""
    source = data_set(tmp_path, 'odd', len(ODD), lambda i: {'impression': [*ODD.values()][i]})
    cfg = pair_recipe()
    stream = Stream(
        {'cxr': dict(rows=8, sources=dict(odd=1.0))}, {'odd': source}, 0, views=cfg['views'], tokenizer=tokenizer
    )
    (batch,) = take(stream, 1)
    lengths = dict(zip([[*ODD][i] for i in batch['index']], batch['text/report/length'][:, 0].tolist()))
    assert {name for name, length in lengths.items() if not length} == {
        'empty',
        'non-Latin',  # this vocabulary has none of its tokens
        'nothing but control characters',
    }
    assert lengths['one word'] == 3 and lengths['ten thousand words'] == 12  # cut to the view's length
    assert batch['text/report'].max() < tokenizer.tokens.vocabulary
    state, after, metrics = one_step(cfg, {'cxr': batch})
    assert metrics['skipped'] == 0 and all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, after.params)))
    assert metrics['term/pair_softmax/rows'] == metrics['term/pair_sigmoid/rows'] == 5
    assert metrics['term/pair_softmax/left_out'] == metrics['term/pair_sigmoid/left_out'] == 3
    assert metrics['term/pair_softmax/start'] == pytest.approx(np.log(5))
    assert metrics['term/pair_sigmoid/positives'] == pytest.approx((3 * 1 + 2 * 2) / 5)  # two texts are equal
    assert recipes.worst(after.params, state.params) > 0


def test_a_batch_without_a_positive_through_a_train_step(batch, importable):
    """Without any text both terms are 0 and count no row. The step is counted, and changes no parameter."""
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
    return objective, make.build(objective.views, {}, cfg['image'], {}, 1), recipes.start(objective, optim)


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
        (text_tower(vocabulary=30), 'towers.text: the tower has embeddings for 30 token ids and the tokenizer words/'),
    ],
)
def test_towers_and_views_that_do_not_fit(change, sentence, importable):
    cfg = recipe(tokenizer=dict(path='words/vocab.txt', tokens=dict(vocabulary=len(WORDS))))
    change(cfg)
    with pytest.raises(UserError) as error:
        compose(cfg)
    assert sentence in str(error.value)


def test_masks_are_of_images():
    with pytest.raises(UserError, match=r'masks.report~block: this mask is for images, and the view shows texts'):
        make.build(make.kinds(VIEWS), {'report~block': dict(mask='blocks')}, recipe()['image'], {}, 1)


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


def train(file, data, run, tokenizer_path):
    """`medjax train` in a process with one device."""
    argv = ['-m', 'medjax', 'train', '--config', file, '--workdir', run, '--data', data[0], '--data', data[1]]
    argv += [f'--config.tokenizer.path={tokenizer_path}']
    env = os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_a_run_with_texts_and_what_it_exports(command, tokenizer, tmp_path):
    file, data = command
    done = train(file, data, tmp_path / 'run', tokenizer.path)
    assert done.returncode == 0, done.stderr
    used = json.loads((tmp_path / 'run' / 'config.json').read_text())['tokenizer']
    assert used['fingerprint'] == tokenizer.fingerprint and used['tokens'] == tokenizer.tokens._asdict()
    _, meta = export.load(tmp_path / 'run' / 'exports' / '2')
    there = tmp_path / 'run' / 'exports' / '2' / meta['tokenizer']['file']
    assert load_tokenizer(there).fingerprint == meta['tokenizer']['fingerprint'] == tokenizer.fingerprint
    assert meta['tokenizer']['length'] == 12 and meta['size'] == 16
    last = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    assert 0 < last['term/reports/rows'] <= 16

    # Another tokenizer makes another run. The same tokenizer at another path does not.
    (tmp_path / 'moved.txt').write_bytes(tokenizer.path.read_bytes())
    (tmp_path / 'other.txt').write_bytes(tokenizer.path.read_bytes() + b'more\n')
    (tmp_path / 'run' / 'DONE').unlink()
    done = train(file, data, tmp_path / 'run', tmp_path / 'other.txt')
    assert done.returncode == 2 and 'differ in tokenizer.fingerprint' in done.stderr
    moved, same = (
        configs.load(str(file), data, [f'tokenizer.path={path}'])[0]
        for path in (tmp_path / 'moved.txt', tokenizer.path)
    )
    assert configs.fingerprint(moved) == configs.fingerprint(same)


def test_the_tokenizer_beside_the_data_is_used(command, tokenizer, datasets, tmp_path):
    file, data = command
    with pytest.raises(UserError, match='tokenizer.path: text views need a tokenizer, and no data set has one'):
        configs.load(str(file), data)
    beside = datasets['paired'].path / NAME
    content = vocabulary.train([datasets['paired']], 100)
    beside.write_text(content)
    try:
        config, _ = configs.load(str(file), data)
        assert config['tokenizer']['path'] == str(beside)
        (datasets['bare'].path / NAME).write_text(content + ' ')
        with pytest.raises(UserError, match='the sources paired and bare have different ones'):
            configs.load(str(file), data)
    finally:
        beside.unlink()
        (datasets['bare'].path / NAME).unlink(missing_ok=True)


def test_mistakes_in_a_config_are_sentences(command, tokenizer, tmp_path, monkeypatch):
    file, data = command
    load = lambda *overrides: configs.load(str(file), data, [f'tokenizer.path={tokenizer.path}', *overrides])  # noqa: E731
    (tmp_path / 'prompts.json').write_text(json.dumps(PROMPTS))
    config, _ = load(f'views.report.prompts={tmp_path / "prompts.json"}')
    assert config['views']['report']['prompts']['normal'] == ('normal.',)  # the config of the run holds the prompts
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
        UserError, match=f'the tower has embeddings for 20 token ids and the tokenizer .* has {len(WORDS)}; give the'
    ):
        compose(load('towers.text.vocabulary=20')[0])
    (tmp_path / 'config.py').write_text(CONFIG.replace('length=12', 'lenght=12'))
    with pytest.raises(UserError, match=r"views.report: unknown key 'lenght'; did you mean 'length'"):
        load()
