"""The life of a run: the same run after other paths, longer, as a branch, over the border of stages."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from safetensors.numpy import load_file
from test_train import data, lines, medjax, train  # noqa: F401  (data is a fixture)

from medjax import branch, cli, config as configs, life
from medjax.data.audit import seen
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.objectives.schedules import schedule
from medjax.stages import at_step, stages
from medjax.train import check_folder
from medjax.training import checkpoint, file_list
from medjax.training.state import abstract_state, make_optimizer

COSINE = "dict(rule='cosine',start=1.,end=0.,warmup=2)"
OFTEN = ('--config.checkpoint.every=4', '--config.export.every=4', '--config.log.every=2')
CONSTANT = ('--config.optim.schedule=1.0', *OFTEN)


def tiny(*overrides: str) -> configs.Config:
    config = configs.read('tiny', overrides)
    config.image.update(dict(channels=1, mean=0.5, std=0.2))
    return configs.check(configs.resolve(config, {}))


def state_of(config: configs.Config):
    objective = compose(config)
    return abstract_state(objective, make_optimizer(objective, config['optim'], config['total_steps']))


def staged(change: str, at: int = 4, *more: str) -> tuple:
    return stages(tiny(f'stages=[dict(at={at},change={change})]', *more))


# What counts as another config.


@pytest.mark.parametrize(
    'override',
    ['export.every=7', 'log.every=7', 'checkpoint.every=7', 'checkpoint.keep=7', 'mesh.fsdp=2', 'micro_batches=2',
     "tokenizer.path='x'"],
)  # fmt: skip
def test_what_changes_no_number_is_not_in_the_fingerprint(override):
    assert configs.fingerprint(tiny(override)) == configs.fingerprint(tiny())
    assert not configs.difference_on_resuming(tiny(), tiny(override))


@pytest.mark.parametrize(
    'override', ['optim.lr=2e-3', 'batch_size=16', 'seed=1', 'terms.2.weight=0.2', 'export.fit=pad']
)
def test_what_changes_numbers_is_in_it(override):
    assert configs.fingerprint(tiny(override)) != configs.fingerprint(tiny())
    assert configs.difference_on_resuming(tiny(), tiny(override))


def test_the_length_counts_through_the_schedules_that_end_with_the_run():
    constant, longer = (tiny('optim.schedule=1.0', f'total_steps={n}') for n in (8, 80))
    assert configs.fingerprint(constant) == configs.fingerprint(longer)
    assert configs.ends_with_run(constant) == []
    own = [tiny("optim.schedule=dict(rule='cosine',start=1.,end=0.,steps=5)", f'total_steps={n}') for n in (8, 80)]
    assert configs.fingerprint(own[0]) == configs.fingerprint(own[1])
    shaped = [tiny(f'optim.schedule={COSINE}', f'total_steps={n}') for n in (8, 80)]
    assert configs.fingerprint(shaped[0]) != configs.fingerprint(shaped[1])
    assert configs.ends_with_run(shaped[0]) == ['optim.schedule']
    in_a_term = tiny('optim.schedule=1.0', "terms.2.weight=dict(rule='linear',start=0.,end=1.)")
    assert configs.ends_with_run(in_a_term) == ['terms.2.weight']
    # another length alone is judged by `check_end`, not as another config
    assert not configs.difference_on_resuming(*shaped)


def test_weights_to_begin_with_are_not_read_on_resuming():
    with_weights = tiny("init_from=dict(path='a.safetensors')")
    assert not configs.difference_on_resuming(with_weights, tiny("init_from=dict(path='b.safetensors')"))
    assert not configs.difference_on_resuming(with_weights, tiny())


def test_ends_of_a_run():
    folder = Path('RUN')
    constant = [tiny('optim.schedule=1.0', f'total_steps={n}') for n in (8, 12)]
    shaped = [tiny(f'optim.schedule={COSINE}', f'total_steps={n}') for n in (8, 12, 6)]
    assert life.check_end(folder, constant[0], constant[0], 8) == ()
    assert life.check_end(folder, constant[0], constant[1], 8) == (
        'RUN is lengthened at step 8: it ends at step 12, not 8',
    )
    told = life.check_end(folder, shaped[0], shaped[1], 5)
    rates = [1e-3 * 0.5 * (1 + np.cos(np.pi * 3 / n)) for n in (6, 10)]
    assert told[1] == (
        'optim.schedule now ends there too, so values jump at step 5: the learning rate from '
        f'{rates[0]:.3g} to {rates[1]:.3g}'
    )
    assert 'is shortened at step 5: it ends at step 6' in life.check_end(folder, shaped[0], shaped[2], 5)[0]
    with pytest.raises(
        UserError, match='optim.schedule ended with the run at step 8. Branch from it: medjax train --f'
    ):
        life.check_end(folder, shaped[0], shaped[1], 8)
    with pytest.raises(UserError, match='total_steps=6: RUN has 7 steps already'):
        life.check_end(folder, shaped[0], shaped[2], 7)
    once = {**shaped[1], 'life': life.lengthened(shaped[0], shaped[1], 5)}
    assert life.lengthened(once, shaped[0], 6) == dict(parent=None, ends=[[0, 8], [5, 12], [6, 8]])


def test_a_run_that_goes_on_from_before_it_was_lengthened():
    """Its newest checkpoints were damaged: from the step that is taken on, it has another end than at first."""
    shaped = [tiny(f'optim.schedule={COSINE}', f'total_steps={n}') for n in (8, 12)]
    now = {**shaped[1], 'life': life.lengthened(shaped[0], shaped[1], 6)}
    assert life.lengthened(now, shaped[1], 6) == life.lengthened(now, shaped[1], 9) == now['life']
    assert life.lengthened(now, shaped[1], 4) == dict(parent=None, ends=[[0, 8], [4, 12]])
    assert life.lengthened(now, shaped[0], 4) == dict(parent=None, ends=[[0, 8]])
    assert life.check_end(Path('RUN'), now, shaped[1], 4) == (
        'RUN goes on from step 4, and ends at step 12 from there on',
    )
    assert life.check_end(Path('RUN'), now, shaped[1], 6) == ()


# Stages.


def test_stages_change_from_their_step_on():
    first, second, third = stages(
        tiny(
            'total_steps=20',
            "stages=[dict(at=4,change={'optim.lr':1e-4,'views.global.size':48}),dict(at=12,change={'optim.lr':1e-5})]",
        )
    )
    assert [(s.begin, s.end) for s in (first, second, third)] == [(0, 4), (4, 12), (12, 20)]
    assert [s.config['optim']['lr'] for s in (first, second, third)] == [1e-3, 1e-4, 1e-5]
    assert [s.config['views']['global']['size'] for s in (first, second, third)] == [32, 48, 48]
    found = (first, second, third)
    assert [at_step(found, step) for step in (0, 3, 4, 11, 12, 20)] == [first, first, second, second, third, third]


def test_a_rule_of_a_stage_begins_and_ends_with_it():
    *_, stage = staged(f"{{'optim.schedule':{COSINE},'terms.2.weight':dict(rule='linear',start=0.,end=1.)}}", 4)
    rule = stage.config['optim']['schedule']
    assert (rule['begin'], rule['steps']) == (4, 4)
    of_stage, alone = schedule(dict(rule), 8, 'x'), schedule(dict(rule='cosine', start=1.0, end=0.0, warmup=2), 4, 'x')
    for step in range(10):
        assert of_stage(jnp.int32(step)) == alone(jnp.int32(max(step - 4, 0)))
    line = schedule(dict(stage.config['terms'][2]['weight']), 8, 'x')
    np.testing.assert_allclose([line(jnp.int32(t)) for t in (0, 4, 5, 7, 9)], [0, 0, 1 / 3, 1, 1], rtol=1e-6)


def test_a_stage_with_another_batch_needs_no_rows():
    assert staged("{'batch_size':16}")[1].config['data']['cxr']['rows'] == 16


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('[dict(at=4)]', 'stages.0=.*must be a dict, as dict'),
        ("[dict(at=0,change={'optim.lr':1.})]", 'stages.0.at=0: must be a step between 0 and total_steps=8'),
        ("[dict(at=8,change={'optim.lr':1.})]", 'stages.0.at=8: must be a step'),
        ("[dict(at='4',change={'optim.lr':1.})]", "stages.0.at='4': must be a step"),
        ('[dict(at=4,change={})]', 'stages.0.change={}: must be a dict of keys and values'),
        ("[dict(at=4,change={'optim.lr':1.}),dict(at=4,change={'optim.lr':1.})]", 'stages.1.at=4: stages stand in'),
        ("[dict(at=4,change={'data':dict(cxr=dict(rows=4))})]", "stages.0.change: 'data' is changed by key, as data"),
        ("[dict(at=4,change={'data.cxr.rows':4})]", 'stages.0: batch_size 8 must be the sum of the rows'),
        ("[dict(at=4,change={'seed':1})]", "stages.0.change: 'seed' is one for all stages"),
        ("[dict(at=4,change={'optm.lr':1})]", "stages.0.change: there is no key 'optm.lr'; did you mean 'optim'"),
        ("[dict(at=4,change={'towers.imag.depth':1})]", "stages.0.change.towers.imag.depth: .* 'imag'; did you mean"),
        ("[dict(at=4,change={'optim.lr':'much'})]", "stages.0.change.optim.lr: .* it takes a number"),
        ("[dict(at=4,change={'views.global.part':'mri'})]", "stages.0: views.global.part: there is no 'mri'"),
    ],
)  # fmt: skip
def test_a_wrong_stage_is_one_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        stages(tiny(f'stages={text}'))


@pytest.mark.parametrize('of_recipe', ['1', '0.5', '[1.,0.5]', "dict(rule='linear',start=1.,end=0.5)"])
@pytest.mark.parametrize(
    'key', ['optim.schedule', 'optim.weight_decay', 'terms.2.weight', 'teachers.teacher.momentum',
            'terms.0.teacher_temperature'],
)  # fmt: skip
def test_a_schedule_in_a_stage_has_any_of_its_forms(key, of_recipe):
    """A number, whole or not, a list by step, or a rule, whatever the recipe has there."""
    forms = {'1': 1.0, '0.5': 0.5, '[0.3,0.2]': (0.3, 0.2), "dict(rule='linear',start=0.,end=1.)": None}
    for text, value in forms.items():
        config = staged(f"{{'{key}':{text}}}", 4, f'{key}={of_recipe}')[1].config
        for name in key.split('.'):
            config = config[int(name) if name.isdecimal() else name]
        assert config == (value if value is not None else dict(rule='linear', start=0.0, end=1.0, begin=4, steps=4))


def test_a_list_in_a_stage_counts_from_the_first_step_of_the_run():
    config = staged("{'optim.schedule':[0.,1.,2.,3.,4.,5.]}", 4)[1].config
    values = schedule(config['optim']['schedule'], 8, 'x')
    assert [float(values(jnp.int32(step))) for step in (4, 5, 6)] == [4, 5, 5]


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ("{'optim.weight_decay':[]}", 'optim.weight_decay: a list of values by step needs at least one value'),
        ("{'optim.weight_decay':['a']}", r"optim.weight_decay=\['a'\]: a list of values by step holds numbers alone"),
        ("{'optim.weight_decay':'much'}", 'optim.weight_decay: a schedule is a number, a list by step or dict'),
        ("{'optim.weight_decay':True}", "stages.0.change.optim.weight_decay: 'True' does not fit, it takes a number"),
        ("{'optim.lr':[1.,2.]}", 'stages.0.change.optim.lr: .* it takes a number'),
        ("{'optim.lr':dict(rule='linear',start=0.,end=1.)}", 'optim.lr=.*: must be a number of at least 0'),
        ("{'terms.2.weight':'x'}", r'terms\[2\] .*weight: a schedule is a number, a list by step or dict'),
        ("{'views.global.count':1.5}", 'stages.0.change.views.global.count: .* it takes a whole number'),
    ],
)
def test_a_stage_takes_what_the_recipe_takes_and_nothing_else(change, sentence):
    with pytest.raises(UserError, match=sentence):
        state_of(staged(change)[1].config)


def test_a_mean_may_be_a_number_or_one_for_each_channel():
    assert configs.read('tiny', ['image.mean=0.5', 'image.mean=(0.4,0.5,0.6)']).image.mean == (0.4, 0.5, 0.6)


# What a branch keeps.


def plan(ours: configs.Config, theirs: configs.Config, keep=None) -> branch.Plan:
    return branch.plan(branch.Parent(Path('RUN'), 4, theirs), state_of(ours), state_of(theirs), keep)


def test_a_branch_with_nothing_changed_keeps_everything():
    found = plan(tiny(), tiny())
    assert not found.new and {'towers/image', 'heads/dino', 'teachers/teacher/heads/dino', 'moments', 'clock'} <= {
        *found.kept
    }


def test_a_head_of_another_size_is_new_and_so_are_all_moments():
    found = plan(tiny('heads.dino.prototypes=32'), tiny())
    assert found.kept == ('towers/image', 'teachers/teacher/towers/image', 'clock')
    assert found.new['moments'] == 'Adam counts its steps once for all parameters, and heads/dino is new'
    told = found.sentences(compose(tiny('heads.dino.prototypes=32')))
    assert any(text.startswith('a copy of the student: teachers/teacher/heads/dino') for text in told)
    assert any(text.startswith('new: heads/dino (params/heads/dino/prototypes') for text in told)


def test_the_moments_of_another_optimizer_are_new():
    found = plan(tiny("optim.rule='lars'"), tiny())
    assert found.new.keys() == {'moments'} and 'the optimizer is another one' in found.new['moments']


def test_what_the_parent_has_beyond_the_branch_is_left_behind():
    config = configs.thawed(tiny())
    config['heads'], config['terms'] = {}, [term for term in config['terms'] if term['term'] == 'koleo']
    config['teachers']['teacher']['of'] = ['towers/image']
    config['export']['heads'] = []
    fewer = configs.check(configs.resolve(config, {}))
    chosen = plan(fewer, tiny())
    assert not chosen.new and 'moments' in chosen.kept
    objective = compose(fewer)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def state(config: configs.Config, value: int):
        """A state of its shapes, full of one number."""
        shapes = state_of(config)._replace(key=jax.ShapeDtypeStruct((), jnp.int32))
        full = jax.tree.map(lambda x: jnp.full(x.shape, value, x.dtype), shapes)
        return jax.device_put(full._replace(key=jax.random.key(value)), here)

    shardings = jax.tree.map(lambda _: here, state_of(fewer))
    found = branch.inherit(state(tiny(), 3), chosen, objective, shardings, 0, lambda: state(fewer, 0))
    assert jax.tree.structure(found) == jax.tree.structure(state_of(fewer))
    assert all((x == 3).all() for x in jax.tree.leaves(found._replace(key=found.step)))


@pytest.mark.parametrize(
    ('ours', 'theirs', 'keep', 'sentence'),
    [
        (['towers.image.width=16'], [], None, r'--from RUN: its towers/image does not fit .*\[2, 32\] there and'),
        (['heads.dino.prototypes=32'], [], ('towers', 'heads'), '--from RUN: its heads/dino does not fit'),
        ([], [], ('towers', 'moments'), '--keep moments: Adam counts .* heads/dino is new'),
    ],
)
def test_what_does_not_fit_is_one_sentence(ours, theirs, keep, sentence):
    with pytest.raises(UserError, match=sentence):
        plan(tiny(*ours), tiny(*theirs), keep)


def test_parts_and_modules_can_be_chosen():
    found = plan(tiny(), tiny(), ('towers/image', 'teachers'))
    assert {'towers/image', 'teachers/teacher/towers/image', 'teachers/teacher/heads/dino'} == {*found.kept}
    assert {'heads/dino', 'moments', 'clock'} <= found.new.keys()
    with pytest.raises(UserError, match="--keep tower: there is no such part; did you mean 'towers'"):
        branch.check_keep(['tower'], compose(tiny()))
    with pytest.raises(UserError, match='--keep names no part; it takes towers, heads'):
        branch.check_keep([], compose(tiny()))


# As people run it.


@pytest.fixture(scope='module')
def parent(data, tmp_path_factory):  # noqa: F811
    """A run of 12 steps with checkpoints of step 4, 8 and 12."""
    run = tmp_path_factory.mktemp('life') / 'parent'
    medjax(*train(data, run, '--config.total_steps=12', '--config.checkpoint.keep=3', *CONSTANT)[3:])
    return run


def equal(one: Path, other: Path, step: int) -> None:
    a, b = (load_file(run / 'exports' / str(step) / 'weights.safetensors') for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def numbers(run: Path, after: int) -> list[dict]:
    timed = ('time', 'images_per_s', 'mfu', 'goodput', 'input_stall')
    return [{k: v for k, v in line.items() if k not in timed} for line in lines(run) if line['step'] > after]


@pytest.mark.slow
def test_a_lengthened_run_equals_a_long_one(parent, data, tmp_path):  # noqa: F811
    run = tmp_path / 'run'
    medjax(*train(data, run, '--config.total_steps=8', *CONSTANT)[3:])
    told = medjax(*train(data, run, '--config.total_steps=12', *CONSTANT)[3:])
    assert 'is lengthened at step 8: it ends at step 12, not 8' in told
    equal(parent, run, 12)
    assert numbers(parent, 0) == numbers(run, 0)
    config = json.loads((run / 'config.json').read_text())
    assert config['total_steps'] == 12 and config['life'] == dict(parent=None, ends=[[0, 8], [8, 12]])
    assert (run / 'DONE').read_text() == '12\n'
    # what changes no number may change too; the run is finished, so the folder stays as it is
    assert 'is finished' in medjax(*train(data, run, '--config.total_steps=12', *CONSTANT, '--config.log.every=3')[3:])


def test_a_schedule_that_has_ended_is_not_lengthened(tmp_path):
    (tmp_path / 'checkpoints/8').mkdir(parents=True)
    (tmp_path / 'checkpoints/8/array').write_text('as saved')
    file_list.write(tmp_path / 'checkpoints/8')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/sources.json').write_text('{}')
    (tmp_path / 'config.json').write_text(configs.to_json(tiny()))
    check_folder(tmp_path, tiny(), {})
    with pytest.raises(UserError, match='schedule ended with the run at step 8. Branch from it: medjax train --from'):
        check_folder(tmp_path, tiny('total_steps=16'), {})
    with pytest.raises(UserError, match='total_steps=6: .* has 8 steps already; give at least that number'):
        check_folder(tmp_path, tiny('total_steps=6'), {})
    with pytest.raises(UserError, match=r'config \(they differ in optim.lr\). Give that config, or branch from'):
        check_folder(tmp_path, tiny('total_steps=16', 'optim.lr=1.0'), {})


@pytest.mark.slow
def test_a_branch_with_nothing_changed_equals_its_parent(parent, data, tmp_path):  # noqa: F811
    """Over its next 20 steps, to the bit."""
    run = shutil.copytree(parent, tmp_path / 'run')
    medjax(*train(data, run, '--config.total_steps=24', '--config.checkpoint.keep=6', *CONSTANT)[3:])
    medjax('train', '--from', f'{run}@4', '--workdir', tmp_path / 'branch')
    equal(run, tmp_path / 'branch', 24)
    assert numbers(run, 4) == numbers(tmp_path / 'branch', 4) and len(numbers(run, 4)) == 10  # every second step
    named = json.loads((tmp_path / 'branch/config.json').read_text())['life']['parent']
    assert (named['run'], named['step'], named['total_steps']) == (str(run), 4, 24)


@pytest.mark.slow
def test_a_branch_with_other_heads_and_its_resumption(parent, data, tmp_path):  # noqa: F811
    command = [
        'train', '--from', f'{parent}@8', '--config', 'tiny', '--data', data, '--workdir', tmp_path / 'run', *CONSTANT,
        '--config.total_steps=16', '--config.heads.dino.prototypes=32', '--config.optim.lr=1e-4',
    ]  # fmt: skip
    told = medjax(*command)
    assert 'new: moments (Adam counts its steps once' in told and 'kept: towers/image' in told
    for name in ('12', '16'):  # as if the run had been killed before its first checkpoint
        shutil.rmtree(tmp_path / 'run/checkpoints' / name)
    (tmp_path / 'run/DONE').unlink()
    shutil.move(tmp_path / 'run/exports/16', tmp_path / 'first')
    assert 'branching from' in medjax(*command)
    a, b = (load_file(folder / 'weights.safetensors') for folder in (tmp_path / 'first', tmp_path / 'run/exports/16'))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    # the branch knows what its parent was trained on
    assert seen_patients(tmp_path / 'run') >= seen_patients(parent) > set()


def seen_patients(run: Path) -> set[int]:
    with np.load(run / 'data/seen.npz') as file:
        return set(file['patient'].tolist())


def test_a_parent_that_is_not_there_is_one_sentence(tmp_path):
    run = tmp_path / 'run'
    for name in ('checkpoints/4', 'checkpoints/12', 'exports/8'):
        (run / name).mkdir(parents=True)
    with pytest.raises(UserError, match='is no run: it has no config.json'):
        branch.parent(str(run))
    (run / 'config.json').write_text(configs.to_json(tiny()))
    assert branch.parent(str(run)).step == 12 and branch.parent(f'{run}@4').step == 4
    for spec, sentence in (
        (f'{run}@7', 'there is no checkpoint of step 7; there are 4, 12$'),
        (f'{run}@8', "there are 4, 12; of step 8 there is an export: --config.init_from='dict\\(path="),
        (f'{run}@last', "'last' is no step; write --from .*@STEP"),
    ):
        with pytest.raises(UserError, match=sentence):
            branch.parent(spec)
    with pytest.raises(UserError, match='holds a run that is no branch; continue it without --from'):
        branch.again(run, str(run))
    shutil.rmtree(run / 'checkpoints')
    with pytest.raises(UserError, match='has no checkpoint'):
        branch.parent(str(run))


def test_a_branch_is_continued_with_its_own_parent(tmp_path):
    parent, own = tmp_path / 'parent', tmp_path / 'own'
    (parent / 'checkpoints/4').mkdir(parents=True)
    (parent / 'config.json').write_text(configs.to_json(tiny()))
    own.mkdir()
    named = branch.parent(f'{parent}@4').described(['clock'])
    (own / 'config.json').write_text(configs.to_json({**tiny(), 'life': life.begun(tiny(), 4, named)}))
    assert branch.again(own, f'{parent}@4').step == branch.again(own, str(parent)).step == 4
    for spec in (f'{parent}@8', str(tmp_path / 'nowhere')):
        with pytest.raises(UserError, match=f'--from {spec}: .* is a branch of .*parent@4; give this one to continue'):
            branch.again(own, spec)
    with pytest.raises(
        UserError, match='is a branch without a checkpoint of its own; it begins again by .*--from .*@4'
    ):
        check_folder(own, tiny(), {})  # never from random weights
    parent.rename(tmp_path / 'moved')
    assert branch.again(own, str(tmp_path / 'moved')).run == tmp_path / 'moved'


def test_only_rules_of_the_last_stage_end_with_the_run():
    change = "{'optim.schedule':dict(rule='linear',start=1.,end=0.)}"
    constant = "{'optim.schedule':1.0}"
    both = tiny('optim.schedule=1.0', f'stages=[dict(at=2,change={change}),dict(at=6,change={constant})]')
    assert configs.ends_with_run(both) == []
    assert configs.ends_with_run(tiny('optim.schedule=1.0', f'stages=[dict(at=2,change={change})]')) == [
        'stages.0.change.optim.schedule'
    ]


@pytest.mark.slow
def test_a_branch_begins_again_as_its_command_says(tmp_path, monkeypatch):
    """Without a checkpoint of its own: what is left out or different is refused. With one, what is left out stays."""
    made = small_runs.build(tmp_path)
    parent, own = tmp_path / 'parent', tmp_path / 'own'
    assert small_runs.run(made, parent, 'optim.schedule=1.0') == 0
    command = ['train', '--from', f'{parent}@4', '--workdir', str(own), '--config.optim.lr=1e-4']
    save = checkpoint.Checkpoints.save

    def killed(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoints, 'save', killed)
    assert cli.main([*command, '--keep', 'towers,clock']) == 130
    before = small_runs.content(own)
    assert 'config.json' in before and checkpoint.steps(own / 'checkpoints') == []
    assert json.loads(before['config.json'])['life']['parent']['keep'] == ['clock', 'towers']
    for more, sentence in (
        ([], '--keep: .*own began with --keep clock,towers; give the same'),
        (['--keep', 'towers'], '--keep: .*own began with --keep clock,towers; give the same'),
        (['--keep', 'clock,towers', '--config.optim.lr=1e-3'], r'another config \(they differ in optim.lr\).*no check'),
        (['--keep', 'clock,towers', '--config.seed=3'], r'another config \(they differ in seed\)'),
    ):
        with pytest.raises(UserError, match=sentence):
            cli.run('train', [*command[1:], *more])
    with pytest.raises(UserError, match=r'they differ in optim.lr\). Give that config, or use another --workdir'):
        cli.run('train', [*command[1:-1], '--keep', 'clock,towers'])
    assert small_runs.content(own) == before
    monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)
    assert cli.main([*command, '--keep', 'clock, towers']) == 0
    assert (own / 'DONE').exists() and cli.main(command[:-1]) == 0  # its own config.json is the base now
    with pytest.raises(UserError, match='--keep: .*own began with --keep clock,towers'):
        cli.run('train', [*command[1:], '--keep', 'heads'])


@pytest.mark.slow
def test_damaged_checkpoints_of_a_parent_and_of_a_run_that_is_lengthened(tmp_path, capsys):
    """`--from RUN` takes the one before, `--from RUN@STEP` is refused. The end is judged at the step that is taken."""
    made = small_runs.build(tmp_path)
    run, cosine = tmp_path / 'run', f'optim.schedule={COSINE}'
    assert small_runs.run(made, run, cosine) == 0
    os.truncate(next((run / 'checkpoints/8/default/d').iterdir()), 20)
    before = small_runs.content(run)
    capsys.readouterr()
    assert cli.main(['train', '--from', str(run), '--workdir', str(tmp_path / 'branch')]) == 0
    told = capsys.readouterr().err
    assert f'{run}/checkpoints/8: the checkpoint cannot be used (default/d/' in told
    assert 'so the one of step 4 is taken' in told and f'branching from {run} at step 4' in told
    assert json.loads((tmp_path / 'branch/config.json').read_text())['life']['parent']['step'] == 4
    with pytest.raises(UserError, match='checkpoints/8: the checkpoint cannot be used: .* also checkpoints of step 4'):
        cli.run('train', ['--from', f'{run}@8', '--workdir', str(tmp_path / 'other')])
    assert small_runs.content(run) == before and not (tmp_path / 'other').exists()

    # The cosine has not ended at step 4, so the run can be lengthened. Shortened to 6 it can go on from there too.
    for total, verb in ((12, 'lengthened'), (6, 'shortened')):
        copy = shutil.copytree(run, tmp_path / str(total))
        if total == 6:  # a checkpoint without a list, whose arrays cannot be read
            (copy / 'checkpoints/8' / file_list.NAME).unlink()
            shutil.rmtree(copy / 'checkpoints/8/default')
        capsys.readouterr()
        assert small_runs.run(made, copy, cosine, f'total_steps={total}') == 0
        told = capsys.readouterr().err
        assert f'is {verb} at step 4: it ends at step {total}, not 8' in told and told.count(verb) == 1
        assert json.loads((copy / 'config.json').read_text())['life']['ends'] == [[0, 8], [4, total]]


@pytest.mark.slow
def test_a_branch_without_steps_to_do_leaves_no_folder(parent, tmp_path):
    told = medjax('train', '--from', parent, '--workdir', tmp_path / 'run', code=2)
    assert 'total_steps=12: the run begins at step 12; give a larger number' in told
    assert not (tmp_path / 'run/config.json').exists()


@pytest.mark.slow
def test_a_run_goes_on_over_the_border_of_a_stage(data, tmp_path):  # noqa: F811
    change = "{'views.global.size':48,'optim.lr':1e-4,'batch_size':16}"
    options = [f'--config.stages=[dict(at=5,change={change})]', '--config.total_steps=10', *CONSTANT]
    medjax(*train(data, tmp_path / 'whole', *options)[3:])
    rates = {line['step']: line['lr'] for line in lines(tmp_path / 'whole')}
    assert rates[5] == pytest.approx(1e-3) and rates[6] == pytest.approx(1e-4)
    assert json.loads((tmp_path / 'whole/exports/4/meta.json').read_text())['size'] == 32
    assert json.loads((tmp_path / 'whole/exports/8/meta.json').read_text())['size'] == 48
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    (tmp_path / 'cut/DONE').unlink()
    for name in ('8', '10'):
        shutil.rmtree(tmp_path / 'cut/exports' / name)
    shutil.rmtree(tmp_path / 'cut/checkpoints/10')
    told = medjax(*train(data, tmp_path / 'cut', *options)[3:])
    assert 'resuming from step 8' in told
    equal(tmp_path / 'whole', tmp_path / 'cut', 10)
    assert numbers(tmp_path / 'whole', 8) == numbers(tmp_path / 'cut', 8)


def test_seen_data_of_a_parent_are_added(tmp_path, monkeypatch):
    from types import SimpleNamespace

    def data_set(key: str, *numbers: int) -> SimpleNamespace:
        values = {name: np.array(numbers, np.uint64) for name in ('patient', 'image', 'origin', 'via', 'pixels')}
        split = SimpleNamespace(
            keys=values.__getitem__, column=lambda name: np.array([[n] * 32 for n in numbers], np.uint8)
        )
        split.data = SimpleNamespace(key_fingerprint=key)
        return SimpleNamespace(key_fingerprint=key, split=lambda name: split)

    seen.write_seen({'a': data_set('one', 3, 5)}, tmp_path / 'a.npz')
    seen.write_seen({'b': data_set('two', 4, 5)}, tmp_path / 'b.npz', [tmp_path / 'a.npz'])
    with np.load(tmp_path / 'b.npz') as file:
        of = dict(zip(zip(file['patient'].tolist(), file['patient/key'].tolist(), strict=True), [True] * 9))
        assert file['keys'].tolist() == ['one', 'two']
        assert set(of) == {(3, 0), (5, 0), (4, 1), (5, 1)}
        assert set(file['pixels'].tolist()) == {3, 4, 5} and len(file['hash']) == 3
