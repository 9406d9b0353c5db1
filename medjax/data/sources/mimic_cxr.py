"""MIMIC-CXR-JPG 2.0.0 and 2.1.0, with the reports of MIMIC-CXR: 377,110 radiographs of 227,835 studies as JPEG.

    DIR/files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg …
    DIR/mimic-cxr-2.0.0-metadata.csv.gz, …-split.csv.gz, …-chexpert.csv.gz, …-negbio.csv.gz     .csv will do
    DIR/mimic-cxr-2.1.0-test-set-labeled.csv     in 2.1.0 alone
    files/p10/p10000032/s50414267.txt     MIMIC-CXR's reports: in DIR, or in another folder that --reports names

Split: the table of the release; an image that it does not name is set aside. Labels: the 14 of the chosen labeler,
one set a study, and every image of the study has them: 1, 0, -1, blank. Where the radiologists' table is there, its
studies carry its labels instead, and `label_source` tells the two apart: in the test split both occur. It names no
patient, only the study, and says Airspace Opacity for Lung Opacity. Several lines of one study are joined: where they
differ, the label is conflicting. A study in no table is blank.
Ids for derived sets: image = dicom_id, patient = subject_id.

Traps: ViewPosition is often blank (role 'image', whatever the picture shows) and has PA, AP, LATERAL, LL, AP LLD …;
files are named after 2.0.0 in 2.1.0 too; the sections of reports are not in the release; dates are shifted and, like
the study's time, not stored. Age and sex are in MIMIC-IV, not here.

Checked: paths and joins in mlmed/torchxrayvision, the radiologists' table and its 687 studies in f10409/RadHarmony, the
columns of metadata in public preprocessing code, 377,110 images and 227,827 labelled studies on the page of 2.1.0.
Recalled, not checked: counts of the splits (they add up), the tables' other columns, what ViewPosition holds besides
AP, PA, LATERAL and LL. Licence recalled: PhysioNet Credentialed Health Data 1.5.0.
"""

from __future__ import annotations

import argparse
import pathlib
from collections import Counter
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.coding import CHEXPERT
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
Labelled = dict[str, tuple[list[int], str]]  # study -> its labels and who gave them


class Film(NamedTuple):
    """An image of the table whose file is there."""

    entry: Entry
    labels: list[int]
    label_source: str  # 'chexpert', 'negbio', 'radiologists'; '' where the study has no labels
    view: str
    file: str
    report: str  # the path of the report, which may be missing


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)
    parser.add_argument('--labeler', choices=LABELERS, default=LABELERS[0], help="whose labels, but radiologists'")
    parser.add_argument('--reports', metavar='DIR', help='holds files/p10/p10000032/s50414267.txt … (default: DIR)')


def source(
    folder: str, size: int | None = None, split: str = 'official', labeler: str = 'chexpert', reports: str | None = None
) -> Source:
    root = folders.release_folder(folder, 'files', layout=LAYOUT)
    table = tables.read_table(_table(root, 'metadata'), ['dicom_id', 'subject_id', 'study_id', 'ViewPosition'])
    dropped = list(table.dropped)
    split_of, notes = _splits(root, split, dropped)
    name_of_list = published_splits.named('mimic_cxr/official', notes) if split_of else ''
    labelled = _labels(_table(root, labeler), labeler, dropped)
    if named := next((path for path in (root / RADIOLOGISTS, root / f'{RADIOLOGISTS}.gz') if path.exists()), None):
        labelled |= _labels(named, 'radiologists', dropped)
    files = folders.files(root, '.jpg', '.txt')
    pictures = sum(name.endswith('.jpg') for name in files)
    texts = pathlib.Path(reports).expanduser().resolve() if reports else root
    if reports and not (texts / 'files').is_dir():
        raise UserError(f'--reports {reports}: files/ is missing; give the folder that holds files/p10/p10000032/…')
    report_stamps = folders.files(texts, '.txt') if reports else files
    with_reports = bool(reports) or len(files) > pictures

    films: list[Film] = []
    seen: dict[str, int] = {}
    for line in table.lines:
        image, subject, number = (line.cells[name] for name in ('dicom_id', 'subject_id', 'study_id'))
        study = f'files/p{subject[:2]}/p{subject}/s{number}'
        path = f'{study}/{image}.jpg'
        try:
            if image in seen:
                raise Unreadable(f'the image of line {seen[image]} again')
            seen[image] = line.number
            if path not in files:
                raise Unreadable('there is no such file')
            if split_of and image not in split_of:
                raise Unreadable('the table of splits does not name it')
        except Unreadable as error:
            dropped.append(Drop(image, table.where(line), str(error)))
            continue
        stamp = f'{files[path]} {report_stamps.get(study + ".txt", "")}'.strip()
        entry = Entry(image, subject, f'{subject}/{number}', split_of.get(image), table.where(line), stamp=stamp)
        labels, label_source = labelled.get(number, ([BLANK] * len(CHEXPERT), ''))
        films.append(Film(entry, labels, label_source, line.cells['ViewPosition'], path, f'{study}.txt'))
    notes += folders.account(root, table.path.name, LAYOUT, len(seen), len(films), pictures)
    notes += _label_notes(films)
    if not with_reports:
        notes.append('no reports: they come with MIMIC-CXR, not with MIMIC-CXR-JPG; --reports DIR says where they are')

    def load(i: int) -> Example:
        film = films[i]
        text, note = _report(texts, film.report) if with_reports else ({}, '')
        facts = coding.known(view=film.view, label_source=film.label_source)
        data = folders.content(folders.inside(root, film.file))
        return Example(data, coding.role(film.view), text=text, info=facts, note=note)

    return Source(
        name='mimic_cxr', version='1', namespace='mimic_cxr', labels=tuple(map(coding.label_name, CHEXPERT)),
        license=LICENSE, size=size, entries=[film.entry for film in films], label=lambda i: films[i].labels, load=load,
        dropped=dropped, notes=notes, splits=name_of_list,
    )  # fmt: skip


