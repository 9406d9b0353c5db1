"""An encoder out of an export, and the features of a data set's splits, computed once and kept.

    encoder = encode.load('RUN/exports/1000')
    train = encode.features(encoder, data, 'train', cache='RUN/cache')     # for probes
    out = encode.encode(encoder, ['a.png', 'b.dcm'])                       # for pictures, patch by patch

The two baselines are encoders as well, so they go through the same code: `random_init` is the same tower before any
training, `raw_pixels` the preprocessed picture itself.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
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
from medjax.models import build as models
from medjax.parallel.sharding import make_mesh, replicated, rows_sharding
from medjax.types import Tree, View
from medjax.views.make import whole
from medjax.weights import export

LAYERS = 4  # as the linear probes of DINOv2: CLS of the last {1, 4} blocks
ROWS_PER_DEVICE = 32
PIXELS = 64  # raw pixels are taken at the encoder's size, but at no more than this


class Encoder(NamedTuple):
    """What an export gives: parameters, a pure function of them, and the preprocessing they were trained with."""

    name: int | str  # the export's step, or 'random' or 'pixels'
    digest: str  # of the weights and of all that the features depend on
    params: Tree
    apply: Callable[..., dict[str, jax.Array]]
    """(params, images uint8|uint16 [B,H,W,C], extent int32 [B,2], size) -> 'cls' [B,layers,D] of the last blocks, last
    block last, and 'patches' [B,h,w,D] of the last block, both after the final norm. Pixels have 'cls' alone.
    Differentiable by params, for fine-tuning; `size` is static and may differ from the encoder's own."""
    size: int  # pixels of the square that the tower sees
    image: Mapping[str, Any]  # channels, mean, std
    meta: Mapping[str, Any]  # the export's meta.json
    parts: Tree | None = None  # {'towers', 'heads'}: all that the export has, for `pairs.load`; None: pixels
    folder: pathlib.Path | None = None  # of the export


class Features(NamedTuple):
    """One split as probes see it: n records, L labels."""

    cls: np.ndarray  # float32 [n,layers,D], last block last
    patches: np.ndarray | None  # float32 [n,D], the mean over the last block's patch tokens
    labels: np.ndarray  # int8 [n,L]: 1, 0; negative where neither, see `policy`
    patients: np.ndarray  # int64 [n], dense numbers 0…P-1; no identifier


def load(folder: str | os.PathLike) -> Encoder:
    """The encoder of the export RUN/exports/<step>."""
    folder = pathlib.Path(folder)
    params, meta = export.load(folder)
    weights = hashlib.sha256((folder / 'weights.safetensors').read_bytes()).hexdigest()
    return _of_towers(meta, int(meta['step']), params, weights, folder)


def random_init(trained: Encoder, seed: int = 0) -> Encoder:
    """The towers of an export, and the heads that pair them, before any training, drawn from a fixed seed."""
    meta, key = trained.meta, jax.random.key(seed)
    parts: Tree = {'towers': {image_tower(meta): jax.jit(_tower(*_settings(meta)).init)(key)}, 'heads': {}}
    for side in (side for pair in meta.get('pairs', ())[:1] for side in (pair['image'], pair['text'])):
        name, head = side['tower'], side['head']
        tower = _tower(json.dumps(meta['towers'][name]), json.dumps(meta['image']))
        if name not in parts['towers']:
            parts['towers'][name] = jax.jit(tower.init)(jax.random.fold_in(key, zlib.crc32(name.encode())))
        if head:
            init = models.head(meta['heads'][head], tower.width, where=f'heads.{head}').init
            parts['heads'][head] = init(jax.random.fold_in(key, zlib.crc32(f'>{head}'.encode())))
    return _of_towers(meta, 'random', parts, f'random init {seed}', trained.folder)


def raw_pixels(trained: Encoder) -> Encoder:
    """The preprocessed picture as one long feature, at no more than 64 x 64."""
    meta = trained.meta
    image, size = meta['image'], min(int(meta['size']), PIXELS)

    def apply(params: Tree, images: jax.Array, extent: jax.Array, size: int) -> dict[str, jax.Array]:
        return {'cls': rearrange(whole(images, extent, size, image), 'b h w c -> b 1 (h w c)')}

    return Encoder('pixels', _digest('pixels', image, size), {}, apply, size, image, meta)


