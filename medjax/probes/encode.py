"""Encoders and their features: loads an encoder, encodes images or the splits of a data set.

    encoder = encode.load('RUN/exports/1000')                              # medjax.load is the same
    out = encoder.encode(['a.png', 'b.dcm'])                               # any images
    train = encode.features(encoder, data, 'train', cache='RUN/cache')     # for probes

The two baselines are encoders as well, so they run through the same code. `random_init` is the same tower before any
training. `raw_pixels` returns the preprocessed image itself.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from medjax.data.records import DataSet, Split
from medjax.errors import UserError, suggest
from medjax.models import build as models, passes
from medjax.probes import batches, features as feature_cache
from medjax.probes.batches import Batch, Images, LeftOut
from medjax.probes.features import Stored
from medjax.types import Tower, Tree
from medjax.views.colour import normalise
from medjax.views.make import evaluation_view
from medjax.weights import export, load as weights_load
from medjax.weights.base import ExportWeights
from medjax.weights.meta import FITS

LAYERS = 4  # blocks whose CLS is kept: the linear probe of DINOv2 uses the CLS of the last {1, 4} blocks
PIXELS = 64  # `raw_pixels` uses the encoder's image size, but at most this one
OUTPUTS = ('cls', 'layers', 'patches', 'attention')

Forward = Callable[[Tree, jax.Array, Collection[str]], dict[str, jax.Array]]
"""(params, normalised images float32 [B,size,size,C], outputs) -> those of the outputs that the encoder has."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """An image encoder: parameters, a pure function of them, and the preprocessing of its training.

    Outputs, float32, for n images:

    cls        [n,D], the CLS token of the last block, or what the tower has in its place
    layers     [n,4,D], the CLS token of the last four blocks, the last block at the end
    patches    [n,h,w,D], the patch tokens of the last block
    attention  [n,h,w], the attention of the CLS token to the patches in the last block, the mean over heads

    cls, layers and patches come after the final norm. A tower without blocks has one layer. Raw pixels have cls and
    layers only.
    """

    name: int | str  # the step of an export, the name of a public encoder, or 'random' or 'pixels'
    digest: str  # changes with the weights and with every setting that the features depend on
    params: Tree  # of the towers that it runs, by name
    forward: Forward
    size: int  # side of the square image that the tower reads, in pixels
    image: Mapping[str, Any]  # preprocessing: channels, mean, std, and fit and zoom, see `evaluation_view`
    meta: Mapping[str, Any]  # the export's meta.json
    export: Tree | None = None  # all parameters of the export, {'towers', 'heads'}; None for raw pixels
    folder: pathlib.Path | None = None  # of the export, or of public weights
    weights: str = ''  # a digest of the weights alone
    notes: tuple[str, ...] = ()  # sentences about its files, for the user

    def encode(
        self,
        images: Images,
        outputs: Collection[str] | None = None,
        fit: str | None = None,
        batch: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Encodes any images; returns the outputs by name, in the order of the images.

        images  a folder (all images in it, sorted by path), or a list of paths of JPEG, PNG and DICOM files and of
                arrays uint8|uint16 [H,W] or [H,W,C]
        outputs some of OUTPUTS; None: cls, and patches where the encoder has them
        fit     what it sees of an image, in place of its own: 'crop', 'pad' or 'stretch', see `load`
        batch   images that run at once; None: 32 for each device, fewer on a CPU

        UserError for an image that cannot be read. All outputs stay in the host's memory; `encode_batches` gives them
        batch by batch.
        """
        parts = [part.features for part in self.encode_batches(images, outputs, fit, batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def encode_batches(
        self,
        images: Images,
        outputs: Collection[str] | None = None,
        fit: str | None = None,
        batch: int | None = None,
        left_out: LeftOut | None = None,
    ) -> Iterator[Batch]:
        """The outputs batch by batch, each with the numbers of its images.

        `left_out(number, reason)` is called for an image that cannot be read, which is then missing. Without it such an
        image is a UserError.
        """
        asked = (outputs,) if isinstance(outputs, str) else outputs
        chosen = ('cls', 'patches') if asked is None else tuple(asked)
        if unknown := [name for name in chosen if name not in OUTPUTS]:
            raise UserError(f'encode: there is no output {unknown[0]!r}{suggest(unknown[0], OUTPUTS)}')
        if not chosen:
            raise UserError(f'encode: name at least one output of {", ".join(OUTPUTS)}')
        if batch is not None and batch < 1:
            raise UserError(f'encode: batch={batch}: at least 1 image')
        one = self.seeing(fit)
        run = _of_squares(one.forward, json.dumps(dict(one.image)), chosen)
        for part in batches.of_files(one, run, batches.listed(images), batch, left_out):
            lacking = [name for name in chosen if name not in part.features]
            if lacking and outputs is not None:
                has = ', '.join(part.features) or 'none of them'
                raise UserError(f'encode: this encoder has no output {lacking[0]!r}; of those asked for it has {has}')
            yield part

    def apply(
        self,
        params: Tree,
        images: jax.Array,
        extent: jax.Array,
        size: int,
        outputs: Collection[str] = ('cls', 'layers', 'patches'),
    ) -> dict[str, jax.Array]:
        """Outputs of images uint8|uint16 [B,H,W,C] that lie top-left on their canvas, with height and width `extent`.

        Differentiable by `params`, for fine-tuning. `size` and `outputs` are static; `size` may differ from the
        encoder's own. Outputs that the encoder does not have are missing.
        """
        return self.forward(params, evaluation_view(images, extent, size, self.image), outputs)

    def seeing(self, fit: str | None) -> Encoder:
        """This encoder with another fit; itself for None."""
        if fit not in (None, *FITS):
            raise UserError(f'fit={fit!r}: an encoder takes {", ".join(map(repr, FITS[:-1]))} or {FITS[-1]!r}')
        if fit in (None, self.image.get('fit', 'crop')):
            return self
        image = dict(self.image) | dict(fit=fit)
        meta = dict(self.meta) | dict(image=image)
        return dataclasses.replace(self, image=image, meta=meta, digest=_digest(self.digest, fit))


class SplitFeatures(NamedTuple):
    """The input of a probe from one split: features, labels and patients of n records, with L labels.

    Features from a cache lie on disk, see `Stored`.
    """

    cls: np.ndarray | Stored  # float32 [n,layers,D], the last block at the end
    patches: np.ndarray | Stored | None  # float32 [n,D], the mean over the last block's patch tokens; None for pixels
    labels: np.ndarray  # int8 [n,L]: 1 or 0; a negative number does not count, see `policy.known`
    patients: np.ndarray  # int64 [n], consecutive numbers 0…P-1; no identifier


def load(path: str | os.PathLike, fit: str | None = None) -> Encoder:
    """Loads the encoder of a run (its newest export), of an export, or of public weights in a folder or a file.

    `fit`: 'crop' shows it the centre square of an image, 'pad' the whole image with black beside it, 'stretch' the
    whole image, resized to a square. None: as the export or the public folder says, and 'crop' where it says nothing.
    """
    weights = weights_load.open(path)
    if isinstance(weights, ExportWeights):
        params, meta = weights.exported().as_export()  # refuses a meta.json that does not belong to the arrays
        name: int | str = int(meta['step']) if meta.get('step') is not None else weights.path.resolve().name
        identity = hashlib.sha256((weights.path / 'weights.safetensors').read_bytes()).hexdigest()
    else:
        params, meta = weights.as_export()
        name, identity = (
            weights.path.resolve().stem if weights.path.is_file() else weights.path.resolve().name,
            _hash(params),
        )
    encoder = _encoder(meta, name, params, identity, weights.path)
    return dataclasses.replace(encoder, notes=tuple(weights.notes)).seeing(fit)


def _hash(params: Tree) -> str:
    """A digest of nested dicts of arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(export.flatten(params).items()):
        digest.update(f'{name} {array.dtype} {array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def random_init(trained: Encoder, seed: int = 0) -> Encoder:
    """Initialises the towers of an export and its image-text heads anew, from a fixed seed: a baseline."""
    meta, key = trained.meta, jax.random.key(seed)
    towers, encoder = _towers(*_settings(meta)), image_tower(meta)
    params: Tree = {'towers': {encoder: jax.jit(towers[encoder].init)(key)}, 'heads': {}}

    def add(name: str) -> None:
        if name not in params['towers']:
            params['towers'][name] = jax.jit(towers[name].init)(jax.random.fold_in(key, zlib.crc32(name.encode())))

    for one in passes.ordered([passes.image_pass(encoder, towers)]):
        add(one.tower)
    pair = pair_of(meta)
    for side in () if pair is None else (pair['image'], pair['text']):
        add(side['tower'])
        if head := side['head']:
            init = models.head(meta['heads'][head], towers[side['tower']].width, where=f'heads.{head}').init
            params['heads'][head] = init(jax.random.fold_in(key, zlib.crc32(f'>{head}'.encode())))
    return _encoder(meta, 'random', params, f'random init {seed}', trained.folder)


def raw_pixels(trained: Encoder) -> Encoder:
    """Returns the preprocessed image, at most 64 x 64 pixels, as one long feature: a baseline."""
    meta = trained.meta
    image, size = meta['image'], min(int(meta['size']), PIXELS)
    return Encoder('pixels', _digest('pixels', image, size), {}, _pixels, size, image, meta)


def _pixels(params: Tree, images: jax.Array, outputs: Collection[str]) -> dict[str, jax.Array]:
    cls = rearrange(images, 'b h w c -> b (h w c)')
    return {name: x for name, x in dict(cls=cls, layers=cls[:, None]).items() if name in outputs}


class Baseline(NamedTuple):
    """An untrained encoder to compare with."""

    title: str  # for tables, pages and messages
    make: Callable[[Encoder], Encoder]  # takes the trained encoder


BASELINES = dict(random=Baseline('random init', random_init), pixels=Baseline('raw pixels', raw_pixels))


def title(encoder: int | str) -> str:
    """The name of an encoder for people: 'step 1000', 'random init', 'raw pixels', or the name of a public one."""
    if isinstance(encoder, int):
        return f'step {encoder}'
    return BASELINES[encoder].title if encoder in BASELINES else encoder


def image_tower(meta: Mapping[str, Any]) -> str:
    """The name of the tower that encodes images.

    It is the one that the config names in export.encoder, else the one that was trained with a text tower, else
    'image'.
    """
    pairs = meta.get('pairs') or [dict(image=dict(tower='image'))]
    return meta.get('encoder') or pairs[0]['image']['tower']


def pair_of(meta: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first image-text pair of an export whose image tower is the encoder; None if there is none."""
    return next((pair for pair in meta.get('pairs', ()) if pair['image']['tower'] == image_tower(meta)), None)


def _encoder(
    meta: Mapping[str, Any], name: int | str, params: Tree, weights: str, folder: pathlib.Path | None
) -> Encoder:
    """An encoder from all parameters of an export; `weights` identifies them in the digest."""
    settings = _settings(meta)
    if not meta['size']:
        raise UserError(f'{folder}: nothing says the size of images for the tower {image_tower(meta)!r}')
    forward, towers, encoder = _forward(*settings), _towers(*settings), image_tower(meta)
    used = [one.tower for one in passes.ordered([passes.image_pass(encoder, towers)])]
    shown = meta['towers'][encoder] if used == [encoder] else {name: meta['towers'][name] for name in used}
    digest = _digest(weights, shown, meta['image'], meta['size'])
    own = {name: params['towers'][name] for name in used}
    return Encoder(name, digest, own, forward, int(meta['size']), meta['image'], meta, params, folder, weights)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _settings(meta: Mapping[str, Any]) -> tuple[str, str, str]:
    """The name of the encoder, the settings of all towers and of the images as JSON: a key of functools.cache."""
    if (name := image_tower(meta)) not in meta['towers']:
        which = f'the export of step {meta["step"]}' if meta.get('step') is not None else meta.get('name')
        raise UserError(f'{which} has no tower {name!r}, only {", ".join(meta["towers"])}')
    return name, json.dumps(meta['towers']), json.dumps(meta['image'])


@functools.cache
def _towers(encoder: str, cfg: str, image: str) -> dict[str, Tower]:
    return models.towers(json.loads(cfg), json.loads(image)['channels'])


@functools.cache  # all exports of a run share one function, so it is compiled once
def _forward(encoder: str, cfg: str, image: str) -> Forward:
    towers = _towers(encoder, cfg, image)
    last = passes.image_pass(encoder, towers)
    layers = f'last{LAYERS}/cls'

    def forward(params: Tree, images: jax.Array, outputs: Collection[str]) -> dict[str, jax.Array]:
        want = [name for output, name in (('layers', layers), ('attention', 'attention')) if output in outputs]
        out = passes.encode_images(encoder, towers, params, images, want)
        height, width = passes.patch_towers(last, towers)['image'].grid(images.shape[1:3])
        found = {'cls': out['cls'][:, 0], 'layers': out.get(layers, out['cls'][:, :, None])[:, 0]}
        # a tower over towers may have neither several layers nor a feature for each patch
        if 'patches' in out and out['patches'].shape[2] == height * width:
            found['patches'] = rearrange(out['patches'][:, 0], 'b (h w) d -> b h w d', h=height)
        if 'attention' in out and out['attention'].shape[2] == height * width:
            found['attention'] = rearrange(out['attention'][:, 0], 'b (h w) -> b h w', h=height)
        return {name: x.astype(jnp.float32) for name, x in found.items() if name in outputs}

    return forward


@functools.cache
def _of_squares(forward: Forward, image: str, outputs: tuple[str, ...]) -> jax.stages.Wrapped:
    """(params, squares float32 [B,size,size,C] in [0,1]) -> outputs."""
    levels = {key: value for key, value in json.loads(image).items() if key not in ('fit', 'zoom')}
    return jax.jit(lambda params, squares: forward(params, normalise(squares, **levels), outputs))


@functools.cache
def _of_records(forward: Forward, image: str, size: int, grid: bool = False) -> jax.stages.Wrapped:
    """(params, images on canvases, extent) -> 'cls' [B,layers,D] and 'patches' [B,D], the mean over the patch tokens.

    With `grid` it gives 'grid' float16 [B,h,w,D] too, the patch tokens.
    """
    preprocessing = json.loads(image)

    def run(params: Tree, images: jax.Array, extent: jax.Array) -> dict[str, jax.Array]:
        out = forward(params, evaluation_view(images, extent, size, preprocessing), ('layers', 'patches'))
        found = dict(cls=out['layers'])
        if 'patches' in out:
            found['patches'] = reduce(out['patches'], 'b h w d -> b d', 'mean')
            found |= dict(grid=out['patches'].astype(jnp.float16)) if grid else {}
        return found

    return jax.jit(run)


def compiled_encoder(meta: Mapping[str, Any]) -> jax.stages.Wrapped:
    """(params, images, extent) -> features, as `features` runs it for the encoder with this meta.json."""
    return _of_records(_forward(*_settings(meta)), json.dumps(meta['image']), int(meta['size']))


def features(encoder: Encoder, data: DataSet, split: str, cache: str | os.PathLike | None = None) -> SplitFeatures:
    """Encodes every record of a split: CLS of the last four blocks, and the mean patch token.

    With `cache`, the features are kept in the folder <cache>/<encoder>/<data>.<split>, see `probes.features`. They are
    encoded again if the encoder's digest (weights, preprocessing, size) or the data's fingerprint changed. Without
    `cache` they are held in memory. The labels are those of the records; `--policy` is not applied.
    UserError if features are not finite.
    """
    return features_of(encoder, data.split(split), cache)


def features_of(encoder: Encoder, records: Split, cache: str | os.PathLike | None = None) -> SplitFeatures:
    """`features` of a split that is open."""
    patients = np.unique(records.keys('patient'), return_inverse=True)[1].astype(np.int64)
    arrays = _encoded_part(encoder, records, cache, 'features')
    return SplitFeatures(arrays['cls'], arrays.get('patches'), np.asarray(records.labels_array), patients)


def grids(encoder: Encoder, data: DataSet, split: str, cache: str | os.PathLike | None = None) -> np.ndarray | Stored:
    """float16 [n,h,w,D]: the patch tokens of the last block for every record of a split, kept as `features` are.

    Features that are not in the cache yet are encoded in the same pass. UserError if the encoder has no patch tokens.
    """
    return _encoded_part(encoder, data.split(split), cache, 'grid')['grid']


def grid_shape(encoder: Encoder, data: DataSet) -> tuple[int, ...]:
    """(h, w, D) of `grids`; UserError if the encoder has no patch tokens. Encodes nothing."""
    return _rows(encoder, data.split(next(iter(data.splits))), 'grid')['grid'][0]


def is_cached(encoder: Encoder, data: DataSet, split: str, cache: str | os.PathLike) -> bool:
    """Whether the features of a split need no encoding."""
    return feature_cache.read(*_place(encoder, data.split(split), cache), 'features') is not None


def last_cls(encoder: Encoder, records: Split, numbers: np.ndarray) -> np.ndarray:
    """float32 [n,D]: the CLS token of the last block for n records of a split of a DataSet, given by their numbers."""
    batches.warn_of_crops(encoder, records.column('shape')[numbers], f'{records.data.name}, {records.name}: ')
    parts = [
        part.features['cls'][:, -1]
        for part in _encode_records(encoder, records, numbers.tolist(), len(records) - len(numbers))
    ]
    return np.concatenate(parts)


def _encoded_part(
    encoder: Encoder, records: Split, cache: str | os.PathLike | None, part: str
) -> Mapping[str, np.ndarray | Stored]:
    """The arrays of one of `feature_cache.PARTS`: from the cache, or encoded now."""
    batches.warn_of_crops(encoder, records.column('shape'), f'{records.data.name}, {records.name}: ')
    if cache is None:
        rows = _rows(encoder, records, part)
        found = [each.features for each in _encode_records(encoder, records, range(len(records)), grid=part == 'grid')]
        names = [name for name in feature_cache.PARTS[part] if name in rows]
        arrays = {name: np.concatenate([each[name] for each in found]) for name in names}
        bad = int(feature_cache.not_finite(arrays).sum())
    else:
        place = _place(encoder, records, cache)
        content = feature_cache.read(*place, part) or _fill(encoder, records, place, part)
        arrays, bad = content
    if bad:
        raise UserError(
            f'the features of {title(encoder.name)} are not finite numbers for {bad} of {len(records)} records of '
            f'{records.data.name}, {records.name}: its weights are damaged, or its training diverged; take an earlier '
            'export'
        )
    return arrays


def _fill(encoder: Encoder, records: Split, place: tuple[pathlib.Path, str, int], part: str) -> feature_cache.Content:
    """The arrays of a part, once its rows that are missing in the cache are encoded."""
    grid = part == 'grid'

    def encode(numbers: Iterable[int], done: int) -> Iterator[Batch]:
        return _encode_records(encoder, records, numbers, done, grid)

    feature_cache.fill(*place, _rows(encoder, records, part), ['features', 'grid'] if grid else ['features'], encode)
    content = feature_cache.read(*place, part)
    if content is None:
        raise UserError(f'{place[0]}: another job replaced these features by those of another encoder; run again')
    return content


def _place(encoder: Encoder, records: Split, cache: str | os.PathLike) -> tuple[pathlib.Path, str, int]:
    """The folder, the key and the number of records of a cache."""
    data, split = records.data, records.name
    key = _digest(encoder.digest, data.fingerprint, split, LAYERS, encoder.size)
    return pathlib.Path(cache) / str(encoder.name) / f'{data.name}.{split}', key, len(records)


def _rows(encoder: Encoder, records: Split, part: str) -> feature_cache.Rows:
    """The arrays that a pass for this part gives; UserError if the encoder has no such part."""
    data, grid = records.data, part == 'grid'
    canvas = jax.ShapeDtypeStruct((1, data.size, data.size, data.channels), np.uint8 if data.bits == 8 else np.uint16)
    one = jax.eval_shape(_program(encoder, grid), encoder.params, canvas, jax.ShapeDtypeStruct((1, 2), np.int32))
    if grid and 'grid' not in one:
        raise UserError(f'the encoder {title(encoder.name)} has no feature for each patch')
    return {name: (x.shape[1:], x.dtype.name) for name, x in one.items()}


def _encode_records(
    encoder: Encoder, records: Split, numbers: Iterable[int], done: int = 0, grid: bool = False
) -> Iterator[Batch]:
    """The features of some records batch by batch; `done` others are there already."""
    progress = batches.bar(f'{encoder.name}: {records.data.name} {records.name}', len(records), done)
    return batches.of_canvases(encoder, _program(encoder, grid), records.image, numbers, records.data.size, progress)


def _program(encoder: Encoder, grid: bool = False) -> jax.stages.Wrapped:
    return _of_records(encoder.forward, json.dumps(dict(encoder.image)), encoder.size, grid)
