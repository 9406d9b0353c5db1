"""A hospital's export: a tree of DICOM files, with any names and suffixes. Each frame becomes a record.

    DIR/**/*     files of other kinds are set aside

Nothing is read from the names of files and folders, since they often hold the names of people. Patient, study and
instance come from the headers and are hashed before anything is written. Drops show `file 17`: the 17th line of
`find . ! -type d | LC_ALL=C sort`. A file without a picture is set aside, and the drop says what it is: a report, a
PDF, a presentation state, a segmentation, a DICOMDIR, a file of a viewer. An instance that was exported twice is one
record. MG, CT, MR and all other modalities are read. Each slice of a volume is a record.

Splits: drawn per patient.
Labels: --labels FILE.csv gives them. Its columns with only 0, 1, -1 (uncertain) or blank cells are the labels. Its
column SOPInstanceUID, else StudyInstanceUID, else AccessionNumber says which images a line describes. Several lines
with one key are joined: blank cells are ignored, and values that disagree are conflicting.
Patients: the PatientID. It is judged by its use: ANON001, ANON002, … with a few studies each are people. A PatientID
that is blank, says that it is nobody's (ANONYMOUS), or is that of nearly all studies counts as unknown.
Roles: frontal or lateral by ViewPosition; in mammograms the view itself (cc, mlo, …).

Checked: the headers of pydicom's real files. The fields are those of DICOM PS3.3.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.images.dicom import Header
from medjax.data.releases import coding, folders, people, tables
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = ''
LAYOUT = 'a folder with DICOM files, at any depth and with any names'
# column of --labels -> field of Header; the first one that the table has is used
KEYS = {'SOPInstanceUID': 'instance', 'StudyInstanceUID': 'study', 'AccessionNumber': 'accession'}
BATCH = 64  # number of files that a thread reads between two updates of the progress bar


class Picture(NamedTuple):
    """One picture: a file, or a frame of a file."""

    number: int  # of the file, for drops
    path: str
    header: Header
    frame: int | None  # None for a file with one picture

    @property
    def study(self) -> str:
        """The id of the study; '' if the header has none."""
        return self.header.study or self.header.accession

    @property
    def image(self) -> str:
        """The id of the file."""
        return self.header.instance or self.path


@dataclasses.dataclass(frozen=True)
class Release:
    """The pictures, in the order of the entries."""

    root: pathlib.Path
    pictures: list[Picture]
    names: tuple[str, ...]  # of the labels
    codes: list[list[int] | None]  # of each picture, None if the table has no line for it; [] without a table

    def label(self, i: int) -> list[int]:
        """The code of each label of picture i."""
        return (self.codes[i] if self.codes else None) or [BLANK] * len(self.names)

    def load(self, i: int) -> Example:
        """Reads picture i. Raises Unreadable."""
        picture = self.pictures[i]
        data = folders.read_bytes(self.root / picture.path)
        return Example(data, frame=picture.frame or 0, role=_role(picture.header), attributes=picture.header.attributes)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size, --labels and --namespace."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument(
        '--labels',
        metavar='FILE.csv',
        help=f'a table with one of the columns {", ".join(KEYS)}, and label columns that hold 0, 1, -1 or blanks',
    )
    parser.add_argument(
        '--namespace', help="exports with the same namespace share their patients (default: DIR's name)"
    )


def source(folder: str, labels: str | None = None, size: int | None = None, namespace: str | None = None) -> Source:
    """The source of the export in `folder`. Reads the header of every file. UserError if no file holds a picture."""
    root = folders.release_folder(folder, layout=LAYOUT)
    files, dropped, notes = folders.numbered_files(root)
    pictures, unusable = _pictures(root, files)
    if not pictures:
        raise UserError(f'{root}: none of its {len(files)} files is a DICOM file with a picture; give {LAYOUT}')
    persons = people.people(
        [picture.header.patient for picture in pictures],
        [picture.study or picture.image for picture in pictures],
    )
    names, codes = _labels(pathlib.Path(labels).expanduser(), pictures, notes) if labels else ((), [])
    release = Release(root, pictures, names, codes)
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, labels=names, license=LICENSE, size=size,
        entries=[_entry(root, picture, who) for picture, who in zip(pictures, persons.patients, strict=True)],
        label=release.label, load=release.load, dropped=[*dropped, *unusable],
        notes=[*notes, *_notes(pictures, persons)], draw_namespace=namespace or '',
    )  # fmt: skip


def _pictures(root: pathlib.Path, files: list[tuple[int, str]]) -> tuple[list[Picture], list[Drop]]:
    """Every frame of every file that holds pictures, and a drop for each other file."""
    from tqdm import tqdm

    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    pictures: list[Picture] = []
    dropped: list[Drop] = []
    first: dict[str, int] = {}  # instance -> number of the first file that holds it
    is_worker = multiprocessing.parent_process() is not None  # then the main process shows the progress
    with (
        ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool,  # more threads than cores: shares are slow
        tqdm(total=len(files), desc='headers', unit=' files', disable=is_worker or None) as bar,
    ):
        for batch, headers in zip(batches, pool.map(lambda batch: _headers(root, batch), batches), strict=True):
            for (number, path), header in zip(batch, headers, strict=True):
                if isinstance(header, str):
                    dropped.append(Drop(path, f'file {number}', header))
                elif header.instance in first:
                    reason = f'repeats the instance of file {first[header.instance]}'
                    dropped.append(Drop(path, f'file {number}', reason))
                else:
                    if header.instance:
                        first[header.instance] = number
                    frames = range(header.frames) if header.frames > 1 else [None]
                    pictures += [Picture(number, path, header, frame) for frame in frames]
            bar.update(len(batch))
    return pictures, dropped


def _headers(root: pathlib.Path, batch: list[tuple[int, str]]) -> list[Header | str]:
    """The header of each file, or the reason why it holds no picture."""
    headers: list[Header | str] = []
    for _, path in batch:
        try:
            with (root / path).open('rb') as file:
                headers.append(dicom.header(file))
        except Unreadable as error:
            headers.append(str(error))
        except OSError as error:
            headers.append(f'cannot be opened: {error.strerror}')
    return headers


def _entry(root: pathlib.Path, picture: Picture, patient: str | None) -> Entry:
    suffix = '' if picture.frame is None else f' frame {picture.frame + 1}'
    study = f'{patient or ""}/{picture.study}' if picture.study else f'image/{picture.image}'
    return Entry(
        picture.image + suffix, patient, study, None, f'file {picture.number}{suffix}',
        stamp=folders.stamp(root / picture.path),
    )  # fmt: skip


def _role(header: Header) -> str:
    view = str(header.attributes.get('view', ''))
    first = view.lower().split(' ')[0]
    if header.attributes.get('modality') == 'MG' and re.fullmatch('[a-z]{2,6}', first):
        return first
    return coding.role(view)


def _labels(
    path: pathlib.Path, pictures: list[Picture], notes: list[str]
) -> tuple[tuple[str, ...], list[list[int] | None]]:
    """The names of the labels, and the label codes of each picture (None if the table has no line for it).

    Adds notes on images without a line and on lines without an image.
    """
    if not path.is_file():
        raise UserError(f'--labels {path}: there is no such file; give a CSV file')
    table = tables.read_table(path)
    column_of = {re.sub('[ _]', '', column).lower(): column for column in table.columns}
    key = next((key for key in KEYS if key.lower() in column_of), None)
    if key is None:
        raise UserError(
            f'--labels {path}: none of its columns is {", ".join(KEYS)}; one of them must say which image a line is for'
        )
    key_column = column_of[key.lower()]
    names = [
        column
        for column in table.columns
        if column != key_column and _is_label([line.cells[column] for line in table.lines])
    ]
    if not names:
        raise UserError(f'--labels {path}: no column holds only 0, 1, -1 (uncertain) or nothing')
    codes = {
        value: coding.combine_lines([coding.label_codes(line.cells, names)[0] for line in lines])
        for value, lines in table.by(key_column).items()
        if value
    }
    values = [getattr(picture.header, KEYS[key]) for picture in pictures]
    if not set(values) & codes.keys():
        raise UserError(
            f'--labels {path}: no {key} of it is in a header of these files; a spreadsheet may have changed it '
            '(leading zeros, long numbers), or the export has new ids'
        )
    if without := sum(value not in codes for value in values):
        notes.append(f'{without} images have no line in {path.name}: their labels are blank')
    if unused := len(codes.keys() - set(values)):
        notes.append(f'{unused} values of {key} in {path.name} are in no file')
    if table.dropped:
        notes.append(f'{len(table.dropped)} lines of {path.name} have too few or too many cells and are left out')
    return tuple(names), [codes.get(value) for value in values]


def _is_label(cells: list[str]) -> bool:
    return any(cells) and all(coding.label_code(cell) is not None for cell in cells if cell)


def _notes(pictures: list[Picture], persons: people.People) -> list[str]:
    """Notes on unknown patients, and on one PatientID for many studies."""
    notes = []
    if persons.blank:
        notes.append(
            f'{persons.blank} images have no PatientID, or one that says that it is nobody: people may be in two splits'
        )
    notes += persons.notes
    studies = {picture.header.study for picture in pictures}
    if len(set(persons.patients)) == 1 and persons.patients[0] is not None and len(studies) > 1:
        notes.append(f'all {len(studies)} studies have one PatientID: if it stands for nobody, ask for pseudonyms')
    return notes
