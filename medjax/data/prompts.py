"""From labels to sentences: a file of prompts says how a finding is told, its absence, and that nothing was found.

    {"present": {"effusion": ["There is a pleural effusion.", "Pleural effusion."]},
     "absent": {"effusion": ["No pleural effusion."]},
     "normal": ["No acute findings."]}

Each key may be left out. A record with a label set but no report so becomes a pair (UniMed-CLIP, arXiv 2412.10372).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medjax.errors import UserError, suggest

KEYS = ('present', 'absent', 'normal')
Prompts = Mapping[str, Any]  # present, absent: class -> sentences; normal: sentences


class Pools(NamedTuple):
    """Of each finding the sentences from which one is drawn."""

    found: list[tuple[str, ...]]
    clear: list[tuple[str, ...]]


def read(given: str | Mapping[str, Any], where: str) -> Prompts:
    """The prompts of a JSON file, or as they stand in the config, all three keys filled in. UserError names `where`."""
    if isinstance(given, str):
        where = f'{where}={given}'
        try:
            given = json.loads(Path(given).expanduser().read_text(encoding='utf-8'))
        except OSError as error:
            raise UserError(f'{where}: cannot be read: {error.strerror}') from None
        except ValueError as error:
            raise UserError(f'{where}: is no JSON: {error}') from None
    if not isinstance(given, Mapping):
        raise UserError(f'{where}: a dict with {", ".join(KEYS)}, not {given!r}')
    for key in given:
        if key not in KEYS:
            raise UserError(f'{where}: unknown key {key!r}{suggest(key, KEYS)}')
    given_pools = {f'{key}.{name}': pool for key in KEYS[:2] for name, pool in _classes(given.get(key, {}), where, key)}
    given_pools |= {'normal': given['normal']} if given.get('normal') else {}
    if not given_pools:
        raise UserError(f'{where}: there is no prompt in it')
    for name, pool in given_pools.items():
        if not isinstance(pool, (list, tuple)) or not pool or not all(isinstance(s, str) and s.strip() for s in pool):
            raise UserError(f'{where}: {name} must be a list of sentences, not {pool!r}')
    return dict(present={}, absent={}, normal=[]) | dict(given)


def check_classes(prompts: Prompts, labels: Iterable[str], where: str) -> None:
    """UserError where a class of the prompts is no label of the data."""
    labels = list(labels)
    for key in KEYS[:2]:
        for name in prompts[key]:
            if name not in labels:
                raise UserError(f'{where}: {key}: the data have no label {name!r}{suggest(name, labels)}')


def pools(prompts: Prompts, labels: Mapping[str, int], absent: bool) -> Pools:
    """What can be said of a record with these labels, and nothing of what is not known.

    A pool for every finding that is present (1), or that of a normal image where no label is 1 or uncertain (-1) and
    some are 0; and, if `absent` are to be told, a pool for each finding that is known to be absent (0).
    """
    values = set(labels.values())
    found = [tuple(pool) for name, pool in prompts['present'].items() if labels.get(name) == 1]
    if prompts['normal'] and 0 in values and not {1, -1} & values:
        found.append(tuple(prompts['normal']))
    clear = prompts['absent'].items() if absent else ()
    return Pools(found, [tuple(pool) for name, pool in clear if labels.get(name) == 0])


def draw(said: Pools, absent: int, rng: np.random.Generator) -> list[str]:
    """A sentence of each pool of `found` and of at most `absent` pools of `clear`, in random order."""
    chosen = said.found + [said.clear[k] for k in rng.permutation(len(said.clear))[:absent]]
    return [chosen[k][rng.integers(len(chosen[k]))] for k in rng.permutation(len(chosen))]


def _classes(pools: Any, where: str, key: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(pools, Mapping):
        raise UserError(f'{where}: {key} must be a dict of classes, not {pools!r}')
    return pools.items()
