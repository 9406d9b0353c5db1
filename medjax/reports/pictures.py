"""Shows the features of an export in pictures: patch components, nearest neighbours, maps of findings over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from medjax.data.records import DataSet
from medjax.data.text.prompts import ZeroShot
from medjax.errors import UserError
from medjax.probes import encode, image_text
from medjax.probes.methods import zero_shot
from medjax.probes.results import probe_of
from medjax.probes.vectors import unit
from medjax.reports import choice, images
from medjax.reports.data_facts import OpenedData
from medjax.reports.run_files import Run

IMAGES = 8  # with patch components
QUERIES, NEIGHBOURS = 6, 5  # the first of these images are queries as well
FINDINGS = 6  # maps beside an image
TRAIN = 20_000  # a larger train split is not encoded for a report; `medjax probe` must have cached it


class Gallery(NamedTuple):
    """Pictures with a note for the reader. If there are no pictures, the note gives the reason."""

    rows: Sequence[Any] = ()
    note: str = ''


class Pictures(NamedTuple):
    """The three galleries of a report."""

    patches: Gallery  # rows: {image, map, caption}
    neighbours: Gallery  # rows: a list of cells, the query first
    findings: Gallery  # rows: a list of cells, the image first, then a map for each finding


class Shown(NamedTuple):
    """The images that a report shows, and their features."""

    images: list[np.ndarray]
    captions: list[str]
    cls: np.ndarray  # float32 [n,D] of the last block
    patches: np.ndarray  # float32 [n,h,w,D]
    seen: dict[str, Any]  # fit and zoom: what the encoder sees of an image


def gather(run: Run, data: OpenedData) -> Pictures:
    """The galleries of the newest export that was probed, else of the newest export, on the first data set."""
    step = run.newest_step() if run.newest_step() in run.exports else next(reversed(run.exports), None)
    if step is None:
        return empty('No export yet.')
    if not data.sets:
        return empty(data.missing)
    dataset = data.sets[0]
    name = next(name for name in ('test', 'val', 'train') if name in dataset.splits)
    split = dataset.split(name)
    encoder = encode.load(run.path / 'exports' / str(step))
    chosen = choice.varied(split, IMAGES)
    arrays = [split[i].image for i in chosen]
    features = encoder.encode(arrays)
    captions = [images.caption(split.labels_array[i], dataset.labels) for i in chosen]
    seen = {key: encoder.image[key] for key in ('fit', 'zoom') if key in encoder.image}
    shown = Shown(arrays, captions, features['cls'], features['patches'], seen)
    source = f'{name} images of {dataset.name}, export of step {step:,}'
    galleries = []
    for make in (neighbours, findings):
        try:
            galleries.append(make(run, encoder, dataset, shown, source))
        except UserError as error:
            galleries.append(Gallery(note=str(error)))
    return Pictures(patch_components(shown, source), *galleries)


def empty(reason: str) -> Pictures:
    return Pictures(*[Gallery(note=reason)] * 3)


def cell(picture: Image.Image, caption: str, highlight: bool = False, number: str = '') -> dict[str, Any]:
    """One picture of a row. `highlight` prints the caption in green; `number` stands below it."""
    return {'image': images.uri(picture), 'caption': caption, 'highlight': highlight, 'number': number}


def patch_components(shown: Shown, source: str) -> Gallery:
    """Images, with the principal components of their patch features as colours."""
    colours, shares = components(shown.patches)
    rows = []
    for image, colour, caption in zip(shown.images, colours, shown.captions, strict=True):
        centre = images.centre(image, **shown.seen)
        rows.append({'image': images.uri(centre), 'map': images.uri(overlay(centre, colour)), 'caption': caption})
    percent = ', '.join(f'{100 * share:.0f}' for share in shares)
    note = (
        f'{source[0].upper()}{source[1:]}. Beside each image, colours show its patch features: their first three '
        f'principal components as red, green and blue ({percent} % of the variance). Similar colours mean similar '
        'features.'
    )
    return Gallery(rows, note)


def neighbours(run: Run, encoder: encode.Encoder, data: DataSet, shown: Shown, source: str) -> Gallery:
    """Images, and the train images with the most similar features."""
    if 'train' not in data.splits:
        return Gallery(note=f'{data.name} has no train split to search.')
    cache, train = run.path / 'cache', data.split('train')
    if len(train) > TRAIN and not encode.is_cached(encoder, data, 'train', cache):
        return Gallery(note=f'`medjax probe` has not encoded the {len(train):,} train records of {data.name} yet.')
    features = encode.features(encoder, data, 'train', cache=cache)
    numbers, cosines = nearest(shown.cls[:QUERIES], features.cls[:, -1], NEIGHBOURS)
    rows = []
    for query, caption, near, values in zip(shown.images, shown.captions, numbers, cosines, strict=False):
        row = [cell(images.centre(query, **shown.seen), caption)]
        for i, cosine in zip(near, values, strict=True):
            other = images.caption(train.labels_array[i], data.labels)
            row.append(
                cell(images.centre(train[int(i)].image, **shown.seen), other, other == caption, f'cosine {cosine:.3f}')
            )
        rows.append(row)
    note = (
        f'Left: {source}. Right of each: the {NEIGHBOURS} train images with the most similar features (cosine of the '
        'CLS token of the last block). Green: the same labels.'
    )
    return Gallery(rows, note)


def findings(run: Run, encoder: encode.Encoder, data: DataSet, shown: Shown, source: str) -> Gallery:
    """Images, and for each finding of the newest zero-shot result a map of its similarity to the patches.

    The map is the cosine of each projected patch feature [n,h,w,D] with the vector of the finding's sentences. The head
    was trained on cls. The maps show whether it is useful for single patches too.
    """
    here = [r for r in run.results if (r.encoder, r.data) == (encoder.name, data.name)]
    results = [r for r in here if probe_of(r.probe) == zero_shot.name]
    if not results:
        return Gallery(
            note='No zero-shot result of this export yet, so there are no sentences to compare with. An export of an '
            'image and a text tower can be probed with `medjax probe --probes zero_shot --prompts FILE`.'
        )
    prompts, both = ZeroShot(**results[0].content['details']['prompts']), image_text.load(encoder)
    vectors = list(zero_shot.class_vectors(prompts.present, prompts.ensemble, both).items())[:FINDINGS]
    cosine = unit(both.image_vectors(shown.patches)) @ np.stack(
        [vector for _, vector in vectors], 1
    )  # [n,h,w,findings]
    shade = stretch(cosine)
    rows = []
    for i, (image, caption) in enumerate(zip(shown.images[:QUERIES], shown.captions, strict=False)):
        centre = images.centre(image, **shown.seen)
        row = [cell(centre, caption)]
        for j, (name, _) in enumerate(vectors):
            values = cosine[i, :, :, j]
            present, extent = name in caption.split(', '), f'cosine {values.min():.2f} to {values.max():.2f}'
            row.append(cell(heat_map(centre, shade[i, :, :, j]), name, present, extent))
        rows.append(row)
    note = (
        f'Left: {source}. Right of each: one map for each finding. It shows where the image is similar to the '
        'sentences about the finding (cosine of the patch features and the sentences). Dark is the 2nd percentile of '
        'all patches, bright the 98th. The numbers are the lowest and the highest cosine in the image. Green: the '
        'image has this label. The model learned this comparison from whole images, not from places in them, so a map '
        'is only a hint.'
    )
    return Gallery(rows, note)


def stretch(values: np.ndarray) -> np.ndarray:
    """Maps the 2nd to the 98th percentile of each channel (last axis) to [0,1]; clips the values outside."""
    low, high = np.percentile(values, (2, 98), axis=tuple(range(values.ndim - 1)))
    return np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)


def heat_map(image: Image.Image, shade: np.ndarray) -> Image.Image:
    """Numbers [h,w] in [0,1] as colours over their image, interpolated between the centres of the patches."""
    smooth = Image.fromarray(shade.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    colours = matplotlib.colormaps['inferno'](np.asarray(smooth))[..., :3]
    return Image.blend(image, Image.fromarray((255 * colours).round().astype(np.uint8)), 0.55)


def components(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first three principal components of patch features [n,h,w,D], as colours, and their shares of the variance.

    The colours are [n,h,w,3] in [0,1], the shares [3]. All images have one basis, so equal colours mean equal features.
    Each component is stretched as `stretch` says. The sign of a component is free, so its largest loading is
    made positive.
    """
    x = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    _, sizes, basis = np.linalg.svd(x - x.mean(0), full_matrices=False)
    basis = np.pad(basis, ((0, 3), (0, 0)))[:3]  # fewer than three patches or dimensions: the missing components are 0
    sizes = np.pad(sizes, (0, 3))
    sign = np.sign(np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1))
    colours = stretch(x @ (basis * sign).T)
    return colours.reshape(*patches.shape[:3], 3), (sizes**2 / np.maximum((sizes**2).sum(), 1e-30))[:3]


def nearest(queries: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For each query [q,D] the k rows of `others` [n,D] with the greatest cosine: their numbers and cosines [q,k]."""
    cosine = unit(queries) @ unit(others).T
    order = np.argsort(-cosine, axis=1, kind='stable')[:, :k]
    return order, np.take_along_axis(cosine, order, axis=1)


def overlay(image: Image.Image, colours: np.ndarray) -> Image.Image:
    """Patch colours [h,w,3] in [0,1] over their image."""
    shades = Image.fromarray((255 * colours).round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image, shades, 0.65)
