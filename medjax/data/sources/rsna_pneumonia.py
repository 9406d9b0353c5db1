"""RSNA Pneumonia Detection Challenge 2018: DICOM films with boxes; every one of them is an image of NIH ChestX-ray14.

    DIR/stage_2_train_labels.csv          patientId, x, y, width, height, Target: a line a box
    DIR/stage_2_detailed_class_info.csv   patientId, class (if there; repeated as often as in the table above)
    DIR/stage_2_train_images/<patientId>.dcm, stage_2_test_images/<patientId>.dcm (without labels)
    DIR/pneumonia-challenge-dataset-mappings_2018.json    from RSNA's site, if there: which NIH image each one is

Traps: 30,227 lines for 26,684 images; 'patientId' names an image, not a person, and is no patient here. With the
mapping each record has its NIH image and patient as origin, so leaks into NIH are found and splits are drawn per NIH
patient; without it nobody is known and a note says so. Header ages of 148 to 155 years are left out.

Labels: `pneumonia` is Target; the other three are the classes, blank without the class table. Lines of one image that
disagree give conflicting. The mask is 255 inside any box, all 0 where Target is 0. Test images have blank labels.

Splits: drawn; or `benchx`, 18,678 / 4,003 / 4,003, which yangzhou12/BenchX published and drew image by image: where the
mapping is there, a patient of several parts is kept in the last of them, the other images are set aside.

Checked: the label table and header facts (copies in mlmed/torchxrayvision: no image has both Targets); the lists of
BenchX; the class names and the mapping's fields `subset_img_id` and `img_id` (in loaders of several public
repositories, not in the files). Recalled, not checked: the test folder; the licence (Kaggle competition rules).
"""

from __future__ import annotations

import argparse
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.tables import ImageLines, Line
from medjax.data.types import BLANK, Drop, Entry, Example, Origin, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'Kaggle competition rules: non-commercial use'
LAYOUT = 'the folder that holds stage_2_train_labels.csv and stage_2_train_images/ of the RSNA Pneumonia Challenge'
SPLITS = ('given', 'benchx')  # given: the release has none, so they are drawn
MAPPING = 'pneumonia-challenge-dataset-mappings_2018.json'
CLASSES = ('Lung Opacity', 'No Lung Opacity / Not Normal', 'Normal')
LABELS = ('pneumonia', 'lung_opacity', 'no_lung_opacity_not_normal', 'normal')
BOX = ('x', 'y', 'width', 'height')


class Film(NamedTuple):
    """A film that has a file."""

    entry: Entry
    labels: list[int]
    lines: list[Line]  # its lines in the table; [] for the test images
    file: str


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'given') -> Source:
    root = folders.release_folder(folder, 'stage_2_train_labels.csv', layout=LAYOUT)
    table = tables.read_table(root / 'stage_2_train_labels.csv', ['patientId', 'Target', *BOX])
    classes, origins = _classes(root), nih_origins(root)
    listed = published_splits.read_split(root, 'benchx', 'from yangzhou12/BenchX') if split == 'benchx' else {}
    stamps = folders.files(root, '.dcm')
    files = {pathlib.PurePosixPath(path).stem: path for path in stamps}
    images, unusable = tables.by_image(table, 'patientId', files)
    in_table = {image.image for image in images}
    images += [
        ImageLines(image, path, 'stage_2_test_images', [])
        for image, path in files.items()
        if 'stage_2_test_images' in path.split('/') and image not in in_table
    ]
    dropped = [*table.dropped, *unusable]
    films: dict[str, Film] = {}
    for image, path, where, lines in images:
        if listed and image not in listed:
            dropped.append(Drop(image, where, 'in no list of the split benchx'))
            continue
        labels, problem = _labels(lines, classes.get(image, []))
        if problem:
            dropped.append(Drop(image, where, problem, 'part'))
        origin = origins.get(image)
        entry = Entry(image, None, f'image/{image}', listed.get(image), where, origin, stamps[path])
        films[image] = Film(entry, labels, lines, path)
    if not films:
        raise UserError(f'{root}: none of the {len(unusable)} images of {table.path.name} is there; give {LAYOUT}')
    entries = [film.entry for film in films.values()]
    notes = _notes(origins, entries, folders.not_named(stamps, {image.file for image in images}, 'the table'))
    name_of_list = ''
    if listed:
        differ = published_splits.differences('rsna_pneumonia/benchx', listed.items())
        name_of_list = published_splits.named('rsna_pneumonia/benchx', differ)
        notes += differ
        entries, apart = published_splits.keep_apart(entries)
        dropped += apart

    def load(i: int) -> Example:
        film = films[entries[i].image]
        data, mask, note = folders.content(folders.inside(root, film.file)), None, ''
        try:
            if film.labels[0] in (0, 1):
                mask = _boxes(film.lines, dicom.shape(data))
        except Unreadable as error:
            note = f'the mask is left out: {error}'
        facts = dicom.facts(data)
        role = coding.role(str(facts.get('view', '')))
        return Example(data, role, info=facts, mask=mask, note=note)

    return Source(
        name='rsna_pneumonia', version='1', namespace='rsna_pneumonia', labels=LABELS, license=LICENSE, size=size,
        entries=entries, label=lambda i: films[entries[i].image].labels, load=load, dropped=dropped, notes=notes,
        splits=name_of_list,
    )  # fmt: skip


