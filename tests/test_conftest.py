"""The options of tests/conftest.py: which tests run, and which skips are failures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_quick(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.long
def test_long(): pass
"""
SKIPS = """
import os, pytest

def test_package(): pytest.importorskip('no_such_package')

@pytest.mark.skipif(True, reason='no chromium on this machine')
def test_program(): pass

def test_data(real_data): pass

def test_optional(): pytest.importorskip('no_such_package', reason='Apache Beam is not installed')

@pytest.mark.xfail
def test_expected(): assert False
"""


def outcomes(folder: Path, tests: str, *options: str, **variables: str) -> dict[str, str]:
    """Test -> outcome of a run of pytest with this conftest."""
    shutil.copy(Path(__file__).with_name('conftest.py'), folder)
    (folder / 'pytest.ini').write_text('[pytest]\nmarkers =\n    slow\n    long\n')
    (folder / 'test_some.py').write_text(tests)
    left_out = ('MEDJAX_REQUIRE_ALL', 'MEDJAX_REAL_DATA', 'PYTEST_ADDOPTS')
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    command = [sys.executable, '-m', 'pytest', '-v', '-p', 'no:cacheprovider', '-p', 'no:xdist', *options]
    done = subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=120)
    lines = [line.split() for line in done.stdout.splitlines() if '::' in line and '%]' in line]
    outcome = {line[0].partition('::')[2]: line[1] for line in lines}
    return outcome or {
        line.split()[1]: line.split()[0] for line in done.stdout.splitlines() if line.startswith('ERROR ')
    }


@pytest.mark.parametrize(
    ('options', 'names'),
    [([], ['test_quick']), (['--slow'], ['test_slow']), (['--long'], ['test_long'])],
)
def test_slow_and_long_tests_run_alone(tmp_path, options, names):
    assert outcomes(tmp_path, TESTS, *options) == dict.fromkeys(names, 'PASSED')


def test_a_skip_is_a_failure_where_all_are_required(tmp_path):
    usual = outcomes(tmp_path, SKIPS)
    assert usual == dict(
        test_package='SKIPPED', test_program='SKIPPED', test_data='SKIPPED', test_optional='SKIPPED',
        test_expected='XFAIL',
    )  # fmt: skip
    required = outcomes(tmp_path, SKIPS, MEDJAX_REQUIRE_ALL='1')
    assert required == usual | dict(test_package='FAILED', test_program='ERROR')


def test_a_module_that_skips_as_a_whole_is_a_failure_too(tmp_path):
    tests = "import pytest\n\npytest.importorskip('no_such_package')\n\ndef test(): pass\n"
    assert outcomes(tmp_path, tests) == {}
    assert outcomes(tmp_path, tests, MEDJAX_REQUIRE_ALL='1') == {'test_some.py': 'ERROR'}
