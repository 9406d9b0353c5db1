"""Probes that need texts, on a run of four steps: zero-shot, retrieval, and the message for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, top_k_accuracy_score

from medjax import cli, config as configs, train
from medjax.data import records
from medjax.data.text import prompts, views as text_views
from medjax.errors import UserError
from medjax.probes import encode, image_text, results, statistics, structures, vectors
from medjax.probes.evaluate import ProbeInputs
from medjax.probes.methods import localisation, retrieval, zero_shot
from medjax.training.export import Exporter
from medjax.weights import export

ROOT = Path(__file__).parents[2]
PROMPTS = str(ROOT / 'configs' / 'prompts' / 'phantom.json')
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        total_steps=4, batch_size=8, data=dict(cxr=dict(sources=dict(main=1.0))),
        views={'crop': dict(view='crop', part='cxr', size=32), 'report': dict(view='text', part='cxr', length=32)},
        towers=dict(image=dict(tower='vit', variant='Ti/8', width=32, depth=2, heads=2),
                    words=dict(tower='text', width=32, depth=2, heads=2, vocabulary=300, context=32)),
        heads=dict(vi=dict(head='linear', out=16), vt=dict(head='linear', out=16)),
        terms=[dict(term='pair_softmax', rows='student/words/report/cls>vt', columns='student/image/crop/cls>vi',
                    temperature=dict(learned=.07))],
        optim=dict(lr=1e-3),
        export=dict(network='student', towers=['image', 'words'], heads=['vi', 'vt'], every=4),
    ))
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('phantom') / 'data'
    assert cli.main(['build', 'phantom', '--records', '160', '--size', '32', '--out', str(path)]) == 0
    assert cli.main(['tokenizer', str(path), '--size', '300']) == 0
    return path


@pytest.fixture(scope='module')
def run(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('run')
    (folder / 'config.py').write_text(CONFIG)
    argv = ['-m', 'medjax', 'train', '--config', folder / 'config.py', '--data', data, '--workdir', folder / 'run']
    env = os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / 'run'


@pytest.fixture(scope='module')
def encoder(run):
    return encode.load(run / 'exports' / '4')


def probe(run, data, *more):
    return cli.main(['probe', '--run', str(run), '--data', str(data), '--draws', '20', *more])


def result(run, data, name, step='4'):
    """The newest result of a probe; its name has the prompt file in it."""
    found = (run / 'probes' / step).glob(f'{records.open(data).name}.{name}*.json')
    return json.loads(max(found, key=lambda file: file.stat().st_mtime_ns).read_text())


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.slow
def test_an_export_says_which_towers_and_heads_are_a_pair(encoder):
    (pair,) = encoder.meta['pairs']
    assert pair['image'] == dict(tower='image', head='vi')
    assert pair['text'] == dict(tower='words', head='vt', length=32, sections=list(text_views.FALLBACKS))
    assert pair['term'] == 'pair_softmax' and 0.05 < pair['temperature'] < 0.1 and pair['temperature'] != 0.07


def test_means_over_other_labels_stand_in_another_table(run, data, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / 'run')
    prompts = json.loads(Path(PROMPTS).read_text())
    prompts['present'] = dict(list(prompts['present'].items())[:2])
    (tmp_path / 'two.json').write_text(json.dumps(prompts))
    argv = ('--probes', 'knn,zero_shot', '--prompts', str(tmp_path / 'two.json'), '--baselines', 'none')
    assert probe(copy, data, *argv) == 0
    first, second = capsys.readouterr().out.split('means over ')[1:]
    assert '| knn |' in first and '| zero_shot-' not in first and not first.startswith('2 label(s)')
    assert '| zero_shot-two-' in second and second.startswith('2 label(s)')


@pytest.mark.slow
def test_an_export_has_the_tokenizer_that_its_run_began_with(tmp_path, data, monkeypatch):
    copy = shutil.copytree(data, tmp_path / 'data')
    (tmp_path / 'config.py').write_text(CONFIG)
    config, datasets = configs.load(str(tmp_path / 'config.py'), [str(copy)])
    before = (copy / 'tokenizer.json').read_bytes()
    write = Exporter.write

    def later(*arguments):
        (copy / 'tokenizer.json').write_text('{}')  # as by `medjax tokenizer --overwrite` beside the training
        write(*arguments)

    monkeypatch.setattr(Exporter, 'write', later)
    assert train.run(config, datasets, tmp_path / 'run') == 0
    folder = tmp_path / 'run' / 'exports' / '4'
    assert (folder / 'tokenizer.json').read_bytes() == before
    assert export.read_meta(folder)['tokenizer']['fingerprint'] == config['tokenizer']['fingerprint']


@pytest.mark.slow
def test_defaults_are_what_export_and_data_allow(run, data, capsys, monkeypatch):
    assert probe(run, data, '--prompts', PROMPTS) == 0
    output = capsys.readouterr().out
    written = {str(p.relative_to(run / 'probes')) for p in (run / 'probes').rglob('*.json')}
    name = records.open(data).name
    asked = results.name('zero_shot', prompts.zero_shot(PROMPTS, ''))
    assert asked == f'zero_shot-{Path(PROMPTS).stem}-{prompts.zero_shot(PROMPTS, "").digest[:6]}'
    expected = {f'{e}/{name}.{p}.json' for e in ('4', 'random') for p in ('knn', 'linear', asked, 'retrieval')}
    assert written == expected | {f'pixels/{name}.{p}.json' for p in ('knn', 'linear')}
    assert 'pixels, zero_shot: left out, raw pixels share no space with texts' in output
    assert f'| step 4 | {asked} |' in output and '| R@1 | R@5 | R@10 | P@5 | P@10 |' in output
    with monkeypatch.context() as patch:
        patch.setattr(encode, 'features', lambda *a, **k: pytest.fail('encoded again'))
        assert probe(run, data, '--prompts', PROMPTS) == 0
    assert probe(run, data) == 0, 'without prompts zero-shot is no default'
    zero, retrieved = result(run, data, 'zero_shot'), result(run, data, 'retrieval')
    assert zero['chosen']['prompts'] == prompts.zero_shot(PROMPTS, 'x').digest and zero['chosen']['score'] == 'pair'
    assert zero['details']['prompts']['present'] == json.loads(Path(PROMPTS).read_text())['present']
    assert zero['records'] == {'test': len(records.open(data).split('test'))} and 'val' not in zero['records']
    assert set(retrieved['results']['R@5']) == {'mean', 'image to text', 'text to image'}
    assert cli.main(['report', '--run', str(run), '--data', str(data)]) == 0
    page = (run / 'report.html').read_text()
    assert 'Maps of findings' in page and page.count('similarity to nodule') == 6 and 'image to text' in page


def test_the_best_export_by_probes_that_read_texts(run, data, tmp_path, capsys):
    """Their metrics on validation are those that the same records would have as the test split."""
    copy = shutil.copytree(run, tmp_path / 'run', ignore=shutil.ignore_patterns('probes'))
    options = ('--probes', 'zero_shot,retrieval', '--prompts', PROMPTS, '--baselines', 'none')
    assert probe(copy, data, *options) == 0
    assert not result(copy, data, 'retrieval').get('validation_results'), 'nobody chooses, so validation is not encoded'
    for figure in ('retrieval.R@5', 'zero_shot.auroc'):
        assert probe(copy, data, *options, '--best', figure) == 0
        best = json.loads((copy / 'best.json').read_text())
        assert (best['step'], best['figure'], best['validation']) == (4, figure, 'the val split')
        title = figure.replace('.', ' ').replace('auroc', 'AUROC')
        assert f'the only one that was probed, by {title}' in capsys.readouterr().out
        name, metric = figure.split('.')
        estimate = result(copy, data, name)['validation_results'][metric]['mean']
        assert best['value'] == estimate['value'] != result(copy, data, name)['results'][metric]['mean']['value']

    opened = records.open(data)
    inputs = ProbeInputs(encode.load(copy / 'exports' / '4'), opened, None, {}, prompts.zero_shot(PROMPTS, ''), 0, 20)
    encoder, val = image_text.load(inputs.encoder), inputs.features('val')
    texts = retrieval.record_texts(opened.split('val'), encoder)
    images = unit(encoder.image_vectors(val.cls[:, -1]))
    has, study = np.array([bool(text) for text in texts]), opened.split('val').keys('study')
    folded = [text.casefold() for text in texts if text]
    vectors_of = dict(zip(folded, unit(encoder.text_vectors([text for text in texts if text])), strict=True))
    recall, _ = brute(images[has], np.stack([vectors_of[text] for text in folded]), folded, study[has], 5)
    found = result(copy, data, 'retrieval')['validation_results']['R@5']['image to text']['value']
    assert found == pytest.approx(recall.mean())
    scores = zero_shot.score(images, inputs.prompts, encoder)
    areas = {}
    for name, score in scores.items():
        truth = val.labels[:, opened.labels.index(name)]
        if {0, 1} <= set(truth.tolist()):
            areas[name] = roc_auc_score(truth[truth >= 0], score[truth >= 0])
    rows = result(copy, data, 'zero_shot')['validation_results']['auroc']
    assert len(rows) > 1, 'labels with both classes in val and in test'
    for name in rows.keys() - {'mean'}:
        assert rows[name]['value'] == pytest.approx(areas[name])


def test_zero_shot_equals_sentences_one_by_one(run, data, encoder):
    """Every score, with both ensembles, equals the towers on one image and one sentence at a time."""
    towers, opened = image_text.load(encoder), records.open(data)
    features = encode.features(encoder, opened, 'test')
    images = unit(features.cls[:, -1] @ np.asarray(encoder.export['heads']['vi']['fc1']['kernel']))
    np.testing.assert_allclose(vectors.unit(towers.image_vectors(features.cls[:, -1])), images, atol=1e-5)
    many = towers.text_vectors(['No nodule.', 'A small left pneumothorax.', 'Mild cardiomegaly.'])
    for sentence, vector in zip(['No nodule.', 'A small left pneumothorax.'], many):
        np.testing.assert_allclose(towers.text_vectors([sentence])[0], vector, atol=2e-5)
    assert np.abs(many[0] - many[1]).max() > 1e-3

    pools = dict(present={'nodule': ['A nodule.', 'Nodule.'], 'effusion': ['An effusion.']}, normal=['No findings.'])
    for ensemble in ('before', 'after'):

        def cosine(pool, ensemble=ensemble):
            vectors = np.stack([towers.text_vectors([s])[0] for s in pool])
            return images @ unit((unit(vectors) if ensemble == 'after' else vectors).mean(0))

        a, b, n = cosine(pools['present']['nodule']), cosine(pools['present']['effusion']), cosine(pools['normal'])
        settings = dict(**pools, absent=dict.fromkeys(pools['present'], pools['normal']), ensemble=ensemble, digest='')
        given = {score: prompts.ZeroShot(**settings, score=score, temperature=0.1) for score in prompts.SCORES}
        scores = {score: zero_shot.score(images, one, towers) for score, one in given.items()}
        np.testing.assert_allclose(scores['cosine']['effusion'], b, atol=1e-4)
        np.testing.assert_allclose(scores['pair']['nodule'], (a - n) / 0.1, atol=1e-3)
        p = np.exp(a / 0.1) / (np.exp(a / 0.1) + np.exp(b / 0.1) + np.exp(n / 0.1))
        np.testing.assert_allclose(scores['classes']['nodule'], np.log(p / (1 - p)), atol=1e-3)


def test_the_metrics_are_those_of_the_scores(run, data):
    assert probe(run, data, '--probes', 'zero_shot', '--prompts', PROMPTS) == 0
    content = result(run, data, 'zero_shot')
    with np.load(run / 'probes' / '4' / content['scores']) as kept:
        for j, name in enumerate(kept['names']):
            auroc = roc_auc_score(kept['labels'][:, j], kept['scores'][:, j])
            assert content['results']['auroc'][name]['value'] == pytest.approx(auroc, abs=1e-6)


# Retrieval.


def brute(queries, candidates, text, study, k):
    """Loops in numpy: R@K and P@K of each query."""
    recall, precision = [], []
    for i, query in enumerate(queries):
        order = np.argsort(-(candidates.astype(np.float64) @ query), kind='stable')[:k]
        right = [text[j] == text[i] or study[j] == study[i] for j in order]
        recall.append(float(any(right)))
        precision.append(sum(right) / k)
    return np.array(recall), np.array(precision)


def test_retrieval_equals_loops_in_chunks_too(monkeypatch):
    rng = np.random.default_rng(0)
    images, sentences = (unit(rng.normal(size=(53, 8)).astype(np.float32)) for _ in range(2))
    text, study = rng.integers(20, size=53), np.repeat(np.arange(27), 2)[:53].astype(np.uint64)
    sentences = sentences[text]  # equal texts are equal vectors
    for chunk in (1 << 24, 53 * 7):
        monkeypatch.setattr(vectors, 'COSINES', chunk)
        forward = retrieval.hits(vectors.nearest(images, sentences, 10)[1], text, study)
        back = retrieval.hits(vectors.nearest(sentences, images, 10)[1], text, study)
        values = retrieval.query_metrics({'a': forward, 'b': back})
        assert list(values) == ['R@1', 'R@5', 'R@10', 'P@5', 'P@10']
        for direction, pair in (('a', (images, sentences)), ('b', (sentences, images))):
            for k in (1, 5, 10):
                recall, precision = brute(*pair, text, study, k)
                np.testing.assert_array_equal(values[f'R@{k}'][direction], recall)
                if k > 1:
                    np.testing.assert_allclose(values[f'P@{k}'][direction], precision)


def test_retrieval_of_distinct_texts_is_top_k_accuracy():
    rng = np.random.default_rng(1)
    images, sentences = (unit(rng.normal(size=(60, 4)).astype(np.float32)) for _ in range(2))
    each = np.arange(60)
    values = retrieval.query_metrics({'a': retrieval.hits(vectors.nearest(images, sentences, 10)[1], each, each)})
    for k in (1, 5, 10):
        assert values[f'R@{k}']['a'].mean() == pytest.approx(top_k_accuracy_score(each, images @ sentences.T, k=k))


def test_chance_is_what_random_orders_give():
    rng = np.random.default_rng(2)
    text, study = rng.integers(9, size=30), np.repeat(np.arange(15), 2).astype(np.uint64)
    drawn = [
        retrieval.query_metrics({'a': retrieval.hits(np.stack([rng.permutation(30)[:10] for _ in text]), text, study)})
        for _ in range(400)
    ]
    for metric, expected in retrieval.chance_metrics(text, study).items():
        assert np.mean([d[metric]['a'] for d in drawn]) == pytest.approx(expected, abs=0.02)


def test_intervals_of_means_are_over_patients():
    values = {'R@1': {'a': np.array([1.0, 1, 0, 0, 0, 0]), 'b': np.ones(6)}}
    patients = np.array([0, 0, 1, 1, 1, 1])
    estimates = statistics.intervals_of_means(values, statistics.Bootstrap(patients, seed=0, draws=500))['R@1']
    assert estimates['a'] == dict(value=pytest.approx(1 / 3), low=0.0, high=1.0)  # both draws of one patient alone
    assert estimates['mean']['value'] == pytest.approx(2 / 3) and estimates['b'] == dict(value=1.0, low=1.0, high=1.0)


def test_records_without_text_are_left_out_and_few_candidates_have_no_large_k(encoder, run, data):
    towers = image_text.load(encoder)
    texts = [
        {'impression': 'No nodule.'},
        {},
        {'indication': 'cough'},
        {'findings': '胸部'},
        {'findings': 'No nodule.'},
    ]

    class Split:
        text = staticmethod(texts.__getitem__)
        __len__ = lambda self: len(texts)  # noqa: E731

    record_texts = retrieval.record_texts(Split(), towers)
    assert record_texts == ['No nodule.', '', '', '胸部', 'No nodule.']
    assert [bool(towers.tokens(text)) for text in record_texts] == [True, False, False, False, True]
    assert list(retrieval.query_metrics({'a': np.ones((3, 3), bool)})) == ['R@1']


# Mistakes.


def write(tmp_path, content):
    file = tmp_path / 'prompts.json'
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def good(**changes):
    first = dict(present={'nodule': ['Nodule.']}, absent={'nodule': ['No nodule.']})
    return first | dict(zero_shot=dict(score='pair', ensemble='after')) | changes


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ('{"present": ', 'is no JSON'),
        ([], 'a dict with present, absent, normal'),
        (
            good(present={'nodul': ['x']}, normal=['y'], absent={}),
            "present: the data have no label 'nodul'; did you me",
        ),
        (good(absent={'nodule': ['x'], 'mass': ['x']}), "absent: the data have no label 'mass'"),
        (good(present={'nodule': []}), 'present.nodule must be a list of sentences, not []'),
        (good(present={'nodule': [' ']}), "present.nodule must be a list of sentences, not [' ']"),
        (good(present={}), 'present: there is no class in it'),
        (good(absent={}), "absent: there is no sentence for 'nodule'"),
        (good(zero_shot=None), 'zero_shot must say how prompts become scores'),
        (good(zero_shot=dict(score='pair')), "zero_shot: the key 'ensemble' is missing"),
        (good(zero_shot=dict(score='pair', ensemble='after', scale=1)), "unknown key 'scale'"),
        (good(zero_shot=dict(score='softmax', ensemble='after')), "'softmax' is none of pair, classes, cosine"),
        (good(zero_shot=dict(score='classes', ensemble='after')), 'and there is one'),
        (good(zero_shot=dict(score='pair', ensemble='after', templates=['a {} {}'])), 'one {} each'),
        (good(zero_shot=dict(score='pair', ensemble='after', temperature=0)), 'a number above 0'),
        (good(zreo_shot={}), "unknown key 'zreo_shot'; did you mean 'zero_shot'"),
    ],
)
def test_prompt_files_that_are_refused(tmp_path, run, data, capsys, content, sentence):
    assert probe(run, data, '--prompts', write(tmp_path, content), '--probes', 'zero_shot') == 2
    output = capsys.readouterr().err
    assert sentence in output and 'Traceback' not in output and '--prompts' in output


def test_hard_prompts(tmp_path, run, data, capsys):
    asked = ('--probes', 'zero_shot', '--baselines', 'none')
    for sentence in ('胸部', '\x00\x07\u200b'):
        file = write(tmp_path, good(present={'nodule': [sentence]}))
        assert probe(run, data, *asked, '--prompts', file) == 1
        assert 'has no word of the prompt' in capsys.readouterr().err
    long, odd = 'nodule ' * 10_000, 'A\x00nodule\x1b in\u200b the lung.'
    file = write(tmp_path, good(present={'nodule': [long, odd]}))
    assert probe(run, data, *asked, '--prompts', file) == 0
    assert result(run, data, 'zero_shot')['details']['cut_sentences'] == [long]
    assert probe(run, data, *asked, '--prompts', str(tmp_path / 'nowhere.json')) == 2
    assert probe(run, data, *asked) == 1
    assert 'give a file of them with --prompts FILE' in capsys.readouterr().err


def test_damaged_tokenizers_and_exports_without_a_pair(tmp_path, run, data, capsys):
    folder = tmp_path / 'run'
    shutil.copytree(run / 'exports', folder / 'exports')
    file = folder / 'exports' / '4' / 'tokenizer.json'
    asked = ('--probes', 'retrieval,zero_shot', '--baselines', 'none', '--prompts', PROMPTS)
    for damage in (lambda: file.write_bytes(file.read_bytes()[:500]), file.unlink):
        damage()
        assert probe(folder, data, *asked) == 1
        output = capsys.readouterr().err
        assert ('is damaged or not the tokenizer' in output) or ('lacks its tokenizer' in output)
        assert output.count('failed') == 2 and 'Traceback' not in output

    params, meta = export.load(run / 'exports' / '4')
    export.save(tmp_path / 'image' / 'exports' / '4', params, meta | dict(pairs=[]))
    assert probe(tmp_path / 'image', data, '--probes', 'retrieval') == 1
    assert 'the export holds no pair of an image and a text tower' in capsys.readouterr().err
    assert probe(tmp_path / 'image', data, '--prompts', PROMPTS, '--baselines', 'none') == 0
    assert {p.name.split('.')[1] for p in (tmp_path / 'image' / 'probes' / '4').glob('*.json')} == {'knn', 'linear'}


@pytest.mark.parametrize('file', sorted((ROOT / 'configs' / 'prompts').glob('*.json')), ids=lambda f: f.stem)
def test_shipped_prompts(file):
    loaded = prompts.zero_shot(str(file), 'x')
    assert set(loaded.absent) == set(loaded.present) and loaded.score == 'pair'
    assert prompts.read(str(file), 'x').keys() == {'present', 'absent', 'normal'}, 'they serve a text view as well'


def test_one_file_serves_training_and_zero_shot(tmp_path):
    both = good(normal=['Normal.'])
    assert prompts.read(write(tmp_path, both), 'x') == {key: both[key] for key in prompts.KEYS}
    bad = write(tmp_path, good(zero_shot=dict(score='pair', ensemble='after', templates=[])))
    with pytest.raises(UserError, match=r'zero_shot\.templates'):
        prompts.zero_shot(bad, 'x')


def test_localisation_compares_patches_with_sentences(run, data, monkeypatch):
    project = image_text.ImageTextEncoder.image_vectors  # as if the head were not linear
    monkeypatch.setattr(image_text.ImageTextEncoder, 'image_vectors', lambda self, x: np.tanh(project(self, x)) + 0.1)
    opened = records.open(data)
    inputs = ProbeInputs(encode.load(run / 'exports' / '4'), opened, None, {}, prompts.zero_shot(PROMPTS, ''), 0, 20)
    assert 'prompts' in localisation.requirements(inputs)
    content, arrays = localisation.run(inputs)
    names = arrays['names'].tolist()
    assert content['chosen']['similarity'] == 'to sentences' and set(names) <= set(inputs.prompts.present)
    assert content['skipped_labels']['lung'] == 'no prompt'
    encoder, unit = image_text.load(inputs.encoder), vectors.unit
    vector = zero_shot.class_vectors(inputs.prompts.present, inputs.prompts.ensemble, encoder)[names[0]]
    grid = np.asarray(inputs.grids('test'), np.float32)
    test, axis = opened.split('test'), structures.Axis(32, 0.0, 32.0)
    for record, found in zip(arrays['record'].tolist(), arrays['signed_cnr'][:, 0], strict=True):
        plane = test.structures(record)[opened.masks.index(names[0])]
        if not plane.any():
            assert np.isnan(found)
            continue
        on = structures.on_pixels((unit(encoder.image_vectors(grid[record])) @ vector)[None], axis, axis)[0]
        inside, outside = on[plane], on[~plane]
        noise = np.sqrt(inside.var() + outside.var())
        assert found == pytest.approx((inside.mean() - outside.mean()) / noise, rel=1e-2, abs=1e-3)
