"""MedMNIST: 12 sets of pictures (28, 64, 128, 224 px) and 6 of volumes (28, 64 px), each one .npz file with its splits.

    FILE    <set>.npz, <set>_64.npz, <set>_128.npz or <set>_224.npz; the set is found by the name of the file
            train_images, val_images, test_images    uint8 [n,H,W] or [n,H,W,3]; volumes [n,D,H,W]
            train_labels, val_labels, test_labels    [n,1] or [n,14]

A volume becomes D records: its slices along the first axis. They share a study and a patient, so no split separates
them. An image's id is its position in the file, such as 'train/17'. In a trimmed file it is 'train/17 of 99', because
position 17 is another image there.

Splits: those of the file.
Labels: their names, as MedMNIST gives them. Two classes are one label, named by class 1 (breastmnist: 1 is normal or
benign). More classes are one label each; those of retinamnist are grades. The labels effusion and pleural of chestmnist
are called pleural_effusion and pleural_thickening, so that a finding has one name in all data sets.
Patients: not known. Each image counts as one, and so does each volume.
Traps: five sets had more images before version 2.2.4, which removed blank ones. The build says whether the file is a
published one (by its MD5), and where its counts differ from the published ones. A trimmed file can be built.

Checked: names, counts, MD5s and licences in medmnist/info.py 3.0.2 of MedMNIST/MedMNIST (names are shortened), and the
five sets in its history.
Recalled, not checked: pictures of one HAM10000 lesion are in several splits of dermamnist; slices of one CT are in one
split of the organ sets.
Licence: CC BY 4.0; dermamnist CC BY-NC 4.0.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.data.releases import folders, published_splits
from medjax.data.sources import npz
from medjax.data.types import BLANK, SPLIT_NAMES, Entry, Example, Source
from medjax.errors import UserError, suggest

LICENSE = 'CC BY 4.0; dermamnist CC BY-NC 4.0'
LAYOUT = 'an .npz file of MedMNIST under its released name, such as pneumoniamnist.npz or pneumoniamnist_128.npz'
SPLITS = ('official',)
NOTES = {
    'chestmnist': 'the images are from NIH ChestX-ray14, split as nih/chestmnist, but nobody published which image is '
    'which: do not test on NIH, RSNA or SIIM-ACR after training on it, nor the other way round',
    'dermamnist': 'HAM10000 has several pictures of a lesion, and this split was drawn by picture',
}


class Set(NamedTuple):
    """One set of MedMNIST."""

    labels: tuple[str, ...]
    md5: tuple[str, ...]  # of the files of 28, 64, 128 and 224 px


def _set(labels: str, md5: str) -> Set:
    return Set(tuple(labels.split()), tuple(md5.split()))


_ORGANS = 'bladder femur_left femur_right heart kidney_left kidney_right liver lung_left lung_right pancreas spleen'
SETS = {
    'pathmnist': _set(
        'adipose background debris lymphocytes mucus smooth_muscle normal_colon_mucosa'
        ' cancer_associated_stroma colorectal_adenocarcinoma_epithelium',
        'a8b06965200029087d5bd730944a56c1 55aa9c1e0525abe5a6b9d8343a507616'
        ' ac42d08fb904d92c244187169d1fd1d9 2c51a510bcdc9cf8ddb2af93af1eadec',
    ),
    'chestmnist': _set(
        'atelectasis cardiomegaly pleural_effusion infiltration mass nodule pneumonia pneumothorax'
        ' consolidation edema emphysema fibrosis pleural_thickening hernia',
        '02c8a6516a18b556561a56cbdd36c4a8 9de6cd0b934ebb5b7426cfba5efbae16'
        ' db107e5590b27930b62dbaf558aebee3 45bd33e6f06c3e8cdb481c74a89152aa',
    ),
    'dermamnist': _set(
        'actinic_keratoses basal_cell_carcinoma benign_keratosis_like_lesions dermatofibroma melanoma'
        ' melanocytic_nevi vascular_lesions',
        '0744692d530f8e62ec473284d019b0c7 b70a2f5635c6199aeaa28c31d7202e1f'
        ' 2defd784463fa5243564e855ed717de1 8974907d8e169bef5f5b96bc506ae45d',
    ),
    'octmnist': _set(
        'choroidal_neovascularization diabetic_macular_edema drusen normal',
        'c68d92d5b585d8d81f7112f81e2d0842 e229e9440236b774d9f0dfef9d07bdaf'
        ' 0a97e76651ace45c5d943ee3f65b63ae abc493b6d529d5de7569faaef2773ba3',
    ),
    'pneumoniamnist': _set(
        'pneumonia',
        '28209eda62fecd6e6a2d98b1501bb15f 8f4eceb4ccffa70c672198ea285246c6'
        ' 05b46931834c231683c68f40c47b2971 d6a3c71de1b945ea11211b03746c1fe1',
    ),
    'retinamnist': _set(
        'grade_0 grade_1 grade_2 grade_3 grade_4',
        'bd4c0672f1bba3e3a89f0e4e876791e4 afda852cc34dcda56f86ad2b2457dbcc'
        ' e48e916a24454daf90583d4e6efb1a18 eae7e3b6f3fcbda4ae613ebdcbe35348',
    ),
    'breastmnist': _set(
        'normal_benign',
        '750601b1f35ba3300ea97c75c52ff8f6 742edef2a1fd1524b2efff4bd7ba9364'
        ' 363e4b3f8d712e9b5de15470a2aaadf1 b56378a6eefa9fed602bb16d192d4c8b',
    ),
    'bloodmnist': _set(
        'basophil eosinophil erythroblast immature_granulocytes lymphocyte monocyte neutrophil platelet',
        '7053d0359d879ad8a5505303e11de1dc 2b94928a2ae4916078ca51e05b6b800b'
        ' adace1e0ed228fccda1f39692059dd4c b718ff6835fcbdb22ba9eacccd7b2601',
    ),
    'tissuemnist': _set(
        'collecting_duct_connecting_tubule distal_convoluted_tubule glomerular_endothelial_cells'
        ' interstitial_endothelial_cells leukocytes podocytes proximal_tubule_segments thick_ascending_limb',
        'ebe78ee8b05294063de985d821c1c34b 123ece2eba09d0aa5d698fda57103344'
        ' 61b955355d7425a89687b06cca3ce0c2 b077128c4a949f0a4eb01517f9037b9c',
    ),
    'organamnist': _set(
        _ORGANS,
        '68e3f8846a6bd62f0c9bf841c0d9eacc 2dcccc29b88e6da5a01161ef20cda288'
        ' eeae80d0a227a8d099027e1b3cfd3b60 50747347e05c87dd3aaf92c49f9f3170',
    ),
    'organcmnist': _set(
        _ORGANS,
        'b9ceb9546e10131b32923c5bbeaea2b1 3ce34a8724ea6f548e6db4744d03b6a9'
        ' 773c1f009daa3fe5d9a2a201b2a7ed94 050f5e875dc056f6768abf94ec9995d1',
    ),
    'organsmnist': _set(
        _ORGANS,
        '9ab87b696fb54e2a387ebe992d6ed5f1 53a6d115339d874c25e309a994ff46d3'
        ' ded0c5fa01a95dc4978b956f613e9b8e b354719e553fbbb2513d5533f52a4cb1',
    ),
    'organmnist3d': _set(
        'liver kidney_right kidney_left femur_right femur_left bladder heart lung_right lung_left spleen pancreas',
        'a0c5a1ff56af4f155c46d46fbb45a2fe 58a2205adf14a9d0a189cb06dc78bf10',
    ),
    'nodulemnist3d': _set('malignant', '8755a7e9e05a4d9ce80a24c3e7a256f3 c47c5b7d457bf6332200d2ea6d64ecd8'),
    'adrenalmnist3d': _set('hyperplasia', 'bbd3c5a5576322bc4cdfea780653b1ce 17721accfe9fb005146a47d33bc54b2f'),
    'fracturemnist3d': _set(
        'buckle_rib_fracture nondisplaced_rib_fracture displaced_rib_fracture',
        '6aa7b0143a6b42da40027a9dda61302f f01d7e6316aedf4210da0da5b7437b42',
    ),
    'vesselmnist3d': _set('aneurysm', 'b41fd4f7e7e2feedddb201585ecafa1b 6bb274a8846e1097066dcd64e2c4520f'),
    'synapsemnist3d': _set('excitatory_synapse', '1235b78a3cd6280881dd7850a78eadb6 43bd14ebf3af9d3dd072446fedc14d5e'),
}


@dataclasses.dataclass(frozen=True)
class Release:
    """The pictures of a file, in the order of the entries: its images, or the slices of its volumes."""

    name: str  # of the set
    pictures: dict[str, np.ndarray]  # split -> [n,H,W] or [n,H,W,3]
    labels: dict[str, np.ndarray]  # split -> int8 [count,L]; without the splits that have no labels
    counts: dict[str, int]  # split -> number of images or volumes
    depths: dict[str, int]  # split -> pictures of a volume; 1 for images
    places: list[tuple[str, int]]  # split and position of each picture

    def entry(self, i: int, stamp: str) -> Entry:
        """The entry of picture i. `stamp` is that of the file."""
        split, k = self.places[i]
        number, z = divmod(k, self.depths[split])
        image = _image_id(self.name, split, number, self.counts[split])
        where = f'{split}_images[{number}]'
        if not self.name.endswith('3d'):
            return Entry(image, None, f'image/{image}', split, where, stamp=stamp)
        volume = f'volume/{image}'
        return Entry(f'{image} slice {z}', volume, volume, split, f'{where} slice {z}', stamp=stamp)

    def label(self, i: int) -> Sequence[int]:
        """The code of each label of picture i."""
        split, k = self.places[i]
        if split not in self.labels:
            return [BLANK] * len(SETS[self.name].labels)
        return self.labels[split][k // self.depths[split]].tolist()

    def load(self, i: int) -> Example:
        """Picture i."""
        split, k = self.places[i]
        return Example(np.ascontiguousarray(self.pictures[split][k]))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds FILE."""
    parser.add_argument('file', metavar='FILE', help=LAYOUT)