def _table(root: pathlib.Path, name: str) -> pathlib.Path:
    """A table of the release, packed or not."""
    paths = [root / f'mimic-cxr-2.0.0-{name}.csv{end}' for end in ('.gz', '')]
    folders.release_folder(str(root), '|'.join(path.name for path in paths), layout=LAYOUT)
    return next(path for path in paths if path.exists())


def _splits(root: pathlib.Path, split: str, dropped: list[Drop]) -> tuple[dict[str, str], list[str]]:
    """dicom_id -> split, and in what the table differs from the published one; nothing for 'drawn'."""
    if split == 'drawn':
        return {}, []
    table = tables.read_table(_table(root, 'split'), ['dicom_id', 'split'])
    dropped += table.dropped
    named = {}
    for line in table.lines:
        if line.cells['split'] in folders.SPLITS:
            named[line.cells['dicom_id']] = folders.SPLITS[line.cells['split']]
        else:
            dropped.append(Drop(line.cells['dicom_id'], table.where(line), 'its split is no train, validate or test'))
    return named, published_splits.differences('mimic_cxr/official', named.items())


def _labels(path: pathlib.Path, who: str, dropped: list[Drop]) -> Labelled:
    """The labels of each study of a table; several lines of one are joined."""
    table = tables.read_table(path, ['study_id'])
    names = ['Airspace Opacity' if name == 'Lung Opacity' and name not in table.columns else name for name in CHEXPERT]
    for name in names:
        if name not in table.columns:
            raise UserError(f'{path}: the column {name} is missing; it is one of the 14 labels')
    dropped += table.dropped
    for line in table.lines:
        if wrong := coding.codes(line.cells, names)[1]:
            reason = f'neither 1, 0, -1 nor blank, taken as blank: {", ".join(wrong)}'
            dropped.append(Drop('', table.where(line), reason, 'part'))
    studies = table.by(lambda line: line.cells['study_id'].removesuffix('.0'))
    return {
        study: (coding.join([coding.codes(line.cells, names)[0] for line in lines]), who)
        for study, lines in studies.items()
    }


def _label_notes(films: list[Film]) -> list[str]:
    """Notes on whose labels the images have."""
    split_and_source = Counter((film.entry.split, film.label_source) for film in films)
    notes = []
    if without := sum(n for (_, who), n in split_and_source.items() if not who):
        notes.append(f'{without:,} images belong to studies without labels: all blank')
    if experts := sum(n for (_, who), n in split_and_source.items() if who == 'radiologists'):
        others = sum(n for (part, who), n in split_and_source.items() if part == 'test' and who != 'radiologists')
        notes.append(
            f"{experts:,} images have radiologists' labels, the other {others:,} of the test split have the labeler's "
            'or none: the column label_source tells'
        )
    return notes


def _report(root: pathlib.Path, name: str) -> tuple[dict[str, str], str]:
    """The report of a study by sections, or nothing and why."""
    try:
        text = folders.content(folders.inside(root, name)).decode('utf-8', 'replace')
        return sections.parse(language.tokens(text)), ''
    except Unreadable as error:
        return {}, f'the report is left out: {error}'
