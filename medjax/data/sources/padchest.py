"""PadChest: 160,868 radiographs of 67,625 patients of a Spanish hospital, 16-bit PNG, reports in Spanish.

    DIR/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv     or .csv.gz
    DIR/0/<ImageID>.png … DIR/54/…     the unpacked parts, or all files in one folder, or anywhere below DIR

No official split: drawn per patient. Labels: every name in the column Labels is one, among them normal, unchanged,
exclude and suboptimal study; 1 named, 0 not named, blank where Labels is blank or no list. Where a film says nothing of
what is not named, the rest is blank too: 'suboptimal study' and 'exclude' (could not be judged), and 'unchanged' alone
(as before, whatever that was). The cells are lists as Python or NumPy print them, with stray blanks and empty names;
they are never evaluated. Several lines of one image are joined: where they differ, the label is conflicting.
MethodLabel (Physician, or the network that read three quarters of the reports) is the column label_source.
Ids for derived sets: image = ImageID, patient = PatientID.

Traps: the first column has no name; files are missing or truncated (21 are listed in torchxrayvision: they are set
aside when they are opened); reports are one text of word stems without accents; the view is in Projection, read by a
person, not in ViewPosition_DICOM; ages are year of the study minus year of birth, and both dates stay out; some films
were MONOCHROME1: whether their PNG was inverted is not known, the column photometric tells them apart.

Checked: column names in a listing of the table's data frame and in several public loaders, the 21 files and full-scale
16 bits in mlmed/torchxrayvision, lists without commas in a public converter. Recalled, not checked: counts, the file
name's version, the names of Projection (PA, L, AP, AP_horizontal, COSTAL, EXCLUDE), units of SpatialResolution (mm;
its values .1 to .2 fit). Licence recalled: BIMCV research use agreement, by request.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medjax.data.releases import coding, folders, tables
from medjax.data.types import BLANK, NEGATIVE, POSITIVE, Drop, Entry, Example, Source

LICENSE = 'BIMCV PadChest research use agreement'
TABLE = 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv'
LAYOUT = f'the folder that holds {TABLE} (or .csv.gz) and the unpacked folders of PNG files'
COLUMNS = ('ImageID', 'StudyID', 'PatientID', 'Projection', 'Labels', 'Report')
UNJUDGED = {'suboptimal_study', 'exclude'}
UNSAID = 'unchanged'
SCANNER = r'[A-Za-z0-9][A-Za-z0-9 .&_-]{0,39}'  # a maker's name and nothing longer


class Film(NamedTuple):
    """An image of the table whose file is there."""

    entry: Entry
    label_cells: tuple[str, ...]  # the column Labels of each line; `label` reads them, since most labels are 0
    cells: dict[str, str]  # those in which all lines of the image agree
    file: str


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
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
            dropped.append(Drop(image.image, image.where, 'Labels is no list: blank for all', 'part'))
        patient, number = image.cells['PatientID'] or None, image.cells['StudyID']
        study = f'{patient}/{number}' if patient and number else f'image/{image.image}'
        entry = Entry(image.image, patient, study, None, image.where, stamp=stamps[image.file])
        films.append(Film(entry, label_cells, image.shared_cells, image.file))
    notes = folders.account(root, table.path.name, LAYOUT, len(images) + len(unusable), len(films), len(stamps))
    if inverse := sum(film.cells.get('PhotometricInterpretation_DICOM') == 'MONOCHROME1' for film in films):
        notes.append(f'{inverse:,} films were MONOCHROME1: look whether their bones are bright (column photometric)')

    def load(i: int) -> Example:
        cells = films[i].cells
        view = cells.get('Projection', '')
        role = 'costal' if view == 'COSTAL' else coding.role(view)
        data = folders.content(folders.inside(root, films[i].file))
        return Example(data, role, text=_sections(cells.get('Report', '')), info=_info(cells))

    return Source(
        name='padchest', version='1', namespace='padchest', labels=tuple(names), license=LICENSE,
        size=size, entries=[film.entry for film in films],
        label=lambda i: coding.join([_codes(cell, names) for cell in films[i].label_cells]),
        load=load, dropped=dropped, notes=notes,
    )  # fmt: skip


def _listed(cell: str) -> list[str] | None:
    """The labels in "['pleural effusion', 'normal ']" or "['a' 'b']"; [] for a blank cell, None where it is no list."""
    if not cell or cell.lower() == 'nan':
        return []
    if not (cell.startswith('[') and cell.endswith(']')):
        return None
    quoted = re.findall(r"""'([^']*)'|"([^"]*)\"""", cell)
    return [name for single, double in quoted if (name := coding.label_name(single or double))]


def _codes(cell: str, names: Sequence[str]) -> list[int]:
    """1 for what a cell names; the rest is 0, or blank where nobody judged it."""
    named = set(_listed(cell) or ())
    rest = BLANK if not named or named & UNJUDGED or named == {UNSAID} else NEGATIVE
    return [POSITIVE if name in named else rest for name in names]


def _info(cells: Mapping[str, str]) -> dict[str, str | float]:
    spacing = coding.years(cells.get('SpatialResolution_DICOM', ''))  # a number that is not negative
    scanner = cells.get('Manufacturer_DICOM', '')
    return coding.known(
        age=_age(cells.get('PatientBirth', ''), cells.get('StudyDate_DICOM', '')),
        sex=coding.sex(cells.get('PatientSex_DICOM', '')),
        view=cells.get('Projection'),
        modality=cells.get('Modality_DICOM'),
        scanner=scanner if re.fullmatch(SCANNER, scanner) else None,
        spacing=spacing or None,
        photometric=cells.get('PhotometricInterpretation_DICOM'),
        label_source=cells.get('MethodLabel'),
        language='es',
    )


def _age(birth: str, study: str) -> float | None:
    """Years from '1958.0' and '20140407' (or '2014-04-07'): a year too many where the birthday was still to come."""
    years = [re.match(r'(19|20)\d\d', cell) for cell in (birth, study)]
    if years[0] is None or years[1] is None:
        return None
    return coding.age(str(int(years[1][0]) - int(years[0][0])))


def _sections(text: str) -> dict[str, str]:
    return {'report': text} if text else {}
