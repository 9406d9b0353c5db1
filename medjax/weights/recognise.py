"""Recognition: which towers and heads the arrays of a file hold, by their names.

Every layout of `medjax.weights.families` is tried, under every prefix that some name has before the first sign of the
layout: `module.`, `model.`, `teacher.backbone.`, `visual.trunk.`, …
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import NamedTuple

from medjax.errors import UserError
from medjax.weights.arrays import Arrays, listed
from medjax.weights.families import LAYOUTS, not_read
from medjax.weights.layout import Layout
from medjax.weights.names import Line

# Arrays that no tower or head of ours has, wherever they lie: buffers, the scale and bias of pairs, and classifiers.
BUFFERS = r'(?:.*\.)?(?:position_ids|num_batches_tracked|attn_mask|logit_scale|logit_bias|bias_mask|periods)'
CLASSIFIERS = (
    r'(?:(?:module|model)\.)*(?:classifier|cls_classifier|distillation_classifier|cls|lm_head|fc|head|decoder\.\d+)\..*'
)
# Names of other versions -> those of the layouts.
RENAMED = (
    (r'LayerNorm\.gamma$', 'LayerNorm.weight'),
    (r'LayerNorm\.beta$', 'LayerNorm.bias'),
    (r'parametrizations\.weight\.original0$', 'weight_g'),
    (r'parametrizations\.weight\.original1$', 'weight_v'),
    (r'(^|\.)decoder\.decoder_layers\.', r'\1decoder.decoder_encoder.layer.'),
    # a model that was trained with FSDP has its blocks in chunks: blocks.<chunk>.<block>.…
    (r'(^|\.)blocks\.\d+\.(\d+)\.', r'\1blocks.\2.'),
    # modules of transformers 5 in memory
    (r'(^|\.)model\.layer\.(\d+)\.', r'\1layer.\2.'),
    (r'(^|(?<!encoder)\.)layers\.(\d+)\.mlp\.fc1\.', r'\1encoder.layer.\2.intermediate.dense.'),
    (r'(^|(?<!encoder)\.)layers\.(\d+)\.mlp\.fc2\.', r'\1encoder.layer.\2.output.dense.'),
    (r'(^|(?<!encoder)\.)layers\.(\d+)\.(attention|layernorm_\w+)\.', r'\1encoder.layer.\2.\3.'),
    (r'(encoder\.layer\.\d+\.mlp)\.down_proj\.', r'\1.weights_out.'),
    (r'(encoder\.layer\.\d+)\.attention\.q_proj\.', r'\1.attention.attention.query.'),
    (r'(encoder\.layer\.\d+)\.attention\.k_proj\.', r'\1.attention.attention.key.'),
    (r'(encoder\.layer\.\d+)\.attention\.v_proj\.', r'\1.attention.attention.value.'),
    (r'(encoder\.layer\.\d+)\.attention\.o_proj\.', r'\1.attention.output.dense.'),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """A module that was found in a file: its layout, the prefix of its names, and its arrays without the prefix."""

    layout: Layout
    prefix: str
    arrays: Arrays


def renamed(state: Arrays) -> Arrays:
    """The arrays under the names of the layouts, where other versions have other names.

    Arrays that would get one name keep their own: they are of a model in which these names mean something else.
    """
    there = Arrays({name: stored for name, stored in state.stored.items() if 0 not in stored.shape})
    current = {name: _current(name) for name in there}
    times = collections.Counter(current.values())
    return there.renamed({name: new for name, new in current.items() if times[new] == 1})


def _current(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


class Recognised(NamedTuple):
    """What was found in a file: modules by name, sentences for the user, and arrays without a place."""

    found: dict[str, Found]
    notes: list[str]
    left: list[str]


def recognise(state: Arrays, where: str) -> Recognised:
    """The modules in the arrays of a file. UserError: nothing is known, or there are two modules of one name."""
    if (other := not_read.which(state)) is not None:
        raise UserError(f'{where} holds {other.title}, which medjax does not read; {other.instead}')
    candidates = _candidates(state)
    if not candidates:
        raise UserError(_unknown(state, where))
    found: dict[str, Found] = {}
    notes: list[str] = []
    for one in candidates:
        other = found.get(one.layout.module)
        if other is None:
            found[one.layout.module] = one
        elif (chosen := _of_teacher(other, one)) is not None:
            found[one.layout.module] = chosen
            notes.append(f'{where} has a student and a teacher; the teacher ({chosen.prefix}) is taken')
        else:
            raise UserError(
                f'{where} holds two modules {one.layout.module}: {other.layout.title} under {other.prefix!r} and '
                f'{one.layout.title} under {one.prefix!r}; save the one that you mean in a file of its own'
            )
    owned = {one.prefix + name for one in candidates for name in one.layout.owned(one.arrays)}
    spare = rf'{BUFFERS}|{CLASSIFIERS}'
    left = [name for name in state if name not in owned and not re.fullmatch(spare, name)]
    read = {one.prefix + name for one in candidates for line in one.layout.table for name in line.all_names(one.arrays)}
    unread = [name for name in state if name not in {*read, *left} and not re.fullmatch(BUFFERS, name)]
    if unread:
        notes.append(f'{where}: the tower has no place for {listed(unread)}, which is not read')
    prefixes = dict.fromkeys(one.prefix for one in found.values() if one.prefix)
    usual = ('vision_model.', 'text_model.', 'visual.', 'visual.trunk.', 'text.', 'text.transformer.')
    told = [prefix for prefix in prefixes if prefix not in usual]
    if told:
        notes.append(f'{where}: the names have the prefix {", ".join(told)}')
    return Recognised(found, list(dict.fromkeys(notes)), left)


def _candidates(state: Arrays) -> list[Found]:
    """Every layout that fits arrays of the file, with the prefix under which it does."""
    candidates = []
    for layout in LAYOUTS:
        sign = layout.signs[0]
        for name in state:
            if name != sign and not name.endswith(f'.{sign}'):
                continue
            prefix = name[: len(name) - len(sign)]
            if not re.fullmatch(layout.prefix, prefix):
                continue
            under = Arrays({n[len(prefix) :]: stored for n, stored in state.stored.items() if n.startswith(prefix)})
            if layout.matches(under):
                owned = layout.owned(under)
                candidates.append(Found(layout, prefix, Arrays({n: s for n, s in under.stored.items() if n in owned})))
    return candidates


def _of_teacher(one: Found, other: Found) -> Found | None:
    """The one of two equal modules that belongs to a teacher, if they are a student's and a teacher's."""
    words = [set(found.prefix.split('.')) for found in (one, other)]
    for teacher in ('teacher', 'ema', 'model_ema', 'teacher_model', 'target_encoder'):
        if (teacher in words[0]) != (teacher in words[1]):
            return one if teacher in words[0] else other
    return None


def _unknown(state: Arrays, where: str) -> str:
    """The sentence for a file of no known family: its first names, and the family that is nearest."""
    first = ', '.join(list(state)[:3])
    plain = {re.sub(r'\.\d+\.', '.{}.', name) for name in state}
    best, score, lacks = None, (0.0, 0.0), []
    for layout in LAYOUTS:
        names = {name for line in layout.table if isinstance(line, Line) for name in line.names}
        hits = {n for name in plain for n in names if name == n or name.endswith(f'.{n}')}
        covered = sum(any(name == n or name.endswith(f'.{n}') for n in hits) for name in plain)
        lacking = [sign for sign in layout.signs if not any(n == sign or n.endswith(f'.{sign}') for n in state)]
        if (mine := (covered / len(plain) - len(lacking) / 100, len(hits) / len(names))) > score:
            best, score, lacks = layout, mine, lacking
    nearest = 'no known family is near'
    if best is not None and score[0] > 0.2:
        extra = [name for name in best.absent if any(n == name or n.endswith(f'.{name}') for n in state)]
        why = f'; this file lacks {listed(lacks)}' if lacks else ''
        why += f'; this file has {listed(extra)}, which such files do not have' if extra else ''
        nearest = f'the nearest is {best.title}{why}'
    return f'{where} holds {len(state)} arrays of no known family; the first are {first}; {nearest}'