def source(file: str, split: str = 'official') -> Source:
    """The source of a file. UserError if its name is not a set's name, or if its arrays do not fit the set."""
    path = pathlib.Path(file).expanduser()
    name = _set_name(path)
    release = _release(path, name)
    list_name, notes = _comparison(path, name, release.counts)
    stamp = folders.stamp(path)
    patients = 'each image counts as one'
    if name.endswith('3d'):
        patients = 'each volume counts as a patient, so that its slices stay together'
    return Source(
        name=path.stem, version='1', namespace=name, labels=SETS[name].labels,
        license='CC BY-NC 4.0' if name == 'dermamnist' else 'CC BY 4.0',
        entries=[release.entry(i, stamp) for i in range(len(release.places))], label=release.label, load=release.load,
        notes=[*notes, f'the file names no patients: {patients}', *filter(None, [NOTES.get(name)])],
        splits=list_name,
    )  # fmt: skip


def _release(path: pathlib.Path, name: str) -> Release:
    """The pictures of a file. UserError if its arrays do not fit the set `name`."""
    is_volume = name.endswith('3d')
    arrays = npz.arrays(path)
    images = {split: arrays[f'{split}_images'] for split in SPLIT_NAMES if f'{split}_images' in arrays}
    labels = {
        split: _labels(arrays[f'{split}_labels'], SETS[name].labels) for split in images if f'{split}_labels' in arrays
    }
    pictures = {}
    for split, stack in images.items():
        if is_volume != (stack.ndim == 4 and stack.shape[3] > 3):
            raise UserError(
                f'{path}: {split}_images has shape {stack.shape}, which does not fit {name}; is the file name right?'
            )
        pictures[split] = stack.reshape(-1, *stack.shape[2:]) if is_volume else stack
        npz.check(path, split, pictures[split], None)
        if split in labels and len(labels[split]) != len(stack):
            raise UserError(f'{path}: {len(stack)} {split}_images but {len(labels[split])} {split}_labels')
    counts = {split: len(stack) for split, stack in images.items()}
    depths = {split: stack.shape[1] if is_volume else 1 for split, stack in images.items()}
    places = [(split, k) for split, stack in pictures.items() for k in range(len(stack))]
    return Release(name, pictures, labels, counts, depths, places)