def nih_origins(root: pathlib.Path) -> dict[str, Origin]:
    """RSNA's image id -> the NIH image it is, from the mapping in the folder; {} where there is none."""
    path = root / MAPPING
    if not path.exists():
        return {}
    rows = tables.read_json(path)
    named = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    found = {}
    for row in named:
        image, nih = str(row.get('subset_img_id', '')), str(row.get('img_id', ''))
        if image and (match := re.fullmatch(r'(\d{8})_\d{3}\.png', nih)):
            found[image] = Origin('nih', nih, str(int(match[1])))
    if not found:
        raise UserError(f'{path} has no subset_img_id with an img_id like 00000013_005.png; copy it again or remove it')
    return found


def _classes(root: pathlib.Path) -> Mapping[str, list[str]]:
    """Image -> the class in each of its lines in the class table; {} without the table."""
    path = root / 'stage_2_detailed_class_info.csv'
    if not path.exists():
        return {}
    lines = tables.read_table(path, ['patientId', 'class']).by('patientId')
    return {image: [line.cells['class'] for line in same] for image, same in lines.items()}


def _labels(lines: Iterable[Line], classes: Iterable[str]) -> tuple[list[int], str]:
    """The four labels of an image, and what in its lines could not be understood."""
    targets = [coding.label(line.cells['Target']) if line.cells['Target'] else BLANK for line in lines]
    known = [name for name in classes if name in CLASSES]
    wrong = 'Target is neither 0 nor 1' if not {*targets} <= {0, 1, BLANK} else ''
    if len(known) < len(list(classes)):
        wrong = 'the class is none of ' + ', '.join(CLASSES)
    target = coding.fuse(value if value in (0, 1) else BLANK for value in targets)
    return [target, *(coding.fuse(int(name == cell) for cell in known) for name in CLASSES)], wrong


def _boxes(lines: Iterable[Line], shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H,W], 255 inside the boxes; x and y are the left upper corner in pixels."""
    mask = np.zeros(shape, np.uint8)
    for line in lines:
        if not any(line.cells[name] for name in BOX):
            if coding.label(line.cells['Target']) == 1:
                raise Unreadable('a line with Target 1 has no box')
            continue
        try:
            x, y, width, height = (float(line.cells[name]) for name in BOX)
        except ValueError:
            raise Unreadable('a box is no four numbers') from None
        if not all(map(math.isfinite, (x, y, width, height))) or min(x, y) < 0 or min(width, height) <= 0:
            raise Unreadable('a box has a negative corner or no area')
        if x + width > shape[1] + 1 or y + height > shape[0] + 1:
            raise Unreadable(f'a box leaves the image of {shape[1]}x{shape[0]} pixels')
        mask[round(y) : round(y + height), round(x) : round(x + width)] = 255
    return mask


def _notes(origins: dict[str, Origin], entries: list[Entry], extra: list[str]) -> list[str]:
    mapped = sum(entry.origin is not None for entry in entries)
    if not origins:
        return [
            f'every image is one of NIH ChestX-ray14: put {MAPPING} of the challenge into DIR, so that those '
            'a model was trained on are found',
            'no patients are known (patientId names an image): near-duplicates stay together where splits are drawn',
            *extra,
        ]
    missing = [f'{len(entries) - mapped} images are not in {MAPPING}'] if mapped < len(entries) else []
    return [f'{mapped} images are known as images of NIH ChestX-ray14', *missing, *extra]
