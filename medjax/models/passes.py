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

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError, suggest
from medjax.types import Input, Masks, Read, Tower, Tree, View, Views

Outputs = Mapping[str, Any]


def _masked(view: str, mask: str | None) -> str:
    """'crop~random', or 'crop' without a mask."""
    return f'{view}~{mask}' if mask else view


class InputName(NamedTuple):
    """One input as a feature names it: 'report', 'crop~random', or 'prior=earlier'."""

    view: str
    mask: str | None = None
    entry: str | None = None  # the entry of `reads` that it is for; None: the one that sees views of this kind

    @property
    def masked_view(self) -> str:
        return _masked(self.view, self.mask)


class BoundInput(NamedTuple):
    """One input of a pass: a view, or another pass that reads it."""

    view: str  # of an input through another tower: the first view that this tower sees
    mask: str | None
    through: Pass | None  # None: the view itself

    @property
    def masked_view(self) -> str:
        return _masked(self.view, self.mask)


class Pass(NamedTuple):
    """One run of a tower. Features with equal passes share it."""

    network: str  # 'student', or the name of a teacher
    tower: str
    inputs: tuple[BoundInput | None, ...]  # one for each input of the tower; None: an optional input that is absent

    @property
    def views(self) -> tuple[BoundInput, ...]:
        """The views that the pass sees, in the order of `reads`, those of towers that it reads included."""
        given = [x for x in self.inputs if x is not None]
        return tuple(view for x in given for view in ((x,) if x.through is None else x.through.views))

    @property
    def before(self) -> tuple[Pass, ...]:
        """The passes that this one reads."""
        return tuple(x.through for x in self.inputs if x is not None and x.through is not None)

    @property
    def name(self) -> str:
        """'student/decoder/crop~random', for messages, metrics and random keys. Equal passes have equal names."""
        return f'{self.network}/{self.tower}/{self._inputs}'

    @property
    def _inputs(self) -> str:
        """'crop+report~words'. An absent input leaves its place empty."""
        names = ('' if x is None else x.masked_view if x.through is None else x.through._inputs for x in self.inputs)
        return '+'.join(names)


class Place(NamedTuple):
    """A place for a view among the inputs of a tower, and of the towers that it reads."""

    path: tuple[str, ...]  # names of the entries of `reads`, from outside to inside; () for a tower of views
    sees: str
    optional: bool


def places_of(tower: str, towers: Mapping[str, Tower]) -> list[Place]:
    """The places for views among the inputs of a tower, in the order of `reads`."""
    if not towers[tower].reads:
        return [Place((), towers[tower].sees, False)]
    places: list[Place] = []
    for read in towers[tower].reads:
        inner = [Place((), towers[tower].sees, False)] if read.tower is None else places_of(read.tower, towers)
        places += [Place((read.name, *s.path), s.sees, s.optional or read.optional) for s in inner]
    return places


def names_of(places: Sequence[Place]) -> list[str]:
    """A name for each place: that of its entry, and with those of the entries inside where an entry has several."""
    first = [place.path[0] if place.path else '' for place in places]
    return [name if first.count(name) == 1 else '.'.join(place.path) for name, place in zip(first, places, strict=True)]


def bind(
    network: str, tower: str, names: Sequence[InputName], towers: Mapping[str, Tower], kinds: Mapping[str, str]
) -> Pass:
    """The pass of a tower on the inputs that a feature names; `kinds` says of each view what towers see in it.

    An input goes to the entry that it names, 'prior=earlier', and without a name to the one entry that sees its kind of
    view. An input that is the only one of its kind without a name goes to the required entry, if one is optional.
    UserError, without the name of the feature, where inputs are missing, are too many or could be swapped.
    """
    places = places_of(tower, towers)
    shown = names_of(places)
    unnamed = [kinds[name.view] for name in names if name.entry is None]
    taken: dict[int, InputName] = {}
    for name in sorted(names, key=lambda n: n.entry is None):  # those with an entry first
        alone = unnamed.count(kinds[name.view]) == 1
        taken[_place(name, places, shown, taken, kinds, tower, alone)] = name
    given = {places[i].path: name for i, name in taken.items()}
    bound = _bind(network, tower, (), given, towers)
    if bound is None:
        raise UserError(f'the tower {tower!r} gets no input; it reads {_described(places, shown)}')
    return bound


def _place(
    name: InputName,
    places: Sequence[Place],
    shown: Sequence[str],
    taken: Mapping[int, InputName],
    kinds: Mapping[str, str],
    tower: str,
    alone: bool,
) -> int:
    """The number of the place for one input; `alone`: no other input of its kind is without an entry."""
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
            f'the tower {tower!r} has no place for the view {name.view!r} of {kind}s; it reads '
            f'{_described(places, shown)}'
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
    """The pass of a tower whose places begin with `path`; None if none of them has a view."""
    reads = towers[tower].reads
    if not reads:
        name = given.get(path)
        return None if name is None else Pass(network, tower, (BoundInput(name.view, name.mask, None),))
    inputs = [_bind_entry(network, read, (*path, read.name), given, towers) for read in reads]
    if not any(inputs):
        return None
    for read, bound in zip(reads, inputs, strict=True):
        if bound is None and not read.optional:
            inner = [] if read.tower is None else places_of(read.tower, towers)
            sees = next((place.sees for place in inner if not place.optional), towers[read.tower or tower].sees)
            raise UserError(
                f'the input {read.name!r} of the tower {tower!r} is missing: name a view of {sees}s, after a +'
            )
    return Pass(network, tower, tuple(inputs))


