"""The digest of the source that a probe runs, so that a result is computed again where the code has changed.

It covers the probe's own module and the modules of `medjax.probes` that it imports, directly or through others. Other
modules, such as towers and data sets, are covered by the version of medjax alone: results depend on them only through
features and records, which rarely change between versions.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import pkgutil
from pathlib import Path
from types import ModuleType

import medjax.probes


def digest(probe: ModuleType) -> str:
    """The digest of the source of a probe with that of the modules of `medjax.probes` that it imports."""
    own = inspect.getsource(probe)
    found, waiting = {probe.__name__: hashlib.sha256(own.encode()).hexdigest()}, _imported(own)
    while waiting:
        if (name := waiting.pop()) not in found:
            found[name], others = _module(name)
            waiting |= others
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@functools.cache
def _module(name: str) -> tuple[str, frozenset[str]]:
    """(digest of its source, the modules of `medjax.probes` that it imports)."""
    source = Path(str(_modules()[name])).read_bytes()
    return hashlib.sha256(source).hexdigest(), frozenset(_imported(source))


@functools.cache
def _modules() -> dict[str, str | None]:
    """{name: file} of all modules of `medjax.probes`."""
    found = pkgutil.walk_packages(medjax.probes.__path__, f'{medjax.probes.__name__}.')
    return {module.name: spec.origin for module in found if (spec := importlib.util.find_spec(module.name))}


def _imported(source: str | bytes) -> set[str]:
    """The modules of `medjax.probes` that a source imports, also inside of functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f'{node.module}', *(f'{node.module}.{alias.name}' for alias in node.names)}
    return names & set(_modules())
