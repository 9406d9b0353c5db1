"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. The message says what was wrong, where, and what would work.

    The command line prints the message alone, without a traceback.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' if a known name is similar, else the list of the known names."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(name), known, n=1)
    return f'; did you mean {near[0]!r}?' if near else f'; known: {", ".join(known) or "(none)"}'
