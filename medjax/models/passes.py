"""Passes: how towers read views and each other. Objectives and probes run towers through this module.

A pass is one tower applied to its inputs by one network. A tower over towers has one input for each entry of its
`reads`. An input comes from another pass of the same network, or it is a view itself.

    towers = dict(image=…, decoder=dict(tower='decoder', reads=['image']))
    bind('student', 'decoder', parse('crop~random'), …)   the decoder reads the pass of 'image' on 'crop~random'
    run(passes, apply, views, masks)                      every pass once, each after the passes that it reads
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from medjax.errors import UserError, suggest
from medjax.types import Input, Masks, Read, Tower, Views

Outputs = Mapping[str, Any]


class InputName(NamedTuple):
    """One input as a feature names it: 'report', 'crop~random', or 'prior=earlier'."""

    view: str
    mask: str | None = None
    entry: str | None = None  # the entry of `reads` that it is for; None: the one that sees views of this kind

    @property
    def masked_view(self) -> str:
        """'crop~random', or 'crop' without a mask."""
        return f'{self.view}~{self.mask}' if self.mask else self.view


class Source(NamedTuple):
    """The origin of one input of a pass."""

    view: str  # of an input through another tower: the first view that this tower sees
    mask: str | None
    through: Pass | None  # None: the view itself

    @property
    def masked_view(self) -> str:
        return f'{self.view}~{self.mask}' if self.mask else self.view


class Pass(NamedTuple):
    """One run of a tower. Features with equal passes share it."""

    network: str  # 'student', or the name of a teacher
    tower: str
    sources: tuple[Source | None, ...]  # one for each input of the tower; None: an optional input that is absent

    @property
    def views(self) -> tuple[Source, ...]:
        """The views that the pass sees, in the order of `reads`, those of towers that it reads included."""
        given = [source for source in self.sources if source is not None]
        return tuple(view for s in given for view in ((s,) if s.through is None else s.through.views))

    @property
    def before(self) -> tuple[Pass, ...]:
        """The passes that this one reads."""
        return tuple(s.through for s in self.sources if s is not None and s.through is not None)

    @property
    def name(self) -> str:
        """'student/decoder/crop~random', for messages, metrics and random keys. Equal passes have equal names."""
        return f'{self.network}/{self.tower}/{self._inputs}'

    @property
    def _inputs(self) -> str:
        """'crop+report~words'. An absent input leaves its place empty."""
        places = ('' if s is None else s.masked_view if s.through is None else s.through._inputs for s in self.sources)
        return '+'.join(places)


class Slot(NamedTuple):
    """A place for a view among the inputs of a tower, and of the towers that it reads."""

    path: tuple[str, ...]  # names of the entries of `reads`, from outside to inside; () for a tower of views
    sees: str
    optional: bool


def slots(tower: str, towers: Mapping[str, Tower]) -> list[Slot]:
    """The places for views among the inputs of a tower, in the order of `reads`."""
    if not towers[tower].reads:
        return [Slot((), towers[tower].sees, False)]
    places: list[Slot] = []
    for read in towers[tower].reads:
        inner = [Slot((), towers[tower].sees, False)] if read.tower is None else slots(read.tower, towers)
        places += [Slot((read.name, *s.path), s.sees, s.optional or read.optional) for s in inner]
    return places


def labels(places: Sequence[Slot]) -> list[str]:
    """A name for each slot: that of its entry, and with those of the entries inside where an entry has several."""
    first = [slot.path[0] if slot.path else '' for slot in places]
    return [name if first.count(name) == 1 else '.'.join(slot.path) for name, slot in zip(first, places, strict=True)]


def bind(
    network: str, tower: str, names: Sequence[InputName], towers: Mapping[str, Tower], kinds: Mapping[str, str]
) -> Pass:
    """The pass of a tower on the inputs that a feature names; `kinds` says of each view what towers see in it.

    An input goes to the entry that it names, 'prior=earlier', and without a name to the one entry that sees its kind of
    view. An input that is the only one of its kind without a name goes to the required entry, if one is optional.
    UserError, without the name of the feature, where inputs are missing, are too many or could be swapped.
    """
    places = slots(tower, towers)
    shown = labels(places)
    unnamed = [kinds[name.view] for name in names if name.entry is None]
    taken: dict[int, InputName] = {}
    for name in sorted(names, key=lambda n: n.entry is None):  # those with an entry first
        alone = unnamed.count(kinds[name.view]) == 1
        taken[_place(name, places, shown, taken, kinds, tower, alone)] = name
    given = {places[i].path: name for i, name in taken.items()}
    bound = _bind(network, tower, (), given, towers)
    if bound is None:
        raise UserError(f'the tower {tower!r} gets no input; it reads {_words(places, shown)}')
    return bound


def _place(
    name: InputName,
    places: Sequence[Slot],
    shown: Sequence[str],
    taken: Mapping[int, InputName],
    kinds: Mapping[str, str],
    tower: str,
    alone: bool,
) -> int:
    """The number of the slot for one input; `alone`: no other input of its kind is without an entry."""
    kind, free = kinds[name.view], [i for i in range(len(places)) if i not in taken]
    if name.entry is not None:
        if name.entry not in shown:
            raise UserError(f'the tower {tower!r} has no input {name.entry!r}{suggest(name.entry, shown)}')
        place = shown.index(name.entry)
        if place not in free:
            raise UserError(f'the input {name.entry!r} of the tower {tower!r} is given twice')
        if places[place].sees != kind:
            raise UserError(
                f'the input {name.entry!r} of the tower {tower!r} sees {places[place].sees}s, and the view '
                f'{name.view!r} has none'
            )
        return place
    fitting = [i for i in free if places[i].sees == kind]
    required = [i for i in fitting if not places[i].optional]
    if required and alone:
        fitting = required
    if not places[0].path and places[0].sees != kind:
        raise UserError(f'the tower {tower!r} sees {places[0].sees}s, and the view {name.view!r} has none')
    if not fitting:
        raise UserError(
            f'the tower {tower!r} has no place for the view {name.view!r} of {kind}s; it reads {_words(places, shown)}'
        )
    if len(fitting) > 1:
        forms = ' or '.join(f'{shown[i]}={name.masked_view}' for i in fitting)
        raise UserError(f'the tower {tower!r} reads several views of {kind}s; say which one this is: {forms}')
    return fitting[0]


def _bind(
    network: str,
    tower: str,
    path: tuple[str, ...],
    given: Mapping[tuple[str, ...], InputName],
    towers: Mapping[str, Tower],
) -> Pass | None:
    """The pass of a tower whose slots begin with `path`; None if none of them has a view."""
    reads = towers[tower].reads
    if not reads:
        name = given.get(path)
        return None if name is None else Pass(network, tower, (Source(name.view, name.mask, None),))
    sources = [_source(network, read, (*path, read.name), given, towers) for read in reads]
    if not any(sources):
        return None
    for read, source in zip(reads, sources, strict=True):
        if source is None and not read.optional:
            inner = [] if read.tower is None else slots(read.tower, towers)
            sees = next((slot.sees for slot in inner if not slot.optional), towers[read.tower or tower].sees)
            raise UserError(
                f'the input {read.name!r} of the tower {tower!r} is missing: name a view of {sees}s, after a +'
            )
    return Pass(network, tower, tuple(sources))


def _source(
    network: str,
    read: Read,
    path: tuple[str, ...],
    given: Mapping[tuple[str, ...], InputName],
    towers: Mapping[str, Tower],
) -> Source | None:
    if read.tower is None:
        name = given.get(path)
        return None if name is None else Source(name.view, name.mask, None)
    inner = _bind(network, read.tower, path, given, towers)
    return None if inner is None else Source(inner.views[0].view, inner.views[0].mask, inner)


def _words(places: Sequence[Slot], shown: Sequence[str]) -> str:
    """'image (images) and text (texts)'."""
    return ' and '.join(
        (f'{name} ({slot.sees}s' if name else f'one view ({slot.sees}s') + (', optional)' if slot.optional else ')')
        for slot, name in zip(places, shown, strict=True)
    )


ENTRY = re.compile(r'(?:(\w+)=)?(\w+)?(\?)?')


def parse_reads(entries: Any, where: str) -> tuple[Read, ...]:
    """The entries of `reads` in a config: 'image', 'prior=image', 'text?' (optional), or None and '?' for the view."""
    if not isinstance(entries, (list, tuple)) or not entries:
        raise UserError(f"{where}: a list of towers, such as ['image', 'text'], not {entries!r}")
    reads = []
    for entry in entries:
        match = ENTRY.fullmatch('' if entry is None else entry) if entry is None or isinstance(entry, str) else None
        if not match or (entry == ''):
            raise UserError(
                f"{where}: {entry!r} is no entry; write the name of a tower, 'prior=image' to give the input a name of "
                "its own, 'text?' for an input that may be absent, or None for the view itself"
            )
        name, tower, optional = match.groups()
        reads.append(Read(name or tower or 'view', tower, optional is not None))
    names = [read.name for read in reads]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{where}: two inputs are called {name!r}; give them names of their own, as in 'current={name}'"
            )
    return tuple(reads)


# Running passes.


def ordered(passes: Iterable[Pass]) -> tuple[Pass, ...]:
    """The passes and all that they read, each once and after the passes that it reads."""
    result: dict[Pass, None] = {}
    for one in passes:
        for before in (*ordered(one.before), one):
            result.setdefault(before)
    return tuple(result)


def run(
    passes: Iterable[Pass], apply: Callable[[Pass, tuple[Input | None, ...]], Outputs], views: Views, masks: Masks
) -> dict[Pass, Outputs]:
    """The outputs of every pass and of all that it reads. `apply(pass, inputs)` runs the tower of one pass."""
    outputs: dict[Pass, Outputs] = {}
    for one in ordered(passes):
        outputs[one] = apply(one, tuple(None if s is None else _input(s, views, masks, outputs) for s in one.sources))
    return outputs


def _input(source: Source, views: Views, masks: Masks, outputs: Mapping[Pass, Outputs]) -> Input:
    mask = masks[source.masked_view] if source.mask else None
    return Input(views[source.view], mask, None if source.through is None else outputs[source.through])


def image_pass(tower: str, towers: Mapping[str, Tower], view: str = 'image') -> Pass:
    """The pass with which a tower encodes images alone; optional inputs of other kinds are absent.

    UserError where the tower needs more than one image.
    """
    places = slots(tower, towers)
    images = [i for i, slot in enumerate(places) if slot.sees == 'image']
    needed = [i for i, slot in enumerate(places) if not slot.optional] or images[:1]
    if len(needed) != 1 or needed[0] not in images:
        raise UserError(
            f'the tower {tower!r} cannot encode images alone: it reads {_words(places, labels(places))}; name '
            'a tower that reads one image'
        )
    bound = _bind('student', tower, (), {places[needed[0]].path: InputName(view)}, towers)
    assert bound is not None
    return bound


def check_exported(exported: Sequence[str], towers: Mapping[str, Tower]) -> None:
    """UserError where a tower is exported without a tower that it reads."""
    for name in exported:
        for read in towers[name].reads:
            if read.tower is not None and read.tower not in exported:
                raise UserError(
                    f'export.towers: {name!r} reads the tower {read.tower!r}; export that too: '
                    f'towers={[*exported, read.tower]!r}'
                )


def readers(one: Pass) -> list[tuple[Source, str]]:
    """Every view that a pass sees, with the name of the tower that reads it itself."""
    inner = [pair for before in one.before for pair in readers(before)]
    return inner + [(source, one.tower) for source in one.sources if source is not None and source.through is None]


def patch_towers(one: Pass, towers: Mapping[str, Tower]) -> dict[str, Tower]:
    """The tower whose patches divide each image view of a pass, by the name of the view.

    A view that a tower over towers reads itself has the patches of the first image tower that it reads.
    """
    images = [(s.view, towers[name]) for s, name in readers(one) if towers[name].sees == 'image']
    dividing = {view: tower for view, tower in images if not tower.reads}
    first = next(iter(dividing.values()), None)
    return {view: first for view, _ in images if first is not None} | dividing
