"""BRAX 1.1.0: 40,967 radiographs of 24,959 studies of a hospital in Brazil, labelled from reports in Portuguese.

    DIR/master_spreadsheet_update.csv     master_spreadsheet.csv in 1.0.0
    DIR/images/id_<PatientID>/Study_<number>/Series_<number>/image-<number>.png
    DIR/Anonymized_DICOMs/id_<PatientID>/Study_…/Series_…/image-….dcm

The PNG that PngPath names is read, or, where it is not there, the DICOM file of DicomPath. No official split: drawn
per patient. Labels: the 14 of CheXpert, 1, 0, -1, blank as in the table. Several lines of one image are joined: where
they differ, the label is conflicting. The release has no reports.
Ids for derived sets: image = PngPath, patient = PatientID.

Traps: ages are groups of five years and '85 or more' (told as 85); Manufacturer is a number that hides the name;
StudyDate is fictitious and, like AccessionNumber, not stored; ViewPosition has PA, AP, LL, RL, RLD, RLO … and blanks.

Checked: columns and paths in f10409/RadHarmony, the meaning of ages, sex, labels and manufacturers in a public
description of the release (openmedlab/Awesome-Medical-Dataset), PngPath as a path below DIR in two public loaders.
Recalled, not checked: how a cell of five years is written (a number is read, '60 - 64' as 60). Licence recalled:
PhysioNet Credentialed Health Data 1.5.0.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import NamedTuple

from medjax.data.releases import coding, folders, tables
from medjax.data.releases.coding import CHEXPERT
from medjax.data.releases.tables import Line, Table
from medjax.data.types import Drop, Entry, Example, Source

LICENSE = 'PhysioNet credentialed 1.5.0'
TABLES = ('master_spreadsheet_update.csv', 'master_spreadsheet.csv')
LAYOUT = 'the folder that holds master_spreadsheet_update.csv, images/ and perhaps Anonymized_DICOMs/'


class Film(NamedTuple):
    """An image of the table whose file is there."""

    entry: Entry
    labels: list[int]
    cells: dict[str, str]  # those in which all lines of the image agree
    file: str


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    root = folders.release_folder(folder, '|'.join(TABLES), layout=LAYOUT)
    path = next(root / name for name in TABLES if (root / name).exists())
    table = tables.read_table(path, ['PngPath', 'PatientID', 'AccessionNumber', 'ViewPosition', *CHEXPERT])
    stamps = folders.files(root, '.png', '.dcm')
    images, unusable = tables.by_image(table, _image, _files(table, stamps), patient='PatientID')
    dropped = [*table.dropped, *unusable]
    films: list[Film] = []
    for image in images:
        labels, wrong = zip(*(coding.codes(line.cells, CHEXPERT) for line in image.lines), strict=True)
        if names := ', '.join(dict.fromkeys(name for line in wrong for name in line)):
            reason = f'neither 1, 0, -1 nor blank, taken as blank: {names}'
            dropped.append(Drop(image.image, image.where, reason, 'part'))
        patient, number = image.cells['PatientID'] or None, image.cells['AccessionNumber']
        study = f'{patient}/{number}' if patient and number else f'image/{image.image}'
        entry = Entry(image.image, patient, study, None, image.where, stamp=stamps[image.file])
        films.append(Film(entry, coding.join(labels), image.shared_cells, image.file))
    pictures = max(sum(name.endswith(end) for name in stamps) for end in ('.png', '.dcm'))
    notes = folders.account(root, path.name, LAYOUT, len(images) + len(unusable), len(films), pictures)

    def load(i: int) -> Example:
        cells = films[i].cells
        view, scanner = cells.get('ViewPosition', ''), cells.get('Manufacturer', '')
        facts_told = coding.known(
            age=_age(cells.get('PatientAge', '')),
            sex=coding.sex(cells.get('PatientSex', '')),
            view=view,
            scanner=f'manufacturer {scanner}' if re.fullmatch(r'\d+(\.0)?', scanner) else None,
        )
        data = folders.content(folders.inside(root, films[i].file))
        return Example(data, coding.role(view), info=facts_told)

    return Source(
        name='brax', version='1', namespace='brax', labels=tuple(map(coding.label_name, CHEXPERT)), license=LICENSE,
        size=size, entries=[film.entry for film in films], label=lambda i: films[i].labels, load=load,
        dropped=dropped, notes=notes,
    )  # fmt: skip


def _image(line: Line) -> str:
    """The id of an image: the path of its PNG file or, without one, that of its DICOM file."""
    return line.cells['PngPath'] or line.cells.get('DicomPath', '')


def _files(table: Table, files: Mapping[str, str]) -> dict[str, str]:
    """Image -> its file: the PNG file, or the DICOM file where only that one is in the folder."""
    found: dict[str, str] = {}
    for line in table.lines:
        for path in (line.cells['PngPath'], line.cells.get('DicomPath', '')):
            if path in files:
                found.setdefault(_image(line), path)
    return found


def _age(cell: str) -> float | None:
    """The lower end of '60', '60 - 64' or '85 or more'."""
    match = re.match(r'\d+(\.\d+)?', cell)
    return coding.age(match[0]) if match else None
