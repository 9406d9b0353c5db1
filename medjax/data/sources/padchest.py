"""PadChest: 160,868 radiographs of 67,625 patients of a Spanish hospital, 16-bit PNG, reports in Spanish.

    DIR/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv     or .csv.gz
    DIR/0/<ImageID>.png … DIR/54/…     the unpacked archives; or all files in one folder, or anywhere below DIR

Splits: none is official; they are drawn per patient.
Labels: every name in the column Labels becomes a label, among them normal, unchanged, exclude and suboptimal study. 1
is named, 0 is not named. All labels are blank if the cell is blank or not a list. A label that is not named is blank
instead of 0 if the film says nothing of it: beside 'suboptimal study' and 'exclude' (the film could not be judged), and
beside 'unchanged' alone (the film is as before, but the cell does not say how that was). Several lines of one image are
joined. Where they differ, the label is conflicting. The column label_source holds MethodLabel: Physician, or the
network that read three quarters of the reports.
Ids that derived data sets use: image = ImageID, patient = PatientID.
Traps:
- The first column has no name.
- Cells of Labels are lists as Python or NumPy print them, with extra blanks and empty names. They are never evaluated.
- Some files are missing or truncated. torchxrayvision lists 21, which are set aside when they are opened.
- A report is one text of word stems without accents.
- The view is in Projection, which a person read, and not in ViewPosition_DICOM.
- Ages are the year of the study minus the year of birth. Neither date is stored.
- Some films were MONOCHROME1. Whether their PNG was inverted is not known; the column photometric says which they are.

Checked: column names in a listing of the table's data frame and in several public loaders; the 21 files and the full
scale of 16 bits in mlmed/torchxrayvision; lists without commas in a public converter.
Recalled, not checked: counts; the version in the file's name; the values of Projection (PA, L, AP, AP_horizontal,
COSTAL, EXCLUDE); the unit of SpatialResolution (mm, which fits its values .1 to .2).
Licence (recalled): BIMCV research use agreement, by request.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medjax.data.releases import coding, folders, tables
from medjax.data.types import BLANK, NEGATIVE, POSITIVE, Drop, Entry, Example, Source

LICENSE = 'BIMCV PadChest research use agreement'
TABLE = 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv'
LAYOUT = f'the folder that holds {TABLE} (or .csv.gz) and the unpacked folders of PNG files'
COLUMNS = ('ImageID', 'StudyID', 'PatientID', 'Projection', 'Labels', 'Report')
NOT_JUDGED = {'suboptimal_study', 'exclude'}
UNCHANGED = 'unchanged'
SCANNER = r'[A-Za-z0-9][A-Za-z0-9 .&_-]{0,39}'  # the name of a manufacturer, not a longer text


class Film(NamedTuple):
    """An image that the table names and whose file is there."""

    entry: Entry
    label_cells: tuple[str, ...]  # the column Labels of each line
    cells: dict[str, str]  # the cells in which all lines of the image agree
    file: str


@dataclasses.dataclass(frozen=True)
class Release:
    """The usable images, in the order of the entries."""

    root: pathlib.Path
    films: list[Film]
    names: tuple[str, ...]  # of the labels

    def label(self, i: int) -> list[int]:
        """The code of each label of image i."""
        return coding.combine_lines([_codes(cell, self.names) for cell in self.films[i].label_cells])

    def load(self, i: int) -> Example:
        """Reads image i and its report. Raises Unreadable."""
        cells = self.films[i].cells
        view, report = cells.get('Projection', ''), cells.get('Report', '')
        role = 'costal' if view == 'COSTAL' else coding.role(view)
        data = folders.read_bytes(folders.inside(self.root, self.films[i].file))
        return Example(data, role, text={'report': report} if report else {}, attributes=_attributes(cells))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The source of the release in `folder`. UserError if the table or all images are missing."""
    root = folders.release_folder(folder, f'{TABLE}|{TABLE}.gz', layout=LAYOUT)
    table = tables.read_table(next(path for path in (root / TABLE, root / f'{TABLE}.gz') if path.exists()), COLUMNS)
    stamps = folders.files(root, '.png')
    files = {path.rsplit('/', 1)[-1]: path for path in sorted(stamps, reverse=True)}  # of equal names the first path
    names = sorted({name for line in table.lines for name in _listed(line.cells['Labels']) or ()})
    images, unusable = tables.by_image(table, 'ImageID', files, patient='PatientID')
    dropped = [*table.dropped, *unusable]
    films: list[Film] = []
    for image in images:
        label_cells = tuple(line.cells['Labels'] for line in image.lines)
        if any(_listed(cell) is None for cell in label_cells):
            dropped.append(Drop(image.image, image.where, 'Labels is not a list: all labels are blank', 'detail'))
        patient, number = image.cells['PatientID'] or None, image.cells['StudyID']
        study = f'{patient}/{number}' if patient and number else f'image/{image.image}'
        entry = Entry(image.image, patient, study, None, image.where, stamp=stamps[image.file])
        films.append(Film(entry, label_cells, image.shared_cells, image.file))
    notes = folders.usage_notes(root, table.path.name, LAYOUT, len(images) + len(unusable), len(films), len(stamps))
    if inverse := sum(film.cells.get('PhotometricInterpretation_DICOM') == 'MONOCHROME1' for film in films):
        notes.append(f'{inverse:,} films were MONOCHROME1: look whether their bones are bright (column photometric)')

    release = Release(root, films, tuple(names))
    return Source(
        name='padchest', version='1', namespace='padchest', labels=release.names, license=LICENSE,
        size=size, entries=[film.entry for film in films], label=release.label, load=release.load, dropped=dropped,
        notes=notes,
    )  # fmt: skip


