"""BRAX 1.1.0: 40,967 radiographs of 24,959 studies of a hospital in Brazil, labelled from reports in Portuguese.

    DIR/master_spreadsheet_update.csv     (in 1.0.0: master_spreadsheet.csv)
    DIR/images/id_<PatientID>/Study_<number>/Series_<number>/image-<number>.png
    DIR/Anonymized_DICOMs/id_<PatientID>/Study_…/Series_…/image-….dcm

The PNG file of the column PngPath is read. If it is not there, the DICOM file of DicomPath is read. The release has no
reports.

Splits: the release has none; they are drawn per patient.
Labels: the 14 of CheXpert, with 1, 0, -1 and blank as in the table. Several lines of one image are joined. Where they
differ, the label is conflicting.
Ids that derived data sets use: image = PngPath, patient = PatientID.
Traps:
- Ages are groups of five years, or '85 or more', which is stored as 85.
- Manufacturer is a number that hides the name.
- StudyDate is fictitious. It is not stored, and neither is AccessionNumber.
- ViewPosition has PA, AP, LL, RL, RLD, RLO … and blanks.

Checked: columns and paths in f10409/RadHarmony; the meaning of ages, sexes, labels and manufacturers in a public
description of the release (openmedlab/Awesome-Medical-Dataset); that PngPath is a path below DIR, in two public
loaders.
Recalled, not checked: how a cell of five years is written ('60' and '60 - 64' are both read as 60).
Licence (recalled): PhysioNet Credentialed Health Data 1.5.0.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from medjax.data.releases import coding, folders, tables
from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.data.releases.films import FilmRelease
from medjax.data.releases.tables import Line, Table
from medjax.data.types import Drop, Entry, Example, Source

LICENSE = 'PhysioNet credentialed 1.5.0'
TABLES = ('master_spreadsheet_update.csv', 'master_spreadsheet.csv')
LAYOUT = 'the folder that holds master_spreadsheet_update.csv, images/ and perhaps Anonymized_DICOMs/'


class Film(NamedTuple):
    """An image that the table names and whose file is there."""

    entry: Entry
    labels: list[int]
    cells: dict[str, str]  # the cells in which all lines of the image agree
    file: str


@dataclasses.dataclass(frozen=True)
class Release(FilmRelease):
    """The usable images, in the order of the entries."""

    films: list[Film]

    def load(self, i: int) -> Example:
        """Reads image i. Raises Unreadable."""
        cells = self.films[i].cells
        view, scanner = cells.get('ViewPosition', ''), cells.get('Manufacturer', '')
        attributes = coding.filled(
            age=_age(cells.get('PatientAge', '')),
            sex=coding.sex(cells.get('PatientSex', '')),
            view=view,
            scanner=f'manufacturer {scanner}' if re.fullmatch(r'\d+(\.0)?', scanner) else None,
        )
        data = folders.read_bytes(folders.inside(self.root, self.films[i].file))
        return Example(data, coding.role(view), attributes=attributes)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The source of the release in `folder`. UserError if the table or all images are missing."""
    root = folders.release_folder(folder, '|'.join(TABLES), layout=LAYOUT)
    path = next(root / name for name in TABLES if (root / name).exists())
    table = tables.read_table(path, ['PngPath', 'PatientID', 'AccessionNumber', 'ViewPosition', *CHEXPERT_LABELS])
    stamps = folders.files(root, '.png', '.dcm')
    images, unusable = tables.by_image(table, _image_id, _files(table, stamps), patient='PatientID')
    dropped = [*table.dropped, *unusable]
    films: list[Film] = []
    for image in images:
        labels, invalid = zip(*(coding.label_codes(line.cells, CHEXPERT_LABELS) for line in image.lines), strict=True)
        if columns := ', '.join(dict.fromkeys(column for line in invalid for column in line)):
            reason = f'neither 1, 0, -1 nor blank, taken as blank: {columns}'
            dropped.append(Drop(image.image, image.where, reason, 'detail'))
        patient, number = image.cells['PatientID'] or None, image.cells['AccessionNumber']
        study = f'{patient}/{number}' if patient and number else f'image/{image.image}'
        entry = Entry(image.image, patient, study, None, image.where, stamp=stamps[image.file])
        films.append(Film(entry, coding.combine_lines(labels), image.shared_cells, image.file))
    pictures = max(sum(name.endswith(suffix) for name in stamps) for suffix in ('.png', '.dcm'))
    notes = folders.usage_notes(root, path.name, LAYOUT, len(images) + len(unusable), len(films), pictures)

    release = Release(root, films)
    return Source(
        name='brax', version='1', namespace='brax', labels=tuple(map(coding.label_name, CHEXPERT_LABELS)),
        license=LICENSE, size=size, entries=[film.entry for film in films], label=release.label,
        load=release.load, dropped=dropped, notes=notes,
    )  # fmt: skip


def _image_id(line: Line) -> str:
    """The id of an image: the path of its PNG file or, if that is blank, of its DICOM file."""
    return line.cells['PngPath'] or line.cells.get('DicomPath', '')


def _files(table: Table, present: Mapping[str, str]) -> dict[str, str]:
    """Image -> its file: the PNG file, or the DICOM file if only that one is present."""
    file_of: dict[str, str] = {}
    for line in table.lines:
        for path in (line.cells['PngPath'], line.cells.get('DicomPath', '')):
            if path in present:
                file_of.setdefault(_image_id(line), path)
    return file_of


def _age(cell: str) -> float | None:
    """The lower end of '60', '60 - 64' or '85 or more'."""
    match = re.match(r'\d+(\.\d+)?', cell)
    return coding.age(match[0]) if match else None
