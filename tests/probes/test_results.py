"""Results on disk: two data sets of one name do not overwrite each other."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from medjax.probes import results, source_code, tables
from medjax.probes.methods import knn, robustness

FIRST, SECOND = 'a1a1a1a1a1', 'b2b2b2b2b2'


def put(run, fingerprint, value, step=10):
    mean = dict(value=value, low=None, high=None, labels=2)
    result = dict(
        probe='knn', data='clinic', data_fingerprint=fingerprint, encoder=dict(step=step), key=f'{fingerprint}/{step}',
        records=dict(test=20), bootstrap=dict(patients=10, level=0.95),
        results={name: dict(mean=mean) for name in results.METRIC_TITLES},
    )  # fmt: skip
    file = results.path(run, step, 'clinic', 'knn')
    results.write(file, result, dict(scores=np.full(3, value)))
    assert results.exists(file, result['key'])


def table(run, fingerprint):
    data = SimpleNamespace(name='clinic', fingerprint=fingerprint)
    return '\n\n'.join(map(tables.markdown, tables.of_results(results.on_data(run, data, ['knn']), ['knn'])))


def test_two_data_sets_of_one_name_are_kept_apart(tmp_path):
    put(tmp_path, FIRST, 0.25)
    put(tmp_path, SECOND, 0.75)
    put(tmp_path, FIRST, 0.375, step=20)
    put(tmp_path, SECOND, 0.875, step=20)
    for step, first, second in ((10, 0.25, 0.75), (20, 0.375, 0.875)):
        for name, value in (('clinic', first), ('clinic-b2b2b2', second)):
            content = json.loads((tmp_path / 'probes' / str(step) / f'{name}.knn.json').read_text())
            assert (content['data'], content['results']['auroc']['mean']['value']) == (name, value)
            with np.load(tmp_path / 'probes' / str(step) / content['scores']) as arrays:
                assert arrays['scores'][0] == value
    assert not results.exists(results.path(tmp_path, 10, 'clinic', 'knn'), 'another key')
    assert table(tmp_path, FIRST).startswith('clinic, ') and table(tmp_path, SECOND).startswith('clinic-b2b2b2, ')
    assert '.250' in table(tmp_path, FIRST) and '.750' not in table(tmp_path, FIRST)
    assert '.875' in table(tmp_path, SECOND) and '.375' not in table(tmp_path, SECOND)


def test_the_name_of_a_data_set_goes_to_the_first_for_the_whole_run(tmp_path):
    put(tmp_path, FIRST, 0.25, step=10)
    put(tmp_path, SECOND, 0.75, step=20)  # the first has no result at this step, but it keeps its name at all steps
    assert not results.path(tmp_path, 20, 'clinic', 'knn').exists()
    put(tmp_path, FIRST, 0.375, step=10)
    assert results.path(tmp_path, 10, 'clinic', 'knn').exists()
    assert table(tmp_path, FIRST).count('| knn |') == table(tmp_path, SECOND).count('| knn |') == 1


@pytest.mark.parametrize(
    ('value', 'text'),
    [(0.842, '.842'), (-0.0264, '-.026'), (1.0, '1.000'), (0.9996, '1.000'), (10.5, '10.500'), (-20.04, '-20.040')],
)
def test_numbers_are_printed_as_in_papers(value, text):
    assert results.short(value) == text


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A function that gives the digests of knn and robustness after a change of a module, in a copy of all of them."""
    modules = source_code._modules()
    copies = {name: tmp_path / name for name in modules}
    for name, copy in copies.items():
        shutil.copy(modules[name], copy)
    monkeypatch.setattr(source_code, '_modules', lambda: copies)

    def digests(module=None):
        if module:
            with copies[f'medjax.probes.{module}'].open('a') as file:
                file.write('\nADDED = 1\n')
        source_code._module.cache_clear()
        return source_code.digest(knn), source_code.digest(robustness)

    yield digests
    source_code._module.cache_clear()


def test_a_change_of_an_imported_module_changes_the_key(edited):
    digests = [edited(), edited('metrics'), edited('corruptions'), edited('tables')]
    of_knn, of_robustness = ([pair[i] for pair in digests] for i in (0, 1))
    assert len(set(of_knn)) == 2 and of_knn[0] != of_knn[1], 'metrics, which knn imports through others'
    assert len(set(of_robustness)) == 3 and of_robustness[2] == of_robustness[3], 'nobody needs tables for a result'


@pytest.mark.parametrize(
    'source',
    [
        'import medjax.probes.logistic',
        'from medjax.probes import logistic as one',
        'def f():\n    from medjax.probes.logistic import fit',
    ],
)
def test_imports_are_found_however_they_are_written(source):
    assert source_code._imported(source) == {'medjax.probes.logistic'}
