"""A hospital's export: a tree of DICOM files, with any names and suffixes. Each frame becomes a record.

    DIR/**/*     files of other kinds are set aside

Nothing is read from the names of files and folders, since they often hold the names of people. Patient, study and
instance come from the headers and are hashed before anything is written. Drops show `file 17`: the 17th line of
`find . ! -type d | LC_ALL=C sort`. A file without a picture is set aside, and the drop says what it is: a report, a
PDF, a presentation state, a segmentation, a DICOMDIR, a file of a viewer. An instance that was exported twice is one
record; files of one SOPInstanceUID with other patients or other pixels are not. MG, CT, MR and all other modalities are
read. Each slice of a volume is a record.

Labels: --labels FILE.csv gives them. Its columns with only 0, 1, -1 (uncertain) or blank cells are the labels, or those
that --label-columns names; a column of names (BI-RADS 2) gives one label for each of its values. A line describes an
image, a file, a series, a study, an order or a patient, by the finest of its columns SOPInstanceUID, file,
SeriesInstanceUID, StudyInstanceUID, AccessionNumber and PatientID. Several lines with one key are joined: blank cells
are ignored, and values that disagree are conflicting.
Splits: the column split of --labels. Without it, or with --split drawn, they are drawn per patient.
Texts: the column text of --labels, a report that is cut into its sections.
Patients: the PatientID. It is judged by its use: ANON001, ANON002, … with a few studies each are people. A PatientID
that is blank, says that it is nobody's (ANONYMOUS), or is that of nearly all studies counts as unknown. So does one
PatientID of nearly all studies in two splits of --labels. 00017 and 17, p3 and P3 are one patient.
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
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from medjax.data.images import dicom, repeats
from medjax.data.images.dicom import Header
from medjax.data.releases import coding, folders, label_tables, people
from medjax.data.releases.named_files import Finder
from medjax.data.text import language, markup, sections
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = ''
SPLITS = ('given',)  # those of --labels, if it has any
LAYOUT = 'a folder with DICOM files, at any depth and with any names'
BATCH = 64  # number of files that a thread reads between two updates of the progress bar


class Picture(NamedTuple):
    """One picture: a file, or a frame of a file."""

    number: int  # of the file, for drops
    path: str
    header: Header
    frame: int | None  # None for a file with one picture
    copy: int = 1  # 2, 3, … for files with the SOPInstanceUID of another file, but another patient or other pixels

    @property
    def study(self) -> str:
        """The id of the study; '' if the header has none."""
        return self.header.study or self.header.accession

    @property
    def image(self) -> str:
        """The id of the file."""
        copy = f' copy {self.copy}' if self.copy > 1 else ''
        return self.header.instance + copy if self.header.instance else self.path


class Known(NamedTuple):
    """The digests of one kind of the files with one SOPInstanceUID."""

    done: list[Picture]  # those whose digest was computed
    first: dict[bytes, Picture]  # digest -> the first of them


@dataclasses.dataclass(frozen=True)
class Instance:
    """The kept files with one SOPInstanceUID, and their digests, which are computed when a second file comes."""

    pictures: list[Picture] = dataclasses.field(default_factory=list)  # the first picture of each file
    known: list[Known] = dataclasses.field(default_factory=lambda: [Known([], {}) for _ in repeats.DIGESTS])


@dataclasses.dataclass(frozen=True)
class Release:
    """The pictures, in the order of the entries."""

    root: pathlib.Path
    pictures: list[Picture]
    names: tuple[str, ...] = ()  # of the labels
    codes: list[list[int] | None] = dataclasses.field(default_factory=list)  # of each picture; [] without a table
    texts: list[str] = dataclasses.field(default_factory=list)  # of each picture; [] without a table

    def label(self, i: int) -> list[int]:
        """The code of each label of picture i."""
        return (self.codes[i] if self.codes else None) or [BLANK] * len(self.names)

    def load(self, i: int) -> Example:
        """Reads picture i and the sections of its report. Raises Unreadable."""
        picture = self.pictures[i]
        data = folders.read_bytes(self.root / picture.path)
        report = language.unify_placeholders(markup.plain(self.texts[i])) if self.texts else ''
        return Example(
            data, frame=picture.frame or 0, role=_role(picture.header), text=sections.parse(report),
            attributes=picture.header.attributes,
        )  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size, --labels, --label-columns and --namespace."""
    folders.add_arguments(parser, LAYOUT)
    names = ', '.join(name for name, _ in label_tables.KEYS.values())
    parser.add_argument(
        '--labels',
        metavar='FILE.csv',
        help=f'a table with one of the columns {names}, with columns of labels, and perhaps with split and text',
    )
    parser.add_argument(
        '--label-columns',
        metavar='A,B',
        help='columns of --labels that are labels (default: those that hold only 0, 1, -1 or nothing); a column of '
        'names, such as BI-RADS, gives one label for each of its values',
    )
    parser.add_argument(
        '--namespace', help="exports with the same namespace share their patients (default: DIR's name)"
    )


