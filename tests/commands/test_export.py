"""`medjax export`: an export again, from a checkpoint."""

from __future__ import annotations

import os
import shutil

import pytest
import small_runs
from small_runs import content

from medjax import cli, config as configs
from medjax.commands import export
from medjax.errors import UserError


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return small_runs.build(tmp_path_factory.mktemp('made'))


CONSTANT = ('optim.schedule=1.0', 'checkpoint.keep=5', 'stages=[dict(at=4,change={"views.global.size":32})]')


@pytest.fixture(scope='module')
def whole(made, tmp_path_factory):
    """A run with a stage at another size, lengthened once: other configs, fingerprints and sizes by step."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    assert small_runs.run(made, folder, *CONSTANT) == 0
    assert small_runs.run(made, folder, *CONSTANT, 'total_steps=12') == 0
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'run')


def refused(*argv) -> str:
    with pytest.raises(UserError) as told:
        export.main([str(arg) for arg in argv])
    return str(told.value)


def test_exports_are_made_again_to_the_bit(run, whole, capsys):
    before = content(whole / 'exports')
    assert {name.partition('/')[0] for name in before} == {'4', '8', '12'}
    shutil.rmtree(run / 'exports')
    for step in (4, 8):
        assert cli.main(['export', f'{run}@{step}']) == 0
    assert cli.main(['export', str(run)]) == 0  # the newest
    assert content(run / 'exports') == before
    assert f'wrote {run}/exports/12' in capsys.readouterr().out


def test_what_is_refused(run, tmp_path):
    assert 'there is no folder' in refused(tmp_path / 'none')
    assert 'has no checkpoint' in refused(tmp_path)
    assert 'there is no checkpoint of step 5; there are 4, 8, 12' in refused(f'{run}@5')
    assert "'x' is no step; write" in refused(f'{run}@x')
    assert 'exports/8 is there already; if it is damaged, delete it first' in refused(f'{run}@8')
    shutil.rmtree(run / 'exports')
    os.truncate(next((run / 'checkpoints' / '12' / 'default' / 'd').iterdir()), 5)
    assert 'the checkpoint cannot be used' in (sentence := refused(run)) and 'also checkpoints of step 4, 8' in sentence
    (run / 'config.json').unlink()
    assert 'is not the config.json of a run' in refused(f'{run}@4')
    assert not (run / 'exports').exists()


def test_the_end_that_a_run_had_at_a_step():
    config = configs.Config(total_steps=30, export={}, life=dict(parent=None, ends=((0, 10), (10, 20), (15, 30))))
    ends = {step: export.ending(config, step)['total_steps'] for step in (0, 5, 10, 11, 15, 16, 20, 30)}
    assert ends == {0: 10, 5: 10, 10: 10, 11: 20, 15: 20, 16: 30, 20: 30, 30: 30}
