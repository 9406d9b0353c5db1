"""Each figure of a probe from a small result; a changed result is called damaged, a fault of ours is not."""

from __future__ import annotations

import copy
import json
import types

import numpy as np
import pytest

from medjax.probes import aggregate, evaluate, label_splits
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options, Scores
from medjax.reports import plots, probe_figures, probe_plots, run_page
from medjax.reports.result_shapes import DamagedResult
from medjax.reports.run_files import ResultFile


def number(value, **more):
    return dict(value=value, low=value - 0.1, high=value + 0.1) | more


def table(**metrics):
    """{metric: {row: estimate}} from {metric: {row: value}}, with means."""
    return {
        metric: {'mean': number(float(np.mean([*rows.values()])), labels=len(rows))}
        | {row: number(value) for row, value in rows.items()}
        for metric, rows in metrics.items()
    }


def trusted():
    """A result of a label probe with calibration, conformal sets, certainty and two groups, as `evaluate` makes it."""
    rng = np.random.default_rng(0)
    n = 240
    patients = np.arange(n) // 2
    labels = (rng.random((n, 2)) < 0.4).astype(np.int8)
    features = SplitFeatures(np.zeros((n, 1, 1), np.float32), None, labels, patients)
    sex = np.where(patients % 2, 'F', 'M')
    cases = {split: aggregate.plain(patients)._replace(columns=dict(sex=sex)) for split in ('val', 'test')}
    splits = label_splits.label_splits(features, features, features, ('nodule', 'effusion'), 0, 'drawn', cases)
    scores = (2 * labels - 1 + rng.standard_normal((n, 2))).astype(np.float32)
    made = Scores(scores, scores, 0.0, {}, {}, {}, scale='log-odds')
    return evaluate.evaluate(lambda: made, splits, Options(draws=20, groups=('sex',)))


def of_faults(gain=0.0):
    values = dict(noise=0.2 + gain, blur=0.3)
    details = {kind: [dict(AUROC=number(0.9 - v * s / 5)) for s in range(1, 6)] for kind, v in values.items()}
    return dict(results=table(AUROC=values, drop=values), clean=dict(AUROC=number(0.9)), details=details)


ANSWERS = dict(pairs=[[8, 2, 0], [1, 5, 4], [0, 3, 7]], levels=['none', 'mild', 1.5])
TRUTH = np.arange(60.0)
SMALL = dict(
    few_shot=dict(
        results=table(**{f'AUROC@{k}': dict(a=0.5 + k / 50) for k in (1, 5, 20)}, AUPRC=dict(a=0.3)),
    ),
    search=dict(results={'P@5': {'mean': number(0.5), 'a': number(0.6, chance=0.2), 'b': number(0.4, chance=0.3)}}),
    metadata=dict(results=table(auroc=dict(sex=0.8, view=0.9))),
    regression=dict(results=table(r2=dict(age=0.4), mae=dict(age=7.0)), details=dict(age=dict(constant_mae=15.0))),
    ordinal=dict(results=table(quadratic_kappa=dict(grade=0.6)), details=dict(grade=ANSWERS)),
    out_of_distribution=dict(results=table(**{'knn AUROC': dict(a=0.7, b=0.6), 'knn FPR95': dict(a=0.5)})),
    shortcut=dict(
        results=table(gap={'a by tube': 0.3}, aligned_auroc={'a by tube': 0.9}, conflicting_auroc={'a by tube': 0.6}),
    ),
    robustness=of_faults(),
)


@pytest.fixture(scope='module')
def label_probe():
    content, arrays = trusted()
    return json.loads(json.dumps(content)), arrays


@pytest.fixture
def drawn(monkeypatch):
    """What each figure is drawn from: (kind of figure, its arguments)."""
    found = []
    for kind in ('dots', 'lines', 'reliability', 'faults'):
        real = getattr(probe_plots, kind)
        monkeypatch.setattr(
            probe_plots, kind, lambda *a, kind=kind, real=real, **k: found.append((kind, a, k)) or real(*a, **k)
        )
    return found


def result(tmp_path, probe, content, arrays=None, encoder=10):
    place = tmp_path / f'{encoder}.npz'
    np.savez(place, **(arrays or {}))
    return ResultFile(encoder, 'data', probe, dict(content, probe=probe), place)


