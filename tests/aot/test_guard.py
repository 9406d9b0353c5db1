"""The guard on compiled programs: which numbers are complaints, and which arrays are forbidden."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import jax
import pytest

from medjax import recipes
from medjax.aot import probes, programs
from medjax.training.rehearsal import batch_shapes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def guard():
    spec = importlib.util.spec_from_file_location('compile_benchmark', ROOT / 'benchmarks' / 'compile.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['compile_benchmark'] = module
    spec.loader.exec_module(module)
    return module


RESULT = dict(kernels=1000, exchanged_mib={'all-reduce': 500.0}, compile_s=50, scores=[], float32_hidden=[])


def test_every_case_of_ci_has_committed_numbers(guard):
    numbers = json.loads(guard.NUMBERS.read_text())
    assert set(numbers) == {name for name, case in guard.CASES.items() if case.ci}


def test_every_recipe_has_its_step_and_its_views(guard):
    for name in recipes.shipped():
        assert guard.CASES[name].program == 'step' and guard.CASES[f'{name}_views'].program == 'views'
        assert guard.CASES[name].recipe == name and not guard.CASES[name].ci
    assert {case.program for case in guard.CASES.values()} == {*programs.PROGRAMS, *probes.FITS, *probes.ENCODERS}


def test_only_numbers_of_ci_are_written_and_compared(guard, monkeypatch, tmp_path, capsys):
    """Other cases complain about what a program must not be, and about nothing else."""
    numbers = dict.fromkeys(('kernels', 'fusions', 'temporary_mib', 'peak_mib', 'scan_copy_mib', 'padding'), 7)
    result = RESULT | numbers | dict(device='card', compile_cpu_s=9, roofline_ms=None)
    monkeypatch.setattr(guard, 'in_own_process', lambda name, text: (result, ''))
    monkeypatch.setattr(guard, 'NUMBERS', tmp_path / 'programs.json')
    monkeypatch.setattr(sys, 'argv', ['compile.py', 'vitb_step', 'chexzero', '--write'])
    assert guard.main() == 0 and set(json.loads(guard.NUMBERS.read_text())) == {'vitb_step'}
    result |= dict(kernels=9)
    monkeypatch.setattr(sys, 'argv', ['compile.py', 'chexzero'])
    assert guard.main() == 0
    monkeypatch.setattr(sys, 'argv', ['compile.py', 'vitb_step:batch_size=8'])
    assert guard.main() == 0 and guard.case_of('vitb_step:batch_size=8').overrides[-1] == 'batch_size=8'
    monkeypatch.setattr(sys, 'argv', ['compile.py', 'chexzero', 'vitb_step'])
    assert guard.main() == 1 and 'kernels is 9 and was 7' in capsys.readouterr().out


def test_a_number_that_moved_is_a_sentence(guard):
    committed = dict(kernels=1000, exchanged_mib={'all-reduce': 500.0})
    assert list(guard.differences(committed, committed)) == []
    assert list(guard.differences(dict(committed, kernels=1015), committed)) == []
    (moved,) = guard.differences(dict(committed, kernels=1030), committed)
    assert moved.startswith('kernels is 1,030 and was 1,000')
    (new,) = guard.differences(dict(committed, exchanged_mib={'all-reduce': 500.0, 'all-gather': 9.0}), committed)
    assert new.startswith('exchanged_mib.all-gather is 9.0 and was 0.0')
    assert 'no numbers are committed' in next(guard.differences(committed, None))


def test_what_a_program_must_not_be(guard):
    case = guard.Case('h100:1x1', 'tiny', 'step', 20)
    assert list(guard.faults(case, RESULT)) == []
    (slow,) = guard.faults(case, RESULT | dict(compile_s=61))
    assert 'the limit is 20 s' in slow
    (scores,) = guard.faults(case, RESULT | dict(scores=['bf16[8, 2, 17, 17]']))
    assert 'attention scores lie in memory' in scores
    assert list(guard.faults(case._replace(flash=False), RESULT | dict(scores=['bf16[8, 2, 17, 17]']))) == []


def test_scores_and_float32_hidden_layers_are_found(guard):
    recipe = programs.prepare('tiny', canvas=64)
    image = recipe.objective.towers['image'].module
    tokens = 17
    arrays = {
        ('bf16', (16, image.heads, tokens, tokens)): 1,
        ('bf16', (16, image.heads, 24, 24)): 1,  # padded to a multiple of 8
        ('f32', (image.depth, image.width, image.hidden)): 1,  # parameters
        ('f32', (9_999, image.hidden)): 1,
        ('bf16', (9_999, image.hidden)): 1,
    }
    found = guard.forbidden(recipe, {17, 24}, arrays)
    assert len(found['scores']) == 2 and found['float32_hidden'] == [f'f32[9999, {image.hidden}]']


def tokens_of(guard, spec):
    """A recipe of few rows, and the tokens that its step's attention has."""
    recipe = programs.prepare(spec, programs.few_rows(spec, 8))
    rows = {name: part['rows'] for name, part in recipe.config['data'].items()}
    batch = batch_shapes(recipe.objective, recipe.config, rows, recipe.canvas, programs.STORED_CHANNELS)
    with guard.tokens_of_attention() as tokens:
        jax.eval_shape(recipe.step.train_step, recipe.abstract, batch)
    return recipe, tokens


def test_tokens_of_every_kind_of_tower_are_found(guard):
    """Of the patches that an encoder keeps and of its decoder, and of texts: as they are and filled up."""
    mae, tokens = tokens_of(guard, 'medical_mae_small')
    grid = math.prod(mae.objective.towers['image'].grid(mae.objective.views['crop'].size))
    assert {grid + 1, grid + 8} <= tokens and any(1 < n < grid for n in tokens)
    _, tokens = tokens_of(guard, 'chexzero')  # texts of 77 tokens
    assert 77 in tokens and 80 in tokens


def test_an_environment_that_is_missing_is_a_sentence(guard, monkeypatch, tmp_path):
    monkeypatch.setattr(guard, 'ROOT', tmp_path)
    result, sentence = guard.in_own_process('vitb_views')
    assert result is None and '.venv-aot-gpu' in sentence and 'make aot makes this environment' in sentence
