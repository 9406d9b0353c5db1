"""An encoder as a program by `jax.export`: it runs where jax is, without medjax.

    folder/image.stablehlo       (parameters, images) -> cls, patches, embedding
    folder/text.stablehlo        (parameters, ids, valid) -> cls, embedding
    folder/weights.safetensors   the parameters: what `safetensors.numpy.load_file` gives is their argument
    folder/signature.json        names, shapes, types and meanings of all arguments and results; preprocessing; versions
    folder/meta.json             with it the folder is also an export, of the towers and heads that the programs run

The parameters are an argument, because as constants those of a large tower would make a program of over 2 GB, which no
file of this kind can hold. The number of images or texts is free, and one program runs on CPUs, NVIDIA GPUs and TPUs.
So all operations take their plain form, without a kernel for one kind of device.

jax promises that a program runs with versions of jax up to 6 months newer than the one that wrote it, and up to 3 weeks
older (docs.jax.dev, "Exporting and serializing"). For longer times keep the export itself.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array
from safetensors.numpy import save_file

import medjax
from medjax.data.text import tokenizer as tokenizers
from medjax.errors import UserError
from medjax.models import build as models, passes
from medjax.models.kernels import plain
from medjax.probes.encode import image_tower, pair_of
from medjax.types import Input, Tower, View
from medjax.views.colour import normalise
from medjax.weights import export
from medjax.weights.base import ExportWeights
from medjax.weights.layouts_out import copy_tokenizer, tokenizer_name

PLATFORMS = ('cpu', 'cuda', 'tpu')
WEIGHTS, SIGNATURE = 'weights.safetensors', 'signature.json'
MEANINGS = dict(
    images='square images with values from 0 to 1, size and channels as under `preprocessing`; not yet normalised',
    ids='token ids, each text filled up with the padding token',
    valid='which tokens belong to the text: the first ones, without padding',
    cls='the feature of the image or text: the CLS token after the last norm, or what the tower has in its place',
    patches='the feature of each patch, rows and columns as in the image',
    embedding='the vector of length 1 in the space that images and texts share',
)

Flat = Mapping[str, Any]  # arrays, or their shapes, by name: 'towers/image/cls'
Values = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of parameters and of a batch, before it is exported."""

    name: str  # 'image' or 'text'
    modules: tuple[str, ...]  # whose parameters it reads: 'towers/image', 'heads/vi'
    inputs: Mapping[str, tuple[tuple[int, ...], Any]]  # the shape of one row, and the type, by name
    one: Callable[..., Values]  # (parameters as nested dicts, one row of each input) -> one row of each result


def write(weights: ExportWeights, folder: Path) -> list[str]:
    """Writes the folder; returns notes for the user."""
    programs = programs_of(weights.meta)
    names = [name for name in weights.stored if any(name.startswith(f'{m}/') for p in programs for m in p.modules)]
    shapes = {name: jax.ShapeDtypeStruct(weights.stored.shape(name), np.float32) for name in names}
    entries = {}
    for program in programs:
        exported = exported_program(program, shapes)
        (folder / f'{program.name}.stablehlo').write_bytes(exported.serialize())
        entries[program.name] = _entry(program, exported)
    about = signature(weights.meta, entries)
    used = {module for program in programs for module in program.modules}
    meta = of_modules(weights.meta, used)
    if 'text' in entries and (tokenizer := weights.meta.get('tokenizer')):
        copy_tokenizer(weights, folder)
        file = tokenizer_name(tokenizer['file'])
        tokens = tokenizers.load(folder / file, tokenizer['pad']).tokens._asdict()
        about['tokenizer'] = dict(file=file, tokens=tokens, fingerprint=tokenizer['fingerprint'])
        meta['tokenizer'] = dict(tokenizer, file=file)
    (folder / SIGNATURE).write_text(json.dumps(about, indent=1))
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1))
    save_file({name: np.ascontiguousarray(weights.stored[name]) for name in names}, folder / WEIGHTS)
    left = [module for module in weights.modules if module not in used]
    return [f'{", ".join(left)}: not in the program, which encodes images and texts'] if left else []


def of_modules(meta: Mapping[str, Any], modules: Collection[str]) -> dict[str, Any]:
    """meta.json of an export with some of its modules: those of the encoder and of its pair."""
    kept = {
        kind: {name: section for name, section in meta[kind].items() if f'{kind}/{name}' in modules}
        for kind in ('towers', 'heads')
    }
    pair = pair_of(meta)
    return dict(meta) | kept | dict(pairs=[] if pair is None else [pair], format=export.FORMAT)


def programs_of(meta: Mapping[str, Any]) -> list[Program]:
    """The programs of an export: of its encoder of images, and of the text tower that was trained with it.

    An export without a tower of images has the program of its text tower alone.
    """
    towers = models.towers(meta['towers'], meta['image']['channels'])
    pair, found = pair_of(meta), []
    if image_tower(meta) in towers:
        found.append(image_program(meta, towers))
    alone = [name for name, tower in towers.items() if tower.sees == 'text' and not tower.reads]
    texts = alone[:1] if pair is None else [pair['text']['tower']]
    found += [text_program(meta, towers, name) for name in texts]
    if not found:
        raise UserError(f'there is no tower of images or texts to make a program of, only {", ".join(towers)}')
    return found