def figures(tmp_path, probe, content, arrays=None, others=()):
    results = {10: result(tmp_path, probe, content, arrays)}
    for name, other in others:
        results[name] = result(tmp_path, probe, other, arrays, name)
    return probe_figures.of_probe(probe, results)


def test_trust_of_a_label_probe(tmp_path, drawn, label_probe):
    content, arrays = label_probe
    found = figures(tmp_path, 'linear', content, arrays)
    kinds = [kind for kind, _, _ in drawn]
    assert kinds == ['reliability'] * 2 + ['dots'] * 2 + ['lines'] * 2 + ['dots'] and len(found) == 7
    (title, maps), _ = drawn[0][1:]
    first = arrays['reliability_labels'].tolist().index(title)
    for name, place in zip(maps, ('none', 'platt'), strict=True):
        j = arrays['reliability_maps'].tolist().index(place)
        np.testing.assert_array_equal(maps[name], arrays['reliability'][j, first])
    _, (block,), sides, *_ = drawn[2][1]
    coverage = content['conformal']['class_conditional']
    assert sides == ('positives', 'negatives') and [row for row, _ in block.rows] == ['nodule', 'effusion']
    assert block.rows[0][1][0]['value'] == coverage['coverage_of_positives']['nodule']['value']
    _, series, *_ = drawn[4][1]
    expected = np.mean([content['retained']['auroc'][label] for label in ('nodule', 'effusion')], 0)
    np.testing.assert_allclose([value['value'] for _, value in series['mean']], expected)
    _, (groups,), *_ = drawn[6][1]
    of_sex = content['subgroups']['sex']['results']['auroc']
    assert [name for name, _ in groups.rows] == ['F (60)', 'M (60)']
    assert groups.rows[0][1][0]['value'] == of_sex['F']['mean']['value']


def test_probes_with_a_shape_of_their_own(tmp_path, drawn):
    answers = {'age/truth': TRUTH, 'age/answer': TRUTH + 1}
    found = {probe: figures(tmp_path, probe, content, answers) for probe, content in SMALL.items()}
    assert {probe: len(each) for probe, each in found.items()} == {
        probe: 2 if probe in ('regression', 'ordinal') else 1 for probe in SMALL
    }
    of = {probe: arguments for probe, (_, arguments, _) in zip(('few_shot', 'search', 'metadata'), drawn)}
    assert [(k, round(value['value'], 2)) for k, value in of['few_shot'][1]['step 10']] == [
        (1, 0.52),
        (5, 0.6),
        (20, 0.9),
    ]
    assert [[e['value'] for e in row] for _, row in of['search'][1][0].rows] == [[0.6, 0.2], [0.4, 0.3]]
    assert [row for row, _ in of['metadata'][1][0].rows] == ['sex', 'view']
    (_, (_, series, *_), _), (_, (_, kinds), _) = drawn[4], drawn[-1]
    points = series['median answer']
    assert len(points) == 10 and all(y['value'] == pytest.approx(x + 1) for x, y in points), 'medians of ten parts'
    assert 'Mean absolute error 7; 15 for the same answer' in found['regression'][1].caption
    assert '>80<' in found['ordinal'][1].svg and '>1.5<' in found['ordinal'][1].svg
    assert 'Gaps: a by tube .300 [.200, .400]' in found['shortcut'][0].caption
    assert [round(e['value'], 2) for e in kinds['noise']['step 10']] == [0.9, 0.86, 0.82, 0.78, 0.74, 0.7]
    assert 'largest mean drop is that of blur' in found['robustness'][0].caption


def test_encoders_beside_it_have_series_of_their_own(tmp_path, drawn):
    figures(tmp_path, 'robustness', SMALL['robustness'], others=[('pixels', of_faults(0.5))])
    assert list(drawn[0][1][1]['noise']) == ['step 10', 'raw pixels']
    figures(tmp_path, 'few_shot', SMALL['few_shot'], others=[('pixels', SMALL['metadata'])])
    assert list(drawn[1][1][1]) == ['step 10'], 'the other has no such metric'


