"""CANDID-PTX: 19,237 DICOM radiographs of Dunedin with reports, and masks of pneumothorax as run lengths.

    DIR/Pneumothorax_reports.csv    SOPInstanceUID, EncodedPixels, Report, StudyInstanceUID, filename: one mask a line
    DIR/chest_tube.csv, DIR/acute_rib_fracture.csv (or Rib_fracture_mask_rle.csv)    anon_SOPUID, mask_rle
    DIR/chest_radiographs/<SOPInstanceUID>    without a suffix in the release; .dcm and other folders are accepted

Splits: the release has none; they are drawn per patient.
Labels: `pneumothorax` is 1 with runs, 0 with '-1', blank without either, and conflicting with both. `chest_tube` and
`rib_fracture` are 1 if their table has runs for the image. They are 0 if it has none, as in all public loaders, and
blank without the table.
Mask: the pneumothorax; all its masks in an image are joined. Masks of tubes and fractures are left out.
Patients: the beginning of `filename`, before the first '_' (P0012_… is patient 12). An image whose lines name two
patients is set aside. Age and sex come from the DICOM headers.
Reports: the de-identification wrote '!PERSONALNAME!' and '<###>' in place of words. They are stored as '___', as in
all data sets (`data.text.language`), and the report is cut into its sections.
Traps: an image has several lines. A blank EncodedPixels means that nobody answered; '-1' means that there is no
pneumothorax. The tables of tubes and fractures have lines with '-1' too.

Checked in the loaders of several public repositories: file names and columns; that runs are relative and go down the
columns; the patient in `filename`; an image under two patients; empty reports.
Recalled, not checked: 19,237 images; that an image without a line in the two small tables has no tube or fracture.
Licence (recalled): CANDID-PTX data use agreement.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, rle, tables
from medjax.data.releases.films import FilmRelease
from medjax.data.releases.tables import Line, Table
from medjax.data.text import language, sections
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'CANDID-PTX data use agreement'
LAYOUT = 'the folder that holds Pneumothorax_reports.csv and chest_radiographs/ of CANDID-PTX'
LABELS = ('pneumothorax', 'chest_tube', 'rib_fracture')
SMALL_TABLES = {
    'chest_tube': ('chest_tube.csv',),
    'rib_fracture': ('acute_rib_fracture.csv', 'Rib_fracture_mask_rle.csv'),
}


class Film(NamedTuple):
    """An image that the table names and whose file is there."""

    entry: Entry
    labels: list[int]
    lines: list[Line]
    file: str


@dataclasses.dataclass(frozen=True)
class Release(FilmRelease):
    """The usable images, in the order of the entries."""

    films: list[Film]

    def load(self, i: int) -> Example:
        """Reads image i, its mask and its report. Raises Unreadable."""
        film = self.films[i]
        data, mask, note = folders.read_bytes(folders.inside(self.root, film.file)), None, ''
        try:
            if film.labels[0] != BLANK:
                mask = rle.mask([line.cells['EncodedPixels'] for line in film.lines], dicom.shape(data))
        except Unreadable as error:
            note = f'the mask is left out: {error}'
        attributes = dicom.attributes(data) | {'language': 'en'}
        role = coding.role(str(attributes.get('view', '')))
        return Example(data, role, _sections(film.lines), attributes, mask, note=note)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The source of the release in `folder`. UserError if the table or all images are missing."""
    root = folders.release_folder(folder, 'Pneumothorax_reports.csv', layout=LAYOUT)
    table = tables.read_table(root / 'Pneumothorax_reports.csv', ['SOPInstanceUID', 'EncodedPixels'])
    positives = {label: _positives(root, names) for label, names in SMALL_TABLES.items()}
    stamps = {path: stamp for path, stamp in folders.files(root).items() if not path.lower().endswith(('.csv', '.txt'))}
    files = {path.rsplit('/', 1)[-1].removesuffix('.dcm'): path for path in stamps}
    images, unusable = tables.by_image(table, 'SOPInstanceUID', files)
    dropped = [*table.dropped, *unusable]
    films: list[Film] = []
    for image, path, where, lines in images:
        try:
            patient = _patient(lines)
        except Unreadable as error:
            dropped.append(Drop(image, where, str(error)))
            continue
        pneumothorax, invalid = _pneumothorax(lines)
        for line in invalid:
            reason = 'EncodedPixels is neither runs nor -1; this line is ignored'
            dropped.append(Drop(image, table.where(line), reason, 'detail'))
        number = next((line.cells['StudyInstanceUID'] for line in lines if line.cells.get('StudyInstanceUID')), '')
        study = f'{patient}/{number}' if patient and number else f'study/{number}' if number else f'image/{image}'
        others = [BLANK if images is None else int(image in images) for images in positives.values()]
        entry = Entry(image, patient, study, None, where, stamp=stamps[path])
        films.append(Film(entry, [pneumothorax, *others], lines, path))
    if not films:
        count = len(images) + len(unusable)
        raise UserError(f'{root}: none of the {count} images of {table.path.name} is there; give {LAYOUT}')

    notes = _notes(table, positives)
    notes += folders.unlisted_notes(stamps, {image.file for image in images}, table.path.name)
    release = Release(root, films)
    return Source(
        name='candid_ptx', version='1', namespace='candid_ptx', labels=LABELS, license=LICENSE, size=size,
        entries=[film.entry for film in films], label=release.label, load=release.load, dropped=dropped, notes=notes,
        masks=('pneumothorax',),
    )  # fmt: skip


def _positives(root: pathlib.Path, names: tuple[str, ...]) -> set[str] | None:
    """The images for which a small table has runs; None if the table is missing. `names`: its possible names."""
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        return None
    lines = tables.read_table(path, ['anon_SOPUID', 'mask_rle']).lines
    return {line.cells['anon_SOPUID'] for line in lines if rle.label_code(line.cells['mask_rle']) == 1}


def _patient(lines: list[Line]) -> str | None:
    """The patient that an image's lines name, None if they name none. Raises Unreadable if they name two."""
    cells = {line.cells.get('filename', '').split('_')[0] for line in lines} - {''}
    patients = {str(int(match[1])) if (match := re.fullmatch(r'P?(\d+)', cell)) else cell for cell in cells}
    if len(patients) > 1:
        raise Unreadable('its lines name two patients')
    return next(iter(patients), None)


def _pneumothorax(lines: list[Line]) -> tuple[int, list[Line]]:
    """The label pneumothorax of an image, and its lines with an invalid cell."""
    codes = [rle.label_code(line.cells['EncodedPixels']) for line in lines]
    invalid = [line for line, code in zip(lines, codes, strict=True) if code is None]
    return coding.combine(BLANK if code is None else code for code in codes), invalid


def _sections(lines: list[Line]) -> dict[str, str]:
    """The sections of the report, which every line of an image repeats."""
    reports = dict.fromkeys(line.cells['Report'] for line in lines if line.cells.get('Report'))
    return sections.parse(language.unify_placeholders('\n\n'.join(reports)))


def _notes(table: Table, positives: dict[str, set[str] | None]) -> list[str]:
    """Notes on a missing small table and on missing patients."""
    notes = [
        f'{SMALL_TABLES[label][0]} is missing: {label} is blank'
        for label, images in positives.items()
        if images is None
    ]
    if 'filename' not in table.columns:
        notes.append(f'{table.path.name} has no column filename, which names the patients: each image counts as one')
    return notes
