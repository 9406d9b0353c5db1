"""Measures the search for near-duplicates: recall, false pairs, and the time for a million images.

    python benchmarks/similar.py DATA [DATA ...] [--most 2000]       # recall and false pairs of each data set
    python benchmarks/similar.py DATA [DATA ...] --million [--pictures 1000000]

DATA are folders that `medjax build` wrote. The script plants changed copies of 100 images and searches for them in the
whole data set. The million thumbnails are drawn: each is a mixture of a real thumbnail and of Gaussian noise with the
covariance of the data set. So about as many pairs are near as among real images. 3,000 of them are planted copies:
crops of 5 % and 10 %, and brightened copies.
"""

from __future__ import annotations

import argparse
import functools
import io
import resource
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from medjax.data import records
from medjax.data.audit import near_duplicates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', nargs='+')
    parser.add_argument('--most', type=int, default=2000, help='images of a data set, at most')
    parser.add_argument('--million', action='store_true')
    parser.add_argument('--pictures', type=int, default=1_000_000)
    options = parser.parse_args()
    if options.million:
        million([thumbnails(load(path, options.most)[0]) for path in options.data], options.pictures)
        return
    for path in options.data:
        pictures, patients = load(path, options.most)
        false_pairs(pictures, patients, path)
        recall(pictures)


