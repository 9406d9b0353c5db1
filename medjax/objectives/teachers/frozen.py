"""A teacher that does not change: public weights to distil from, or the student's own start.

Knowledge distillation, arXiv 1503.02531. The teacher may have another architecture than the student:

    towers=dict(image=dict(tower='vit', variant='S/14'), large=dict(tower='vit', variant='B/14')),
    teachers=dict(public=dict(rule='frozen', of=['towers/large'],
                              init_from=dict(path='rad-dino.safetensors', take=['towers/large=towers/image']))),
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medjax.errors import UserError
from medjax.objectives.teachers import Teacher, TeacherContext
from medjax.plugins import text_list


def build(of: Sequence[str], context: TeacherContext, init_from: Mapping[str, Any] | None = None) -> Teacher:
    """The rule `frozen` of a config.

    of         the towers and heads that the teacher holds. Those that the student runs as well begin as a copy of the
               student's start.
    init_from  dict(path=…, take=[…]): weights for this teacher alone, see `medjax.training.state.start_from`
    """
    if init_from is not None and not (isinstance(init_from, Mapping) and isinstance(init_from.get('path'), str)):
        raise UserError(f"{context.where}.init_from={init_from!r}: a dict with the path of weights, dict(path='x')")
    if init_from is not None and init_from.get('take') is not None:
        text_list(init_from['take'], f'{context.where}.init_from.take', 'towers/large=towers/image')
    return Teacher(of=context.check(of), source=None, init_from=init_from)