def image_program(meta: Mapping[str, Any], towers: Mapping[str, Tower]) -> Program:
    """The program of the image encoder. Images are normalised in it."""
    encoder, size = image_tower(meta), int(meta['size'])
    image = {key: meta['image'][key] for key in ('channels', 'mean', 'std')}
    last = passes.image_pass(encoder, towers)
    used = [one.tower for one in passes.ordered([last])]
    grid = passes.patch_towers(last, towers)['image'].grid((size, size))
    head = head_of(meta, 'image', towers)

    def one(params: Any, images: Array) -> Values:
        out = passes.encode_images(encoder, towers, params['towers'], normalise(images[None], **image))
        found = dict(cls=out['cls'][0, 0])
        if 'patches' in out and out['patches'].shape[2] == grid[0] * grid[1]:
            found['patches'] = rearrange(out['patches'][0, 0], '(h w) d -> h w d', h=grid[0])
        return as_float(found | head.embedding(params, out['cls'][:, 0]))

    modules = (*(f'towers/{name}' for name in used), *head.modules)
    return Program('image', modules, dict(images=((size, size, image['channels']), np.float32)), one)


def text_program(meta: Mapping[str, Any], towers: Mapping[str, Tower], name: str) -> Program:
    """The program of a text tower."""
    tower, pair = towers[name], pair_of(meta)
    length = (pair['text'] if pair else meta.get('tokenizer') or {}).get('length') or tower.context
    head = head_of(meta, 'text', towers)

    def one(params: Any, ids: Array, valid: Array) -> Values:
        view = View(ids[None, None], jnp.zeros(1, jnp.uint32), valid.any()[None, None], valid[None, None], {})
        cls = tower.apply(params['towers'][name], Input(view))['cls'][:, 0]
        return as_float(dict(cls=cls[0]) | head.embedding(params, cls))

    shape = (int(length),)
    return Program('text', (f'towers/{name}', *head.modules), dict(ids=(shape, np.int32), valid=(shape, np.bool_)), one)


@dataclasses.dataclass(frozen=True)
class Projection:
    """From the features of one side of an image-text pair to the space of both."""

    pair: bool  # False: the export has no pair, so there is no such space
    name: str | None = None  # of the head; None: the features are the vectors
    head: Any = None

    @property
    def modules(self) -> tuple[str, ...]:
        return () if self.name is None else (f'heads/{self.name}',)

    def embedding(self, params: Any, cls: Array) -> Values:
        """The vector of features [1,D], with length 1, as zero-shot classification and retrieval use it."""
        if not self.pair:
            return {}
        x = (cls if self.head is None else self.head.apply(params['heads'][self.name], cls)).astype(jnp.float32)
        return dict(embedding=(x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12))[0])


def head_of(meta: Mapping[str, Any], side: str, towers: Mapping[str, Tower]) -> Projection:
    pair = pair_of(meta)
    if pair is None:
        return Projection(False)
    name = pair[side]['head']
    if name is None:
        return Projection(True)
    head = models.head(meta['heads'][name], towers[pair[side]['tower']].width, f'heads.{name}')
    return Projection(True, name, head)


def as_float(values: Mapping[str, Array]) -> Values:
    return {name: x.astype(jnp.float32) for name, x in values.items()}


def exported_program(program: Program, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> jax.export.Exported:
    """The program for any number of rows and for all PLATFORMS; `shapes` are those of the parameters by name.

    UserError where a tower, such as a user's own, has an operation that belongs to one kind of device.
    """
    (rows,) = jax.export.symbolic_shape('b')
    batch = [jax.ShapeDtypeStruct((rows, *shape), dtype) for shape, dtype in program.inputs.values()]

    def run(params: Flat, *batch: Array) -> Values:
        nested = export.unflatten(dict(params))
        return jax.vmap(lambda *row: program.one(nested, *row))(*batch)  # so a tower never sees the free number

    with plain():
        try:
            return jax.export.export(jax.jit(run), platforms=PLATFORMS)(dict(shapes), *batch)
        except (ValueError, NotImplementedError) as error:
            raise UserError(
                f'the {program.name} encoder ({", ".join(program.modules)}) cannot become one program for '
                f'{", ".join(PLATFORMS)}: {str(error).splitlines()[0]}'
            ) from None


# signature.json


def _entry(program: Program, exported: jax.export.Exported) -> dict[str, Any]:
    """What signature.json says of one program."""
    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)

    def described(name: str, shape: Any, dtype: Any) -> dict[str, Any]:
        return dict(shape=['b', *map(int, shape)], dtype=np.dtype(dtype).name, meaning=MEANINGS[name])

    return dict(
        file=f'{program.name}.stablehlo',
        arguments=['parameters', *program.inputs],
        inputs={name: described(name, *given) for name, given in program.inputs.items()},
        outputs={name: described(name, aval.shape[1:], aval.dtype) for name, aval in results.items()},
        parameters=list(program.modules),
        calling_convention_version=exported.calling_convention_version,
    )


def signature(meta: Mapping[str, Any], programs: Mapping[str, Any]) -> dict[str, Any]:
    """signature.json, from what it says of each program."""
    pair = pair_of(meta)
    about: dict[str, Any] = dict(programs=programs, parameters=WEIGHTS, platforms=list(PLATFORMS))
    if 'image' in programs:
        image = dict(meta['image'])
        about['preprocessing'] = dict(fit='crop', zoom=1.0) | image | dict(size=int(meta['size']))
    if pair is not None:
        about['temperature'] = float(pair['temperature'])
    about |= {key: meta.get(key) for key in ('step', 'name', 'origin', 'network') if meta.get(key) is not None}
    versions = dict(medjax=medjax.__version__, jax=jax.__version__, jaxlib=importlib.metadata.version('jaxlib'))
    return about | dict(b='any number of images or texts', versions=versions)