def load(path: str, most: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Images as 8-bit grey [H,W,1], and their patients."""
    data = records.open(path)
    pictures, patients = [], []
    for name in data.splits:
        split = data.split(name)
        for i in range(min(len(split), most - len(pictures))):
            pictures.append(
                split.image(i)[..., :1] if data.bits == 8 else (split.image(i)[..., :1] >> 8).astype(np.uint8)
            )
            patients.append(split.keys('patient')[i])
    return pictures, np.array(patients)


def thumbnails(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([near_duplicates.thumbnail(picture) for picture in pictures])


def everything(thumbs: np.ndarray, others: np.ndarray | None = None) -> near_duplicates.Matches:
    """All candidates, before the comparison of thumbnails removes any, with the result of that comparison."""
    limit, near_duplicates.LIKELY_SAME = near_duplicates.LIKELY_SAME, -2.0
    try:
        return near_duplicates.candidates(thumbs, others)
    finally:
        near_duplicates.LIKELY_SAME = limit


def false_pairs(pictures: list[np.ndarray], patients: np.ndarray, name: str) -> None:
    """Prints how many pairs of different patients, and of one patient, pass each stage of the search."""
    thumbs = thumbnails(pictures)
    start = time.perf_counter()
    matches = everything(thumbs)
    seconds = time.perf_counter() - start
    likely = np.flatnonzero(matches.similarity >= near_duplicates.LIKELY_SAME)
    start = time.perf_counter()
    similarity = np.array(
        [near_duplicates.pixel_similarity(pictures[matches.first[k]], pictures[matches.second[k]]) for k in likely]
    )
    pair_ms = 1e3 * (time.perf_counter() - start) / max(1, len(likely))
    same = patients[matches.first] == patients[matches.second]
    n, (_, images) = len(patients), np.unique(patients, return_counts=True)
    total_same = int((images * (images - 1) // 2).sum())
    print(f'\n{name}: {n} images of {len(images)} patients; {seconds:.1f} s, {pair_ms:.1f} ms to compare two images')
    for whose, chosen, total in (('different', ~same, n * (n - 1) // 2 - total_same), ('one', same, total_same)):
        values = np.sort(similarity[chosen[likely]])[::-1]
        print(
            f'  pairs of {whose} patient(s): {total}; near {chosen.sum()} ({chosen.sum() / max(1, total):.1e}), '
            f'alike as thumbnails {chosen[likely].sum()}, as pixels {(values >= near_duplicates.SAME_PICTURE).sum()}; '
            f'highest similarity: {" ".join(f"{value:.3f}" for value in values[:8])}'
        )


def recall(pictures: list[np.ndarray]) -> None:
    """Prints the share of planted copies that pass each stage of the search."""
    thumbs = thumbnails(pictures)
    chosen = np.arange(0, len(pictures), max(1, len(pictures) // 100))[:100]
    print('  planted           near  thumbnails  pixels   similarity: least, 5 %, median')
    for name, change in changes(np.random.default_rng(0)).items():
        copies = [change(pictures[i]) for i in chosen]
        matches = everything(thumbnails(copies), thumbs)
        correct = matches.second == chosen[matches.first]
        near = set(matches.first[correct].tolist())
        likely = set(matches.first[correct & (matches.similarity >= near_duplicates.LIKELY_SAME)].tolist())
        similarity = np.array([near_duplicates.pixel_similarity(pictures[i], copy) for i, copy in zip(chosen, copies)])
        alike = [k for k in likely if similarity[k] >= near_duplicates.SAME_PICTURE]
        shares = [len(stage) / len(chosen) for stage in (near, likely, alike)]
        values = ' '.join(f'{value:.3f}' for value in np.quantile(similarity, (0, 0.05, 0.5)))
        print(f'  {name:17} {shares[0]:5.2f} {shares[1]:8.2f} {shares[2]:10.2f}   {values}', flush=True)


def changes(rng: np.random.Generator) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """The changes that make a planted copy of an image, by name."""
    return {
        'crop 2 %': functools.partial(cropped, rng, 0.02),
        'crop 5 %': functools.partial(cropped, rng, 0.05),
        'crop 10 %': functools.partial(cropped, rng, 0.10),
        'crop 15 %': functools.partial(cropped, rng, 0.15),
        'half the size': functools.partial(scaled, 0.5),
        'twice the size': functools.partial(scaled, 2),
        'JPEG at 50': jpeg,
        'crop 5 % + JPEG': lambda x: jpeg(cropped(rng, 0.05, x)),
        'gamma 1.4': functools.partial(gamma, 1.4),
        'gamma .7': functools.partial(gamma, 0.7),
        'brightness': lambda x: np.clip(0.8 * x + 40, 0, 255).astype(np.uint8),
        'marker of 1/144': marked,
        'negative': lambda x: 255 - x,
        'mirrored': lambda x: np.ascontiguousarray(x[:, ::-1]),
    }


def cropped(rng: np.random.Generator, share: float, x: np.ndarray) -> np.ndarray:
    """A random crop without `share` of each side."""
    h, w = (max(1, round(side * (1 - share))) for side in x.shape[:2])
    top, left = rng.integers(x.shape[0] - h + 1), rng.integers(x.shape[1] - w + 1)
    return np.ascontiguousarray(x[top : top + h, left : left + w])


def jpeg(x: np.ndarray) -> np.ndarray:
    """The image after JPEG at quality 50."""
    file = io.BytesIO()
    Image.fromarray(x[..., 0]).save(file, 'JPEG', quality=50)
    return np.asarray(Image.open(file))[..., None]


def scaled(factor: float, x: np.ndarray) -> np.ndarray:
    """The image with sides of `factor` times their length."""
    size = max(1, round(x.shape[1] * factor)), max(1, round(x.shape[0] * factor))
    return np.asarray(Image.fromarray(x[..., 0]).resize(size, Image.Resampling.BICUBIC))[..., None]


def gamma(power: float, x: np.ndarray) -> np.ndarray:
    """The image with grey values to a power."""
    return np.round(255 * (x / 255) ** power).astype(np.uint8)


def marked(x: np.ndarray) -> np.ndarray:
    """The image with a white marker near its top left corner."""
    x = x.copy()
    h, w = max(2, x.shape[0] // 12), max(2, x.shape[1] // 12)
    top, left = x.shape[0] // 16, x.shape[1] // 16
    x[top : top + h, left : left + w] = 255
    x[top + h // 3 : top + 2 * h // 3, left + w // 3 : left + w] = 0
    return x


def million(real: list[np.ndarray], n: int) -> None:
    """Draws n thumbnails, plants copies among them, and times the search."""
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    thumbs = np.empty((n, 32, 32), np.uint8)
    statistics = []
    for data_set in real:
        flat = data_set.reshape(len(data_set), -1).astype(np.float32)
        mean = flat.mean(0)
        _, lengths, axes = np.linalg.svd((flat - mean) / np.sqrt(len(flat)), full_matrices=False)
        statistics.append((mean, flat - mean, lengths[:, None] * axes))
    share = 0.45  # share of the variance that comes from a real thumbnail; the noise gives the other share
    for at in range(0, n, 10_000):
        mean, deviations, axes = statistics[at // 10_000 % len(statistics)]
        m = min(10_000, n - at)
        noise = rng.standard_normal((m, len(axes)), dtype=np.float32) @ axes
        grey = mean + np.sqrt(share) * deviations[rng.integers(len(deviations), size=m)] + np.sqrt(1 - share) * noise
        low, high = grey.min(1, keepdims=True), grey.max(1, keepdims=True)
        thumbs[at : at + m] = np.round((grey - low) * (255 / (high - low))).reshape(m, 32, 32)
    origin, copy = np.split(rng.permutation(n)[: 2 * (3000 * n // 1_000_000)], 2)
    for k, (i, j) in enumerate(zip(origin, copy)):
        side = (0.95, 0.90, 1.0)[k % 3] * 32
        top, left = rng.random(2) * (32 - side)
        planted = Image.fromarray(thumbs[i]).resize(
            (32, 32), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
        thumbs[j] = 255 * (np.asarray(planted) / 255) ** (1.3 if k % 3 == 2 else 1)
    print(f'{n} thumbnails drawn in {time.perf_counter() - start:.0f} s', flush=True)
    start, spent = time.perf_counter(), time.process_time()
    matches = everything(thumbs)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    near = len(matches.first)
    likely = matches.similarity >= near_duplicates.LIKELY_SAME
    matches = near_duplicates.Matches(*(column[likely] for column in matches[:4]), matches.exhaustive)
    opened = set((np.minimum(matches.first, matches.second) * n + np.maximum(matches.first, matches.second)).tolist())
    recalled = np.array([min(i, j) * n + max(i, j) in opened for i, j in zip(origin, copy)])
    print(
        f'{seconds:.0f} s, {spent:.0f} CPU s, peak {peak:.1f} GiB with the thumbnails, '
        f'every variant was compared with every image: {matches.exhaustive}; '
        f'{near} pairs near ({near / (n * (n - 1) / 2):.1e}), {len(matches.first)} to open, '
        f'{recalled.sum()} of {len(recalled)} planted among them '
        f'(crop 5 % {recalled[::3].mean():.3f}, crop 10 % {recalled[1::3].mean():.3f}, '
        f'brightened {recalled[2::3].mean():.3f})'
    )


if __name__ == '__main__':
    main()
