"""A hospital's export: a tree of DICOM files of any names, with or without suffix, one record for each frame.

Nothing is taken from the names of files and folders, which often hold those of people: patient, study and instance are
those of the headers, hashed before anything is written, and drops say `file 17`, the 17th of
`find . ! -type d | LC_ALL=C sort`. What holds no picture is set aside with what it is: reports, PDFs,
presentation states, segmentations, a DICOMDIR, a viewer's own files. An instance that was exported twice is one record.

A PatientID that stands for nobody (blank, ANONYMOUS, 0, …) is unknown. MG, CT, MR and all other modalities are read;
each slice of a volume is a record. The role is frontal or lateral by ViewPosition, in mammograms the view itself (cc,
mlo, …).

--labels FILE.csv gives labels: the columns that hold only 0, 1, -1 (uncertain) or nothing, joined by the column
SOPInstanceUID, else StudyInstanceUID, else AccessionNumber. Several lines for one key are joined: blanks give way,
values that disagree are conflicting. The fields are DICOM's own (PS3.3); the headers of pydicom's real files were read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor

from medjax.data.images import dicom
from medjax.data.images.dicom import Header
from medjax.data.releases import coding, folders, tables
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = ''
LAYOUT = 'a folder with DICOM files, at any depth and of any names'
NOBODY = re.compile(r'anon\w*|unknown|none|null|removed|de-?identified|[0x*.-]*', re.IGNORECASE)
KEYS = {'SOPInstanceUID': 'instance', 'StudyInstanceUID': 'study', 'AccessionNumber': 'accession'}  # most exact first
BATCH = 64  # files a thread reads before it says so

Picture = tuple[int, str, Header, int | None]  # number of the file, its path, its header, the frame


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)
    parser.add_argument('--labels', metavar='FILE.csv', help=f'labels by {", ".join(KEYS)}; columns of 0, 1, -1, blank')
    parser.add_argument('--namespace', help="exports with one namespace share their patients (default: DIR's name)")


def source(folder: str, labels: str | None = None, size: int | None = None, namespace: str | None = None) -> Source:
    """The export as a source: every header is read once. UserError where no file holds a picture."""
    root = folders.release_folder(folder, layout=LAYOUT)
    found, dropped, notes = folders.tree(root)
    pictures, unusable = _pictures(root, found)
    if not pictures:
        raise UserError(f'{root}: none of its {len(found)} files is a DICOM file with a picture; give {LAYOUT}')
    names, given = _labels(pathlib.Path(labels).expanduser(), pictures, notes) if labels else ((), [])
    blank = [BLANK] * len(names)

    def load(i: int) -> Example:
        _, path, header, frame = pictures[i]
        return Example(folders.content(root / path), frame=frame or 0, role=_role(header), info=header.facts)

    return Source(
        name=root.name, version='1', namespace=namespace or root.name, labels=names, license=LICENSE, size=size,
        entries=[_entry(root, picture) for picture in pictures],
        label=lambda i: (given[i] if given else None) or blank,
        load=load, dropped=[*dropped, *unusable], notes=[*notes, *_notes(pictures)],
    )  # fmt: skip


def _pictures(root: pathlib.Path, found: list[tuple[int, str]]) -> tuple[list[Picture], list[Drop]]:
    """Every frame of every file that holds pictures, and the other files with a reason."""
    from tqdm import tqdm

    batches = [found[at : at + BATCH] for at in range(0, len(found), BATCH)]
    pictures: list[Picture] = []
    dropped: list[Drop] = []
    first: dict[str, int] = {}  # instance -> the file it was found in
    child = multiprocessing.parent_process() is not None  # of a build that shows its own progress
    with (
        ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool,  # more than cores: shares answer slowly
        tqdm(total=len(found), desc='headers', unit=' files', disable=child or None) as bar,
    ):
        for batch, headers in zip(batches, pool.map(lambda batch: _headers(root, batch), batches), strict=True):
            for (number, path), header in zip(batch, headers, strict=True):
                if isinstance(header, str):
                    dropped.append(Drop(path, f'file {number}', header))
                elif header.instance in first:
                    dropped.append(Drop(path, f'file {number}', f'the instance of file {first[header.instance]} again'))
                else:
                    if header.instance:
                        first[header.instance] = number
                    frames = range(header.frames) if header.frames > 1 else [None]
                    pictures += [(number, path, header, frame) for frame in frames]
            bar.update(len(batch))
    return pictures, dropped


def _headers(root: pathlib.Path, batch: list[tuple[int, str]]) -> list[Header | str]:
    """The header of each file, or why it holds no picture."""
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


def _entry(root: pathlib.Path, picture: Picture) -> Entry:
    number, path, header, frame = picture
    which = '' if frame is None else f' frame {frame + 1}'
    image = header.instance or path
    patient = _person(header)
    study = header.study or header.accession
    return Entry(
        image + which, patient, f'{patient or ""}/{study}' if study else f'image/{image}', None,
        f'file {number}{which}', stamp=folders.stamp(root / path),
    )  # fmt: skip


def _person(header: Header) -> str | None:
    return None if NOBODY.fullmatch(header.patient) else header.patient


def _role(header: Header) -> str:
    view = str(header.facts.get('view', ''))
    first = view.lower().split(' ')[0]
    if header.facts.get('modality') == 'MG' and re.fullmatch('[a-z]{2,6}', first):
        return first
    return coding.role(view)


def _labels(
    path: pathlib.Path, pictures: list[Picture], notes: list[str]
) -> tuple[tuple[str, ...], list[list[int] | None]]:
    """The names of the labels, and those of each picture, or None where the table has no line for it."""
    if not path.is_file():
        raise UserError(f'--labels {path}: there is no such file; give a CSV file')
    table = tables.read_table(path)
    known = {re.sub('[ _]', '', name).lower(): name for name in table.columns}
    key = next((key for key in KEYS if key.lower() in known), None)
    if key is None:
        raise UserError(f'--labels {path}: none of its columns is {", ".join(KEYS)}; one of them says whose labels')
    column = known[key.lower()]
    names = [name for name in table.columns if name != column and _is_label([line.cells[name] for line in table.lines])]
    if not names:
        raise UserError(f'--labels {path}: no column holds only 0, 1, -1 (uncertain) or nothing')
    labels = {
        value: coding.join([coding.codes(line.cells, names)[0] for line in lines])
        for value, lines in table.by(column).items()
        if value
    }
    values = [getattr(header, KEYS[key]) for _, _, header, _ in pictures]
    if not set(values) & labels.keys():
        raise UserError(
            f'--labels {path}: no {key} of it is in a header of these files; a spreadsheet may have changed it '
            '(leading zeros, long numbers), or the export has new ids'
        )
    if without := sum(value not in labels for value in values):
        notes.append(f'{without} images have no line in {path.name}: their labels are blank')
    if unused := len(labels.keys() - set(values)):
        notes.append(f'{unused} values of {key} in {path.name} are in no file')
    if table.dropped:
        notes.append(f'{len(table.dropped)} lines of {path.name} have too few or too many cells and are left out')
    return tuple(names), [labels.get(value) for value in values]


def _is_label(cells: list[str]) -> bool:
    return any(cells) and all(coding.label(cell) is not None for cell in cells if cell)


def _notes(pictures: list[Picture]) -> list[str]:
    people = [_person(header) for _, _, header, _ in pictures]
    notes = []
    if unknown := sum(person is None for person in people):
        notes.append(f'{unknown} images have no PatientID, or one that stands for nobody: people may be in two splits')
    studies = {header.study for _, _, header, _ in pictures}
    if len(set(people)) == 1 and people[0] is not None and len(studies) > 1:
        notes.append(f'all {len(studies)} studies have one PatientID: if it stands for nobody, ask for pseudonyms')
    return notes
