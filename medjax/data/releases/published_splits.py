"""Names the split lists that were published, with the number of images in each split and, if known, a hash of the list.

Why names: two lists are both called "the NIH split", and three quarters of the test images of one are training images
of the other. A build prints which list it used. It also prints where the list in the folder differs from the published
one, by counts or by hash.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medjax.data.releases import tables
from medjax.data.types import SPLIT_NAMES, Drop, Entry, patient_of
from medjax.errors import UserError


class Published(NamedTuple):
    """A published list."""

    description: str  # where the list comes from, and its faults
    images: dict[str, int]  # split -> number of images
    digest: str = ''  # `digest` of the list; '' if no copy of the list was at hand when this was written


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
        'the *_captions.csv of ROCOv2; counts from public descriptions', {'train': 59_958, 'val': 9_904, 'test': 9_927}
    ),
}

_BENCHX = 'yangzhou12/BenchX; val was drawn from the official train image by image'
LISTS |= {
    'vindr_cxr/official': Published(
        'the folders train/ and test/ of the release; it names no patients',
        {'train': 15_000, 'test': 3_000},
        '0b6e63f8261cbdf5d8b5e2c434a77f9f7bcb18952934aca914e45f1fd7a65daa',
    ),
    'vindr_cxr/benchx': Published(
        _BENCHX,
        {'train': 12_000, 'val': 3_000, 'test': 3_000},
        'ac8c58357b8f5f92c364e449e02c67a4590e180d78da77fead15c48243ded028',
    ),
    'rsna_pneumonia/benchx': Published(
        'yangzhou12/BenchX; drawn image by image, so NIH patients may be in several splits',
        {'train': 18_678, 'val': 4_003, 'test': 4_003},
        '83c3b1ceb5042f471175c6c5dcc110bdc508fc2771659ebfa11d7b75c6665ae8',
    ),
}

# numbers of train and test images (each image counted once) and digest, of the lists in lindawangg/COVID-Net
_COVIDX = {
    '1': (13_467, 210, '6c54c3368296b83ce1f12d2b0756bd52e0fb6bde46ba9601d0d74733d0a10125'),
    '2': (13_569, 231, 'c3e2a617cb59e3e8401578d23706a90f9ab53dc0d4b1366e39a2701c62f7e953'),
    '3': (13_670, 300, '65742f350f9c4231c883fc94b7ccdb8705092442cae56aba955c0579b44f56ba'),
    '4': (13_897, 300, '50e31e4f66d9bee309049bd79f0998aedd810f7ce4266f46cf052be4058bef5e'),
    '5': (13_958, 300, '4d62e528c067f26b47f0e9c3c425e5386a44d3b87cc8c73700289dd93fa017af'),
    '6': (14_311, 200, '506fada8aad8f2a332126282c54c0e0bd0ffe4c901f8fc18ab61a4d7ad16db74'),
    '7A': (15_111, 300, '36fc2b7f02a897a252e75b27157d62713081f009d032bf92b9afb91a5b56c021'),
    '7B': (15_464, 200, 'd968c38c8ace4f6e8a07011ceff4a454b3506486dce8ac53a26236cf712f7921'),
    '8A': (15_599, 400, '5172f823c85795ec2135ec30a162de99efbad8a3c0bd935fd586f9ba35f5eb43'),
    '8B': (15_952, 400, '9f90866a2dab3e3bf7f2bedfbd6a1e16872f9899888b94b6e70484d49a25a2ef'),
    '9A': (30_130, 400, 'd9d5f937239bd39ac60ca4e5120d0b3ff9a10cc12123c41e836c0aecd5996279'),
    '9B': (30_482, 400, 'c93d4d4a71445d6a3d3e1a33465ef7b3d46555900e0d87fe5ea73c35f0df08f5'),
}
LISTS |= {
    f'covidx/{version}': Published('lindawangg/COVID-Net, labels/', {'train': train, 'test': test}, list_digest)
    for version, (train, test, list_digest) in _COVIDX.items()
}
LISTS['covidx/cxr-4'] = Published(
    'train.txt, val.txt and test.txt of COVIDx CXR-4; from yangzhou12/BenchX, where each list has lost one line',
    {'train': 67_863, 'val': 8_473, 'test': 8_482},
)

# train, val, test of medmnist/info.py 3.0.2 in MedMNIST/MedMNIST. Version 2.2.4 removed blank images from five sets.
_MEDMNIST = {
    'pathmnist': (89_996, 10_004, 7_180),
    'chestmnist': (78_468, 11_219, 22_433),
    'dermamnist': (7_007, 1_003, 2_005),
    'octmnist': (97_477, 10_832, 1_000),
    'pneumoniamnist': (4_708, 524, 624),
    'retinamnist': (1_080, 120, 400),
    'breastmnist': (546, 78, 156),
    'bloodmnist': (11_959, 1_712, 3_421),
    'tissuemnist': (165_466, 23_640, 47_280),
    'organamnist': (34_561, 6_491, 17_778),
    'organcmnist': (12_975, 2_392, 8_216),
    'organsmnist': (13_932, 2_452, 8_827),
    'organmnist3d': (971, 161, 610),
    'nodulemnist3d': (1_158, 165, 310),
    'adrenalmnist3d': (1_188, 98, 298),
    'fracturemnist3d': (1_027, 103, 240),
    'vesselmnist3d': (1_335, 191, 382),
    'synapsemnist3d': (1_230, 177, 352),
    'organamnist before 2.2.4': (34_581, 6_491, 17_778),
    'organcmnist before 2.2.4': (13_000, 2_392, 8_268),
    'organsmnist before 2.2.4': (13_940, 2_452, 8_829),
    'organmnist3d before 2.2.4': (972, 161, 610),
    'vesselmnist3d before 2.2.4': (1_335, 192, 382),
}
LISTS |= {
    f'medmnist/{name}': Published(
        'the splits of the .npz file; 3D sets are counted in volumes', dict(zip(SPLIT_NAMES, counts, strict=True))
    )
    for name, counts in _MEDMNIST.items()
}


def digest(images: Iterable[tuple[str, str]]) -> str:
    """The sha256 of a list of (image, split): of its sorted lines 'split<TAB>image'."""
    lines = sorted(f'{split}\t{image}' for image, split in images)
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def differences(name: str, images: Iterable[tuple[str, str]]) -> list[str]:
    """Sentences on how a list of (image, split) differs from the published list `name`; [] if the two are equal."""
    images, published = list(images), LISTS[name]
    counts = Counter(split for _, split in images)
    sentences = [
        f'{name} has {expected} {split} images, this list {counts[split]}'
        for split, expected in published.images.items()
        if counts[split] != expected
    ]
    if extra := sorted(counts.keys() - published.images.keys()):
        sentences.append(f'{name} has no {" and no ".join(extra)}, this list has')
    if not sentences and published.digest and digest(images) != published.digest:
        sentences.append(f'{name} has as many images, but not the same ones in each split')
    return sentences


def list_name(name: str, differences: Sequence[str]) -> str:
    """The name of a data set's list: that of the published list if the two are equal, else 'nih/official, altered'."""
    return f'{name}, altered' if differences else name


