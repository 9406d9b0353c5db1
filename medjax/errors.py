"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. The message says what was wrong, where, and what would work.

    The command line prints the message alone, without a traceback.
    """


def suggest(name: str, choices: Iterable[str]) -> str:
    """'; did you mean X?' if one of the choices is similar, else all choices."""
    choices = sorted(map(str, choices))
    near = difflib.get_close_matches(str(name), choices, n=1)
    return f'; did you mean {near[0]!r}?' if near else f'; known: {", ".join(choices) or "(none)"}'


def multiples(number: int, unit: int) -> str:
    """The multiples of `unit` beside a number that is none: '32 or 48' for 40 and 16, '16' for 8 and 16."""
    below = number // unit * unit
    return f'{below} or {below + unit}' if below > 0 else f'{unit}'