def paths(value, at=()):
    """The places in a result, one for all keys of an object with values of the same kind."""
    yield at
    if isinstance(value, dict):
        kinds = set()
        for key, inner in value.items():
            kind = repr(sorted(inner)) if isinstance(inner, dict) else key
            if kind not in kinds:
                yield from paths(inner, (*at, key))
            kinds.add(kind)
    elif isinstance(value, list) and value:
        yield from paths(value[0], (*at, 0))


def changed(content, path, value):
    """The result with another value at a place; a type in place of a value: the place is gone."""
    content = copy.deepcopy(content)
    *above, last = path
    inside = content
    for key in above:
        inside = inside[key]
    if value is dict.pop:
        del inside[last]
    else:
        inside[last] = value
    return content


def read_all(given):
    """Reads what a figure would read, without drawing: matplotlib takes too long for hundreds of figures."""
    if isinstance(given, dict) and 'value' in given:
        assert given['value'] is None or np.isfinite([given['value'], *plots.interval(given)]).all()
    elif isinstance(given, (dict, list, tuple)):
        for inner in given.values() if isinstance(given, dict) else given:
            read_all(inner)
    return ''


READ = ('results', 'calibration', 'conformal', 'retained', 'subgroups', 'details', 'clean')


@pytest.mark.parametrize('probe', [pytest.param('linear', marks=pytest.mark.slow), *SMALL])
def test_a_changed_result_is_drawn_or_damaged(tmp_path, monkeypatch, label_probe, probe):
    """Whatever is changed: every other error would be a fault of ours."""
    for kind in ('dots', 'lines', 'faults'):
        monkeypatch.setattr(probe_plots, kind, lambda *given, **more: read_all([*given, *more.values()]))
    monkeypatch.setattr(probe_plots, 'reliability', lambda *given: '')
    monkeypatch.setattr(plots, 'matrix', lambda *given: '')
    content, arrays = label_probe if probe == 'linear' else (SMALL[probe], {'age/truth': TRUTH, 'age/answer': TRUTH})
    content = {key: value for key, value in content.items() if key in READ}
    counts = dict(drawn=0, damaged=0)
    for path in paths(content):
        for value in (dict.pop, None, 'x', [], {}, float('nan')) if len(path) > 1 else ():
            other = changed(content, path, value)
            try:
                figures(tmp_path, probe, other, arrays)
                counts['drawn'] += 1
            except DamagedResult:
                counts['damaged'] += 1
    assert min(counts.values()) > 5, counts


@pytest.mark.parametrize(
    'change',
    [
        dict(reliability=np.zeros((2, 2, 3))),
        dict(reliability_labels=np.array(['nodule'])),
        dict(reliability=np.full((5, 2, 15, 3), 'x')),
        dict(reliability_maps=np.array([], str), reliability=np.zeros((0, 2, 15, 3))),
    ],
)
def test_changed_arrays_are_damage(tmp_path, label_probe, change):
    content, arrays = label_probe
    with pytest.raises(DamagedResult, match='reliability is of another shape'):
        figures(tmp_path, 'linear', content, arrays | change)
    with pytest.raises(DamagedResult, match='age/answer is of another shape'):
        figures(tmp_path, 'regression', SMALL['regression'], {'age/truth': TRUTH, 'age/answer': TRUTH[:5]})


def test_damage_is_a_sentence_and_a_fault_of_ours_is_raised(tmp_path, monkeypatch):
    def page(content):
        results = {('data', 'metadata'): {10: result(tmp_path, 'metadata', content)}}
        return run_page.figures(types.SimpleNamespace(results_by_probe=lambda: results))

    damaged = changed(SMALL['metadata'], ('results', 'auroc', 'sex', 'value'), 'x')
    assert page(damaged) == [
        'The figures are left out: a result of metadata on data is damaged '
        '(metadata.results.auroc.sex.value is no number).'
    ]
    for fault in (KeyError, TypeError, ValueError, IndexError, AttributeError):

        def broken(*_, fault=fault):
            raise fault('a fault of ours')

        monkeypatch.setattr(probe_plots, 'dots', broken)
        with pytest.raises(fault, match='a fault of ours'):
            page(SMALL['metadata'])
