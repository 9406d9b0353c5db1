"""Opens the files of a published folder, or one file: recognises what they hold, and compares files with each other."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.weights import arrays, published
from medjax.weights.arrays import Arrays, listed
from medjax.weights.families import LAYOUTS
from medjax.weights.names import Flat
from medjax.weights.public import PublishedWeights
from medjax.weights.published import Facts
from medjax.weights.recognise import Found, recognise, renamed


def read_files(path: Path, files: Sequence[Path]) -> PublishedWeights:
    """The weights in the files of a folder `path`, or in the file `path` itself.

    UserError: a file cannot be read, or the folder holds two models.
    """
    folder = path if path.is_dir() else path.parent
    facts = published.facts(folder, files[0]) if path.is_dir() or _alone(path) else Facts()
    found: dict[str, Found] = {}
    notes: list[str] = []
    scale = None
    owners: dict[str, Path] = {}
    heads: dict[str, Arrays] = {}
    left: list[str] = []
    for file in [*files, *(_beside(folder, files) if path.is_dir() else ())]:
        own = file in files
        state = None
        try:
            state, told = _open_file(file)
            if not own and all(re.fullmatch(r'heads/[^/]+/.+', name) for name in state):
                heads |= _own_heads(state)
                continue
            modules, more, over = recognise(state, str(file))
        except UserError as error:
            if own or (state is None and file.suffix == '.safetensors'):
                raise
            notes.append(f'left out: {error}')
            continue
        left += over if own else []
        new = {module: one for module, one in modules.items() if module not in found}
        if not own and any(module.startswith('towers/') for module in new):
            raise UserError(f'{folder} holds two models, {files[0].name} and {file.name}; name the file that you mean')
        for module in set(modules) - set(new):
            _same_module(folder, module, owners[module], found[module], file, modules[module])
            notes.append(f'{file} holds the same {module} as {owners[module].name}')
        found |= new
        owners |= dict.fromkeys(new, file)
        notes += [*told, *more] if own or new else []
        scales = [name for name in state if re.fullmatch(r'(?:.*\.)?logit_scale', name)]
        scale = float(state[scales[0]].reshape(-1)[0]) if scales and scale is None else scale
    if 'towers/image' in found and not {'mean', 'std'} & set(facts.image) and not facts.own and path.is_dir():
        notes.append(f'{path}: nothing says mean and deviation of images; features are made with those of its family')
    notes += _unknown_kind(path, facts, found)
    found = {_own_name(module, facts.own): one for module, one in found.items()}
    weights = PublishedWeights(path, (*notes, *facts.notes), found, facts, scale, heads, tuple(left))
    return dataclasses.replace(weights, notes=(*weights.notes, *_guesses(weights)))


def _unknown_kind(path: Path, facts: Facts, found: Mapping[str, Found]) -> list[str]:
    """A sentence where config.json names a model that no family has, and its arrays have the names of one."""
    if not facts.kind or any(facts.kind in layout.types for layout in LAYOUTS):
        return []
    titles = ', '.join(one.layout.title for module, one in found.items() if module.startswith('towers/'))
    return [
        f'{path}: config.json says model_type={facts.kind!r}, which medjax does not know; by its names it is read as '
        f'{titles}, so compare a feature with the original'
    ]


def _guesses(weights: PublishedWeights) -> list[str]:
    """A sentence for each tower whose number of attention heads nothing says."""
    notes = []
    for module, one in weights.found.items():
        try:
            seen = one.layout.sizes(one.layout.table, one.arrays) if module.startswith('towers/') else {}
        except UserError as error:
            raise UserError(f'{module} of {weights.path}: by its names {one.layout.title}, but {error}') from None
        known = seen.get('heads') or weights.said(module).get('heads') or weights.own(module)
        if 'width' in seen and not known:
            notes.append(
                f'{weights.path}: nothing says how many attention heads {module} has; that of the recipe is taken, or '
                f'width / 64 = {seen["width"] // 64}'
            )
    return notes


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
    kinds = {'towers/image': ('vit', 'resnet', 'convnext'), 'towers/text': ('text',)}.get(module, ())
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
    if file.name.endswith('.index.json'):
        lacking = [name for name in published.named(file) if name not in state]
        if lacking:
            raise UserError(f'{file} names {listed(lacking)}, which its files do not hold: they are of another model')
    return renamed(state), notes


def _beside(folder: Path, files: Sequence[Path]) -> Iterator[Path]:
    """The other files of weights in a folder: heads, such as RAD-DINO's, or the same towers in another format.

    Files that an index names stand for nothing by themselves: the index stands for all of them.
    """
    indexes = [folder / name for name in published.STANDARD if name.endswith('.index.json')]
    indexes = [index for index in indexes if index.is_file()]
    parts = {file for index in indexes for file in published.named(index).values()}
    loose = [folder / name for name in published.loose_files(folder) if name not in parts]
    yield from (file for file in (*indexes, *loose) if file not in files)


def _same_module(folder: Path, module: str, first: Path, one: Found, second: Path, other: Found) -> None:
    """UserError if two files of a folder hold different towers. Names are equal or not; types may differ.

    Arrays of equal names are compared one by one, so that a large model is not in memory twice.
    """
    values: tuple[Mapping[str, np.ndarray], ...] = (one.arrays, other.arrays)
    read = [{n for line in found.layout.table for n in line.all_names(found.arrays)} for found in (one, other)]
    names = [{name for name in found.arrays if name in known} for found, known in zip((one, other), read, strict=True)]
    if one.layout is not other.layout:
        values = tuple(_flat(found, file, module) for found, file in ((one, first), (other, second)))
        names = [set(flat) for flat in values]
    types = [{stored.dtype for stored in found.arrays.stored.values()} for found in (one, other)]
    tolerance = {} if types[0] == types[1] else dict(rtol=2**-7, atol=1e-6)  # one of them has half precision
    for name in sorted(names[0] | names[1]):
        if name.endswith('mask_token'):
            continue
        if not all(name in one for one in values) or not _equal(*(one[name] for one in values), **tolerance):
            raise UserError(f'{folder} holds two models, {first.name} and {second.name}; name the file that you mean')


def _flat(found: Found, file: Path, module: str) -> Flat:
    return PublishedWeights(file, (), {module: found}, Facts()).flat(module, 1)


def _equal(a: np.ndarray, b: np.ndarray, **tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    return np.allclose(a, b, equal_nan=True, **tolerance) if tolerance else np.array_equal(a, b, equal_nan=True)
