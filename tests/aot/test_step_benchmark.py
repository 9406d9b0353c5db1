"""The benchmarks of a step: every recipe at a small size, and the table of what methods cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import pytest

from medjax import config as configs, recipes
from medjax.parallel import sharding

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import gpu_cases  # noqa: E402  benchmarks/gpu_cases.py
import methods  # noqa: E402
import step  # noqa: E402

# Two parts; a frozen teacher from public weights; masks of structures. The others run with the long tests.
SLOW = ('medclip', 'distill_vits14', 'fine_tune_segmentation')
CASES = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.long)
    for name in sorted(recipes.shipped())
]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return step.phantoms(str(tmp_path_factory.mktemp('phantoms')), 48, 32)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The step of eight devices takes longer to compile and is tested elsewhere."""
    mesh = sharding.make_mesh
    monkeypatch.setattr(sharding, 'make_mesh', lambda *sizes, **named: mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize('name', CASES)
def test_every_recipe_is_timed_at_a_small_size(name, data, monkeypatch, capsys):
    overrides = gpu_cases.small(name)
    options = ['--config', name, '--steps', '1', '--warmup', '1', '--only', 'loop', '--json']
    monkeypatch.setattr(sys, 'argv', ['step.py', *options, *(f'--config.{item}' for item in overrides)])
    monkeypatch.setattr(step, 'phantoms', lambda folder: data)
    code = step.main()
    said = capsys.readouterr()
    assert code == 0, said.err
    result = json.loads(said.out)
    config = configs.read(name)
    given = [config.init_from, *(teacher.get('init_from') for teacher in config.teachers.values())]
    assert result['random_weights'] == any(given)
    assert result['flops'] > 0 and 'step' not in result
    assert result['loop']['images_per_s'] == pytest.approx(result['batch_size'] / result['loop']['seconds'])
    shown = step.table(result)
    assert ('random parameters' in shown) == any(given) and 'loop on records' in shown


@pytest.mark.parametrize(
    ('options', 'rows'),
    [
        (('--config', 'medclip'), [8, 8]),
        (('--config', 'medclip', '--rows', '3'), [3, 3]),
        (('--config', 'rad_dino_vitb14'), [10]),  # two groups
        (('--config', 'ibot', '--config.rows_per_group=4'), [8]),
        (('--config', 'ibot', '--config.batch_size=48'), [48]),
        ((), [4]),  # the recipe has fewer
    ],
)
def test_rows_are_few_unless_they_are_given(options, rows, data, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, 'argv', ['step.py', '--json', *options])
    monkeypatch.setattr(step, 'phantoms', lambda folder: data)
    monkeypatch.setattr(step, 'measure', lambda config, *others: seen.append(config) or {})
    assert step.main() == 0, capsys.readouterr().err
    assert [part['rows'] for part in seen[0]['data'].values()] == rows


def test_a_mistake_is_a_sentence(data, monkeypatch, capsys):
    monkeypatch.setattr(step, 'phantoms', lambda folder: data)
    monkeypatch.setattr(sys, 'argv', ['step.py', '--config', 'medclip', '--config.batch_size=8'])
    assert step.main() == 1
    assert 'batch_size 8 must be the sum of the rows: data.images.rows 100' in capsys.readouterr().err


CPU = dict(batch_size=4, flops=8e9, peak_memory_mib=2000.0, others=0.0)
CPU['loop'] = dict(seconds=2.0, seconds_min=1.5, seconds_max=2.5, cpu_seconds=3.5)
H100 = dict(rows=32, tflop=0.064, moved_gib=9.0, peak_mib=2048.0, roofline_ms=12.0)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A function that calls methods.py, which measures nothing: what it would measure, and its exit code."""
    monkeypatch.setattr(methods, 'RESULTS', tmp_path / 'methods.json')
    monkeypatch.setattr(methods, 'PAGE', tmp_path / 'cost.md')
    methods.PAGE.write_text(f'Before.{methods.AROUND[0]}old{methods.AROUND[1]}After.')
    done = []

    def timed(name, kind, folder):
        done.append((name, kind))
        return (None, 'failed') if name == 'byol' else (CPU | dict(others=0.5 * (name == 'vicreg')), '')

    monkeypatch.setattr(methods, 'timed', timed)
    monkeypatch.setattr(methods, 'on_h100', lambda name: done.append((name, 'h100')) or (H100, ''))

    def call(*arguments):
        done.clear()
        monkeypatch.setattr(sys, 'argv', ['methods.py', *arguments])
        return methods.main(), list(done)

    return call


def test_what_is_measured_is_not_measured_again(measured, capsys):
    code, done = measured('simclr', 'vicreg', 'byol')
    assert code == 1 and len(done) == 6
    code, done = measured('simclr', 'vicreg', 'byol')
    assert done == [('vicreg', 'cpu'), ('byol', 'cpu')], 'what failed, and what other programs disturbed'
    code, done = measured('simclr', '--only', 'cpu')
    assert code == 0 and done == []
    code, done = measured('--table')
    lines = capsys.readouterr().out.splitlines()
    row = '| `simclr` | ResNet-50 | all | 2 | 4 | 2.0 (1.5 to 2.5) | 3.5 | 2,000 | 32 | 0.1 | 9 | 2.0 | 12 |'
    assert code == 0 and done == [] and row in lines
    assert '~2.0 (1.5 to 2.5)' in next(line for line in lines if 'vicreg' in line)
    page = methods.PAGE.read_text()
    assert row in page and 'old' not in page and page.startswith('Before.') and page.endswith('After.')


def test_columns_of_a_gpu_are_there_only_with_one():
    found = dict(simclr=dict(cpu=CPU, h100=H100), vicreg=dict(h100=H100))
    assert (
        'ms on' not in methods.table(found) and len({line.count('|') for line in methods.table(found).split('\n')}) == 1
    )
    found['simclr']['gpu'] = CPU | dict(device='1 x NVIDIA H100', peak_memory_mib=3072.0)
    table = methods.table(found)
    assert 'ms on 1 x NVIDIA H100' in table and '| 2000.0 (1500.0 to 2500.0) | 3.0 |' in table


def test_what_an_encoder_reads():
    assert [methods.reads(name) for name in ('mae_vitb16', 'ijepa_vitb16')] == ['49 of 196', '96 of 196']
    assert methods.reads('spark_resnet50') == 'all: convolutions are dense' and methods.reads('ibot') == 'all'


def test_every_method_names_a_recipe_and_overrides_that_it_takes():
    for name in methods.METHODS:
        assert methods.tower(name) in ('ViT-B/16', 'ViT-B/14', 'ResNet-50')
        configs.read(name, [*methods.METHODS[name], *methods.for_cpu(name)])


def test_the_page_shows_the_committed_results():
    results = json.loads((ROOT / 'benchmarks/methods.json').read_text())
    table = methods.table({name: results[name] for name in methods.METHODS if name in results})
    assert table in (ROOT / 'docs/cost.md').read_text()
