"""What the search for near-duplicates finds, what it finds wrongly, and how long a million pictures take.

python benchmarks/similar.py DATA [DATA ...] [--most 2000]       # recall and false pairs of each
python benchmarks/similar.py DATA [DATA ...] --million [--pictures 1000000]

DATA are folders that `medjax build` wrote. Planted copies of 100 pictures are searched for among all of the data set.
The million is drawn: a real thumbnail in part, the rest a Gaussian of the covariance of its data set, so that about as
many pairs are near as of real pictures; 3,000 of it are planted copies, crops of 5 % and 10 % and brightened ones.
"""

from __future__ import annotations

import argparse
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
    parser.add_argument('--most', type=int, default=2000, help='pictures of a data set')
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
    """Pictures as 8-bit grey [H,W,1], and their patients."""
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
    """The candidates before the look at thumbnails, with what that look says of them."""
    kept, near_duplicates.LIKELY_SAME = near_duplicates.LIKELY_SAME, -2.0
    try:
        return near_duplicates.candidates(thumbs, others)
    finally:
        near_duplicates.LIKELY_SAME = kept


def false_pairs(pictures: list[np.ndarray], patients: np.ndarray, name: str) -> None:
    thumbs = thumbnails(pictures)
    start = time.perf_counter()
    found = everything(thumbs)
    seconds = time.perf_counter() - start
    likely = np.flatnonzero(found.similarity >= near_duplicates.LIKELY_SAME)
    start = time.perf_counter()
    agreed = np.array(
        [near_duplicates.pixel_similarity(pictures[found.first[k]], pictures[found.second[k]]) for k in likely]
    )
    each = 1e3 * (time.perf_counter() - start) / max(1, len(likely))
    same = patients[found.first] == patients[found.second]
    n, (_, of) = len(patients), np.unique(patients, return_counts=True)
    pairs_same = int((of * (of - 1) // 2).sum())
    print(f'\n{name}: {n} pictures of {len(of)} patients; {seconds:.1f} s, {each:.1f} ms a pair of pixels')
    for whose, mine, pairs in (('different', ~same, n * (n - 1) // 2 - pairs_same), ('one', same, pairs_same)):
        ended = np.sort(agreed[mine[likely]])[::-1]
        print(
            f'  pairs of {whose} patient(s): {pairs}; near {mine.sum()} ({mine.sum() / max(1, pairs):.1e}), '
            f'alike as thumbnails {mine[likely].sum()}, as pixels {(ended >= near_duplicates.SAME_PICTURE).sum()}; '
            f'agreement, highest: {" ".join(f"{value:.3f}" for value in ended[:8])}'
        )


def recall(pictures: list[np.ndarray]) -> None:
    thumbs = thumbnails(pictures)
    chosen = np.arange(0, len(pictures), max(1, len(pictures) // 100))[:100]
    print('  planted           near  thumbnails  pixels   agreement: least, 5 %, median')
    for name, change in changes(np.random.default_rng(0)).items():
        copies = [change(pictures[i]) for i in chosen]
        found = everything(thumbnails(copies), thumbs)
        right = found.second == chosen[found.first]
        near, likely = (
            len(np.unique(found.first[right & (found.similarity >= least)]))
            for least in (-2, near_duplicates.LIKELY_SAME)
        )
        passed = set(found.first[right & (found.similarity >= near_duplicates.LIKELY_SAME)].tolist())
        agreed = np.array([near_duplicates.pixel_similarity(pictures[i], copy) for i, copy in zip(chosen, copies)])
        ended = sum(agreed[k] >= near_duplicates.SAME_PICTURE for k in passed)
        values = ' '.join(f'{value:.3f}' for value in np.quantile(agreed, (0, 0.05, 0.5)))
        n = len(chosen)
        print(f'  {name:17} {near / n:5.2f} {likely / n:8.2f} {ended / n:10.2f}   {values}', flush=True)


def changes(rng: np.random.Generator) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    def crop(share: float) -> Callable[[np.ndarray], np.ndarray]:
        def cut(x: np.ndarray) -> np.ndarray:
            h, w = (max(1, round(side * (1 - share))) for side in x.shape[:2])
            top, left = rng.integers(x.shape[0] - h + 1), rng.integers(x.shape[1] - w + 1)
            return np.ascontiguousarray(x[top : top + h, left : left + w])

        return cut

    def jpeg(x: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(x[..., 0]).save(file, 'JPEG', quality=50)
        return np.asarray(Image.open(file))[..., None]

    def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
        def resize(x: np.ndarray) -> np.ndarray:
            size = max(1, round(x.shape[1] * factor)), max(1, round(x.shape[0] * factor))
            return np.asarray(Image.fromarray(x[..., 0]).resize(size, Image.Resampling.BICUBIC))[..., None]

        return resize

    def curve(power: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.round(255 * (x / 255) ** power).astype(np.uint8)

    def marker(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        h, w = max(2, x.shape[0] // 12), max(2, x.shape[1] // 12)
        top, left = x.shape[0] // 16, x.shape[1] // 16
        x[top : top + h, left : left + w] = 255
        x[top + h // 3 : top + 2 * h // 3, left + w // 3 : left + w] = 0
        return x

    crop5 = crop(0.05)
    return {
        'crop 2 %': crop(0.02),
        'crop 5 %': crop5,
        'crop 10 %': crop(0.10),
        'crop 15 %': crop(0.15),
        'half the size': scaled(0.5),
        'twice the size': scaled(2),
        'JPEG at 50': jpeg,
        'crop 5 % + JPEG': lambda x: jpeg(crop5(x)),
        'gamma 1.4': curve(1.4),
        'gamma .7': curve(0.7),
        'brightness': lambda x: np.clip(0.8 * x + 40, 0, 255).astype(np.uint8),
        'marker of 1/144': marker,
        'negative': lambda x: 255 - x,
        'mirrored': lambda x: np.ascontiguousarray(x[:, ::-1]),
    }


def million(real: list[np.ndarray], n: int) -> None:
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    thumbs = np.empty((n, 32, 32), np.uint8)
    parts = []
    for part in real:
        flat = part.reshape(len(part), -1).astype(np.float32)
        mean = flat.mean(0)
        _, lengths, axes = np.linalg.svd((flat - mean) / np.sqrt(len(flat)), full_matrices=False)
        parts.append((mean, flat - mean, lengths[:, None] * axes))
    share = 0.45  # of the variance that is a real picture's; the rest is drawn
    for at in range(0, n, 10_000):
        mean, own, axes = parts[at // 10_000 % len(parts)]
        m = min(10_000, n - at)
        drawn = rng.standard_normal((m, len(axes)), dtype=np.float32) @ axes
        made = mean + np.sqrt(share) * own[rng.integers(len(own), size=m)] + np.sqrt(1 - share) * drawn
        low, high = made.min(1, keepdims=True), made.max(1, keepdims=True)
        thumbs[at : at + m] = np.round((made - low) * (255 / (high - low))).reshape(m, 32, 32)
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
    pairs = everything(thumbs)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    near = len(pairs.first)
    pairs = near_duplicates.Matches(
        *(column[pairs.similarity >= near_duplicates.LIKELY_SAME] for column in pairs[:4]), pairs.exhaustive
    )
    key = set((np.minimum(pairs.first, pairs.second) * n + np.maximum(pairs.first, pairs.second)).tolist())
    hit = np.array([min(i, j) * n + max(i, j) in key for i, j in zip(origin, copy)])
    print(
        f'{seconds:.0f} s, {spent:.0f} CPU s, peak {peak:.1f} GiB with the thumbnails, '
        f'every view met every picture: {pairs.exhaustive}; '
        f'{near} pairs near ({near / (n * (n - 1) / 2):.1e}), {len(pairs.first)} to open, '
        f'{hit.sum()} of {len(hit)} planted among them '
        f'(crop 5 % {hit[::3].mean():.3f}, crop 10 % {hit[1::3].mean():.3f}, brightened {hit[2::3].mean():.3f})'
    )


if __name__ == '__main__':
    main()