class Baseline(NamedTuple):
    """An encoder that no training has shaped, for comparison."""

    title: str  # in tables, on pages and in messages
    make: Callable[[Encoder], Encoder]  # from the trained encoder that it is compared with


BASELINES = dict(random=Baseline('random init', random_init), pixels=Baseline('raw pixels', raw_pixels))


def title(encoder: int | str) -> str:
    """The name of an encoder for people: 'step 1000', 'random init', 'raw pixels'."""
    return BASELINES[encoder].title if encoder in BASELINES else f'step {encoder}'


def image_tower(meta: Mapping[str, Any]) -> str:
    """The name of the tower that sees images: the one that is paired with texts, else 'image'."""
    pairs = meta.get('pairs') or [dict(image=dict(tower='image'))]
    return pairs[0]['image']['tower']


def _of_towers(
    meta: Mapping[str, Any], name: int | str, parts: Tree, weights: str, folder: pathlib.Path | None
) -> Encoder:
    apply, tower = _apply(*_settings(meta)), image_tower(meta)
    digest = _digest(weights, meta['towers'][tower], meta['image'], meta['size'])
    params = parts['towers'][tower]
    return Encoder(name, digest, params, apply, int(meta['size']), meta['image'], meta, parts, folder)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _settings(meta: Mapping[str, Any]) -> tuple[str, str]:
    """The tower's and the image's settings as text, to remember compiled functions by."""
    if (name := image_tower(meta)) not in meta['towers']:
        raise UserError(f'the export of step {meta["step"]} has no tower {name!r}, only {", ".join(meta["towers"])}')
    return json.dumps(meta['towers'][name]), json.dumps(meta['image'])


def _tower(cfg: str, image: str) -> Any:
    return models.tower(json.loads(cfg), json.loads(image)['channels'], where='the towers of the export')


@functools.cache  # the exports of a run share one function, so it is compiled once
def _apply(cfg: str, image: str) -> Callable[..., dict[str, jax.Array]]:
    tower, preprocessing = _tower(cfg, image), json.loads(image)

    def apply(params: Tree, images: jax.Array, extent: jax.Array, size: int) -> dict[str, jax.Array]:
        x = whole(images, extent, size, preprocessing)
        rows = jnp.arange(len(x), dtype=jnp.uint32)
        out = tower.apply(params, View(x[:, None], rows, jnp.ones((len(x), 1), bool), None, {}), layers=LAYERS)
        patches = rearrange(out['patches'][:, 0], 'b (h w) d -> b h w d', h=tower.grid((size, size))[0])
        return {'cls': out['layers/cls'][:, 0].astype(jnp.float32), 'patches': patches.astype(jnp.float32)}

    return apply


@functools.cache
def _compiled(apply: Callable[..., dict[str, jax.Array]], size: int, patch_mean: bool) -> Callable[..., Any]:
    def run(params: Tree, images: jax.Array, extent: jax.Array) -> dict[str, jax.Array]:
        out = apply(params, images, extent, size)
        if patch_mean and 'patches' in out:
            out['patches'] = reduce(out['patches'], 'b h w d -> b d', 'mean')
        return out

    return jax.jit(run)


def features(encoder: Encoder, data: Any, split: str, cache: str | os.PathLike | None = None) -> Features:
    """CLS of the last four blocks and the mean patch token of every record of a split of a DataSet.

    With `cache`, they are kept in <cache>/<encoder>/<data>.<split>.npz, and read from there as long as the encoder's
    digest (weights, preprocessing, size) and the data's fingerprint are the same; else they are computed again.
    """
    records = data.split(split)
    patients = np.unique(records.keys('patient'), return_inverse=True)[1].astype(np.int64)
    key = _digest(encoder.digest, data.fingerprint, split, LAYERS, encoder.size)
    path = None if cache is None else pathlib.Path(cache) / str(encoder.name) / f'{data.name}.{split}.npz'
    arrays = _read(path, key) if path else None
    if arrays is None:
        arrays = _run(encoder, records.image, len(records), data.size, True, f'{encoder.name}: {data.name} {split}')
        if path:
            files.write_npz(path, key=np.array(key), **arrays)
    return Features(arrays['cls'], arrays.get('patches'), np.asarray(records.labels_array), patients)


