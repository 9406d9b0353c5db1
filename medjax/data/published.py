"""Splits that were published, by name: how many images each part has, and a hash of the list where it is known.

Two lists circulate as "the NIH split": three quarters of one's test images are training images of the other. So a list
has a name, a build says which one it used, and says so where the folder's own list has other counts or another hash.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Published(NamedTuple):
    about: str  # where the list comes from and what is wrong with it
    images: dict[str, int]  # split -> number of images
    digest: str = ''  # `digest` of the list; '' where no copy of it could be read while this was written


LISTS = {
    'nih/official': Published(
        'train_val_list.txt and test_list.txt of the release; patients are disjoint',
        {'train': 86_524, 'test': 25_596},
        'cff2f005da56652bb2761c93474ee36a98b0caca56025db86dc2ebe669bc66a5',  # of jlianglab/BenchmarkTransformers
    ),
    'nih/official_val': Published(
        'nih/official with the validation patients of jlianglab/BenchmarkTransformers (Xray14_*_official.txt)',
        {'train': 75_312, 'val': 11_212, 'test': 25_596},
        '3d90893022b13a1df046862d57f946e43ee115ffa271991613a3c33c15bda662',
    ),
    'nih/chestmnist': Published(
        'the 78,468 / 11,219 / 22,433 lists of MedMNIST, MRM and BenchX; 76.8 % of its test images are training images '
        'of nih/official',
        {'train': 78_468, 'val': 11_219, 'test': 22_433},
        'd4c317f98799eb802599c34d9293baa73e07e5bd4d9ebff5b361b7ef57325748',  # of yangzhou12/BenchX
    ),
    'mimic_cxr/official': Published(
        'mimic-cxr-2.0.0-split.csv.gz; counts recalled, they add up to the 377,110 images of the release',
        {'train': 368_960, 'val': 2_991, 'test': 5_159},
    ),
    'chexpert/official': Published(
        'train.csv and valid.csv; patients are disjoint',
        {'train': 223_414, 'val': 234},
        '85b21894bfe19819fc632cd0d1d7fd84a2c898ef2f5a6ecf055f93f89ceeaaa4',  # mlmed/torchxrayvision, jlianglab/Ark
    ),
    'chexpert/test': Published(
        'the test set that was released later, one study of each of 500 patients',
        {'test': 668},
        'bfc8b4935e5a8f66e2ff6f595b7743f198920ed25e161d332112c498a7046f38',  # of jlianglab/Ark
    ),
    'roco/v1': Published(
        'the folders of razorx89/roco-dataset; 4,972 of the 7,984 articles of test images have figures in train too',
        {'train': 70_343, 'val': 8_791, 'test': 8_791},
        '7108c7f2826767d89f49ba52e39c77706b9e77276c3ff9ebb817ebdc3a28773d',
    ),
    'roco/v1_radiology': Published(
        'roco/v1 without its folders non-radiology/',
        {'train': 65_448, 'val': 8_180, 'test': 8_179},
        '1d154569d0b074061fc8fee10dffccb8c4b1867f6a0f45c9007269d01064db1a',
    ),
    'roco/v2': Published(
        'the *_captions.csv of ROCOv2 as others counted them', {'train': 59_958, 'val': 9_904, 'test': 9_927}
    ),
}


def digest(images: Iterable[tuple[str, str]]) -> str:
    """sha256 of the sorted lines 'split<TAB>image' of (image, split) pairs."""
    lines = sorted(f'{split}\t{image}' for image, split in images)
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def differences(name: str, images: Iterable[tuple[str, str]]) -> list[str]:
    """In what a list differs from the published one of that name, in words; [] where it is the same."""
    images, known = list(images), LISTS[name]
    counts = Counter(split for _, split in images)
    said = [
        f'{name} has {expected} {split} images, this list {counts[split]}'
        for split, expected in known.images.items()
        if counts[split] != expected
    ]
    if extra := sorted(counts.keys() - known.images.keys()):
        said.append(f'{name} has no {" and no ".join(extra)}, this list has')
    if not said and known.digest and digest(images) != known.digest:
        said.append(f'{name} has as many images, but not the same ones in each split')
    return said
