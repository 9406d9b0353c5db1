"""Prompts: a JSON file of sentences that state a finding, state its absence, or state that nothing was found.

    {"present": {"effusion": ["There is a pleural effusion.", "Pleural effusion."]},
     "absent": {"effusion": ["No pleural effusion."]},
     "normal": ["No acute findings."]}

Each key may be left out. With prompts, a record that has labels but no report becomes a pair of an image and a text
(UniMed-CLIP, arXiv 2412.10372).

The same file serves zero-shot classification, if it says how the prompts become a score (see `ZeroShot`):

     "zero_shot": {"score": "pair", "ensemble": "after", "templates": ["{}"], "temperature": null}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medjax import recipes
from medjax.data.types import CONFLICTING, POSITIVE, UNCERTAIN
from medjax.errors import UserError, suggest
from medjax.plugins import call
from medjax.types import is_number

KEYS = ('present', 'absent', 'normal')
ZERO_SHOT = 'zero_shot'
Prompts = Mapping[str, Any]  # present, absent: class -> sentences; normal: sentences

SCORES = {
    'pair': 'log-odds of the class against its absence: (cosine - cosine of the absence) / temperature',
    'classes': 'log-odds of the class against all others, by the softmax of cosine / temperature',
    'cosine': 'cosine with the class',
}
ENSEMBLES = {
    'before': "mean of the sentences' embeddings before they are normalised",
    'after': "mean of the sentences' embeddings after they are normalised",
}


class ZeroShot(NamedTuple):
    """The settings of a zero-shot classification. Published results leave some of them open.

    score        'pair': a class against its sentences in `absent`, or against `normal` where it has none in `absent`:
                 the softmax of CheXzero ("X", "no X"); 'classes': a class against the other classes of the file, and
                 against `normal` if it is given; 'cosine': a class by itself
    ensemble     how several sentences become one direction, which is normalised again: the mean of their embeddings
                 'before' these are normalised (BioViL, arXiv 2204.09817), or 'after' (CLIP, arXiv 2103.00020)
    templates    texts with one {}; every sentence is put into every template; default: the sentence alone
    temperature  of the cosines; null, the default: the temperature of the model. It changes AUROCs of 'classes' only
    """

    present: dict[str, list[str]]  # in the order of the file, templates filled in
    absent: dict[str, list[str]]  # with the score 'pair' it has every class of `present`
    normal: list[str]
    score: str
    ensemble: str
    temperature: float | None
    digest: str  # of the file, 16 hex digits
    name: str = ''  # of the file, without its folder and ending; '' in results of before this field


class SentencePools(NamedTuple):
    """The sentences that fit one record: a pool for each finding, to draw one sentence from."""

    present: list[tuple[str, ...]]
    absent: list[tuple[str, ...]]


def read(source: str | Mapping[str, Any], where: str) -> Prompts:
    """The prompts of a JSON file, or of a config, with all three keys. A UserError names `where`.

    The key 'zero_shot' is left out: it has no effect on training.
    """
    if isinstance(source, str):
        where = f'{where}={source}'
        source = _parse(_file_content(source, where), where)
    if not isinstance(source, Mapping):
        raise UserError(f'{where}: a dict with {", ".join(KEYS)}, not {source!r}')
    for key in source:
        if key not in (*KEYS, ZERO_SHOT):
            raise UserError(f'{where}: unknown key {key!r}{suggest(key, (*KEYS, ZERO_SHOT))}')
    pools = {f'{key}.{name}': pool for key in KEYS[:2] for name, pool in _classes(source.get(key, {}), where, key)}
    pools |= {'normal': source['normal']} if source.get('normal') else {}
    if not pools:
        raise UserError(f'{where}: there is no prompt in it')
    for name, pool in pools.items():
        if not isinstance(pool, (list, tuple)) or not pool or not all(isinstance(s, str) and s.strip() for s in pool):
            raise UserError(f'{where}: {name} must be a list of sentences, not {pool!r}')
    return dict(present={}, absent={}, normal=[]) | {key: pool for key, pool in source.items() if key in KEYS}


def zero_shot(path: str, where: str) -> ZeroShot:
    """The prompts of a file with their settings for zero-shot. A UserError names `where`, the file and the key."""
    where = f'{where} {path}'
    raw = _file_content(path, where)
    content = _parse(raw, where)
    prompts = read(content, where)
    if not isinstance(content.get(ZERO_SHOT), Mapping):
        raise UserError(
            f'{where}: {ZERO_SHOT} must say how prompts become scores, for example '
            f'{{"score": "pair", "ensemble": "after"}}, not {content.get(ZERO_SHOT)!r}'
        )
    if not prompts['present']:
        raise UserError(f'{where}: present: there is no class in it')
    about = dict(prompts=prompts, raw=raw, file=where, name=Path(path).stem)
    return call(_zero_shot, content[ZERO_SHOT], f'{where}: {ZERO_SHOT}', **about)


def _zero_shot(
    score: str, ensemble: str, templates: Sequence[str] = ('{}',), temperature: float | None = None, *,
    prompts: Prompts, raw: bytes, file: str, name: str,
) -> ZeroShot:  # fmt: skip
    for key, value, allowed in (('score', score, SCORES), ('ensemble', ensemble, ENSEMBLES)):
        if value not in allowed:
            raise UserError(f'{file}: {ZERO_SHOT}.{key}: {value!r} is none of {", ".join(allowed)}')
    if not isinstance(templates, list | tuple) or not templates or not all(map(_is_template, templates)):
        raise UserError(f'{file}: {ZERO_SHOT}.templates: a list of texts with one {{}} each, not {templates!r}')
    if temperature is not None and not (is_number(temperature) and 0 < temperature < float('inf')):
        raise UserError(f'{file}: {ZERO_SHOT}.temperature: a number above 0, or null, not {temperature!r}')

    def filled(pool: Sequence[str]) -> list[str]:
        return [template.replace('{}', sentence) for template in templates for sentence in pool]

    present, absent, normal = prompts['present'], prompts['absent'], prompts['normal']
    if score == 'pair':
        absent = dict.fromkeys(present, normal) | absent
        if bare := [name for name in present if not absent[name]]:
            raise UserError(
                f'{file}: absent: there is no sentence for {bare[0]!r}, and the score "pair" compares with it; give '
                'one, or `normal` for all classes, or take another score'
            )
    if score == 'classes' and len(present) + bool(normal) < 2:
        raise UserError(f'{file}: present: the score "classes" compares classes with each other, and there is one')
    return ZeroShot(
        present={name: filled(pool) for name, pool in present.items()},
        absent={name: filled(pool) for name, pool in absent.items()},
        normal=filled(normal),
        score=score,
        ensemble=ensemble,
        temperature=temperature,
        digest=hashlib.sha256(raw).hexdigest()[:16],
        name=name,
    )


def _is_template(text: Any) -> bool:
    return isinstance(text, str) and text.count('{}') == 1


def check_classes(prompts: Mapping[str, Iterable[str]], labels: Iterable[str], where: str) -> None:
    """Raises UserError if a class of `present` or `absent` is no label of the data."""
    labels = list(labels)
    for key in KEYS[:2]:
        for name in prompts[key]:
            if name not in labels:
                raise UserError(f'{where}: {key}: the data have no label {name!r}{suggest(name, labels)}')


def sentence_pools(prompts: Prompts, labels: Mapping[str, int], with_absent: bool) -> SentencePools:
    """The sentences that fit a record with these labels. Nothing is stated that the labels leave open.

    `present`: a pool for each finding with label 1; or the pool 'normal', if some labels are 0 and none is 1, uncertain
    (-1) or conflicting (-3). `absent`: if wanted, a pool for each finding with label 0.
    """
    values = set(labels.values())
    present = [tuple(pool) for name, pool in prompts['present'].items() if labels.get(name) == 1]
    if prompts['normal'] and 0 in values and not {POSITIVE, UNCERTAIN, CONFLICTING} & values:
        present.append(tuple(prompts['normal']))
    candidates = prompts['absent'].items() if with_absent else ()
    return SentencePools(present, [tuple(pool) for name, pool in candidates if labels.get(name) == 0])


def draw_sentences(pools: SentencePools, absent: int, rng: np.random.Generator) -> list[str]:
    """One sentence of each `present` pool and of at most `absent` of the `absent` pools, in random order."""
    chosen = pools.present + [pools.absent[k] for k in rng.permutation(len(pools.absent))[:absent]]
    return [chosen[k][rng.integers(len(chosen[k]))] for k in rng.permutation(len(chosen))]


def _file_content(path: str, where: str) -> bytes:
    try:
        return recipes.find_prompts(path).read_bytes()
    except OSError as error:
        raise UserError(f'{where}: cannot be read: {error.strerror}') from None


def _parse(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw.decode('utf-8'))
    except ValueError as error:
        raise UserError(f'{where}: is no JSON: {error}') from None


def _classes(classes: Any, where: str, key: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(classes, Mapping):
        raise UserError(f'{where}: {key} must be a dict of classes, not {classes!r}')
    return classes.items()