def _bind_entry(
    network: str,
    read: Read,
    path: tuple[str, ...],
    given: Mapping[tuple[str, ...], InputName],
    towers: Mapping[str, Tower],
) -> BoundInput | None:
    if read.tower is None:
        name = given.get(path)
        return None if name is None else BoundInput(name.view, name.mask, None)
    inner = _bind(network, read.tower, path, given, towers)
    return None if inner is None else BoundInput(inner.views[0].view, inner.views[0].mask, inner)


def _described(places: Sequence[Place], shown: Sequence[str]) -> str:
    """'image (images) and text (texts)'."""
    return ' and '.join(
        (f'{name} ({place.sees}s' if name else f'one view ({place.sees}s') + (', optional)' if place.optional else ')')
        for place, name in zip(places, shown, strict=True)
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
        outputs[one] = apply(one, tuple(None if x is None else _input(x, views, masks, outputs) for x in one.inputs))
    return outputs


def _input(bound: BoundInput, views: Views, masks: Masks, outputs: Mapping[Pass, Outputs]) -> Input:
    mask = masks[bound.masked_view] if bound.mask else None
    return Input(views[bound.view], mask, None if bound.through is None else outputs[bound.through])


def wanted(passes: Iterable[Pass], towers: Mapping[str, Tower]) -> dict[Pass, frozenset[str]]:
    """The costly outputs that each pass must give because a tower that reads it needs them; see `Tower.wants`."""
    result: dict[Pass, frozenset[str]] = {}
    for one in ordered(passes):
        result.setdefault(one, frozenset())
        for before in one.before:
            result[before] |= set(towers[one.tower].wants)
    return result


def encode_images(
    tower: str, towers: Mapping[str, Tower], params: Mapping[str, Tree], images: Array, want: Iterable[str] = ()
) -> Outputs:
    """The outputs of a tower for whole images, float32 [B,H,W,C], as probes run it; B rows of one crop.

    `params` are those of towers by name.

    UserError where the tower needs more than one image.
    """
    last = image_pass(tower, towers)
    needed = wanted([last], towers)
    rows, present = jnp.arange(len(images), dtype=jnp.uint32), jnp.ones((len(images), 1), bool)
    view = View(images[:, None, None], rows, present, None, {})

    def apply(one: Pass, inputs: tuple[Input | None, ...]) -> Outputs:
        asked = needed[one] | (set(want) if one == last else set())
        return towers[one.tower].apply(params[one.tower], *inputs, want=asked)

    return run([last], apply, {last.views[0].view: view}, {})[last]


def image_pass(tower: str, towers: Mapping[str, Tower], view: str = 'image') -> Pass:
    """The pass with which a tower encodes images alone; optional inputs of other kinds are absent.

    UserError where the tower needs more than one image.
    """
    places = places_of(tower, towers)
    images = [i for i, place in enumerate(places) if place.sees == 'image']
    needed = [i for i, place in enumerate(places) if not place.optional] or images[:1]
    if len(needed) != 1 or needed[0] not in images:
        raise UserError(
            f'the tower {tower!r} cannot encode images alone: it reads {_described(places, names_of(places))}; name '
            'a tower that reads one image'
        )
    bound = _bind('student', tower, (), {places[needed[0]].path: InputName(view)}, towers)
    assert bound is not None
    return bound


def check_exported(exported: Sequence[str], towers: Mapping[str, Tower]) -> None:
    """UserError where a tower is exported without a tower that it reads."""
    for name in exported:
        if name not in towers:
            raise UserError(f'export.towers: there is no tower {name!r}{suggest(name, towers)}')
        for read in towers[name].reads:
            if read.tower is not None and read.tower not in exported:
                raise UserError(
                    f'export.towers: {name!r} reads the tower {read.tower!r}; export that too: '
                    f'towers={[*exported, read.tower]!r}'
                )


def readers(one: Pass) -> list[tuple[BoundInput, str]]:
    """Every view that a pass sees, with the name of the tower that reads it itself."""
    inner = [pair for before in one.before for pair in readers(before)]
    return inner + [(x, one.tower) for x in one.inputs if x is not None and x.through is None]


def patch_towers(one: Pass, towers: Mapping[str, Tower]) -> dict[str, Tower]:
    """The tower whose patches divide each image view of a pass, by the name of the view.

    A view that a tower over towers reads itself has the patches of the first image tower that it reads.
    """
    images = [(s.view, towers[name]) for s, name in readers(one) if towers[name].sees == 'image']
    dividing = {view: tower for view, tower in images if not tower.reads}
    first = next(iter(dividing.values()), None)
    return {view: first for view, _ in images if first is not None} | dividing
