"""The config.json of a run: the form of its entries, as medjax wrote them.

    damaged(json.loads(text))      # {'life': "life.ends=None: must be a list"}; {} where nothing is damaged

The file can be valid JSON and hold something else than a run wrote, after a slip in an editor or a merge. Every reader
of it takes entries of the right form alone. An entry may be missing, because runs may be older than it. What a value
means is checked by the builders of the config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from medjax.types import is_number, is_whole

Form = Callable[[Any, str], Iterator[str]]  # a value and its dotted key -> sentences on what is wrong


def damaged(config: Mapping[str, Any]) -> dict[str, str]:
    """The damaged entries of a config.json, each with the first sentence on what is wrong in it."""
    found = {name: next(form(config[name], name), None) for name, form in ENTRIES.items() if name in config}
    return {name: sentence for name, sentence in found.items() if sentence is not None}


def one_that(fits: Callable[[Any], bool], what: str) -> Form:
    def form(value: Any, key: str) -> Iterator[str]:
        if not fits(value):
            yield f'{key}={value!r}: must be {what}'

    return form


def number(least: float = -math.inf) -> Form:
    what = 'a number' if least == -math.inf else f'a number of at least {least:g}'
    return one_that(lambda value: is_number(value) and least <= value < math.inf, what)


def whole(least: int) -> Form:
    return one_that(lambda value: is_whole(value) and value >= least, f'a whole number of at least {least}')


def optional(form: Form) -> Form:
    return lambda value, key: form(value, key) if value is not None else iter(())


def either(one: Form, other: Form) -> Form:
    """A value of one of two forms; the sentence is that of the second."""
    return lambda value, key: iter(()) if next(one(value, key), None) is None else other(value, key)


def section(needs: tuple[str, ...] = (), /, **entries: Form) -> Form:
    """A dict whose named entries have these forms; `needs` must be there. Other entries have any form."""

    def form(value: Any, key: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f'{key}={value!r}: must be a dict'
            return
        yield from (f'{key}: lacks {name!r}' for name in needs if name not in value)
        for name, inner in entries.items():
            if name in value:
                yield from inner(value[name], f'{key}.{name}')

    return form


def sections(inner: Form) -> Form:
    """A dict of values of one form."""

    def form(value: Any, key: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f'{key}={value!r}: must be a dict'
            return
        for name, item in value.items():
            yield from inner(item, f'{key}.{name}')

    return form


def listed(inner: Form, least: int = 0, most: float = math.inf) -> Form:
    """A list of values of one form."""

    def form(value: Any, key: str) -> Iterator[str]:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            size = '' if not least else f' of {least}' if least == most else f' of at least {least}'
            yield f'{key}={value!r}: must be a list{size}'
            return
        for i, item in enumerate(value):
            yield from inner(item, f'{key}.{i}')

    return form


TEXT = one_that(lambda value: isinstance(value, str) and bool(value), 'a text')
NUMBERS = either(number(), listed(number(), 1))
RULE = section(('rule',), rule=TEXT, start=number(), end=number(), steps=number(0))
SCHEDULE = either(NUMBERS, RULE)
START = section(('path',), path=TEXT, take=optional(listed(TEXT)))
PARENT = section(('run', 'step', 'fingerprint'), run=TEXT, step=whole(0), fingerprint=TEXT, keep=optional(listed(TEXT)))
ENTRIES: dict[str, Form] = dict(
    total_steps=whole(1),
    batch_size=whole(1),
    rows_per_group=whole(1),
    micro_batches=whole(1),
    seed=whole(0),
    dtype=TEXT,
    image=section(channels=optional(whole(1)), mean=optional(NUMBERS), std=optional(NUMBERS)),
    data=sections(section(rows=optional(whole(1)), canvas=optional(whole(1)), sources=sections(number(0)))),
    data_paths=sections(TEXT),
    tokenizer=section(path=optional(TEXT), fingerprint=TEXT, tokens=section()),
    views=sections(section(view=TEXT, part=TEXT)),  # further keys are those of plug-ins
    masks=sections(section(mask=TEXT)),
    towers=sections(section(tower=TEXT)),
    heads=sections(section(head=TEXT)),
    teachers=sections(section(rule=TEXT, of=listed(TEXT), init_from=optional(START))),
    terms=listed(section(term=TEXT, name=optional(TEXT))),
    optim=section(lr=number(0), schedule=SCHEDULE, weight_decay=SCHEDULE),
    mesh=section(data=whole(-1), fsdp=whole(-1), tensor=whole(-1)),
    labels=optional(listed(TEXT)),
    columns=sections(optional(either(TEXT, listed(TEXT)))),
    export=section(
        network=TEXT, towers=listed(TEXT), heads=listed(TEXT), encoder=optional(TEXT), every=whole(1),
        keep=optional(whole(1)), fit=TEXT,
    ),
    checkpoint=section(every=whole(1), keep=whole(1)),
    log=section(every=whole(1)),
    init_from=optional(either(START, listed(START))),
    stages=optional(listed(section(('at', 'change'), at=whole(1), change=section(batch_size=whole(1))))),
    life=section(
        ('parent', 'ends'),
        parent=optional(PARENT),
        ends=listed(listed(whole(0), 2, 2), 1),
    ),
)  # fmt: skip