def read_lists(root: pathlib.Path, name: str, publisher: str) -> dict[str, str]:
    """Reads image -> split from DIR/<name>/train.txt, val.txt and test.txt, which name one image a line.

    These are lists that somebody else published; the user puts them there. UserError if a list is missing, or if two
    lists name the same image.
    """
    split_of: dict[str, str] = {}
    for split in SPLIT_NAMES:
        path = root / name / f'{split}.txt'
        if not path.is_file():
            raise UserError(
                f'{path} is missing; --split {name} reads train.txt, val.txt and test.txt there ({publisher})'
            )
        for image in tables.read_list(path):
            if split_of.setdefault(image, split) != split:
                raise UserError(
                    f'{path}: an image is in {split_of[image]}.txt and in {split}.txt; copy the lists again'
                )
    return split_of


def keep_patients_apart(entries: Sequence[Entry]) -> tuple[list[Entry], list[Drop]]:
    """Drops entries so that no patient is in two splits, for published lists that share patients between splits.

    A patient in several splits stays in test or, without test images, in val. The patient's images in the other splits
    become drops. So no score is measured on patients of the training split.
    """
    rank = {name: place for place, name in enumerate(SPLIT_NAMES)}
    last: dict[str, str] = {}
    for entry in entries:
        patient = patient_of(entry)
        if rank[str(entry.split)] >= rank[last.get(patient, 'train')]:
            last[patient] = str(entry.split)
    kept, dropped = [], []
    for entry in entries:
        if (split := last[patient_of(entry)]) == entry.split:
            kept.append(entry)
        else:
            reason = f'in {entry.split} of the published list, but its patient is in {split} too'
            dropped.append(Drop(entry.image, entry.where, reason))
    return kept, dropped
