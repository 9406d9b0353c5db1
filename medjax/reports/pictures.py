"""What an export sees: principal components of its patch features, nearest neighbours of test images, and where in
them it finds the findings' words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from medjax.data.records import DataSet
from medjax.data.text.prompts import ZeroShot
from medjax.errors import UserError
from medjax.probes import encode, image_text
from medjax.probes.methods import zero_shot
from medjax.probes.vectors import unit
from medjax.reports import choice, images
from medjax.reports.data_facts import Found
from medjax.reports.run_files import Run

IMAGES = 8  # pictures with patch components
QUERIES, NEIGHBOURS = 6, 5  # the first of them are queries as well
FINDINGS = 6  # maps beside an image
TRAIN = 20_000  # more train records than this are not encoded for a report: a probe has cached them, or it says so


class Pictures(NamedTuple):
    """Three galleries; where one is empty, its words say why."""

    patches: Sequence[Mapping[str, str]] = ()  # image and map as data URIs, words
    patch_words: str = ''
    neighbours: Sequence[Sequence[Mapping[str, Any]]] = ()  # rows of a query and its neighbours
    neighbour_words: str = ''
    findings: Sequence[Sequence[Mapping[str, Any]]] = ()  # rows of an image and where it is like each finding's words
    finding_words: str = ''


def gather(run: Run, found: Found) -> Pictures:
    """The galleries of the newest export that was probed (or else the newest), on the first data set found."""
    step = run.newest() if run.newest() in run.exports else next(reversed(run.exports), None)
    if step is None:
        return missing('No export yet.')
    if not found.sets:
        return missing(found.words)
    data = found.sets[0]
    name = next(name for name in ('test', 'val', 'train') if name in data.splits)
    split = data.split(name)
    encoder = encode.load(run.path / 'exports' / str(step))
    chosen = choice.varied(split, IMAGES)
    pictures = [split[i].image for i in chosen]
    seen = encode.encode(encoder, pictures)
    labels = [images.words(split.labels_array[i], data.labels) for i in chosen]
    of = f'{name} images of {data.name}, step {step:,}'
    try:
        rows, row_words = neighbours(run, encoder, data, seen['cls'][:QUERIES, -1], pictures, labels)
    except UserError as error:
        rows, row_words = [], str(error)
    try:
        found_words, finding_words = findings(run, encoder, data, seen['patches'], pictures, labels)
    except UserError as error:
        found_words, finding_words = [], str(error)
    colours, shares = components(seen['patches'])
    return Pictures(
        patches=[
            {
                'image': images.uri(images.centre(image)),
                'map': images.uri(over(images.centre(image), colour)),
                'words': label,
            }
            for image, colour, label in zip(pictures, colours, labels, strict=True)
        ],
        patch_words=f'{of.capitalize()}; beside each the first three principal components of all their patch features '
        f'as red, green and blue ({", ".join(f"{100 * share:.0f}" for share in shares)} % of the variance).',
        neighbours=rows,
        neighbour_words=row_words
        or f'{of.capitalize()} (left), and the {NEIGHBOURS} train images of the most similar '
        'features (CLS of the last block, cosine). Green: the same labels.',
        findings=found_words,
        finding_words=finding_words,
    )


def missing(reason: str) -> Pictures:
    return Pictures(patch_words=reason, neighbour_words=reason, finding_words=reason)


def neighbours(
    run: Run,
    encoder: encode.Encoder,
    data: DataSet,
    queries: np.ndarray,
    pictures: Sequence[np.ndarray],
    labels: Sequence[str],
) -> tuple[list[list[dict[str, Any]]], str]:
    """Rows of a query and its neighbours in train, or none and why."""
    if 'train' not in data.splits:
        return [], f'{data.name} has no train split to search.'
    cache, train = run.path / 'cache', data.split('train')
    if len(train) > TRAIN and not (cache / str(encoder.name) / f'{data.name}.train.npz').exists():
        return [], f'`medjax probe` has not encoded the {len(train):,} train records of {data.name} yet.'
    features = encode.features(encoder, data, 'train', cache=cache)
    numbers, similarities = nearest(queries, features.cls[:, -1], NEIGHBOURS)
    rows = []
    for query, label, ids, values in zip(pictures, labels, numbers, similarities, strict=False):
        row: list[dict[str, Any]] = [
            {'image': images.uri(images.centre(query)), 'words': label, 'same': False, 'similarity': ''}
        ]
        for i, value in zip(ids, values, strict=True):
            other = images.words(train.labels_array[i], data.labels)
            image = images.uri(images.centre(train[int(i)].image))
            row.append({'image': image, 'words': other, 'same': other == label, 'similarity': f'{value:.3f}'})
        rows.append(row)
    return rows, ''


def findings(
    run: Run,
    encoder: encode.Encoder,
    data: DataSet,
    patches: np.ndarray,
    pictures: Sequence[np.ndarray],
    labels: Sequence[str],
) -> tuple[list[list[dict[str, Any]]], str]:
    """Rows of a picture and, for each finding of the newest zero-shot result, a map of its similarity; and words.

    The map is the cosine of each projected patch feature [n,h,w,D] with the direction of the finding's sentences. The
    head was trained on cls: that it says something of single patches is what the maps show or do not show.
    """
    told = [r for r in run.results if (r.encoder, r.data, r.probe) == (encoder.name, data.name, zero_shot.name)]
    if not told:
        return [], (
            'No sentences to look for: `medjax probe --probes zero_shot --prompts FILE` on an export of an image and a '
            'text tower leaves some.'
        )
    prompts, both = ZeroShot(**told[0].body['details']['prompts']), image_text.load(encoder)
    towards = list(zero_shot.directions(prompts.present, prompts.ensemble, both).items())[:FINDINGS]
    directions = np.stack([direction for _, direction in towards], 1)
    cosine = unit(both.images(patches)) @ directions  # [n,h,w,findings]
    low, high = np.percentile(cosine, (2, 98), axis=(0, 1, 2))
    shade = np.clip((cosine - low) / np.maximum(high - low, 1e-12), 0, 1)
    rows = []
    for i, (picture, label) in enumerate(zip(pictures[:QUERIES], labels, strict=False)):
        centre = images.centre(picture)
        row: list[dict[str, Any]] = [{'image': images.uri(centre), 'words': label, 'there': False, 'range': ''}]
        for j, (name, _) in enumerate(towards):
            at = cosine[i, :, :, j]
            row.append(
                {
                    'image': images.uri(warm(centre, shade[i, :, :, j])),
                    'words': name,
                    'there': name in label.split(', '),
                    'range': f'{at.min():.2f} to {at.max():.2f}',
                }
            )
        rows.append(row)
    words = (
        'Left a test image, then where its patches are like the sentences of each finding: the cosine of the projected '
        "patch features and the sentences' direction, from dark (2nd percentile of all patches) to bright (98th), "
        'with its range in that image. Green: the finding is labelled. The head was trained on whole images.'
    )
    return rows, words


def warm(image: Image.Image, shade: np.ndarray) -> Image.Image:
    """Numbers [h,w] in [0,1], bilinear between the patches' centres, as colours over the image they come from."""
    smooth = Image.fromarray(shade.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    colours = matplotlib.colormaps['inferno'](np.asarray(smooth))[..., :3]
    return Image.blend(image, Image.fromarray((255 * colours).round().astype(np.uint8)), 0.55)


def components(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patch features [n,h,w,D] -> the first three principal components as colours [n,h,w,3] in [0,1], and the share of
    variance [3] of each. One basis for all images, so that equal colours mean equal features; each component from its
    2nd to its 98th percentile. The sign of a component is free: its largest loading is made positive."""
    x = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    _, sizes, basis = np.linalg.svd(x - x.mean(0), full_matrices=False)
    basis = np.pad(basis, ((0, 3), (0, 0)))[:3]  # components that so few patches do not have are 0
    sizes = np.pad(sizes, (0, 3))
    sign = np.sign(np.take_along_axis(basis, np.abs(basis).argmax(1)[:, None], 1))
    scores = x @ (basis * sign).T
    low, high = np.percentile(scores, (2, 98), axis=0)
    colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colours.reshape(*patches.shape[:3], 3), (sizes**2 / np.maximum((sizes**2).sum(), 1e-30))[:3]


def nearest(queries: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each query [q,D] the k most similar rows of `others` [n,D] by cosine: their numbers and similarities [q,k]."""
    similarity = unit(queries) @ unit(others).T
    order = np.argsort(-similarity, axis=1, kind='stable')[:, :k]
    return order, np.take_along_axis(similarity, order, axis=1)


def over(image: Image.Image, colours: np.ndarray) -> Image.Image:
    """Patch colours [h,w,3] in [0,1] laid over the image they come from."""
    shades = Image.fromarray((255 * colours).round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image, shades, 0.65)
