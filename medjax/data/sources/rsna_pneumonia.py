"""RSNA Pneumonia Detection Challenge 2018: DICOM films with boxes; each film is an image of NIH ChestX-ray14.

    DIR/stage_2_train_labels.csv          patientId, x, y, width, height, Target: one box a line
    DIR/stage_2_detailed_class_info.csv   optional: patientId, class, repeated as often as in the table above
    DIR/stage_2_train_images/<patientId>.dcm, stage_2_test_images/<patientId>.dcm (without labels)
    DIR/pneumonia-challenge-dataset-mappings_2018.json    optional, from RSNA's site: the NIH image of each film

Splits: the release has none; they are drawn. `benchx` is 18,678 / 4,003 / 4,003 images, which yangzhou12/BenchX
published and drew image by image. If the mapping is there, a patient in several splits is kept in the last one of
train, val and test, and the patient's other images are set aside.
Labels: `pneumonia` is Target. The other three are the classes, blank without the class table. Lines of one image that
disagree give conflicting. The labels of test images are blank.
Mask: 255 inside any box; all 0 if Target is 0.
Patients: with the mapping, each record has its NIH image and patient as origin. So leaks between this set and NIH are
found, and splits are drawn per NIH patient. Without the mapping no patient is known, and a note says so.
Traps: 'patientId' names an image, not a person. 30,227 lines describe 26,684 images. Headers have ages of 148 to 155
years, which are left out.

Checked: the label table and facts of the headers (copies in mlmed/torchxrayvision: no image has both Targets); the
lists of BenchX; the class names and the mapping's fields `subset_img_id` and `img_id`, in loaders of several public
repositories, not in the files.
Recalled, not checked: the folder of the test images.
Licence (recalled): Kaggle competition rules.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.films import FilmRelease
from medjax.data.releases.tables import ImageLines, Line
from medjax.data.types import BLANK, Drop, Entry, Example, Origin, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'Kaggle competition rules: non-commercial use'
LAYOUT = 'the folder that holds stage_2_train_labels.csv and stage_2_train_images/ of the RSNA Pneumonia Challenge'
SPLITS = ('given', 'benchx')  # given: the release has no splits, so they are drawn
MAPPING = 'pneumonia-challenge-dataset-mappings_2018.json'
CLASSES = ('Lung Opacity', 'No Lung Opacity / Not Normal', 'Normal')
LABELS = ('pneumonia', 'lung_opacity', 'no_lung_opacity_not_normal', 'normal')
BOX = ('x', 'y', 'width', 'height')


class Film(NamedTuple):
    """An image whose file is there."""

    entry: Entry
    labels: list[int]
    lines: list[Line]  # of the table; [] for a test image
    file: str


@dataclasses.dataclass(frozen=True)
class Release(FilmRelease):
    """The usable images, in the order of the entries."""

    films: list[Film]

    def load(self, i: int) -> Example:
        """Reads image i and draws its mask. Raises Unreadable."""
        film = self.films[i]
        data, mask, note = folders.read_bytes(folders.inside(self.root, film.file)), None, ''
        try:
            if film.labels[0] in (0, 1):
                mask = _boxes(film.lines, dicom.shape(data))
        except Unreadable as error:
            note = f'the mask is left out: {error}'
        attributes = dicom.attributes(data)
        role = coding.role(str(attributes.get('view', '')))
        return Example(data, role, attributes=attributes, mask=mask, note=note)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'given') -> Source:
    """The source of the release in `folder`. UserError if the table or all images are missing."""
    root = folders.release_folder(folder, 'stage_2_train_labels.csv', layout=LAYOUT)
    table = tables.read_table(root / 'stage_2_train_labels.csv', ['patientId', 'Target', *BOX])
    classes, origins = _classes(root), nih_origins(root)
    split_of = published_splits.read_lists(root, 'benchx', 'from yangzhou12/BenchX') if split == 'benchx' else {}
    stamps = folders.files(root, '.dcm')
    files = {pathlib.PurePosixPath(path).stem: path for path in stamps}
    images, unusable = tables.by_image(table, 'patientId', files)
    in_table = {image.image for image in images}
    table_images = len(images) + len(unusable)
    images += [
        ImageLines(image, path, 'stage_2_test_images', [])
        for image, path in files.items()
        if 'stage_2_test_images' in path.split('/') and image not in in_table
    ]
    films, problems = _films(images, stamps, classes, origins, split_of)
    dropped = [*table.dropped, *unusable, *problems]
    if not films:
        raise UserError(f'{root}: none of the {table_images} images of {table.path.name} is there; give {LAYOUT}')
    entries = [film.entry for film in films.values()]
    notes = _notes(origins, entries, folders.unlisted_notes(stamps, {image.file for image in images}, 'the table'))
    list_name = ''
    if split_of:
        differences = published_splits.differences('rsna_pneumonia/benchx', split_of.items())
        list_name = published_splits.list_name('rsna_pneumonia/benchx', differences)
        notes += differences
        entries, apart = published_splits.keep_patients_apart(entries)
        dropped += apart
    release = Release(root, [films[entry.image] for entry in entries])
    return Source(
        name='rsna_pneumonia', version='1', namespace='rsna_pneumonia', labels=LABELS, license=LICENSE, size=size,
        entries=entries, label=release.label, load=release.load, dropped=dropped, notes=notes, splits=list_name,
        masks=('pneumonia_box',),
    )  # fmt: skip


def nih_origins(root: pathlib.Path) -> dict[str, Origin]:
    """RSNA's image id -> the NIH image of this film, from the mapping in the folder; {} without a mapping."""
    path = root / MAPPING
    if not path.exists():
        return {}
    mapping = tables.read_json(path)
    items = [item for item in mapping if isinstance(item, dict)] if isinstance(mapping, list) else []
    origins = {}
    for item in items:
        image, nih_image = str(item.get('subset_img_id', '')), str(item.get('img_id', ''))
        if image and (match := re.fullmatch(r'(\d{8})_\d{3}\.png', nih_image)):
            origins[image] = Origin('nih', nih_image, str(int(match[1])))
    if not origins:
        raise UserError(f'{path} has no subset_img_id with an img_id like 00000013_005.png; copy it again or remove it')
    return origins


