"""Metrics of generated reports against sacrebleu, formulas and scikit-learn; the labeller on its test set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sklearn.metrics import f1_score

from medjax import cli
from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.errors import UserError
from medjax.probes import findings, report_metrics, statistics

REPORTS = json.loads(Path(__file__).with_name('report_findings.json').read_text())
WORDS = 'no small large left right pleural effusion heart is normal lungs clear pneumothorax . , The edema'


def texts(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [' '.join(rng.choice(WORDS.split(), rng.integers(4, 25))) for _ in range(n)]


TRUE, GENERATED = texts(30, 0), [*texts(28, 1), '', texts(30, 0)[29]]


@pytest.mark.parametrize('order', [1, 2, 4])
def test_bleu_equals_the_corpus_score_of_sacrebleu(order):
    counts = np.stack([report_metrics.bleu_counts(*pair) for pair in zip(TRUE, GENERATED)])
    expected = BLEU(lowercase=True, max_ngram_order=order, smooth_method='none').corpus_score(GENERATED, [TRUE])
    assert report_metrics.bleu(counts.sum(0, keepdims=True), order)[0] == pytest.approx(expected.score / 100)
    assert 0 < expected.score < 100
    assert report_metrics.bleu(np.zeros((1, 10)), order)[0] == 0, 'no generated word'


def test_rouge_l_equals_the_longest_common_subsequence():
    for true, generated in zip(TRUE, GENERATED):
        a, b = ([w.lower() for w in text.split() if w.isalpha()] for text in (true, generated))
        table = np.zeros((len(a) + 1, len(b) + 1))
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
        common = table[-1, -1]
        expected = 2 * common / (len(a) + len(b)) if common else 0.0
        assert report_metrics.rouge_l(true, generated) == pytest.approx(expected)


def test_meteor():
    """The published formula where all words are equal, and words that match by their stem or as synonyms."""
    if report_metrics.missing_meteor():
        pytest.skip(report_metrics.missing_meteor())

    def formula(matches, generated, true, chunks):
        precision, recall = matches / generated, matches / true
        mean = precision * recall / (0.9 * precision + 0.1 * recall)
        return mean * (1 - 0.5 * (chunks / matches) ** 3)

    assert report_metrics.meteor('the heart is large today', 'The heart is large') == pytest.approx(formula(4, 4, 5, 1))
    assert report_metrics.meteor('lungs are clear', 'are lungs clear') == pytest.approx(formula(3, 3, 3, 3))
    assert report_metrics.meteor('the lung', 'the lungs') == pytest.approx(formula(2, 2, 2, 1)), 'a stem'
    assert report_metrics.meteor('a red car', 'a red auto') == pytest.approx(formula(3, 3, 3, 1)), 'a synonym'
    assert report_metrics.meteor('edema', 'fracture') == 0


def test_f1_of_findings_equals_scikit_learn():
    true, generated = (
        [each['report'] for each in REPORTS], [each['report'] for each in REPORTS[5:] + REPORTS[:5]]
    )  # fmt: skip
    names = (*findings.FINDINGS, findings.NO_FINDING)

    def table(reports):
        labels = map(findings.label, reports)
        return np.array([[label.get(name, 0) in (1, -1) for name in names] for label in labels])

    found = report_metrics.scores(true, generated, statistics.Bootstrap(np.arange(len(true)), draws=20), False)
    each = f1_score(table(true), table(generated), average=None, zero_division=np.nan)
    assert [found['findings'][name]['value'] for name in names] == pytest.approx(each.tolist())
    assert found['macro_f1_14']['value'] == pytest.approx(np.nanmean(each))
    assert found['micro_f1_14']['value'] == pytest.approx(f1_score(table(true), table(generated), average='micro'))
    five = [names.index(name) for name in report_metrics.FIVE]
    assert found['macro_f1_5']['value'] == pytest.approx(each[five].mean())
    assert 'meteor' not in found and found['rouge_l']['low'] < found['rouge_l']['value'] < found['rouge_l']['high']


def test_the_labeller_on_its_test_set():
    """60 reports with the findings that a reader sees in them. 'No Finding' follows from the others."""
    wrong = []
    for each in REPORTS:
        found = findings.label(each['report'])
        assert set(found) <= set(CHEXPERT_LABELS)
        wrong += [
            (each['report'], name, each['findings'].get(name), found.get(name))
            for name in findings.FINDINGS if each['findings'].get(name) != found.get(name)
        ]  # fmt: skip
    named = sum(len(each['findings']) for each in REPORTS)
    assert len(REPORTS) == 60 and len(wrong) <= 0.03 * named, wrong


def test_several_mentions_of_a_finding():
    assert findings.label('No effusion on the right. Possible effusion on the left.')['Pleural Effusion'] == -1
    assert findings.label('Possible effusion. Effusion is confirmed on the lateral view.')['Pleural Effusion'] == 1
    assert findings.label('') == {'No Finding': 1}


def score(tmp_path, content: str, *more: str, name: str = 'reports.csv') -> int:
    (tmp_path / name).write_text(content)
    return cli.main(['score', str(tmp_path / name), '--draws', '50', *more])


def test_the_command_reads_both_forms_and_writes_no_text(tmp_path, capsys):
    rows = [
        dict(reference=f'{true}, "quoted"', generated=generated, patient=f'secret {i // 2}')
        for i, (true, generated) in enumerate(zip(TRUE, GENERATED))
    ]
    lines = '\n'.join(json.dumps(row) for row in rows)
    assert score(tmp_path, lines, '--json', str(tmp_path / 'a.json'), name='reports.jsonl') == 0
    table = 'patient,generated,reference\n' + '\n'.join(
        ','.join('"' + row[name].replace('"', '""') + '"' for name in ('patient', 'generated', 'reference'))
        for row in rows
    )
    assert score(tmp_path, '\ufeff' + table, '--json', str(tmp_path / 'b.json')) == 0
    one, other = (json.loads((tmp_path / name).read_text()) for name in ('a.json', 'b.json'))
    assert one == other and (one['reports'], one['patients']) == (30, 15)
    assert 'secret' not in json.dumps(one) and 'pleural effusion heart' not in json.dumps(one)
    told = capsys.readouterr().out
    assert '| BLEU-4 |' in told and '1 generated reports are empty; they count, with 0' in told
    assert 'F1 is of findings that rules name' in told


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ('', 'has no row'), ('reference,generated\n', 'has no row'), ('truth,generated\na,b\n', "column 'reference'"),
        ('reference,generated\na\n', "row 1: there is no text in the column 'generated'"),
        ('reference,generated\n" ",b\n', 'row 1: the true report is empty'),
        ('reference,generated,patient\na,b,\n', 'row 1: the column patient is empty'),
        ('{"reference": "a", "generated": 7}', "row 1: there is no text in the column 'generated'"),
        ('{"reference": "a"', 'is no CSV and no JSON lines'), ('reference,generated\n"a,b\n', 'is no CSV'),
    ],
)  # fmt: skip
def test_files_that_are_no_such_table(tmp_path, capsys, content, sentence):
    assert score(tmp_path, content) == 2
    assert sentence in capsys.readouterr().err


def test_one_report_and_missing_libraries(tmp_path, capsys, monkeypatch):
    assert score(tmp_path, 'reference,generated\nClear lungs.,Clear lungs.\n') == 0
    assert 'only 1 patients' in capsys.readouterr().out
    monkeypatch.setattr(report_metrics, 'WORDNET', tmp_path)
    assert score(tmp_path, 'reference,generated\nClear lungs.,Clear lungs.\n') == 0
    told = capsys.readouterr().out
    assert 'METEOR is left out' in told and '| METEOR' not in told and 'wordnet-base' in told
    monkeypatch.setattr(report_metrics.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'sacrebleu is not installed.*medjax\[report-metrics\]'):
        cli.run('score', [str(tmp_path / 'reports.csv')])
