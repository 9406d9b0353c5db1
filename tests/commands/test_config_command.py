"""`medjax config`: all values of a config, and the values in which two differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medjax import cli, config as configs
from medjax.data import records

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / 'configs' / 'tiny.py')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'phantom'
    assert cli.main(['build', 'phantom', '--records', '24', '--size', '32', '--out', str(folder)]) == 0
    return folder


@pytest.fixture
def run(tmp_path):
    """Makes the folder of a run of `tiny` with overrides, as far as this command reads it."""

    def make(name, *overrides):
        folder = tmp_path / name
        folder.mkdir()
        config = configs.check(configs.resolve(configs.read(TINY, overrides), {}))
        (folder / 'config.json').write_text(configs.to_json(config))
        return folder

    return make


@pytest.fixture
def medjax(capsys):
    """Runs `medjax config …`: its exit code, output and messages."""

    def call(*args):
        capsys.readouterr()
        code = cli.main(['config', *map(str, args)])
        return code, *capsys.readouterr()

    return call


def columns(line):
    return tuple(line.split())


@pytest.mark.parametrize(
    ('recipe', 'text', 'words'),
    [
        ('tiny', 'views.local.size=20', '16 or 24'),
        ('demo', 'views.local.size=20', 'views.local.size'),  # its channels depend on the data
        (
            'tiny',
            'heads.dino.bottleneck=0',
            'heads.dino: dino_head: bottleneck=0: must be a whole number of at least 1',
        ),
        ('tiny', 'heads.dino.prototypes=1', 'with one prototype there is nothing to choose'),
        ('simclr', 'heads.projector.out=0', 'heads.projector: widths of a head'),
        ('simclr', 'micro_batches=2', 'micro_batches=2: heads.projector normalises by the statistics'),
        ('spark_resnet50', 'views.crop.size=200', 'must be multiples of 32'),
        ('ijepa_vitb16', 'masks.crop~block.target_area=(.5, 1.5)', 'is larger than its grid of 14 x 14'),
        ('dino', 'terms.0.student_temperature=0.', '(distill_cls).student_temperature=0.0: must be a number above 0'),
        ('dino', 'terms.0.momentum=1.5', '(distill_cls).momentum=1.5: must be a number from 0 to 1'),
        ('dino', 'terms.0.iterations=0', '(distill_cls).iterations=0: must be a whole number of at least 1'),
        ('tiny', 'terms.1.student_temperature=-1.', '(distill_patch).student_temperature=-1.0: must be a number above'),
        ('tiny', 'masks.global~block.ratio=(0., .01)', 'masks no patch of 4 x 4'),
        ('tiny', 'masks.global~block.min_patches=0', 'min_patches=0: must be a whole number from 1 to 16'),
        ('tiny', 'masks.global~block.aspect=0.', 'aspect=0.0: must be a number above 0 and at most 1'),
        ('tiny', 'masks.global~block.share=nan', 'share'),
        ('tiny', 'views.global.count=0', 'views.global.count=0: must be a whole number of crops, at least 1'),
        ('tiny', 'optim.b2=1.', 'optim.b2=1.0: must be a number of at least 0 and below 1'),
        ('tiny', 'optim.eps=0.', 'optim.eps=0.0: must be a number above 0'),
        ('tiny', 'optim.groups=[dict(match="heads/dnio/*")]', 'no parameter matches'),
        ('tiny', 'terms.2.of=student/image/global/clss', "there is no output 'clss'; did you mean 'cls'?"),
        ('medical_mae_small', 'masks.crop~random.mode=replace', "mode 'drop'"),
        ('medical_mae_small', 'export.towers=["decoder"]', "'decoder' reads the tower 'image'; export that too"),
        ('tiny', 'views.local.photometric=radiogarph', "did you mean 'radiograph'"),
        ('tiny', 'views.local.photometric=3', 'views.local.photometric'),
        ('tiny', 'masks.global~block.ratio=(.5, .1)', 'masks.global~block.ratio'),
    ],
)
def test_mistakes_that_builders_find(medjax, recipe, text, words):
    code, out, err = medjax(recipe, f'--config.{text}')
    assert (code, out) == (2, '')
    assert words in err and err.count('\n') == 1


def test_a_recipe_is_printed_with_defaults_and_overrides(medjax):
    code, out, err = medjax('tiny', '--config.optim.lr=.5', '--config.terms.2.weight', '.25')
    config = configs.check(configs.resolve(configs.read(TINY, ['optim.lr=.5', 'terms.2.weight=.25']), {}))
    assert (code, err) == (0, '')
    assert json.loads(out) == json.loads(configs.to_json(config))
    assert json.loads(out)['optim']['lr'] == 0.5 and json.loads(out)['micro_batches'] == 1
    assert max(map(len, out.splitlines())) <= 100


def test_what_the_data_decide(medjax, data):
    assert json.loads(medjax('demo')[1])['image']['mean'] is None
    image = json.loads(medjax('demo', '--data', data)[1])['image']
    assert image == {'channels': 1, 'mean': records.open(str(data)).mean, 'std': records.open(str(data)).std}


def test_a_run_is_printed(medjax, run):
    folder = run('a', 'seed=7')
    for name in (folder, folder / 'config.json'):
        assert json.loads(medjax(name)[1]) == json.loads((folder / 'config.json').read_text())


def test_the_difference_of_two_runs(medjax, run):
    a = run('a')
    b = run('b', 'optim.lr=.5', 'optim.clip=none', 'terms.2.weight=.25', 'log.every=7')
    code, out, err = medjax(a, b)
    assert (code, err) == (1, '')
    before = json.loads((a / 'config.json').read_text())
    assert [columns(line) for line in out.splitlines()] == [
        ('key', str(a), str(b)),
        ('log.every', str(before['log']['every']), '7'),
        ('optim.clip', str(before['optim']['clip']), 'null'),
        ('optim.lr', str(before['optim']['lr']), '0.5'),
        ('terms.2.weight', str(before['terms'][2]['weight']), '0.25'),
    ]


def test_two_equal_configs(medjax, run):
    assert medjax(run('a'), run('b')) == (0, '', '')
    assert medjax('tiny', TINY) == (0, '', '')


def test_a_key_of_one_config_alone(medjax, tmp_path):
    (tmp_path / 'more.py').write_text(
        f'import runpy\n\ndef get_config():\n    config = runpy.run_path({TINY!r})["get_config"]()\n'
        '    config["terms"] = [*config["terms"], {**config["terms"][2], "name": "more"}]\n    return config\n'
    )
    code, out, _ = medjax('tiny', tmp_path / 'more.py')
    number = len(configs.read(TINY).terms)
    rows = dict(columns(line)[:2] for line in out.splitlines()[1:])
    assert code == 1 and f'terms.{number}.term' in rows and set(rows.values()) == {'-'}


def test_keys_that_change_no_number_are_called_so(medjax, run):
    code, out, _ = medjax('tiny', run('a', 'log.every=7', 'checkpoint.keep=5'))
    assert code == 1 and out.endswith('None of these keys changes what a step computes.\n')
    assert medjax('tiny', run('b', 'seed=7'))[1].count('None of these') == 0


def test_overrides_apply_to_the_recipe_and_not_to_the_run(medjax, run):
    assert medjax('tiny', run('a', 'optim.lr=.5'), '--config.optim.lr=.5') == (0, '', '')
    code, _, err = medjax(run('b'), '--config.optim.lr=.5')
    assert code == 2 and '--data and --config.KEY=VALUE apply to recipes' in err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['tinny'], "did you mean 'tiny'"),
        (['tiny', '--config.optim.lrr=1'], "no key 'lrr'; did you mean 'lr'"),
        (['tiny', '--config.rows_per_group=3'], 'multiple of 3'),
        (['empty'], 'empty: this folder has no config.json'),
        (['tiny', '--data', 'nowhere'], 'nowhere'),
    ],
)
def test_mistakes_are_sentences(medjax, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    code, out, err = medjax(*args)
    assert (code, out) == (2, '') and message in err and err.count('\n') == 1
