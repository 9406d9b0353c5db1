"""The probe `classifier`: log-odds of the exported head, and only labels that it predicts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import small_runs
from scipy import special

from medjax import cli
from medjax.errors import UserError
from medjax.probes.methods import classifier
from medjax.weights.meta import problem

SECTION = dict(head='linear', bias=True, out=3)
NAMES = ['normal', 'bacteria', 'virus']


def encoder(predicts: str, names=NAMES, tower: str = 'image'):
    """An encoder whose export has a classifier with random weights."""
    rng = np.random.default_rng(0)
    fc1 = dict(kernel=rng.normal(size=(8, 3)).astype(np.float32), bias=rng.normal(size=3).astype(np.float32))
    entry = dict(term='supervised', tower=tower, head='classifier', predicts=predicts, names=names)
    export = dict(heads=dict(classifier=dict(fc1=fc1)))
    return SimpleNamespace(export=export, meta=dict(heads=dict(classifier=SECTION), classifiers=[entry]))


def inputs(encoder, labels=('normal', 'virus', 'nodule')):
    return SimpleNamespace(encoder=encoder, data=SimpleNamespace(labels=labels, name='x'))


@pytest.mark.parametrize('predicts', ['labels', 'classes'])
def test_scores_are_log_odds(predicts):
    one = encoder(predicts)
    cls = np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)
    fc1 = one.export['heads']['classifier']['fc1']
    s = cls.astype(np.float64) @ fc1['kernel'] + fc1['bias']
    p = special.softmax(s, 1) if predicts == 'classes' else special.expit(s)
    found = classifier.log_odds(one, classifier.requirements(inputs(one))['classifier'], cls)
    np.testing.assert_allclose(found, np.log(p) - np.log1p(-p), atol=1e-4)


@pytest.mark.parametrize(
    ('encoder', 'labels', 'sentence'),
    [
        (encoder('labels'), ('nodule',), 'predicts labels .normal, bacteria, virus., and none is a label of the data'),
        (encoder('numbers', ['age', 'normal']), ('normal',), 'predicts numbers .age, normal., and none is a label'),
        (encoder('labels', tower='other'), ('normal',), 'the export has no classifier; a recipe with the term superv'),
        (SimpleNamespace(export=None, meta={}), ('normal',), 'it has no trained classifier'),
        (SimpleNamespace(export=dict(heads={}), meta={}), ('normal',), 'it has no trained classifier'),
    ],
)
def test_what_a_classifier_cannot_be_judged_by_is_a_sentence(encoder, labels, sentence):
    with pytest.raises(UserError, match=sentence):
        classifier.requirements(inputs(encoder, labels))


def test_names_that_do_not_belong_to_the_head_are_refused():
    one = encoder('labels', NAMES[:2])
    one.folder = 'RUN/exports/8'
    with pytest.raises(UserError, match="the head 'classifier' has 3 outputs, and .classifiers. in meta.json names 2"):
        classifier.log_odds(one, one.meta['classifiers'][0], np.zeros((2, 8), np.float32))
    assert 'classifiers' in problem(dict(classifiers=[dict(term='a', tower='image', head='x', predicts='labels')]))
    assert not problem(dict(classifiers=one.meta['classifiers'])) and not problem({})


@pytest.mark.slow
def test_a_run_exports_its_classifier_which_the_probe_judges(tmp_path, capsys):
    """Its AUROC is that of the logits, on the labels of the data; random init has no classifier."""
    made = small_runs.build(tmp_path / 'made')
    recipe = (made / 'recipe.py').read_text()
    recipe = recipe.replace("dict(term='koleo', of='student/image/global/cls')", "dict(term='supervised', of=OF)")
    recipe = recipe.replace('optim=', "heads=dict(classifier=dict(head='linear', bias=True)),\n        optim=")
    recipe = recipe.replace('export=dict(', "export=dict(heads=['classifier'], ")
    (made / 'recipe.py').write_text("OF = 'student/image/global/cls>classifier'\n" + recipe)
    assert small_runs.run(made, tmp_path / 'run') == 0
    meta = json.loads((tmp_path / 'run' / 'exports' / '8' / 'meta.json').read_text())
    labels = json.loads((made / 'data' / 'medjax.json').read_text())['labels']
    assert meta['heads']['classifier'] == dict(head='linear', bias=True, out=len(labels))
    (entry,) = meta['classifiers']
    assert (entry['predicts'], entry['names']) == ('labels', labels)
    probe = ['--run', tmp_path / 'run', '--data', made / 'data', '--probes', 'classifier', '--draws', '20']
    assert cli.main(['probe', *map(str, probe)]) == 0
    assert 'random init, classifier: left out, it has no trained classifier' in capsys.readouterr().out
    (file,) = (tmp_path / 'run' / 'probes' / '8').glob('*.classifier.json')
    result = json.loads(file.read_text())
    assert set(result['results']['auroc']) - {'mean'} == set(labels) - set(result['skipped_labels'])