def _films(
    images: list[ImageLines],
    stamps: Mapping[str, str],
    classes: Mapping[str, list[str]],
    origins: Mapping[str, Origin],
    split_of: Mapping[str, str],
) -> tuple[dict[str, Film], list[Drop]]:
    """Image -> film, and drops for images without a split and for invalid cells. stamps: file -> stamp.

    classes, origins, split_of: image -> its classes, its NIH image and its split. `split_of` may be empty.
    """
    films: dict[str, Film] = {}
    dropped: list[Drop] = []
    for image, path, where, lines in images:
        if split_of and image not in split_of:
            dropped.append(Drop(image, where, 'not in the lists of the split benchx'))
            continue
        labels, problem = _labels(lines, classes.get(image, []))
        if problem:
            dropped.append(Drop(image, where, problem, 'detail'))
        origin = origins.get(image)
        entry = Entry(image, None, f'image/{image}', split_of.get(image), where, origin, stamps[path])
        films[image] = Film(entry, labels, lines, path)
    return films, dropped


def _classes(root: pathlib.Path) -> Mapping[str, list[str]]:
    """Image -> the class in each of its lines in the class table; {} without the table."""
    path = root / 'stage_2_detailed_class_info.csv'
    if not path.exists():
        return {}
    lines_of = tables.read_table(path, ['patientId', 'class']).by('patientId')
    return {image: [line.cells['class'] for line in lines] for image, lines in lines_of.items()}


def _labels(lines: Iterable[Line], classes: Iterable[str]) -> tuple[list[int], str]:
    """The four label codes of an image, and what is wrong in its lines ('' if nothing)."""
    targets = [coding.label_code(line.cells['Target']) if line.cells['Target'] else BLANK for line in lines]
    valid = [name for name in classes if name in CLASSES]
    problem = '' if {*targets} <= {0, 1, BLANK} else 'Target is neither 0 nor 1'
    if len(valid) < len(list(classes)):
        problem = 'the class is none of ' + ', '.join(CLASSES)
    pneumonia = coding.combine(target if target in (0, 1) else BLANK for target in targets)
    return [pneumonia, *(coding.combine(int(name == cell) for cell in valid) for name in CLASSES)], problem


def _boxes(lines: Iterable[Line], shape: tuple[int, int]) -> np.ndarray:
    """The mask of the boxes: uint8 [H,W], 255 inside. x and y are the upper left corner in pixels."""
    mask = np.zeros(shape, np.uint8)
    for line in lines:
        if not any(line.cells[name] for name in BOX):
            if coding.label_code(line.cells['Target']) == 1:
                raise Unreadable('a line with Target 1 has no box')
            continue
        try:
            x, y, width, height = (float(line.cells[name]) for name in BOX)
        except ValueError:
            raise Unreadable('a box does not have four numbers') from None
        if not all(map(math.isfinite, (x, y, width, height))) or min(x, y) < 0 or min(width, height) <= 0:
            raise Unreadable('a box has a negative corner or no area')
        if x + width > shape[1] + 1 or y + height > shape[0] + 1:
            raise Unreadable(f'a box leaves the image of {shape[1]}x{shape[0]} pixels')
        mask[round(y) : round(y + height), round(x) : round(x + width)] = 255
    return mask


def _notes(origins: dict[str, Origin], entries: list[Entry], unlisted: list[str]) -> list[str]:
    """Notes on the mapping to NIH images and on unknown patients, followed by the notes `unlisted`."""
    mapped = sum(entry.origin is not None for entry in entries)
    if not origins:
        return [
            f'every image is one of NIH ChestX-ray14: put {MAPPING} of the challenge into DIR, so that images which '
            'a model was trained on are found',
            'no patients are known (patientId names an image): near-duplicates stay together where splits are drawn',
            *unlisted,
        ]
    missing = [f'{len(entries) - mapped} images are not in {MAPPING}'] if mapped < len(entries) else []
    return [f'{mapped} images are known as images of NIH ChestX-ray14', *missing, *unlisted]
