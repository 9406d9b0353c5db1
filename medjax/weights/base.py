"""What all weights can do: name their modules, describe them, and give their parameters. And exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medjax.errors import UserError, suggest
from medjax.models import build
from medjax.types import Tower
from medjax.weights import arrays, export
from medjax.weights.arrays import Arrays
from medjax.weights.fit import Params, check_like, fit
from medjax.weights.meta import lacking, problem
from medjax.weights.names import Flat


@dataclasses.dataclass(frozen=True)
class Weights:
    """The modules of an export or a file. A module is a tower or a head: 'towers/image', 'heads/dino', …

    notes  sentences for the user: prefixes that were found, files that were left out
    """

    path: Path
    notes: tuple[str, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        raise NotImplementedError

    def section(self, module: str, heads: int | None = None) -> dict[str, Any]:
        """The section of a recipe that describes a module, such as dict(tower='vit', variant='B/14').

        `heads` is the number of attention heads if the folder does not say it. None: width / 64.
        """
        raise NotImplementedError

    def flat(self, module: str, heads: int | None = None) -> Flat:
        """All parameters of a module by path, as they are stored."""
        raise NotImplementedError

    def check(self, module: str, tower: Tower) -> tuple[str, ...]:
        """UserError if `tower` would compute something else from these weights; notes on what differs a little."""
        return ()

    def as_export(self) -> tuple[Params, dict[str, Any]]:
        raise NotImplementedError

    def exported(self) -> ExportWeights:
        """The same weights as an export, for the writers of other layouts. They cannot be read again from here."""
        raise NotImplementedError

    def has(self, module: str) -> None:
        """UserError if there is no such module."""
        if module not in self.modules:
            raise UserError(f'{self.path} has no {module!r}{suggest(module, self.modules)}')

    def read(self, module: str, wanted: Params, tower: Tower | None = None) -> Params:
        """The parameters of a module, in the shapes of the tree `wanted`.

        Position embeddings are resized as `tower` resizes them; image channels and the context are adapted. Every other
        array must fit. UserError: the arrays that are missing, left over or of another shape, all of them.
        """
        self.has(module)
        where = f'{module} of {self.path}'
        try:
            if tower is not None:
                self.check(module, tower)
            flat = self.flat(module, heads_of(wanted))
        except UserError as error:
            raise UserError(f'{where}: {error}') from None
        params = fit(flat, wanted, tower)
        check_like(params, wanted, where)
        return params


def heads_of(wanted: Params) -> int | None:
    """The number of attention heads of a tree of shapes; None if it has no attention."""
    return heads_in(export.flatten(wanted, shapes=True))


def heads_in(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    for path, shape in shapes.items():
        if path.endswith('attn/qkv/kernel'):
            return shape[-2]
    return None


@dataclasses.dataclass(frozen=True)
class ExportWeights(Weights):
    """An export."""

    meta: Mapping[str, Any]
    stored: Arrays

    @classmethod
    def of(cls, path: Path) -> ExportWeights:
        meta = export.read_meta(path)
        if why := problem(meta):
            raise UserError(f'{path / "meta.json"}: {why}')
        return cls(path, (), meta, arrays.of_safetensors([path / 'weights.safetensors']))

    def exported(self) -> ExportWeights:
        """UserError: meta.json lacks a key, or describes other towers than the arrays are."""
        meta, file = self.meta, self.path / 'meta.json'
        if lacks := lacking(meta):
            raise UserError(f'{file} lacks {", ".join(lacks)}: the export is not whole; copy it again')
        for name, tower in build.towers(meta['towers'], meta['image']['channels']).items():
            at = f'towers/{name}/'
            stored = {p[len(at) :]: jax.ShapeDtypeStruct(self.stored.shape(p), np.float32) for p in self.stored
                      if p.startswith(at)}  # fmt: skip
            check_like(export.unflatten(stored), tree_of(tower), f'towers/{name} of {self.path}, by its meta.json,')
        return self

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys('/'.join(name.split('/')[:2]) for name in self.stored))

    def section(self, module: str, heads: int | None = None) -> dict[str, Any]:
        self.has(module)
        kind, name = module.split('/')
        return dict(self.meta.get(kind, {}).get(name, {}))

    def flat(self, module: str, heads: int | None = None) -> Flat:
        at = f'{module}/'
        return {name[len(at) :]: self.stored[name] for name in self.stored if name.startswith(at)}

    def check(self, module: str, tower: Tower) -> tuple[str, ...]:
        section = self.section(module)
        if not section or 'reads' in section:
            return ()
        theirs = build.tower(section, self.meta['image']['channels'], module) if 'image' in self.meta else tower
        return differences(settings_of(theirs), tower)

    def as_export(self) -> tuple[Params, dict[str, Any]]:
        return export.unflatten({name: self.stored[name] for name in self.stored}), dict(self.meta)


# Towers.


def settings_of(tower: Tower) -> dict[str, Any]:
    """What a tower computes beyond the shapes of its arrays."""
    module = getattr(tower, 'module', None)
    family = getattr(module, 'family', None)
    settings = dict(heads=getattr(module, 'heads', None), activation=getattr(family, 'activation', None))
    settings |= dict(eps=getattr(family, 'eps', None), ffn=getattr(module, 'ffn', None))
    if settings['ffn'] == 'swiglu':
        settings['activation'] = None
    return {name: value for name, value in settings.items() if value is not None}


def differences(theirs: Mapping[str, Any], tower: Tower) -> tuple[str, ...]:
    """UserError if heads, activation or FFN differ; a note if eps does."""
    ours = settings_of(tower)
    differ = {name: (value, ours[name]) for name, value in theirs.items() if name in ours and value != ours[name]}
    hard = [f'{name}={a!r}, and this configuration has {b!r}' for name, (a, b) in differ.items() if name != 'eps']
    if hard:
        fixes = ', '.join(f'{name}={a!r}' for name, (a, _) in differ.items() if name != 'eps')
        raise UserError(f'the weights are of a tower with {"; ".join(hard)}; write {fixes} in the section of the tower')
    return tuple(
        f'the norms of the weights have eps={a:g}, those of this configuration {b:g}; eps={a:g} gives the same features'
        for name, (a, b) in differ.items()
    )


def tree_of(tower: Tower) -> Params:
    """The shapes of a tower's parameters as nested dicts."""
    return jax.eval_shape(tower.init, jax.random.key(0))


def shapes_of(tower: Tower) -> dict[str, tuple[int, ...]]:
    """The shapes of a tower's parameters by path."""
    return export.flatten(tree_of(tower), shapes=True)
