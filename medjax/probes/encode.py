"""Encoders and their features: loads an export, encodes the splits of a data set and caches the result.

    encoder = encode.load('RUN/exports/1000')
    train = encode.features(encoder, data, 'train', cache='RUN/cache')     # for probes
    out = encode.encode(encoder, ['a.png', 'b.dcm'])                       # any images, with a feature for each patch

The two baselines are encoders as well, so they run through the same code. `random_init` is the same tower before any
training. `raw_pixels` returns the preprocessed image itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from tqdm import tqdm

from medjax import files
from medjax.data.images import decode
from medjax.data.types import Unreadable
from medjax.errors import UserError
from medjax.models import build as models, passes
from medjax.parallel.sharding import make_mesh, replicated, rows_sharding
from medjax.types import Tower, Tree
from medjax.views.make import evaluation_view
from medjax.weights import export

FITS = ('crop', 'pad')
LAYERS = 4  # blocks whose CLS is kept: the linear probe of DINOv2 uses the CLS of the last {1, 4} blocks
ROWS_PER_DEVICE = 32
PIXELS = 64  # `raw_pixels` uses the encoder's image size, but at most this one


class Encoder(NamedTuple):
    """An image encoder: parameters, a pure function of them, and the preprocessing of its training."""

    name: int | str  # the step of the export, or 'random' or 'pixels'
    digest: str  # changes with the weights and with every setting that the features depend on
    params: Tree  # of the towers that it runs, by name
    apply: Callable[..., dict[str, jax.Array]]
    """(params, images uint8|uint16 [B,H,W,C], extent int32 [B,2], size) -> features.

    'cls' [B,layers,D] is the CLS token of the last blocks, the last block at the end. 'patches' [B,h,w,D] are the patch
    tokens of the last block. Both come after the final norm. Raw pixels have 'cls' only. The function is differentiable
    by params, for fine-tuning. `size` is static and may differ from the encoder's own size.
    """
    size: int  # side of the square image that the tower reads, in pixels
    image: Mapping[str, Any]  # preprocessing: channels, mean, std, and fit ('crop' where it is missing)
    meta: Mapping[str, Any]  # the export's meta.json
    export: Tree | None = None  # all parameters of the export, {'towers', 'heads'}; None for raw pixels
    folder: pathlib.Path | None = None  # of the export


class SplitFeatures(NamedTuple):
    """The input of a probe from one split: features, labels and patients of n records, with L labels."""

    cls: np.ndarray  # float32 [n,layers,D], the last block at the end
    patches: np.ndarray | None  # float32 [n,D], the mean over the patch tokens of the last block; None for raw pixels
    labels: np.ndarray  # int8 [n,L]: 1 or 0; a negative number does not count, see `policy.known`
    patients: np.ndarray  # int64 [n], consecutive numbers 0…P-1; no identifier


class CropWarning(UserWarning):
    """Images of which the encoder sees less than two thirds."""


def load(folder: str | os.PathLike, fit: str | None = None) -> Encoder:
    """Loads the encoder of an export, RUN/exports/<step>.

    `fit`: 'crop' shows it the centre square of an image, 'pad' the whole image with black beside it. None: as the
    export says, and 'crop' for an export that says nothing.
    """
    folder = pathlib.Path(folder)
    if fit not in (None, *FITS):
        raise UserError(f'fit={fit!r}: an encoder takes {" or ".join(map(repr, FITS))}')
    params, meta = export.load(folder)
    if fit is not None and fit != meta['image'].get('fit', 'crop'):
        meta = meta | dict(image=meta['image'] | dict(fit=fit))
    weights = hashlib.sha256((folder / 'weights.safetensors').read_bytes()).hexdigest()
    return _encoder(meta, int(meta['step']), params, weights, folder)


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

    def apply(params: Tree, images: jax.Array, extent: jax.Array, size: int) -> dict[str, jax.Array]:
        return {'cls': rearrange(evaluation_view(images, extent, size, image), 'b h w c -> b 1 (h w c)')}

    return Encoder('pixels', _digest('pixels', image, size), {}, apply, size, image, meta)


class Baseline(NamedTuple):
    """An untrained encoder to compare with."""

    title: str  # for tables, pages and messages
    make: Callable[[Encoder], Encoder]  # takes the trained encoder


BASELINES = dict(random=Baseline('random init', random_init), pixels=Baseline('raw pixels', raw_pixels))


def title(encoder: int | str) -> str:
    """The name of an encoder for people: 'step 1000', 'random init', 'raw pixels'."""
    return BASELINES[encoder].title if encoder in BASELINES else f'step {encoder}'


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
    apply, towers, encoder = _apply(*settings), _towers(*settings), image_tower(meta)
    used = [one.tower for one in passes.ordered([passes.image_pass(encoder, towers)])]
    shown = meta['towers'][encoder] if used == [encoder] else {name: meta['towers'][name] for name in used}
    digest = _digest(weights, shown, meta['image'], meta['size'])
    own = {name: params['towers'][name] for name in used}
    return Encoder(name, digest, own, apply, int(meta['size']), meta['image'], meta, params, folder)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _settings(meta: Mapping[str, Any]) -> tuple[str, str, str]:
    """The name of the encoder, the settings of all towers and of the images as JSON: a key of functools.cache."""
    if (name := image_tower(meta)) not in meta['towers']:
        raise UserError(f'the export of step {meta["step"]} has no tower {name!r}, only {", ".join(meta["towers"])}')
    return name, json.dumps(meta['towers']), json.dumps(meta['image'])


@functools.cache
def _towers(encoder: str, cfg: str, image: str) -> dict[str, Tower]:
    return models.towers(json.loads(cfg), json.loads(image)['channels'])


@functools.cache  # all exports of a run share one function, so it is compiled once
def _apply(encoder: str, cfg: str, image: str) -> Callable[..., dict[str, jax.Array]]:
    towers, preprocessing = _towers(encoder, cfg, image), json.loads(image)
    last = passes.image_pass(encoder, towers)
    layers = f'last{LAYERS}/cls'

    def apply(params: Tree, images: jax.Array, extent: jax.Array, size: int) -> dict[str, jax.Array]:
        x = evaluation_view(images, extent, size, preprocessing)
        out = passes.encode_images(encoder, towers, params, x, want=(layers,))
        # a tower over towers may have neither several layers nor a feature for each patch
        features = {'cls': out.get(layers, out['cls'][:, :, None])[:, 0].astype(jnp.float32)}
        height, width = passes.patch_towers(last, towers)['image'].grid((size, size))
        if 'patches' in out and out['patches'].shape[2] == height * width:
            patches = rearrange(out['patches'][:, 0], 'b (h w) d -> b h w d', h=height)
            features['patches'] = patches.astype(jnp.float32)
        return features

    return apply


@functools.cache
def _compiled(apply: Callable[..., dict[str, jax.Array]], size: int, patch_mean: bool) -> jax.stages.Wrapped:
    def run(params: Tree, images: jax.Array, extent: jax.Array) -> dict[str, jax.Array]:
        out = apply(params, images, extent, size)
        if patch_mean and 'patches' in out:
            out['patches'] = reduce(out['patches'], 'b h w d -> b d', 'mean')
        return out

    return jax.jit(run)


def compiled_encoder(meta: Mapping[str, Any]) -> jax.stages.Wrapped:
    """(params, images, extent) -> features, as `features` runs it for the encoder with this meta.json."""
    return _compiled(_apply(*_settings(meta)), int(meta['size']), True)


def features(encoder: Encoder, data: Any, split: str, cache: str | os.PathLike | None = None) -> SplitFeatures:
    """Encodes every record of a split of a DataSet: CLS of the last four blocks, and the mean patch token.

    With `cache`, the features are kept in <cache>/<encoder>/<data>.<split>.npz. They are read from this file if the
    encoder's digest (weights, preprocessing, size) and the data's fingerprint are unchanged, else computed again.
    The labels are those of the records; `--policy` is not applied.
    """
    records = data.split(split)
    patients = np.unique(records.keys('patient'), return_inverse=True)[1].astype(np.int64)
    key = _digest(encoder.digest, data.fingerprint, split, LAYERS, encoder.size)
    path = None if cache is None else pathlib.Path(cache) / str(encoder.name) / f'{data.name}.{split}.npz'
    arrays = _read_cache(path, key) if path else None
    _warn_of_crops(encoder, records.column('shape'), f'{data.name}, {split}: ')
    if arrays is None:
        progress = f'{encoder.name}: {data.name} {split}'
        arrays = _encode_all(encoder, records.image, len(records), data.size, True, progress)
        if path:
            files.write_npz(path, key=np.array(key), **arrays)
    return SplitFeatures(arrays['cls'], arrays.get('patches'), np.asarray(records.labels_array), patients)


def last_cls(encoder: Encoder, records: Any, numbers: np.ndarray) -> np.ndarray:
    """float32 [n,D]: the CLS token of the last block for n records of a split of a DataSet, given by their numbers."""
    image = lambda k: records.image(int(numbers[k]))  # noqa: E731
    _warn_of_crops(encoder, records.column('shape')[numbers], f'{records.data.name}, {records.name}: ')
    progress = f'{encoder.name}: {records.name}'
    return _encode_all(encoder, image, len(numbers), records.data.size, True, progress)['cls'][:, -1]


def encode(encoder: Encoder, images: Sequence[np.ndarray | str | os.PathLike]) -> dict[str, np.ndarray]:
    """Encodes any images: arrays uint8|uint16 [H,W] or [H,W,C], or paths of JPEG, PNG or DICOM files.

    Returns 'cls' float32 [n,layers,D] (the last block at the end) and 'patches' [n,h,w,D]. All of them stay in the
    host's memory. For a data set use `features`, which keeps only the mean of the patches.
    """
    arrays = [_array(image) for image in images]
    if not arrays:
        raise UserError('encode: no images given')
    _warn_of_crops(encoder, np.array([x.shape for x in arrays]), '')
    # One batch has one dtype and one number of channels. Neither change alters the meaning of a grey value.
    channels, deep = max(x.shape[2] for x in arrays), any(x.dtype == np.uint16 for x in arrays)
    for i, x in enumerate(arrays):
        x = x.astype(np.uint16) * 257 if deep and x.dtype == np.uint8 else x
        arrays[i] = np.repeat(x, channels, axis=2) if x.shape[2] != channels else x
    canvas = max(max(x.shape[:2]) for x in arrays)
    return _encode_all(encoder, arrays.__getitem__, len(arrays), canvas, patch_mean=False, progress='images')


def _array(image: np.ndarray | str | os.PathLike) -> np.ndarray:
    """One image as uint8|uint16 [H,W,1|3]."""
    if not isinstance(image, np.ndarray):
        path = pathlib.Path(image)
        if not path.is_file():
            raise UserError(f'encode: there is no file {path}')
        try:
            found = decode.picture(path.read_bytes())
            image = decode.bounded(found.pixels, None, found.aspect)  # with square pixels, as in a data set
        except Unreadable as error:
            raise UserError(f'encode: cannot read {path}: {error}') from None
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f'encode: an image must be uint8|uint16 [H,W], [H,W,1] or [H,W,3], not {image.dtype} {image.shape}'
        )
    return image


def _warn_of_crops(encoder: Encoder, shapes: np.ndarray, where: str) -> None:
    """Warns, with their number, of images [n,2…] whose centre square loses more than a third of their area."""
    if encoder.image.get('fit', 'crop') == 'pad':
        return
    short, long = shapes[:, :2].min(1), shapes[:, :2].max(1)
    if count := int((3 * short.astype(np.int64) < 2 * long).sum()):
        text = (
            f'{where}the encoder sees the centre square of an image. For {count} of {len(shapes)} images this is less '
            "than two thirds of their area; fit='pad' shows it whole images"
        )
        warnings.warn(text, CropWarning, stacklevel=3)


def _encode_all(
    encoder: Encoder, image: Callable[[int], np.ndarray], n: int, canvas: int, patch_mean: bool, progress: str
) -> dict[str, np.ndarray]:
    """Encodes image(0) … image(n-1) in batches of one shape on all devices; threads decode the next batches."""
    mesh = make_mesh()
    run = _compiled(encoder.apply, encoder.size, patch_mean)
    size = ROWS_PER_DEVICE * mesh.size
    out: list[Any] = []
    with jax.set_mesh(mesh), tqdm(total=n, desc=progress, unit='image', disable=None, leave=False) as bar:
        params = jax.device_put(encoder.params, replicated(mesh))
        for images, extent in _batches(image, n, canvas, size):
            out.append(run(params, *jax.device_put((images, extent), rows_sharding(mesh))))
            if len(out) > 1:  # copy the batch before: the devices work on this one meanwhile
                out[-2] = jax.tree.map(np.asarray, out[-2])
            bar.update(min(size, n - bar.n))
    return {name: np.concatenate([batch[name] for batch in out])[:n] for name in out[0]}


def _batches(
    image: Callable[[int], np.ndarray], n: int, canvas: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of canvases [size,canvas,canvas,C] and extents [size,2]; the last batch is padded.

    Each image lies top-left on its canvas.
    """
    with ThreadPoolExecutor() as pool:
        ahead = [pool.submit(image, i) for i in range(min(n, 2 * size))]
        for start in range(0, n, size):
            arrays = [future.result() for future in ahead[:size]]
            ahead = ahead[size:] + [pool.submit(image, i) for i in range(start + 2 * size, min(n, start + 3 * size))]
            images = np.zeros((size, canvas, canvas, arrays[0].shape[2]), arrays[0].dtype)
            extent = np.ones((size, 2), np.int32)
            for i, x in enumerate(arrays):
                images[i, : x.shape[0], : x.shape[1]] = x
                extent[i] = x.shape[:2]
            yield images, extent


def _read_cache(path: pathlib.Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file; None if the file is missing or damaged, or has another key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name != 'key'} if file['key'] == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
