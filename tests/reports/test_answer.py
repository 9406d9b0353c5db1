"""The first screen: is this encoder better than the one I have, and may I say so? And the most wrong test records."""

import json

import numpy as np
import pytest
from run_folders import make_run, write_result

from medjax.reports import answer, run_files, worst_cases


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path)
    write_result(folder, 'mine', 'linear', skill=0.9)
    for file in folder.glob('probes/*/*.json'):
        body = json.loads(file.read_text()) | {'key': file.parent.name, 'skipped_labels': {}}
        body['overlap'] = {'pixels': 0.0}
        file.write_text(json.dumps(body))
    return folder


def compare(run, *others, value=0.03, p=0.01, keys=None):
    mean = {'value': value, 'low': value - 0.02, 'high': value + 0.02, 'p': p, 'p_holm': p}
    pairs = [{'encoder': 2000, 'other': other, 'labels': 3, 'results': {'auroc': {'mean': mean}}} for other in others]
    keys = keys or {name: name for name in ('2000', *others)}
    (run / 'comparisons').mkdir(exist_ok=True)
    file = run / 'comparisons' / 'phantom.linear.json'
    file.write_text(json.dumps({'data': 'phantom', 'probe': 'linear', 'keys': keys, 'pairs': pairs, 'left_out': {}}))
    return answer.of_run(run_files.read_run(run))


@pytest.mark.parametrize(
    ('value', 'p', 'start', 'status'),
    [(0.03, 0.01, 'Yes: step 2000 is better than mine.', 'good'), (0.03, 0.2, 'Not shown', 'too early'),
     (-0.03, 0.01, 'No: step 2000 is worse than mine.', 'bad')],
)  # fmt: skip
def test_the_answer_follows_the_paired_comparison(run, value, p, start, status):
    found = compare(run, 'mine', value=value, p=p)
    assert found.better.startswith(start) and found.status == status and not found.reasons
    assert found.say.startswith('You may say so' if status == 'good' else 'You may not say')
    assert 'step 2000 - mine: mean AUROC' in found.differences[0]


@pytest.mark.parametrize(
    ('change', 'reason'),
    [({'overlap': {'pixels': 0.125}}, 'step 2000 was trained on test records of phantom (12.5 %)'),
     ({'overlap': {}}, 'not known whether step 2000 saw test records'),
     ({'skipped_labels': {'hernia': 'no positive record in test'}}, 'one class only of 1 label (hernia)'),
     ({'bootstrap': {'patients': 55}}, 'is small: 55 patients')],
)  # fmt: skip
def test_what_forbids_to_say_so_is_named(run, change, reason):
    file = run / 'probes' / '2000' / 'phantom.linear.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    found = compare(run, 'mine')
    assert found.status == 'too early' and found.say == 'You may not say so yet:'
    assert len(found.reasons) == 1 and reason in found.reasons[0]


def test_without_the_encoder_that_one_has_the_command_is_named(run):
    found = answer.of_run(run_files.read_run(run))
    assert found.better.startswith('Not known') and '--encoder PATH' in found.better
    found = compare(run, 'random', 'pixels')
    assert '--encoder PATH' in found.better and 'better than untrained baselines' in found.better
    found = compare(run, 'mine', keys={'2000': 'older', 'mine': 'mine'})
    assert found.better.startswith('Not known') and 'older than its results' in found.notes[0]


@pytest.mark.parametrize('content', ['{"pai', '[]', '{"data": "x", "probe": "y", "pairs": [{}]}'])
def test_a_damaged_comparison_is_a_sentence(run, content):
    (run / 'comparisons').mkdir()
    (run / 'comparisons' / 'a.json').write_text(content)
    (said,) = run_files.read_run(run).damaged
    assert said.startswith('A damaged comparison is left out')


def test_the_worst_cases_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=60), rng.integers(-1, 2, 60).astype(np.int8)
    patients = rng.integers(0, 20, 60)
    for positive in (True, False):
        expected, used = [], set()
        own = [i for i in range(60) if labels[i] == (1 if positive else 0)]
        other = [scores[i] for i in range(60) if labels[i] == (0 if positive else 1)]
        for i in sorted(own, key=lambda i: scores[i] if positive else -scores[i]):
            share = np.mean([o > scores[i] if positive else o < scores[i] for o in other])
            if patients[i] not in used and len(used) < worst_cases.EACH:
                used.add(patients[i])
                expected += [(i, share)] if share >= 0.5 else []
        found = worst_cases.worst(scores, labels, patients, positive)
        assert [case.record for case in found] == [i for i, _ in expected] and found
        np.testing.assert_allclose([case.share for case in found], [share for _, share in expected])
