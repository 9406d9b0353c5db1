"""Tests run on the CPU with 8 virtual devices and a compilation cache; slow ones only with --slow."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before jax is imported anywhere.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '8'
# Tests compile far longer than they run: half the time without LLVM's costly passes.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parents[1] / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
# Ids of the tests' data sets are hashed with a key of their own, never with that of the person who runs them.
os.environ['MEDJAX_ID_KEY'] = 'a key for tests'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--slow', action='store_true', help='run the tests that take over a minute, and only those')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption('--slow')
    left_out = [item for item in items if ('slow' in item.keywords) != wanted]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


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
