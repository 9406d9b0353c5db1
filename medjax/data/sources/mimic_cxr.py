"""MIMIC-CXR-JPG 2.0.0 and 2.1.0, with the reports of MIMIC-CXR: 377,110 radiographs of 227,835 studies as JPEG.

    DIR/files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg …
    DIR/mimic-cxr-2.0.0-metadata.csv.gz, …-split.csv.gz, …-chexpert.csv.gz, …-negbio.csv.gz     also as .csv
    DIR/mimic-cxr-2.1.0-test-set-labeled.csv     only in 2.1.0
    files/p10/p10000032/s50414267.txt     the reports of MIMIC-CXR, in DIR or in the folder that --reports names

Splits: the table of the release. An image that it does not name is set aside.
Labels: the 14 of the chosen labeler, with 1, 0, -1 and blank. Labels are given to a study, and every image of the study
has them. If the radiologists' table is there, its studies have its labels instead. Then the test split has both kinds
of labels, and the column label_source says which kind an image has. Several lines of one study are joined. Where they
differ, the label is conflicting. A study in no table is blank.
Ids that derived data sets use: image = dicom_id, patient = subject_id.
Traps:
- The radiologists' table names the study and no patient, and says Airspace Opacity for Lung Opacity.
- ViewPosition is often blank (the role is then 'image') and has PA, AP, LATERAL, LL, AP LLD ….
- The tables of 2.1.0 are named after 2.0.0 too.
- The sections of reports are not in the release; medjax cuts them.
- Dates are shifted. They are not stored, and neither is the time of the study. Age and sex are in MIMIC-IV, not here.

Checked: paths and joins in mlmed/torchxrayvision; the radiologists' table and its 687 studies in f10409/RadHarmony; the
columns of metadata in public preprocessing code; 377,110 images and 227,827 labelled studies on the page of 2.1.0.
Recalled, not checked: counts of the splits (they add up); the other columns of the tables; the values of ViewPosition
besides AP, PA, LATERAL and LL.
Licence (recalled): PhysioNet Credentialed Health Data 1.5.0.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.data.releases.films import FilmRelease
from medjax.data.releases.tables import Table
from medjax.data.text import language, sections
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'PhysioNet credentialed 1.5.0'
LAYOUT = (
    'the folder of MIMIC-CXR-JPG, which holds files/ and mimic-cxr-2.0.0-metadata.csv.gz, -split.csv.gz and '
    '-chexpert.csv.gz or -negbio.csv.gz; the reports of MIMIC-CXR in the same files/, or see --reports'
)
SPLITS = ('official',)
LABELERS = ('chexpert', 'negbio')
RADIOLOGISTS = 'mimic-cxr-2.1.0-test-set-labeled.csv'
Labels = dict[str, tuple[list[int], str]]  # study -> its label codes, and the labeler or 'radiologists'


class Film(NamedTuple):
    """An image that the table names and whose file is there."""

    entry: Entry
    labels: list[int]
    label_source: str  # 'chexpert', 'negbio', 'radiologists'; '' if the study has no labels
    view: str
    file: str
    report: str  # the path of the report, which may be missing


@dataclasses.dataclass(frozen=True)
class Release(FilmRelease):
    """The usable images, in the order of the entries."""

    films: list[Film]
    report_root: pathlib.Path | None  # the folder of the reports; None: there are no reports

    def load(self, i: int) -> Example:
        """Reads image i and its report. Raises Unreadable."""
        film = self.films[i]
        text, note = _report(self.report_root, film.report) if self.report_root else ({}, '')
        attributes = coding.filled(view=film.view, label_source=film.label_source)
        data = folders.read_bytes(folders.inside(self.root, film.file))
        return Example(data, coding.role(film.view), text=text, attributes=attributes, note=note)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size, --labeler and --reports."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument(
        '--labeler',
        choices=LABELERS,
        default=LABELERS[0],
        help="whose labels to use; studies that radiologists labelled keep the radiologists' (default: %(default)s)",
    )
    parser.add_argument('--reports', metavar='DIR', help='holds files/p10/p10000032/s50414267.txt … (default: DIR)')


def source(
    folder: str, size: int | None = None, split: str = 'official', labeler: str = 'chexpert', reports: str | None = None
) -> Source:
    """The source of the release in `folder`. UserError if a table or all images are missing."""
    root = folders.release_folder(folder, 'files', layout=LAYOUT)
    table = tables.read_table(_table(root, 'metadata'), ['dicom_id', 'subject_id', 'study_id', 'ViewPosition'])
    dropped = list(table.dropped)
    split_of, notes = _splits(root, split, dropped)
    list_name = published_splits.list_name('mimic_cxr/official', notes) if split_of else ''
    labels_of = _all_labels(root, labeler, dropped)
    files = folders.files(root, '.jpg', '.txt')
    pictures = sum(name.endswith('.jpg') for name in files)
    report_root, report_stamps = root, files
    if reports:
        report_root = _report_folder(reports)
        report_stamps = folders.files(report_root, '.txt')
    has_reports = bool(reports) or len(files) > pictures
    films, unusable = _films(table, files, report_stamps, split_of, labels_of)
    named = len(table.by('dicom_id'))
    notes += folders.usage_notes(root, table.path.name, LAYOUT, named, len(films), pictures)
    notes += _label_notes(films)
    if not has_reports:
        notes.append('no reports: they come with MIMIC-CXR, not with MIMIC-CXR-JPG; --reports DIR says where they are')

    release = Release(root, films, report_root if has_reports else None)
    return Source(
        name='mimic_cxr', version='1', namespace='mimic_cxr', labels=tuple(map(coding.label_name, CHEXPERT_LABELS)),
        license=LICENSE, size=size, entries=[film.entry for film in films], label=release.label,
        load=release.load, dropped=[*dropped, *unusable], notes=notes, splits=list_name,
    )  # fmt: skip


def _table(root: pathlib.Path, name: str) -> pathlib.Path:
    """The path of a table of the release: the .csv.gz file or, without it, the .csv file. UserError without both."""
    paths = [root / f'mimic-cxr-2.0.0-{name}.csv{end}' for end in ('.gz', '')]
    folders.release_folder(str(root), '|'.join(path.name for path in paths), layout=LAYOUT)
    return next(path for path in paths if path.exists())


def _report_folder(reports: str) -> pathlib.Path:
    """The folder that --reports names. UserError if it does not hold files/."""
    folder = pathlib.Path(reports).expanduser().resolve()
    if not (folder / 'files').is_dir():
        raise UserError(f'--reports {reports}: files/ is missing; give the folder that holds files/p10/p10000032/…')
    return folder


def _films(
    table: Table,
    stamps: Mapping[str, str],
    report_stamps: Mapping[str, str],
    split_of: Mapping[str, str],
    labels_of: Labels,
) -> tuple[list[Film], list[Drop]]:
    """The images that have a file and, unless `split_of` is empty, a split; and a drop for each other line.

    stamps, report_stamps: path of an image or a report -> stamp. split_of: image -> split.
    """
    films, dropped = [], []
    first: dict[str, int] = {}  # image -> number of its first line
    for line in table.lines:
        image, subject, number = (line.cells[name] for name in ('dicom_id', 'subject_id', 'study_id'))
        study = f'files/p{subject[:2]}/p{subject}/s{number}'
        path = f'{study}/{image}.jpg'
        try:
            if image in first:
                raise Unreadable(f'repeats the image of line {first[image]}')
            first[image] = line.number
            if path not in stamps:
                raise Unreadable('there is no such file')
            if split_of and image not in split_of:
                raise Unreadable('the table of splits does not name it')
        except Unreadable as error:
            dropped.append(Drop(image, table.where(line), str(error)))
            continue
        stamp = f'{stamps[path]} {report_stamps.get(study + ".txt", "")}'.strip()
        entry = Entry(image, subject, f'{subject}/{number}', split_of.get(image), table.where(line), stamp=stamp)
        labels, label_source = labels_of.get(number, ([BLANK] * len(CHEXPERT_LABELS), ''))
        films.append(Film(entry, labels, label_source, line.cells['ViewPosition'], path, f'{study}.txt'))
    return films, dropped


def _splits(root: pathlib.Path, split: str, dropped: list[Drop]) -> tuple[dict[str, str], list[str]]:
    """dicom_id -> split, and sentences on how the table differs from the published one; both empty for 'drawn'."""
    if split == 'drawn':
        return {}, []
    table = tables.read_table(_table(root, 'split'), ['dicom_id', 'split'])
    dropped += table.dropped
    split_of = {}
    for line in table.lines:
        if line.cells['split'] in folders.SPLIT_SPELLINGS:
            split_of[line.cells['dicom_id']] = folders.SPLIT_SPELLINGS[line.cells['split']]
        else:
            reason = 'its split is neither train, validate nor test'
            dropped.append(Drop(line.cells['dicom_id'], table.where(line), reason))
    return split_of, published_splits.differences('mimic_cxr/official', split_of.items())


def _all_labels(root: pathlib.Path, labeler: str, dropped: list[Drop]) -> Labels:
    """The labels of every study: those of the radiologists' table, where it has the study, else of the labeler's."""
    labels = _labels(_table(root, labeler), labeler, dropped)
    paths = (root / RADIOLOGISTS, root / f'{RADIOLOGISTS}.gz')
    if path := next((path for path in paths if path.exists()), None):
        labels |= _labels(path, 'radiologists', dropped)
    return labels


def _labels(path: pathlib.Path, label_source: str, dropped: list[Drop]) -> Labels:
    """The labels of every study in one table. Several lines of a study are joined."""
    table = tables.read_table(path, ['study_id'])
    columns = [
        'Airspace Opacity' if name == 'Lung Opacity' and name not in table.columns else name for name in CHEXPERT_LABELS
    ]
    for column in columns:
        if column not in table.columns:
            raise UserError(f'{path}: the column {column} is missing; it is one of the 14 labels')
    dropped += table.dropped
    codes: dict[str, list[list[int]]] = {}
    for line in table.lines:
        labels, invalid = coding.label_codes(line.cells, columns)
        codes.setdefault(line.cells['study_id'].removesuffix('.0'), []).append(labels)
        if invalid:
            reason = f'neither 1, 0, -1 nor blank, taken as blank: {", ".join(invalid)}'
            dropped.append(Drop('', table.where(line), reason, 'detail'))
    return {study: (coding.combine_lines(lines), label_source) for study, lines in codes.items()}


def _label_notes(films: list[Film]) -> list[str]:
    """Notes on images without labels and on images with radiologists' labels."""
    counts = Counter((film.entry.split, film.label_source) for film in films)
    notes = []
    if without := sum(n for (_, label_source), n in counts.items() if not label_source):
        notes.append(f'{without:,} images belong to studies without labels: all blank')
    if experts := sum(n for (_, label_source), n in counts.items() if label_source == 'radiologists'):
        others = sum(n for (split, name), n in counts.items() if split == 'test' and name != 'radiologists')
        notes.append(
            f"{experts:,} images have radiologists' labels, the other {others:,} of the test split have the labeler's "
            'or none: the column label_source says which'
        )
    return notes


def _report(root: pathlib.Path, path: str) -> tuple[dict[str, str], str]:
    """The sections of a study's report and '', or {} and the reason why it is left out."""
    try:
        text = folders.read_bytes(folders.inside(root, path)).decode('utf-8', 'replace')
        return sections.parse(language.unify_placeholders(text)), ''
    except Unreadable as error:
        return {}, f'the report is left out: {error}'
