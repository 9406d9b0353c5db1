"""From labels to sentences: a file of prompts says how a finding is told, its absence, and that nothing was found.

    {"present": {"effusion": ["There is a pleural effusion.", "Pleural effusion."]},
     "absent": {"effusion": ["No pleural effusion."]},
     "normal": ["No acute findings."]}

Each key may be left out. A record with a label set but no report so becomes a pair (UniMed-CLIP, arXiv 2412.10372).

The same file is the prompts of a zero-shot classification, if it says how they become a score (see `ZeroShot`):

     "zero_shot": {"score": "pair", "ensemble": "after", "templates": ["{}"], "temperature": null}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax import recipes
from medjax.errors import UserError, suggest
from medjax.plugins import call

KEYS = ('present', 'absent', 'normal')
ZERO_SHOT = 'zero_shot'
Prompts = Mapping[str, Any]  # present, absent: class -> sentences; normal: sentences

SCORES = {
    'pair': 'logarithm of the odds of the class against its absence, (cosine - cosine of absence) / temperature',
    'classes': 'logarithm of the odds of the class against all others, by the softmax of cosine / temperature',
    'cosine': 'cosine with the class',
}
ENSEMBLES = {
    'before': "mean of the sentences' embeddings before they are normalised",
    'after': "mean of the sentences' embeddings after they are normalised",
}


class ZeroShot(NamedTuple):
    """All that a zero-shot classification is decided by, beside the model: what published ones leave open.

    score        'pair': a class against its sentences in `absent`, or against `normal` where it has none there, which
                 is CheXzero's softmax ("X", "no X"); 'classes': against the other classes of the file, and against
                 `normal` if it is given; 'cosine': alone
    ensemble     of several sentences the mean, normalised again: of their embeddings as they come ('before' their
                 normalisation, BioViL, arXiv 2204.09817), or of their directions ('after', CLIP, arXiv 2103.00020)
    templates    each sentence is put into each, in place of {}; default: the sentence itself
    temperature  of cosines; null, which is the default: the model's own. Moves AUROCs of 'classes' alone
    """

    present: dict[str, list[str]]  # in the order of the file, templates filled in
    absent: dict[str, list[str]]  # with 'pair' of every class of `present`
    normal: list[str]
    score: str
    ensemble: str
    temperature: float | None
    digest: str  # of the file, 16 hex digits


class Pools(NamedTuple):
    """Of each finding the sentences from which one is drawn."""

    found: list[tuple[str, ...]]
    clear: list[tuple[str, ...]]


def read(given: str | Mapping[str, Any], where: str) -> Prompts:
    """The prompts of a JSON file, or as they stand in the config, all three keys filled in. UserError names `where`.

    What the file says of zero-shot classification is left out: it changes no training.
    """
    if isinstance(given, str):
        where = f'{where}={given}'
        given = _parsed(_content(given, where), where)
    if not isinstance(given, Mapping):
        raise UserError(f'{where}: a dict with {", ".join(KEYS)}, not {given!r}')
    for key in given:
        if key not in (*KEYS, ZERO_SHOT):
            raise UserError(f'{where}: unknown key {key!r}{suggest(key, (*KEYS, ZERO_SHOT))}')
    given_pools = {f'{key}.{name}': pool for key in KEYS[:2] for name, pool in _classes(given.get(key, {}), where, key)}
    given_pools |= {'normal': given['normal']} if given.get('normal') else {}
    if not given_pools:
        raise UserError(f'{where}: there is no prompt in it')
    for name, pool in given_pools.items():
        if not isinstance(pool, (list, tuple)) or not pool or not all(isinstance(s, str) and s.strip() for s in pool):
            raise UserError(f'{where}: {name} must be a list of sentences, not {pool!r}')
    return dict(present={}, absent={}, normal=[]) | {key: pool for key, pool in given.items() if key in KEYS}


def zero_shot(path: str, where: str) -> ZeroShot:
    """The prompts of a file and how they become scores; UserError names `where`, the file and the key."""
    where = f'{where} {path}'
    raw = _content(path, where)
    given = _parsed(raw, where)
    prompts = read(given, where)
    if not isinstance(given.get(ZERO_SHOT), Mapping):
        raise UserError(
            f'{where}: {ZERO_SHOT} must say how prompts become scores, for example '
            f'{{"score": "pair", "ensemble": "after"}}, not {given.get(ZERO_SHOT)!r}'
        )
    if not prompts['present']:
        raise UserError(f'{where}: present: there is no class in it')
    return call(_zero_shot, given[ZERO_SHOT], f'{where}: {ZERO_SHOT}', prompts=prompts, raw=raw, file=where)


def _zero_shot(
    score: str, ensemble: str, templates: Sequence[str] = ('{}',), temperature: float | None = None, *,
    prompts: Prompts, raw: bytes, file: str,
) -> ZeroShot:  # fmt: skip
    for key, value, known in (('score', score, SCORES), ('ensemble', ensemble, ENSEMBLES)):
        if value not in known:
            raise UserError(f'{file}: {ZERO_SHOT}.{key}: {value!r} is none of {", ".join(known)}')
    if not isinstance(templates, list | tuple) or not templates or not all(_is_template(one) for one in templates):
        raise UserError(f'{file}: {ZERO_SHOT}.templates: a list of texts with one {{}} each, not {templates!r}')
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if temperature is not None and not (number and 0 < temperature < float('inf')):
        raise UserError(f'{file}: {ZERO_SHOT}.temperature: a number above 0, or null, not {temperature!r}')

    def filled(pool: Sequence[str]) -> list[str]:
        return [template.replace('{}', sentence) for template in templates for sentence in pool]

    present, absent, normal = prompts['present'], prompts['absent'], prompts['normal']
    if score == 'pair':
        absent = dict.fromkeys(present, normal) | absent
        if bare := [name for name in present if not absent[name]]:
            raise UserError(
                f'{file}: absent: there is no sentence for {bare[0]!r}, against which the score "pair" holds it; give '
                'one, or `normal` for all, or take another score'
            )
    if score == 'classes' and len(present) + bool(normal) < 2:
        raise UserError(f'{file}: present: the score "classes" holds classes against one another, and there is one')
    return ZeroShot(
        present={name: filled(pool) for name, pool in present.items()},
        absent={name: filled(pool) for name, pool in absent.items()},
        normal=filled(normal),
        score=score,
        ensemble=ensemble,
        temperature=temperature,
        digest=hashlib.sha256(raw).hexdigest()[:16],
    )


def _is_template(one: Any) -> bool:
    return isinstance(one, str) and one.count('{}') == 1


def check_classes(pools: Mapping[str, Iterable[str]], labels: Iterable[str], where: str) -> None:
    """UserError where a class of `present` or `absent` is no label of the data."""
    labels = list(labels)
    for key in KEYS[:2]:
        for name in pools[key]:
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


def _content(path: str, where: str) -> bytes:
    try:
        return recipes.find_prompts(path).read_bytes()
    except OSError as error:
        raise UserError(f'{where}: cannot be read: {error.strerror}') from None


def _parsed(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode('utf-8'))
    except ValueError as error:
        raise UserError(f'{where}: is no JSON: {error}') from None


def _classes(pools: Any, where: str, key: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(pools, Mapping):
        raise UserError(f'{where}: {key} must be a dict of classes, not {pools!r}')
    return pools.items()
