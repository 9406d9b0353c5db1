"""The choice of an export: RUN/best.json from results, and what is kept for it."""

import json
import shutil
from pathlib import Path

import pytest

from medjax import config as configs, files, plugins
from medjax.commands.export import ending
from medjax.errors import UserError
from medjax.probes import best, watch
from medjax.weights import export

FIGURE = best.Figure('linear', 'auroc')


def exports(run: Path, *steps: int) -> None:
    for step in steps:
        (run / 'exports' / str(step)).mkdir(parents=True)
        (run / 'exports' / str(step) / 'meta.json').write_text('{}')


def result(value: float | None, test: float = 0.5) -> dict:
    def rows(value):
        return {'mean': dict(value=value, low=value - 0.1, high=value + 0.1, labels=2)}

    return dict(
        results={'auroc': rows(test)},
        validation_results={} if value is None else {'auroc': rows(value)},
        bootstrap=dict(level=0.95),
        data='nih',
        data_fingerprint='f00',
        validation='the val split',
        policy={},
    )


def test_the_test_split_has_no_part_in_it_and_ties_go_to_the_earlier(tmp_path):
    exports(tmp_path, 10, 20, 30, 40)
    found = {30: result(0.8, 0.6), 10: result(0.7, 0.99), 20: result(0.8, 0.5), 40: result(None, 1.0)}
    chosen = best.choose(tmp_path, found, FIGURE)
    assert chosen['step'] == 20 and best.read(tmp_path) == chosen == json.loads((tmp_path / 'best.json').read_text())
    assert list(chosen['steps']) == ['10', '20', '30'], 'all that have the figure'
    assert best.sentence(chosen) == (
        'step 20 is the best of 3 exports by linear AUROC on validation of nih, 0.800 [0.700, 0.900]'
    )


def test_labels_without_both_classes_on_validation_are_told(tmp_path):
    exports(tmp_path, 10)
    given = result(0.7)
    given['results']['auroc'] |= {'nodule': {}, 'rare': {}}
    given['validation_results']['auroc'] |= {'nodule': {}}
    chosen = best.choose(tmp_path, {10: given}, FIGURE)
    assert (chosen['labels'], chosen['left_out']) == (['nodule'], ['rare'])
    assert best.sentence(chosen).endswith('0.700 [0.600, 0.800]; left out, with one class there: rare')


def test_an_export_that_is_gone_is_not_chosen(tmp_path):
    exports(tmp_path, 10)
    assert best.choose(tmp_path, {10: result(0.7), 20: result(0.8)}, FIGURE)['step'] == 10
    with pytest.raises(UserError, match='no longer there: 20'):
        best.choose(tmp_path, {20: result(0.8)}, FIGURE)


@pytest.mark.parametrize(
    ('found', 'metric', 'words'),
    [
        ({}, 'auroc', 'no export has a result of linear'),
        ({10: result(None)}, 'auroc', 'no label has both classes there, or there is no val split'),
        ({10: result(0.7)}, 'f1', 'they have auroc'),
    ],
)
def test_without_the_figure_nothing_is_written(tmp_path, found, metric, words):
    exports(tmp_path, 10)
    with pytest.raises(UserError, match=words):
        best.choose(tmp_path, found, best.Figure('linear', metric))
    assert not (tmp_path / 'best.json').exists()


def test_a_probe_of_your_own_may_have_figures():
    assert best.parse('mypkg.mine.f1', ['knn', 'mypkg.mine']) == ('mypkg.mine', 'f1')


def test_every_probe_of_medjax_says_which_figures_it_has():
    """A probe without a figure on validation is refused before hours of encoding."""
    assert set(best.FIGURES) == set(plugins.names('medjax.probes.methods'))
    assert best.parse('linear_sgd.auroc', ['linear_sgd']) == ('linear_sgd', 'auroc')
    with pytest.raises(UserError, match='few_shot has no figure .AUROC@5. on validation; such figures: linear.auroc'):
        best.parse('few_shot.AUROC@5', ['few_shot', 'linear'])
    with pytest.raises(UserError, match='none of the probes that run; add linear'):
        best.parse('search.P@1', ['search'])


@pytest.mark.parametrize('content', ['', '[]', '{"step": "20"}', '{"step": 20}', '{"step": 2'])
def test_a_damaged_choice_is_a_sentence(tmp_path, content):
    (tmp_path / 'best.json').write_text(content)
    with pytest.raises(UserError, match=r'best\.json is damaged'):
        best.read(tmp_path)


def test_what_is_kept(tmp_path):
    exports(tmp_path, 0, 10, 20, 30, 40, 50, 60)
    (tmp_path / 'best.json').write_text('{"step": 20}')
    export.delete_old(tmp_path, newest=50, keep=2)
    assert export.steps(tmp_path) == [0, 20, 40, 50, 60], 'a later one, of before a kill, is written again in its time'
    export.delete_old(tmp_path, newest=60, keep=1)
    assert export.steps(tmp_path) == [0, 20, 60]


def test_an_export_that_is_deleted_before_it_is_read_is_left_out(tmp_path, capsys):
    """`--steps all` beside a training with `export.keep`. An export that is there and damaged is an error."""
    for step in (4, 8, 12):
        (tmp_path / f'exports/{step}').mkdir(parents=True)
        (tmp_path / f'exports/{step}/meta.json').write_text('{}')
    steps = watch.select_steps(tmp_path, 'all')

    def load(folder):
        if folder.name == '4':  # the training deletes it at this moment
            shutil.rmtree(folder)
        return export.read_meta(folder) if folder.name != '12' else 'read'

    (damaged, error), whole = watch.load_each(tmp_path, steps, load)
    assert damaged == 8 and isinstance(error, UserError) and whole == (12, 'read')
    assert f'{tmp_path}/exports/4 was deleted while it was read, so it is left out' in capsys.readouterr().err


def test_nothing_is_deleted_while_the_best_one_is_unknown(tmp_path):
    exports(tmp_path, 10, 20)
    (tmp_path / 'best.json').write_text('{"st')
    with pytest.raises(UserError, match=r'best\.json is damaged'):
        export.delete_old(tmp_path, newest=20, keep=1)
    assert export.steps(tmp_path) == [10, 20]


def test_a_deletion_that_was_killed_is_ended_by_the_next(tmp_path, monkeypatch):
    exports(tmp_path, 10, 20, 30)
    monkeypatch.setattr(files, '_remove', lambda path: None)
    monkeypatch.setattr(files.os, 'getpid', lambda: 2**22 + 1)  # no process has this number
    export.delete_old(tmp_path, newest=20, keep=1)
    assert export.steps(tmp_path) == [20, 30] and len(list((tmp_path / 'exports').iterdir())) == 3
    monkeypatch.undo()
    export.delete_old(tmp_path, newest=30, keep=1)
    assert [path.name for path in (tmp_path / 'exports').iterdir()] == ['30']


def test_an_export_that_is_made_again_deletes_no_other():
    config = configs.frozen(dict(total_steps=8, export=dict(every=2, keep=1)))
    again = ending(config, 4)
    assert again['export']['keep'] is None and config['export']['keep'] == 1
