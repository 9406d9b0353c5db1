"""Calls of jax as one program each. Operation by operation, a tower is a hundred programs to compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax


def run(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """f(*args, **options). The arguments are trees of arrays; the options are constants of the program."""
    return jax.jit(functools.partial(f, **options))(*args)
