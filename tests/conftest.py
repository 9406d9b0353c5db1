"""Tests run on the CPU with 8 virtual devices and a compilation cache.

Tests with the marker `slow` or `long` run only with --slow or --long, and then they alone. With MEDJAX_REQUIRE_ALL=1,
as in CI, a test that would skip fails: a package, a program or a file that it needs is missing.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

Report = TypeVar('Report', pytest.TestReport, pytest.CollectReport)

# Before numpy and jax are imported anywhere. Two workers on two cores: more threads of BLAS only wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
# Tests compile far longer than they run. CPU seconds to compile a step of tests/recipes.py: 8.1 without LLVM's costly
# passes, 2.8 with XLA's older emitters of fusions as well, 2.1 with all code in one LLVM module. From jaxlib 0.11 on
# there are no older emitters, and the option is ignored.
CHEAP_TO_COMPILE = (
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_parallel_codegen_split_count=1',
    '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
)
# AVX has no fused multiply-add. With it, two programs of one formula may round differently: 2e-5 of a pixel apart.
NO_FUSED_MULTIPLY_ADD = ('--xla_cpu_max_isa=AVX',) if platform.machine() in ('x86_64', 'AMD64') else ()
os.environ.setdefault('XLA_FLAGS', ' '.join(CHEAP_TO_COMPILE + NO_FUSED_MULTIPLY_ADD))
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parents[1] / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
# A shell that starts the tests in the background ignores Ctrl-C, and so would the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Ids of the tests' data sets are hashed with a key of their own, never with that of the person who runs them.
os.environ['MEDJAX_ID_KEY'] = 'a key for tests'


KINDS = ('slow', 'long')
# May be missing in CI as well: a package that holds others back, and arrays of methods that come later.
OPTIONAL = ('Apache Beam', 'this method is not in medjax yet')


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--slow', action='store_true', help='run the tests that take longest, and only those')
    parser.addoption('--long', action='store_true', help='run the tests that do not fit into CI, and only those')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {kind for kind in KINDS if config.getoption(f'--{kind}')}
    left_out = [item for item in items if {kind for kind in KINDS if item.get_closest_marker(kind)} != wanted]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Tracing makes many objects and few cycles: garbage is collected less often, and never among the modules."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _required((yield))  # a module may skip as a whole


def _required(report: Report) -> Report:
    """The report of a test or module. With MEDJAX_REQUIRE_ALL a skip becomes a failure.

    A skip stays one if the package is optional, or if its reason names a variable MEDJAX_… that is not set: data
    that only some machines have.
    """
    if os.environ.get('MEDJAX_REQUIRE_ALL') and report.skipped and not hasattr(report, 'wasxfail'):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        unset = [name for name in re.findall(r'MEDJAX_\w+', reason) if name not in os.environ]
        if not unset and not any(name in reason for name in OPTIONAL):
            report.outcome = 'failed'
            report.longrepr = f'{reason}\nMEDJAX_REQUIRE_ALL is set, so this test must not skip.'
    return report


@pytest.fixture(autouse=True)
def no_mesh_left() -> Iterator[None]:
    """Tests of a process share jax's mesh, and a run within a test leaves its own."""
    yield
    if 'jax' in sys.modules:
        import jax
        import numpy as np

        from medjax.parallel import sharding

        jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES))


@pytest.fixture(scope='session')
def real_data() -> Path:
    """The folder with nih_cxr64, covid_cxr and medmnist."""
    return _folder('MEDJAX_REAL_DATA')


@pytest.fixture(scope='session')
def dinov2_reference() -> Path:
    """The folder with arrays computed by the original DINOv2 code."""
    return _folder('MEDJAX_DINOV2_REFERENCE')


@pytest.fixture(scope='session')
def real_dicom() -> Callable[[str], bytes]:
    """name -> the bytes of a real DICOM file from the package pydicom-data; never downloaded."""
    try:
        files = {file.name: file for file in importlib.metadata.files('pydicom-data') or []}
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('the package pydicom-data is not installed')
    return lambda name: Path(str(files[name].locate())).read_bytes()


def _folder(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f'{variable} is not set')
    folder = Path(os.environ[variable])
    assert folder.is_dir(), f'{variable} names {folder}, which is no folder'
    return folder
