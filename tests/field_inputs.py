"""The scripts of tests/data/field, which write small files that once broke, loaded from there by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent / 'data' / 'field'


def script(name: str) -> ModuleType:
    """The module of tests/data/field/NAME.py."""
    spec = importlib.util.spec_from_file_location(f'field_{name}', FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