def last_cls(encoder: Encoder, records: Any, numbers: np.ndarray) -> np.ndarray:
    """float32 [n,D]: CLS of the last block of some records of a split of a DataSet."""
    fetch = lambda k: records.image(int(numbers[k]))  # noqa: E731
    return _run(encoder, fetch, len(numbers), records.data.size, True, f'{encoder.name}: {records.name}')['cls'][:, -1]


def encode(encoder: Encoder, images: Sequence[np.ndarray | str | os.PathLike]) -> dict[str, np.ndarray]:
    """Features of any pictures, given as uint8|uint16 arrays [H,W] or [H,W,C], or as paths of JPEG, PNG or DICOM files.

    Returns 'cls' float32 [n,layers,D] (last block last) and 'patches' [n,h,w,D]. All of them are kept on the host:
    for a data set use `features`, which keeps the mean of the patches alone.
    """
    pictures = [_picture(image) for image in images]
    if not pictures:
        raise UserError('encode: no images given')
    channels, deep = max(p.shape[2] for p in pictures), any(p.dtype == np.uint16 for p in pictures)
    for i, p in enumerate(pictures):  # one kind for the batch; neither step changes what a grey value means
        p = p.astype(np.uint16) * 257 if deep and p.dtype == np.uint8 else p
        pictures[i] = np.repeat(p, channels, axis=2) if p.shape[2] != channels else p
    canvas = max(max(p.shape[:2]) for p in pictures)
    return _run(encoder, pictures.__getitem__, len(pictures), canvas, patch_mean=False, title='pictures')


def _picture(image: np.ndarray | str | os.PathLike) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        path = pathlib.Path(image)
        if not path.is_file():
            raise UserError(f'encode: there is no file {path}')
        try:
            image = decode.read(path.read_bytes())
        except Unreadable as error:
            raise UserError(f'encode: cannot read {path}: {error}') from None
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16):
        raise UserError(f'encode: a picture is uint8|uint16 [H,W], [H,W,1] or [H,W,3], not {image.dtype} {image.shape}')
    return image


def _run(
    encoder: Encoder, fetch: Callable[[int], np.ndarray], n: int, canvas: int, patch_mean: bool, title: str
) -> dict[str, np.ndarray]:
    """All devices of this machine, batches of one shape; threads decode the next batches meanwhile."""
    mesh = make_mesh()
    run = _compiled(encoder.apply, encoder.size, patch_mean)
    size = ROWS_PER_DEVICE * mesh.size
    out: list[Any] = []
    with jax.set_mesh(mesh), tqdm(total=n, desc=title, unit='image', disable=None, leave=False) as bar:
        params = jax.device_put(encoder.params, replicated(mesh))
        for images, extent in _batches(fetch, n, canvas, size):
            out.append(run(params, *jax.device_put((images, extent), rows_sharding(mesh))))
            if len(out) > 1:  # one behind, so that the devices have work while results are copied
                out[-2] = jax.tree.map(np.asarray, out[-2])
            bar.update(min(size, n - bar.n))
    return {name: np.concatenate([o[name] for o in out])[:n] for name in out[0]}


def _batches(
    fetch: Callable[[int], np.ndarray], n: int, canvas: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures 0…n-1, top-left on canvases [size,canvas,canvas,C], and extents [size,2]; the last is filled up."""
    with ThreadPoolExecutor() as pool:
        starts = range(0, n, size)
        ahead = [pool.submit(fetch, i) for i in range(min(n, 2 * size))]
        for start in starts:
            pictures = [future.result() for future in ahead[:size]]
            ahead = ahead[size:] + [pool.submit(fetch, i) for i in range(start + 2 * size, min(n, start + 3 * size))]
            images = np.zeros((size, canvas, canvas, pictures[0].shape[2]), pictures[0].dtype)
            extent = np.ones((size, 2), np.int32)
            for i, picture in enumerate(pictures):
                images[i, : picture.shape[0], : picture.shape[1]] = picture
                extent[i] = picture.shape[:2]
            yield images, extent


def _read(path: pathlib.Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a cache file, or None where there is none, it is damaged, or it was made from something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name != 'key'} if file['key'] == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