def _listed(cell: str) -> list[str] | None:
    """The labels in "['pleural effusion', 'normal ']" or "['a' 'b']"; [] for a blank cell, None if it is not a list."""
    if not cell or cell.lower() == 'nan':
        return []
    if not (cell.startswith('[') and cell.endswith(']')):
        return None
    quoted = re.findall(r"""'([^']*)'|"([^"]*)\"""", cell)
    return [name for single, double in quoted if (name := coding.label_name(single or double))]


def _codes(cell: str, names: Sequence[str]) -> list[int]:
    """The label codes of a cell of Labels: 1 for a name in it, for the others 0 or, if nobody judged them, blank."""
    named = set(_listed(cell) or ())
    not_named = BLANK if not named or named & NOT_JUDGED or named == {UNCHANGED} else NEGATIVE
    return [POSITIVE if name in named else not_named for name in names]


def _attributes(cells: Mapping[str, str]) -> dict[str, str | float]:
    """Age, sex, view and further attributes of an image."""
    scanner = cells.get('Manufacturer_DICOM', '')
    return coding.filled(
        age=_age(cells.get('PatientBirth', ''), cells.get('StudyDate_DICOM', '')),
        sex=coding.sex(cells.get('PatientSex_DICOM', '')),
        view=cells.get('Projection'),
        modality=cells.get('Modality_DICOM'),
        scanner=scanner if re.fullmatch(SCANNER, scanner) else None,
        spacing=_spacing(cells.get('SpatialResolution_DICOM', '')),
        photometric=cells.get('PhotometricInterpretation_DICOM'),
        label_source=cells.get('MethodLabel'),
        language='es',
    )


def _spacing(cell: str) -> float | None:
    """The size of a pixel in mm; None if the cell is not a positive number."""
    try:
        spacing = float(cell)
    except ValueError:
        return None
    return spacing if math.isfinite(spacing) and spacing > 0 else None


def _age(birth: str, study: str) -> float | None:
    """The age from '1958.0' and '20140407' (or '2014-04-07'). Before that year's birthday it is one too high."""
    years = [re.match(r'(19|20)\d\d', cell) for cell in (birth, study)]
    if years[0] is None or years[1] is None:
        return None
    return coding.age(str(int(years[1][0]) - int(years[0][0])))
