"""`medjax plan` with a compiler that is a shell script: what is printed, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medjax.cli import main
from medjax.plan import compiling
from medjax.plan.exchanges import Exchange
from medjax.plan.facts import Facts
from medjax.plan.kernels import Kernel
from medjax.plan.roofline import estimate
from medjax.plan.topology import CHIPS, GIB, parse
from medjax.training.metrics import PEAKS

V5P = parse('v5p:2x2x1')
FLOPS, BANDWIDTH = 0.7 * 459e12, 0.8 * 2765e9
STATE = {'parameters': GIB, 'moments': 2 * GIB, 'teachers': GIB, 'other state': 8}
FACTS = dict(
    device='TPU v5', hosts=1, mesh=dict(data=4, fsdp=1, tensor=1), dtype='bfloat16', rows=dict(cxr=8), canvas=512,
    flops=4 * 0.003 * 459e12, state=STATE, whole_state=STATE, batch=2**20, peak=10 * GIB, arguments=5 * GIB,
    versions=dict(jax='0.11.2'), lowering_s=1.0, compile_s=2.0,
    kernels=[Kernel('MLP', 2, FLOPS * 0.002, 0), Kernel('norms', 3, 0.0, round(BANDWIDTH * 0.001))],
    exchanges=[Exchange('all-reduce', 4, 10**9, 4, 1, (2, 2, 1), 'jit(step)/optimizer/add')],
)  # fmt: skip


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a compiler that gives an answer, and counts in `runs` how often it was asked."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    compiling._versions.cache_clear()

    def make(end: str) -> str:
        path = tmp_path / 'python'
        versions = json.dumps(dict(versions=dict(jax='0.11.2')))
        path.write_text(
            f"#!/bin/sh\n[ $# = 3 ] && {{ echo '{versions}'; exit; }}\ncat > /dev/null\n"
            f"echo run >> {tmp_path}/runs\necho '{json.dumps(dict(stage='compiles'))}'\n{end}\n"
        )
        path.chmod(0o755)
        return str(path)

    return make


def answer(**changes):
    return f"echo '{json.dumps(dict(facts=FACTS | changes))}'"


def test_a_plan_is_printed_written_and_kept(compiler, tmp_path, capsys):
    python, file = compiler(answer()), tmp_path / 'plan.json'
    arguments = ['plan', '--config', 'tiny', '--topology', 'v5p:2x2x1', '--compiler', python, '--json', str(file)]
    assert main(arguments) == 0
    out, progress = capsys.readouterr()
    assert 'fits: 10.00 of 95.74 GiB (10%)' in out and 'MFU' in out and 'all-reduce' in out
    assert 'compiles' in progress and 'compiled in 3 s' in progress
    (plan,) = json.loads(file.read_text())['plans']
    kernels = 2 * 0.002 + 3 * 0.001
    exchanged = 4 * (2 * 3 / 4 * 1e9 / (0.8 * 200e9) + 2 * 2 * 1e-6)
    assert plan['seconds']['kernels'] == pytest.approx(kernels, rel=1e-6)
    assert plan['seconds']['exchanges'] == pytest.approx(exchanged)
    assert plan['mfu'] == pytest.approx(0.003 / (kernels + exchanged), rel=1e-6)
    assert sum(plan['memory'].values()) == 10 * GIB and plan['memory']['activations and temporaries'] == 5 * GIB

    assert main(arguments) == 0  # the same again
    again, progress = capsys.readouterr()
    assert again == out and 'compiled by an earlier plan' in progress
    assert main([*arguments, '--config.batch_size=16']) == 0  # another step
    assert (tmp_path / 'runs').read_text().count('run') == 2


def test_a_cut_result_is_made_again(compiler, tmp_path, capsys):
    arguments = ['plan', '--config', 'tiny', '--topology', 'v5p:2x2x1', '--compiler', compiler(answer())]
    assert main(arguments) == 0
    (kept,) = (tmp_path / 'cache').rglob('*.json')
    kept.write_text(kept.read_text()[:100])
    assert main(arguments) == 0
    assert (tmp_path / 'runs').read_text().count('run') == 2


def test_a_search_prints_the_overrides_of_the_best(compiler, tmp_path, capsys):
    """The compiler gives every mesh the same step, so that nothing is faster than the first one."""
    arguments = ['plan', '--config', 'tiny', '--topology', 'v5p:2x2x1', '--compiler', compiler(answer()), '--search']
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert 'the best: --config.mesh.data=4 --config.mesh.fsdp=1 --config.mesh.tensor=1 --config.micro_batches=1' in out
    assert 'tensor=1 fits, and tensor exchanges activations in every block' in out and 'MFU' in out
    runs = (tmp_path / 'runs').read_text()
    assert main(arguments) == 0 and capsys.readouterr().out == out
    assert (tmp_path / 'runs').read_text() == runs  # all of it comes from the cache
    assert main([*arguments, '--config.mesh.fsdp=2']) == 2
    assert '--search chooses the mesh' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('topology', 'peak', 'words'),
    [
        ('h100:1x4', 50 * GIB, 'fits: 50.00 of 79.11 GiB (63%)'),
        ('h100:1x4', 70 * GIB, 'fits with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95'),
        ('h100:1x4', 78 * GIB, 'does not fit: 78.00'),
        ('v5e:2x2', 15 * GIB, 'fits: 15.00 of 15.75'),
    ],
)
def test_what_fits(compiler, capsys, topology, peak, words):
    assert main(['plan', '--config', 'tiny', '--topology', topology, '--compiler', compiler(answer(peak=peak))]) == 0
    assert words in capsys.readouterr().out


def test_a_program_that_the_compiler_refuses(compiler, capsys):
    """libtpu compiles nothing that does not fit: then there is no time, and the memory is what it asked for."""
    python = compiler(answer(peak=20 * GIB, arguments=0, kernels=[], exchanges=[]))
    assert main(['plan', '--config', 'tiny', '--topology', 'v5e:2x2', '--compiler', python]) == 0
    out = capsys.readouterr().out
    assert 'does not fit: 20.00 of 15.75 GiB' in out and 'MFU' not in out


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--topology', 'v5p:2x2'], "topology 'v5p:2x2': v5p takes 3 sizes, as v5p:2x2x1"),
        (['--topology', 'h10:1x8'], "'h10:1x8' is unknown; did you mean 'h100'"),
        (['--topology', 'v4:2x2x1'], 'a plan knows h100, h200, v5e, v5p, v6e'),
        (['--topology', 'h100:1x2', '--config.mesh.tensor=4'], 'h100:1x2: mesh:'),
        (['--topology', 'h100:1x3'], 'must be a multiple of 3'),
        (['--topology', 'h100:1x1', '--compiler', '/nowhere'], '--compiler /nowhere: there is no Python'),
        (['--topology', 'h100:1x1', '--json', '/nowhere/x.json'], 'there is no folder /nowhere'),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys):
    assert main(['plan', '--config', 'tiny', *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count('\n') == 1


@pytest.mark.parametrize(
    ('end', 'sentence'),
    [
        (f"echo '{json.dumps(dict(error='mesh: no'))}'", 'medjax: mesh: no'),
        ('kill -9 $$', 'the memory of this machine is full'),
        ('echo "ModuleNotFoundError: No module named jax" >&2; exit 1', 'cannot run medjax: ModuleNotFoundError'),
    ],
)
def test_failures_of_the_compiler_are_one_sentence(compiler, capsys, end, sentence):
    assert main(['plan', '--config', 'tiny', '--topology', 'h100:1x1', '--compiler', compiler(end)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and 'Traceback' not in error


@pytest.mark.parametrize(('makefile', 'words'), [(True, 'make aot-environments'), (False, "'medjax[plan-tpu]'")])
def test_a_compiler_that_is_not_installed_names_the_command(tmp_path, monkeypatch, makefile, words):
    monkeypatch.setattr(compiling, 'ROOT', tmp_path)
    monkeypatch.setattr(compiling.importlib.util, 'find_spec', lambda name: None)
    if makefile:
        (tmp_path / 'Makefile').touch()
    with pytest.raises(compiling.UserError, match=words.replace('[', r'\[')):
        compiling.interpreter(V5P, None)


def test_chips_have_the_peaks_of_the_metrics():
    names = dict(h100='H100', h200='H200', v5e='TPU v5e', v5p='TPU v5', v6e='TPU v6')
    assert {name: chip.flops for name, chip in CHIPS.items()} == {name: PEAKS[key] for name, key in names.items()}


def test_what_decides_a_program_is_there():
    """Folders that were renamed would no longer be in the key of the cache."""
    package = Path(compiling.__file__).parents[1]
    assert all((package / name).exists() for name in compiling.SOURCE)


def test_products_and_bytes_of_a_kernel_overlap():
    facts = Facts.of_json(
        FACTS | dict(kernels=[Kernel('MLP', 1, FLOPS * 0.002, round(BANDWIDTH * 0.005))], exchanges=[])
    )
    found = estimate(V5P, facts)
    assert found.step == pytest.approx(0.005) and found.products == 0.0
