"""Weights of other systems: a published folder or file, as towers and heads of ours."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.models import build
from medjax.types import Tower, Tree
from medjax.weights import arrays, export, published
from medjax.weights.arrays import Arrays, listed
from medjax.weights.base import ExportWeights, Weights, differences, heads_in, settings_of, shapes_of, tree_of
from medjax.weights.families import LAYOUTS
from medjax.weights.fit import Params, check_like
from medjax.weights.names import Flat, Line, Positions
from medjax.weights.published import Facts
from medjax.weights.recognise import Found


@dataclasses.dataclass(frozen=True)
class PublishedWeights(Weights):
    """The weights of a published folder or file."""

    found: Mapping[str, Found]  # by module
    facts: Facts
    scale: float | None = None  # logit_scale of a pair
    heads: Mapping[str, Arrays] = dataclasses.field(default_factory=dict)  # in our own names, by module
    left: tuple[str, ...] = ()  # arrays without a place: to read a module is an error

    @property
    def modules(self) -> tuple[str, ...]:
        return (*self.found, *self.heads)

    def own(self, module: str) -> dict[str, Any] | None:
        """The section of a module in a folder that medjax wrote."""
        kind, name = module.split('/')
        section = (self.facts.own.get(kind) or {}).get(name)
        if section is None:
            return None
        if '.' in (code := str(section.get(kind.removesuffix('s')))):
            raise UserError(f'{self.facts.source} names the code {code!r}; of a public folder no code is imported')
        return dict(section)

    def said(self, module: str) -> Mapping[str, Any]:
        """What config.json says of a module."""
        return self.facts.sizes.get(self.found[module].layout.config, {})

    def sizes(self, module: str, heads: int | None = None) -> dict[str, Any]:
        """The sizes of a module. UserError: config.json says something else than the arrays show."""
        one, said, own = self.found[module], self.said(module), self.own(module)
        kind, types = self.facts.kind, one.layout.types
        if own is None and types and kind not in types and any(kind in layout.types for layout in LAYOUTS):
            raise UserError(f'{self.facts.source} says model_type={kind!r}, and the weights are {one.layout.title}')
        if own and 'reads' not in own and heads is None and module.startswith('towers'):
            heads = heads_in(shapes_of(build.tower(own, 3, module)))
        seen = one.layout.sizes(one.layout.table, one.arrays)
        lies = [
            f'{name}={said[name]} where the weights have {seen[name]}'
            for name in said
            if name in seen and name != 'ffn' and said[name] != seen[name] and not _is_patch(name, said[name], seen)
        ]
        if 'ffn' in said and 'ffn' in seen and said['ffn'] != seen['ffn']:
            lies.append(f'an FFN of the kind {said["ffn"]!r} where the weights have {seen["ffn"]!r}')
        if grid := _wrong_grid(said, seen):
            lies.append(grid)
        if lies:
            raise UserError(f'{self.facts.source} says {"; ".join(lies)}: it does not belong to these weights')
        if 'width' in seen:
            width = seen['width']
            count = seen.get('heads') or said.get('heads') or heads or max(width // 64, 1)
            if width % count:
                says = f'{self.facts.source} says' if said.get('heads') else 'there would be'
                raise UserError(f'{says} {count} heads of attention, which do not divide the width {width}')
            known = seen.get('heads') or said.get('heads') or heads
            if one.layout.module.startswith('towers') and not known and width % 64:
                raise UserError(
                    f'nothing says how many heads of attention the width {width} has; put the config.json of the model '
                    'beside the weights, or write heads=… in the recipe'
                )
            seen['heads'] = count
        return seen

    def section(self, module: str, heads: int | None = None) -> dict[str, Any]:
        self.has(module)
        if (own := self.own(module)) is not None:
            return own
        one = self.found[module]
        try:
            return one.layout.describe(self.sizes(module, heads), self.said(module))
        except UserError as error:
            raise UserError(f'{module} of {self.path}: {error}') from None

    def flat(self, module: str, heads: int | None = None, once: bool = False) -> Flat:
        if module in self.heads:
            return {path: self.heads[module][path] for path in self.heads[module]}
        one = self.found[module]
        sizes = self.sizes(module, heads)
        wrong, missing = one.arrays.not_floats(), self._missing(module, sizes)
        problems = [f'missing: {listed(missing)}'] if missing else []
        problems += [f'no place for {listed(self.left)} in {one.layout.title}'] if self.left else []
        problems += [f'of another type: {listed(wrong)}'] if wrong else []
        damaged = {*missing, *(name.split(' ')[0] for name in wrong)}
        flat: Flat = {}
        grid = self._grid(module, sizes)
        for line in one.layout.table:
            names = line.all_names(one.arrays)
            if not line.there(one.arrays) or damaged & set(names):
                continue
            try:
                given = (grid,) if isinstance(line, Positions) else ()
                parameters = line.read(one.arrays, sizes.get('heads'), *given)
            except UserError as error:
                problems.append(str(error))
                continue
            if not all(np.isfinite(np.sum(array, dtype=np.float64)) for array in parameters.values()):
                problems.append(f'{listed(names)}: not all numbers are finite')
            flat |= parameters
            if once and not given:  # positions are small, and sizes are seen in them again
                one.arrays.forget(names)
        if problems:
            raise UserError('; '.join(problems))
        if 'mask_token' not in flat and one.layout.module == 'towers/image' and 'patch' in sizes:
            flat['mask_token'] = np.zeros(sizes['width'], np.float32)  # the public model has none
        return self._without_unit_layerscale(module, flat, sizes)

    def _without_unit_layerscale(self, module: str, flat: Flat, sizes: Mapping[str, Any]) -> Flat:
        """Parameters without a LayerScale of 1 that a writer added, because the class of the layout must have one."""
        if self.own(module) is None or 'blocks/gamma1' not in flat:
            return flat
        wanted = self._wanted(module, sizes)
        return {
            path: array
            for path, array in flat.items()
            if path in wanted or path not in ('blocks/gamma1', 'blocks/gamma2') or (array != 1).any()
        }

    def _grid(self, module: str, sizes: Mapping[str, Any]) -> tuple[int, int] | None:
        """The grid of patches of the stored positions, where config.json says an image size with such a grid."""
        size, patch = (self.own(module) or {}).get('native_size') or self.said(module).get('size'), sizes.get('patch')
        if size is None or not patch or 'positions' not in sizes:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        grid = height // patch, width // patch
        return grid if grid[0] * grid[1] == sizes['positions'] else None

    def _missing(self, module: str, sizes: Mapping[str, Any]) -> list[str]:
        """The names that the file lacks: of layers that other parameters have, and of parameters of the whole tower."""
        one, depth = self.found[module], sizes.get('depth', 0)
        lines = [line for line in one.layout.table if line.there(one.arrays)]
        names: list[str] = []
        for line in lines:
            names += line.all_names(one.arrays)
            if isinstance(line, Line) and line.path.startswith('blocks/'):
                names += [name.format(i) for i in range(line.layers(one.arrays), depth) for name in line.names]
        if one.layout.module.startswith('towers'):
            there = {path for line in lines for path in line.ours()} | {'mask_token'}
            for path in sorted(set(self._wanted(module, sizes)) - there):
                line = next((line for line in one.layout.table if path in line.ours()), None)
                if isinstance(line, Line) and '{}' in line.names[0]:
                    names += [name.format(line.first + i) for i in range(depth or 1) for name in line.names]
                elif line is not None:
                    names += line.all_names(one.arrays)
        return [name for name in dict.fromkeys(names) if name not in one.arrays]

    def _wanted(self, module: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The shapes of the described tower by path; nothing for a tower over towers."""
        section = self.own(module) or self.found[module].layout.describe(dict(sizes), self.said(module))
        if 'reads' in section:
            return {}
        return shapes_of(build.tower(section, sizes.get('channels', 1), module))

    def check(self, module: str, tower: Tower) -> tuple[str, ...]:
        if module not in self.found:
            return ()
        said, ours = self.said(module), settings_of(tower)
        return differences({name: said[name] for name in ours if name in said}, tower)

    def as_export(self, once: bool = False) -> tuple[Params, dict[str, Any]]:
        """With `once`, arrays are forgotten as soon as they are converted: a large model is in memory once."""
        tree: Tree = {'towers': {}, 'heads': {}}
        sections: dict[str, dict[str, Any]] = {'towers': {}, 'heads': {}}
        for module in self.modules:
            kind, name = module.split('/')
            sections[kind][name] = self.section(module)
            try:
                flat = self.flat(module, once=once)
            except UserError as error:
                raise UserError(f'{module} of {self.path}: {error}') from None
            section = sections[kind][name]
            fixed = ('pos_grid', 'pos_cls') if section.get('positions') == 'sincos' else ()
            tree[kind][name] = export.unflatten({path: array for path, array in flat.items() if path not in fixed})
            if kind == 'towers' and 'reads' not in section:
                channels = self.sizes(module).get('channels', 1) if module in self.found else 1
                if self.own(module) is not None:
                    channels = self.facts.own['image']['channels']
                where, here = f'{module} of {self.path}', 'its config.json'
                if self.own(module) is None:
                    where, here = f'{where}, by its names {self.found[module].layout.title},', 'such a tower'
                check_like(tree[kind][name], tree_of(build.tower(section, channels, module)), where, here)
        if self.facts.own:
            return tree, dict(self.facts.own) | dict(format=export.FORMAT) | sections
        return tree, self.meta(sections)

    def exported(self) -> ExportWeights:
        params, meta = self.as_export(once=True)
        folder = self.path if self.path.is_dir() else self.path.parent
        return ExportWeights(folder, self.notes, meta, arrays.of_dict(export.flatten(params)))

    def meta(self, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The keys of an export's meta.json."""
        image, size = self.preprocessing(sections['towers'].get('image'))
        titles = dict.fromkeys(one.layout.title for one in self.found.values())
        return dict(
            format=export.FORMAT,
            step=None,
            name=self.path.resolve().stem if self.path.is_file() else self.path.resolve().name,
            origin=', '.join(titles),
            network='public',
            encoder='image' if 'image' in sections['towers'] else None,
            **sections,
            pairs=self._pairs(sections),
            image=image,
            size=size,
            config_fingerprint=None,
            seen=None,
            **self._tokenizer(sections),
            **self._end(sections),
        )

    def _tokenizer(self, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The entry `tokenizer` of meta.json, where the folder has one."""
        file = self.facts.tokenizer
        if file is None or 'text' not in sections['towers']:
            return {}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]  # as medjax.data.text.tokenizer.fingerprint
        length = self.sizes('towers/text')['context']
        return dict(tokenizer=dict(file=file.name, pad=self.facts.pad, length=length, fingerprint=digest))

    def _end(self, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
        """The entry `end_token` of meta.json: where transformers takes the feature of a text of CLIP."""
        if 'text' not in sections['towers'] or 'end' not in self.said('towers/text'):
            return {}
        return dict(end_token=self.said('towers/text')['end'])

    def preprocessing(self, section: Mapping[str, Any] | None) -> tuple[dict[str, Any], int]:
        """The section `image` (channels, mean, std, fit, zoom) and the image size of the image tower."""
        if section is None:
            return dict(channels=1, mean=0.0, std=1.0, fit='crop'), 0
        said = dict(self.facts.image)
        mean, std = published.default_levels(section)
        channels = self.sizes('towers/image')['channels']
        native = section.get('native_size', 224)
        size = said.pop('size', None) or (native if isinstance(native, int) else max(native))
        if channels != len(mean):  # public numbers are for three colours
            mean, std = [float(np.mean(mean))], [float(np.mean(std))]
        image = dict(channels=channels, mean=mean, std=std, fit='crop') | said
        for name in ('mean', 'std'):
            levels = np.atleast_1d(np.asarray(image[name], float))
            if len(set(levels.tolist())) > 1 and len(levels) != channels:
                raise UserError(
                    f'{self.path}: {name} of images has {len(levels)} numbers, and the tower reads {channels} channels'
                )
            image[name] = float(levels[0]) if len(set(levels.tolist())) == 1 else levels.tolist()
        return image, int(size)

    def _pairs(self, sections: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The image and text towers that were trained together, as in meta.json."""
        if not {'image', 'text'} <= set(sections['towers']) or self.scale is None:
            return []
        text = sections['towers']['text']
        length = text.get('context') or self.sizes('towers/text')['context']
        heads = sections['heads']
        return [
            dict(
                term='public',
                temperature=float(np.exp(-self.scale)),
                image=dict(tower='image', head='image' if 'image' in heads else None),
                text=dict(tower='text', head='text' if 'text' in heads else None, length=length,
                          sections=['impression', 'findings']),
            )
        ]  # fmt: skip


def _is_patch(name: str, said: Any, seen: Mapping[str, Any]) -> bool:
    """Whether a patch that config.json gives as [16, 16] is the patch 16 of the weights."""
    return name == 'patch' and isinstance(said, (list, tuple)) and set(said) == {seen['patch']}


def _wrong_grid(said: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    """What is wrong if the image size that config.json says has another number of patches than the positions."""
    size, patch = said.get('size'), seen.get('patch')
    if size is None or not patch or 'positions' not in seen:
        return ''
    height, width = (size, size) if isinstance(size, int) else size
    patches = (height // patch) * (width // patch)
    if patches == seen['positions']:
        return ''
    return (
        f'images of {height} x {width}, so {patches} patches, where the weights have positions for {seen["positions"]}'
    )