def source(
    folder: str,
    labels: str | None = None,
    label_columns: str | None = None,
    size: int | None = None,
    namespace: str | None = None,
    split: str = 'given',
) -> Source:
    """The source of the export in `folder`. Reads the header of every file. UserError if no file holds a picture.

    split: 'drawn' leaves the splits of --labels unused.
    """
    root = folders.release_folder(folder, layout=LAYOUT)
    if label_columns and not labels:
        raise UserError('--label-columns: it names columns of a table; give the table with --labels FILE.csv')
    files, dropped, notes = folders.numbered_files(root)
    pictures, unusable = _pictures(root, files)
    if not pictures:
        raise UserError(f'{root}: none of its {len(files)} files is a DICOM file with a picture; give {LAYOUT}')
    ids = [picture.header.patient for picture in pictures]
    spellings = people.spellings(ids)
    ids = [spellings.get(id, id) for id in ids]
    studies = [picture.study or picture.image for picture in pictures]
    persons = people.people(ids, studies)
    notes += [f'PatientID: {remark}' for remark in people.remarks(Counter({p.header.patient for p in pictures}), 'id')]
    release, entries = Release(root, pictures), _entries(root, pictures, persons.patients)
    described = None
    if labels:
        described = label_tables.read(
            pathlib.Path(labels).expanduser(), Finder(root), _ids(pictures, persons.patients), label_columns,
            is_drawn=split == 'drawn',
        )  # fmt: skip
        if any(described.splits):
            persons = people.people(ids, studies, described.splits)
            entries = _entries(root, pictures, persons.patients)
        release, entries, without = _described(release, entries, described)
        dropped, notes = [*dropped, *without], [*notes, *described.notes]
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, labels=release.names, license=LICENSE, size=size,
        entries=entries, label=release.label, load=release.load, dropped=[*dropped, *unusable],
        columns=described.columns if described else [], notes=[*notes, *_notes(pictures, persons)],
        draw_namespace=namespace or '',
    )  # fmt: skip


def _ids(pictures: list[Picture], patients: list[str | None]) -> dict[str, list[str]]:
    """Kind of key of a table of labels -> the id of each picture. '' where the id does not say which picture it is.

    'copied': the SOPInstanceUIDs of several files.
    """
    headers = [picture.header for picture in pictures]
    copied = {picture.header.instance for picture in pictures if picture.copy > 1}
    return dict(
        instance=['' if header.instance in copied else header.instance for header in headers],
        copied=sorted(copied),
        file=[picture.path for picture in pictures],
        series=[header.series for header in headers],
        study=[header.study for header in headers],
        accession=[header.accession for header in headers],
        patient=[patient or '' for patient in patients],
    )


def _described(
    release: Release, entries: list[Entry], described: label_tables.Described
) -> tuple[Release, list[Entry], list[Drop]]:
    """The release and the entries with what a table says, and a drop for each picture without a split."""
    has_splits = any(described.splits) or any(described.conflicting)
    kept, dropped = [], []
    for i, entry in enumerate(entries):
        if has_splits and described.splits[i] is None:
            reason = (
                'the table of labels names several splits for it'
                if described.conflicting[i]
                else 'its split in the table of labels is blank, or it has no line there'
            )
            dropped.append(Drop(entry.image, entry.where, reason))
        else:
            kept.append(i)
    return (
        Release(
            release.root,
            [release.pictures[i] for i in kept],
            described.labels,
            [described.codes[i] for i in kept],
            [described.texts[i] for i in kept],
        ),
        [entries[i]._replace(split=described.splits[i]) for i in kept],
        dropped,
    )


def _pictures(root: pathlib.Path, files: list[tuple[int, str]]) -> tuple[list[Picture], list[Drop]]:
    """Every frame of every file that holds pictures, and a drop for each other file."""
    from tqdm import tqdm

    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    pictures: list[Picture] = []
    dropped: list[Drop] = []
    kept: dict[str, Instance] = defaultdict(Instance)
    is_worker = multiprocessing.parent_process() is not None  # then the main process shows the progress
    with (
        ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool,  # more threads than cores: shares are slow
        tqdm(total=len(files), desc='headers', unit=' files', disable=is_worker or None) as bar,
    ):
        for batch, headers in zip(batches, pool.map(lambda batch: _headers(root, batch), batches), strict=True):
            for (number, path), header in zip(batch, headers, strict=True):
                if isinstance(header, str):
                    dropped.append(Drop(path, f'file {number}', header))
                    continue
                same = kept[header.instance] if header.instance else Instance()
                picture = Picture(number, path, header, None, len(same.pictures) + 1)
                if same.pictures and (repeated := _repeated(root, picture, same)):
                    dropped.append(Drop(path, f'file {number}', f'repeats the instance of file {repeated.number}'))
                    continue
                same.pictures.append(picture)
                frames = range(header.frames) if header.frames > 1 else [None]
                pictures += [picture._replace(frame=frame) for frame in frames]
            bar.update(len(batch))
    return pictures, dropped


def _repeated(root: pathlib.Path, picture: Picture, same: Instance) -> Picture | None:
    """The picture of `same` that shows the same of the same patient, None if none does.

    Exports with wrong UIDs exist. Each file is read at most once for each kind of digest.
    """
    for kind, known in zip(repeats.DIGESTS, same.known, strict=True):
        for other in same.pictures[len(known.done) :]:
            known.done.append(other)
            if (found := _digest(root, other, kind)) is not None:
                known.first.setdefault(found, other)
        found = _digest(root, picture, kind)
        if found in known.first:
            return known.first[found]
    return None


def _digest(root: pathlib.Path, picture: Picture, kind: Callable[[bytes, str, int], bytes | None]) -> bytes | None:
    try:
        data = folders.read_bytes(root / picture.path)
    except Unreadable:  # the build sets the file aside and says why
        return None
    return kind(data, picture.header.patient, picture.header.frames)


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


def _entries(root: pathlib.Path, pictures: list[Picture], patients: list[str | None]) -> list[Entry]:
    return [_entry(root, picture, patient) for picture, patient in zip(pictures, patients, strict=True)]


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
    if copies := sum(picture.copy > 1 and not picture.frame for picture in pictures):
        notes.append(
            f'{copies} files have the SOPInstanceUID of another file, but another patient or other pixels; '
            'they are kept'
        )
    return notes
