"""`medjax plan` with a compiler that is a shell script: what is printed, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pages import Page, browse, needs_browser

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
    assert runs.count('run') <= 6  # of 18: the exchanges of a mesh and the loop of a setting say something of others
    assert main([*arguments, '--config.mesh.fsdp=2']) == 2
    assert '--search chooses the mesh' in capsys.readouterr().err


STEP = 2 * 0.002 + 3 * 0.001 + 4 * (2 * 3 / 4 * 1e9 / (0.8 * 200e9) + 2 * 2 * 1e-6)  # seconds, of FACTS
HOURS = 4 * 1_000 * STEP / 3_600  # of a chip, in 1,000 steps


def test_the_cost_of_the_whole_run(compiler, tmp_path, capsys):
    prices, file = tmp_path / 'prices.toml', tmp_path / 'plan.json'
    prices.write_text('v5p = 4.2\nh100 = 3\n')
    arguments = ['plan', '--config', 'tiny', '--topology', 'v5p:2x2x1', '--compiler', compiler(answer())]
    arguments += ['--json', str(file), '--config.total_steps=1000']
    assert main([*arguments, '--prices', str(prices)]) == 0
    (plan,) = json.loads(file.read_text())['plans']
    run = plan['run']
    assert (run['steps'], run['chip_hours']) == (1_000, pytest.approx(HOURS, rel=1e-6))
    assert run['dollars'] == pytest.approx(4.2 * HOURS, rel=1e-6) and run['seconds_at_best'] < run['seconds']
    checkpoint = plan['checkpoint']
    assert checkpoint['bytes'] == 4 * GIB + 8 and checkpoint['seconds'] == pytest.approx(checkpoint['bytes'] / 1e9)
    assert '1,000 steps take' in capsys.readouterr().out
    assert main(arguments) == 0 and '$' not in capsys.readouterr().out
    staged = '--config.stages=[{"at": 500, "change": {"optim.lr": 1e-4}}]'
    assert main([*arguments, '--prices', str(prices), staged]) == 0
    assert 'no time of the whole run' in capsys.readouterr().out
    assert json.loads(file.read_text())['plans'][0]['run'] is None


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        (None, 'cannot be read (No such file or directory)'),
        (b'\xff\xfe', 'is no text'),
        (b'v5p: 4.2', 'is no TOML'),
        (b'v5 = 4.2', "nobody knows the chip 'v5'; did you mean 'v5"),
        (b'v5p = "4.2"', "v5p = '4.2' is no price"),
        (b'v5p = -1', 'v5p = -1 is no price'),
        (b'v5p = true', 'v5p = True is no price'),
        (b'v5p = nan', 'v5p = nan is no price'),
        (b'[v5p]\nhour = 1', "v5p = {'hour': 1} is no price"),
        (b'h100 = 3', 'has no price for v5p:2x2x1; add a line v5p = DOLLARS'),
    ],
)
def test_wrong_prices_are_one_sentence(tmp_path, capsys, content, sentence):
    """Before anything is compiled."""
    prices = tmp_path / 'prices.toml'
    if content is not None:
        prices.write_bytes(content)
    assert main(['plan', '--config', 'tiny', '--topology', 'v5p:2x2x1', '--prices', str(prices)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count('\n') == 1 and str(prices) in error


@pytest.fixture
def written(compiler, tmp_path, capsys):
    """Two topologies with a search: the page, the table and what was printed; the step fits one of the two."""
    python, page, file = compiler(answer(peak=20 * GIB)), tmp_path / 'plan.html', tmp_path / 'plan.json'
    arguments = ['plan', '--config', 'tiny', '--compiler', python, '--search', '--out', str(page), '--json', str(file)]
    assert main([*arguments, '--topology', 'v5e:2x2', '--topology', 'v5p:2x2x1']) == 2
    out, err = capsys.readouterr()
    return page, json.loads(file.read_text())['plans'], out, err


def test_a_topology_that_fails_leaves_the_others(written):
    page, (small, large), out, err = written
    assert 'v5e:2x2: the recipe fits no mesh' in err and 'fits no mesh' in small['error']
    assert large['fits'] and large['overrides'][0] == 'mesh.data=4'
    rows = [line.split() for line in out.splitlines() if line.startswith('v5')]
    assert rows == [['v5e:2x2', 'no', 'plan'], ['v5p:2x2x1', *rows[1][1:]]] and rows[1][1:3] == ['4', '4']
    best, *others = large['search']
    assert best['why'] == 'best' and best['bytes'] == 20 * GIB and {one['bytes'] for one in others} >= {None}
    read = Page(page.read_text())
    assert 'fits no mesh' in read.sections['plan-0'] and read.figures == {'plan-1': 3}
    assert '--config.mesh.data=4' in read.sections['plan-1'] and '20.0 GiB' in read.sections['plan-1']
    assert ['4 x 1 x 1', '1', 'products', 'no', '20.0', f'{1e3 * STEP:,.1f}', 'best'] in read.rows
    assert all(address.startswith(('#', 'data:')) for address in read.addresses)


@needs_browser
@pytest.mark.slow
def test_the_page_in_a_browser(written, tmp_path):
    dom, console, asked = browse(written[0], tmp_path)
    assert 'candidates of the search' in dom and console == [] and asked == set()


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
        (['--topology', 'h100:1x1', '--out', '/nowhere/x.html'], 'there is no folder /nowhere'),
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
