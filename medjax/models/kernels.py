"""Forms of an operation: most have a plain one, and a faster one for some devices.

The plain form is made of jax's own operations. It can be differentiated forwards, and its products can be counted,
which is what `training/flops.py` does inside `plain()`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

STORED = 'stored'  # the name of results that a transformer block stores for the backward pass, see layers.REMAT
_plain_only = contextvars.ContextVar('plain_only', default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Everything that is traced inside takes its plain form."""
    token = _plain_only.set(True)
    try:
        yield
    finally:
        _plain_only.reset(token)


def plain_only() -> bool:
    """Whether only plain forms may be used here."""
    return _plain_only.get()