def _set_name(path: pathlib.Path) -> str:
    """The set that a file's name begins with: 'organmnist3d' for organmnist3d_64.npz."""
    name = re.split(r'[_.]', path.name.lower())[0]
    if name not in SETS:
        raise UserError(
            f'{path.name} is not the name of a MedMNIST file{suggest(name, SETS)}; there are {", ".join(SETS)}. Give '
            f'{LAYOUT}; medjax build npz takes files of this format with any name'
        )
    return name


def _labels(labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """The label codes int8 [n,L] from class numbers [n,1] or from columns [n,L]."""
    labels = labels.reshape(len(labels), -1)
    classes = 2 if len(names) == 1 or labels.shape[1] > 1 else len(names)
    if labels.dtype.kind not in 'iub' or labels.shape[1] not in (1, len(names)):
        raise UserError(
            f'labels of shape {labels.shape} and dtype {labels.dtype}; this set has whole numbers of shape [n, 1] or '
            f'[n, {len(names)}]'
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f'labels from {labels.min()} to {labels.max()}; this set counts its {classes} classes from 0')
    has_class_numbers = labels.shape[1] == 1 and len(names) > 1
    return (labels == np.arange(len(names)) if has_class_numbers else labels).astype(np.int8)


def _image_id(name: str, split: str, number: int, count: int) -> str:
    """The id of image `number` of a split: 'train/17', in a trimmed file of 99 images 'train/17 of 99'."""
    published = published_splits.LISTS[f'medmnist/{name}'].images[split]
    return f'{split}/{number}' if count == published else f'{split}/{number} of {count}'


def _comparison(path: pathlib.Path, name: str, counts: dict[str, int]) -> tuple[str, list[str]]:
    """The name of the file's split list, and notes on whether the file is a published one. counts: split -> images."""
    current, older = f'medmnist/{name}', f'medmnist/{name} before 2.2.4'
    images = [(f'{split}/{i}', split) for split, count in counts.items() for i in range(count)]
    with path.open('rb') as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 in SETS[name].md5:
        size = (28, 64, 128, 224)[SETS[name].md5.index(md5)]
        return current, [f'the file is the published one of {size} px: its MD5 is in medmnist/info.py 3.0.2']
    if older in published_splits.LISTS and not published_splits.differences(older, images):
        return older, [
            f'the file is of {name} before MedMNIST 2.2.4, which removed blank images: results on the two differ'
        ]
    differences = published_splits.differences(current, images)
    list_name = published_splits.list_name(current, differences)
    return list_name, [f'the file is none of the published ones (MD5 {md5})', *differences]
