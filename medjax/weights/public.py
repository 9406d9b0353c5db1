"""Weights of other systems: a published folder or file, as towers and heads of ours."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from medjax.weights.recognise import Found, recognise, renamed


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
        return None if section is None else dict(section)

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
                check_like(
                    tree[kind][name], tree_of(build.tower(section, channels, module)), f'{module} of {self.path}'
                )
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
        )

    def _tokenizer(self, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The entry `tokenizer` of meta.json, where the folder has one."""
        file = self.facts.tokenizer
        if file is None or 'text' not in sections['towers']:
            return {}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]  # as medjax.data.text.tokenizer.fingerprint
        length = self.sizes('towers/text')['context']
        return dict(tokenizer=dict(file=file.name, pad=self.facts.pad, length=length, fingerprint=digest))

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


# Opening.


def read_files(path: Path, files: Sequence[Path]) -> PublishedWeights:
    """The weights in the files of a folder `path`, or in the file `path` itself."""
    folder = path if path.is_dir() else path.parent
    facts = published.facts(folder, files[0]) if path.is_dir() or _alone(path) else Facts()
    opened = [(file, *_open_file(file)) for file in files]
    found: dict[str, Found] = {}
    notes: list[str] = []
    scale = None
    beside = _heads_beside(folder, files) if path.is_dir() else []
    owners: dict[str, Path] = {}
    heads: dict[str, Arrays] = {}
    left: list[str] = []
    for file, state, told in [*opened, *beside]:
        if file not in files and all(re.fullmatch(r'heads/[^/]+/.+', name) for name in state):
            heads |= _own_heads(state)
            continue
        try:
            modules, more, over = recognise(state, str(file))
        except UserError as error:
            if file in files:
                raise
            notes.append(f'left out: {error}')
            continue
        left += over if file in files else []
        for module, one in modules.items():
            if file not in files and module.startswith('towers/') and module not in found:
                raise UserError(
                    f'{folder} holds two models, {files[0].name} and {file.name}; name the file that you mean'
                )
            if module in found:
                _same_module(folder, module, owners[module], found[module], file, one)
                notes.append(f'{file} holds the same {module} as {owners[module].name}, in other names')
                continue
            found[module], owners[module] = one, file
        notes += [*told, *more]
        scales = [name for name in state if re.fullmatch(r'(?:.*\.)?logit_scale', name)]
        scale = float(state[scales[0]].reshape(-1)[0]) if scales and scale is None else scale
    if 'towers/image' in found and not {'mean', 'std'} & set(facts.image) and not facts.own and path.is_dir():
        notes.append(f'{path}: nothing says mean and deviation of images; features are made with those of its family')
    found = {_own_name(module, facts.own): one for module, one in found.items()}
    weights = PublishedWeights(path, (*notes, *facts.notes), found, facts, scale, heads, tuple(left))
    return dataclasses.replace(weights, notes=(*weights.notes, *_guesses(weights), *_other_formats(path, files)))


def _guesses(weights: PublishedWeights) -> list[str]:
    """A sentence for each tower whose number of attention heads nothing says."""
    notes = []
    for module, one in weights.found.items():
        seen = one.layout.sizes(one.layout.table, one.arrays) if module.startswith('towers/') else {}
        known = seen.get('heads') or weights.said(module).get('heads') or weights.own(module)
        if 'width' in seen and not known:
            notes.append(
                f'{weights.path}: nothing says how many attention heads {module} has; that of the recipe is taken, or '
                f'width / 64 = {seen["width"] // 64}'
            )
    return notes


def _other_formats(path: Path, files: Sequence[Path]) -> list[str]:
    """A sentence about files of weights beside those that are read, in a format that is not compared with them."""
    if not path.is_dir():
        return []
    read = {file.name for file in files}
    others = [name for name in published.loose_files(path) if name not in read and not name.endswith('.safetensors')]
    return [f'{path}: {", ".join(others)} beside {", ".join(sorted(read))} is not read'] if others else []


def _own_heads(state: Arrays) -> dict[str, Arrays]:
    """The heads of a file in the names of medjax, heads/NAME/…, by module."""
    found: dict[str, dict[str, Any]] = {}
    for name, stored in state.stored.items():
        kind, head, path = name.split('/', 2)
        found.setdefault(f'{kind}/{head}', {})[path] = stored
    return {module: Arrays(stored) for module, stored in found.items()}


def _own_name(module: str, own: Mapping[str, Any]) -> str:
    """The name that a module has in the export from which medjax wrote the folder."""
    pair = next(iter(own.get('pairs') or ()), None)
    if module in ('heads/image', 'heads/text') and pair:
        return f'heads/{pair[module.split("/")[1]]["head"] or module.split("/")[1]}'
    kinds = {'towers/image': ('vit', 'resnet'), 'towers/text': ('text',)}.get(module, ())
    fitting = [name for name, section in (own.get('towers') or {}).items() if section.get('tower') in kinds]
    return f'towers/{fitting[0]}' if len(fitting) == 1 else module


def _alone(path: Path) -> bool:
    """Whether the files beside a weight file speak of it: it has a standard name, or it is the only one."""
    if path.name in (*published.STANDARD, *published.OPEN_CLIP):
        return True
    others = [p for p in path.parent.iterdir() if p.suffix in ('.safetensors', *published.PICKLES)]
    return others == [path]


def _open_file(file: Path) -> tuple[Arrays, list[str]]:
    """The arrays of a file, or of all files that an index names, under the names of the layouts; notes."""
    files = published.shards(file) if file.name.endswith('.index.json') else [file]
    notes: list[str] = []
    if all(f.suffix == '.safetensors' for f in files):
        state = arrays.of_safetensors(files)
    elif all(f.suffix in published.PICKLES for f in files):
        from medjax.weights import pickled

        state, notes = pickled.read(files)
    else:
        known = ', '.join(('.safetensors', *published.PICKLES))
        raise UserError(f'{file}: weights are a folder, or a file of the kinds {known}')
    if not state:
        raise UserError(f'{file} holds no arrays')
    return renamed(state), notes


def _heads_beside(folder: Path, files: Sequence[Path]) -> list[tuple[Path, Arrays, list[str]]]:
    """Files with heads alone, as RAD-DINO's dino_head.safetensors, and with the same tower in other names."""
    there = sorted(folder.glob('*.safetensors'))
    if any(f.name.endswith('.index.json') for f in files):
        return []
    return [(file, *_open_file(file)) for file in there if file not in files]


def _same_module(folder: Path, module: str, first: Path, one: Found, second: Path, other: Found) -> None:
    """UserError if two files of a folder hold different towers."""

    def read(found: Found, file: Path) -> Flat:
        return PublishedWeights(file, (), {module: found}, Facts()).flat(module, 1)

    a, b = read(one, first), read(other, second)
    paths = {path for path in {*a, *b} if path != 'mask_token'}
    if not all(path in a and path in b and np.array_equal(a[path], b[path]) for path in paths):
        raise UserError(f'{folder} holds two models, {first.name} and {second.name}; name the file that you mean')
