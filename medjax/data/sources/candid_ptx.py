"""CANDID-PTX: 19,237 DICOM films of Dunedin with reports, and masks of pneumothorax as runs of pixels.

    DIR/Pneumothorax_reports.csv    SOPInstanceUID, EncodedPixels, Report, StudyInstanceUID, filename: a line a mask
    DIR/chest_tube.csv, DIR/acute_rib_fracture.csv (or Rib_fracture_mask_rle.csv)    anon_SOPUID, mask_rle
    DIR/chest_radiographs/<SOPInstanceUID>    without an ending in the release; .dcm is taken too, in any folder

Traps: several lines an image; a blank EncodedPixels is no answer, '-1' is none there; tubes and fractures have lines of
'-1' too. The patient is the part of `filename` before the first '_' (P0012_… is 12); an image with lines of two
patients is set aside. Age and sex are in the DICOM headers. Words that the de-identification took are '!PERSONALNAME!'
and '<###>' in the reports; stored are '___', as in all sets (`data.language`), and the reports' sections.

Labels: pneumothorax is 1 with runs, 0 with -1, blank without either, conflicting with both. chest_tube and rib_fracture
are 1 where their table has runs of the image, else 0 as in all public loaders, blank without the table. The mask is
that of the pneumothorax, all masks of an image joined; those of tubes and fractures are left out.

No official split: drawn per patient.

Checked in loaders of several public repositories: file names and columns, runs relative and in column order, the
patient from `filename`, an image under two patients, empty reports. Recalled, not
checked: 19,237 images; that absence from the two small tables means absence; the licence (data use agreement).
"""

from __future__ import annotations

import argparse
import pathlib
import re
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, rle, tables
from medjax.data.releases.tables import Line, Table
from medjax.data.text import language, sections
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'CANDID-PTX data use agreement'
LAYOUT = 'the folder that holds Pneumothorax_reports.csv and chest_radiographs/ of CANDID-PTX'
LABELS = ('pneumothorax', 'chest_tube', 'rib_fracture')
SMALL = {'chest_tube': ('chest_tube.csv',), 'rib_fracture': ('acute_rib_fracture.csv', 'Rib_fracture_mask_rle.csv')}


class Film(NamedTuple):
    """An image of the table whose file is there."""

    entry: Entry
    labels: list[int]
    lines: list[Line]
    file: str


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    root = folders.release_folder(folder, 'Pneumothorax_reports.csv', layout=LAYOUT)
    table = tables.read_table(root / 'Pneumothorax_reports.csv', ['SOPInstanceUID', 'EncodedPixels'])
    small = {label: _small(root, names) for label, names in SMALL.items()}
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
        label, unknown = _pneumothorax(lines)
        for line in unknown:
            reason = 'EncodedPixels is neither runs nor -1; this line says nothing'
            dropped.append(Drop(image, table.where(line), reason, 'part'))
        study = next((line.cells['StudyInstanceUID'] for line in lines if line.cells.get('StudyInstanceUID')), '')
        study_id = f'{patient}/{study}' if patient and study else f'study/{study}' if study else f'image/{image}'
        others = [BLANK if positives is None else int(image in positives) for positives in small.values()]
        entry = Entry(image, patient, study_id, None, where, stamp=stamps[path])
        films.append(Film(entry, [label, *others], lines, path))
    if not films:
        named = len(images) + len(unusable)
        raise UserError(f'{root}: none of the {named} images of {table.path.name} is there; give {LAYOUT}')

    def load(i: int) -> Example:
        film = films[i]
        data, mask, note = folders.content(folders.inside(root, film.file)), None, ''
        try:
            if film.labels[0] != BLANK:
                mask = rle.mask([line.cells['EncodedPixels'] for line in film.lines], dicom.shape(data))
        except Unreadable as error:
            note = f'the mask is left out: {error}'
        facts = dicom.facts(data) | {'language': 'en'}
        role = coding.role(str(facts.get('view', '')))
        return Example(data, role, _text(film.lines), facts, mask, note=note)

    return Source(
        name='candid_ptx', version='1', namespace='candid_ptx', labels=LABELS, license=LICENSE, size=size,
        entries=[film.entry for film in films], label=lambda i: films[i].labels, load=load, dropped=dropped,
        notes=_notes(table, small, folders.not_named(stamps, {image.file for image in images}, table.path.name)),
    )  # fmt: skip


def _small(root: pathlib.Path, names: tuple[str, ...]) -> set[str] | None:
    """The images of which a table has runs; None where the table is not there."""
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        return None
    lines = tables.read_table(path, ['anon_SOPUID', 'mask_rle']).lines
    return {line.cells['anon_SOPUID'] for line in lines if rle.label(line.cells['mask_rle']) == 1}


def _patient(lines: list[Line]) -> str | None:
    """The patient that an image's lines name, None where none does; Unreadable where they name two."""
    cells = {line.cells.get('filename', '').split('_')[0] for line in lines} - {''}
    numbers = {str(int(match[1])) if (match := re.fullmatch(r'P?(\d+)', cell)) else cell for cell in cells}
    if len(numbers) > 1:
        raise Unreadable('its lines name two patients')
    return next(iter(numbers), None)


def _pneumothorax(lines: list[Line]) -> tuple[int, list[Line]]:
    """The label, and the lines that cannot be understood."""
    said = [(line, rle.label(line.cells['EncodedPixels'])) for line in lines]
    label = coding.fuse(BLANK if value is None else value for _, value in said)
    return label, [line for line, value in said if value is None]


def _text(lines: list[Line]) -> dict[str, str]:
    """The report, which every line of an image repeats."""
    reports = dict.fromkeys(line.cells['Report'] for line in lines if line.cells.get('Report'))
    return sections.parse(language.tokens('\n\n'.join(reports)))


def _notes(table: Table, small: dict[str, set[str] | None], extra: list[str]) -> list[str]:
    notes = [f'{SMALL[label][0]} is missing: {label} is blank' for label, has in small.items() if has is None]
    if 'filename' not in table.columns:
        notes.append(f'{table.path.name} has no column filename, which names the patients: each image counts as one')
    return [*notes, *extra]
