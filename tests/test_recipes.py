"""The shipped recipes, by name: from any folder, and from a wheel that is installed without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from medjax import config as configs, recipes
from medjax.data.text import prompts
from medjax.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The folder in which the test runs: empty, and outside the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('file', sorted((ROOT / 'configs').glob('*.py')), ids=lambda file: file.stem)
def test_every_recipe_is_found_by_its_name(file):
    assert recipes.find(file.stem).samefile(file)
    assert configs.read(file.stem) == configs.read(str(file))


def test_a_path_comes_before_a_name(elsewhere):
    own = Path('mine')
    own.mkdir()
    shutil.copy(ROOT / 'configs/demo.py', own / 'tiny.py')
    assert recipes.find('mine/tiny.py') == own / 'tiny.py'
    (elsewhere / 'demo').write_text('def get_config(size): return dict(total_steps=size)\n')
    assert recipes.find('demo') == Path('demo')
    with pytest.raises(UserError, match=r'demo: needs an argument'):
        configs.read('demo')


def test_a_name_may_have_an_argument():
    with pytest.raises(UserError, match=r"tiny: its get_config takes no argument, so leave out ':7'"):
        configs.read('tiny:7')


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('demmo', "did you mean 'demo'"),
        ('demo.py', "did you mean 'demo'"),
        ('configs/demo.py', "did you mean 'demo'"),
        ('mien.py', "did you mean 'mine.py'"),
        ('zzz', 'known: barlow_twins, bias_only, '),
    ],
)
def test_a_wrong_name_suggests_files_and_recipes(elsewhere, name, near):
    (elsewhere / 'mine.py').touch()
    with pytest.raises(UserError, match=f'there is no file {name} and no shipped recipe of that name; {near}'):
        recipes.find(name)


def test_shipped_prompts_are_found_by_their_name(elsewhere):
    file = ROOT / 'configs/prompts/cxr.json'
    assert prompts.zero_shot('cxr', '--prompts') == prompts.zero_shot(str(file), '--prompts')
    (elsewhere / 'cxr').write_text(json.dumps({'normal': ['Nothing.']}))
    assert prompts.read('cxr', 'x') == {'present': {}, 'absent': {}, 'normal': ['Nothing.']}, 'a file comes first'
    with pytest.raises(UserError, match=r'--prompts cxrr: cannot be read'):
        prompts.zero_shot('cxrr', '--prompts')


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The folder bin/ of an environment with the wheel of this checkout and its dependencies, but not the checkout."""
    folder = tmp_path_factory.mktemp('wheel')
    source, env = folder / 'source', folder / 'env'  # a copy, so that no build/ is left in the checkout
    left_out = shutil.ignore_patterns('__pycache__')
    for name in ('medjax', 'configs'):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=left_out)
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)

    def run(*command):
        done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    pip = (sys.executable, '-m', 'pip', '--disable-pip-version-check')
    run(*pip, 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, source)
    (wheel,) = folder.glob('*.whl')
    run(sys.executable, '-m', 'venv', '--without-pip', env)
    run(*pip, '--python', env / 'bin/python', 'install', '--no-deps', '--no-index', wheel)
    # The dependencies come from the environment of this test. Python reads no *.pth files there, so an editable
    # medjax of that environment is not found.
    (own,) = env.glob('lib/python*/site-packages')
    (own / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return env / 'bin'


@pytest.mark.slow
def test_an_installed_wheel_trains_by_the_name_of_a_recipe(installed, elsewhere):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    environment |= {'JAX_NUM_CPU_DEVICES': '1'}

    def output(*command):
        done = subprocess.run(
            [*map(str, command)], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = output(installed / 'python', '-c', 'import sys, medjax; print(medjax.__file__, *sys.path, sep="\\n")')
    assert where.startswith(str(installed.parent)) and str(ROOT) not in where.split('\n')
    program = 'from medjax import recipes; print(*(path.name for path in recipes.FOLDER.rglob("*.*")))'
    shipped = {path.name for path in (ROOT / 'configs').rglob('*.*') if path.suffix in ('.py', '.json')}
    assert {name for name in output(installed / 'python', '-c', program).split() if '.pyc' not in name} == shipped

    medjax = installed / 'medjax'
    output(medjax, 'build', 'phantom', '--records', '48', '--size', '32', '--out', 'data')
    output(medjax, 'train', '--config', 'tiny', '--data', 'data', '--workdir', 'run', '--config.total_steps=2')
    assert (elsewhere / 'run/DONE').read_text() == '2\n'
