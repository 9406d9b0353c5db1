"""A folder with metadata.csv and the images that it names: PNG, JPEG (8 or 16 bit), DICOM.

    DIR/metadata.csv     image,patient_id,split,text,age,sex,view,effusion,nodule
    DIR/…                the images, at the paths that the column image names

Recognised columns: image (required; filename, image_path and the like are read if their cells name files), patient_id,
study_id, split, text, age, sex, view, mask, license. Usual other names are read too: Patient-ID, MRN, Gender,
SplitName. A DICOM file with several frames gives a record for each. Age, sex and view come from its header if the table
does not have them. Ages above 90 are stored as 90, and impossible ones are left out. Words for male and female are
stored as M and F.

Images: paths below DIR. A path of another machine, a name without suffix or folder, or a name in other case is read if
only one file can be meant.
Splits: the column split: train, val or test, also training, tune, holdout, … Without it, or with --split drawn, they
are drawn per patient.
Labels: the columns that --labels names. By default, the columns that hold only 0, 1, -1 (uncertain) or nothing, and
whose names are not those of other things (fold, site). True, ja, negative and other words for yes and no are read, and
nan, N.A., unknown and other words for nothing. A few typing errors are left blank.
Texts: the column text. A report is cut into its sections: findings, impression, …
Masks: the files that the column mask names. --masks lungs says what they show. --masks left=1,right=2 names the
structure of each value; 0 is background.
Patients: the column patient_id. Without it, near-duplicates stay together where splits are drawn. An id that stands for
nobody (ANONYMOUS, or one id on nearly all studies) counts as unknown.

The build prints what became of each column, and medjax.json keeps it.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.data.images import dicom
from medjax.data.releases import coding, column_names, folders, label_columns, mask_values, table_fields, tables
from medjax.data.releases.label_columns import LabelColumn
from medjax.data.releases.named_files import Finder, Found
from medjax.data.releases.people import People
from medjax.data.releases.table_fields import Fields
from medjax.data.releases.tables import Line, Table
from medjax.data.text import language, markup, sections
from medjax.data.types import ColumnUse, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError, suggest

SPLITS = ('given',)  # those of the column split, if the table has it
TRIED = 100  # lines whose cells decide whether a column names images
LAYOUT = (
    'the folder that holds metadata.csv and its images; the table has a line for each image, at least the column image'
)


class Picture(NamedTuple):
    """One picture: the file of a line, or a frame of it."""

    line: Line
    found: Found
    patient: str | None
    frame: int | None  # None for a file with one picture


@dataclasses.dataclass(frozen=True)
class Release:
    """The pictures, in the order of the entries."""

    finder: Finder
    pictures: list[Picture]
    labels: list[LabelColumn]
    masks: mask_values.Structures

    def label(self, i: int) -> list[int]:
        """The code of each label of picture i."""
        cells = self.pictures[i].line.cells
        return [code for label in self.labels for code in label.codes(cells[label.column])]

    def load(self, i: int) -> Example:
        """Reads picture i, its mask and its text. Raises Unreadable."""
        line, found, _, frame = self.pictures[i]
        cells, data = line.cells, folders.read_bytes(found.file)
        mask, note = self._mask(cells.get('mask', '')) if frame is None else (None, '')
        if frame is not None and cells.get('mask'):
            note = 'the mask is left out: the table does not say which of the frames it belongs to'
        text = sections.parse(language.unify_placeholders(markup.plain(cells.get('text', ''))))
        if cells.get('text') and not text:
            note = '; '.join(filter(None, [note, 'the text is left out: it holds only names or notices']))
        age, sex = coding.age(cells.get('age', '')), table_fields.sex(cells.get('sex', ''))
        attributes = dicom.attributes(data) if dicom.looks_like(data) else {}
        attributes |= coding.filled(
            sex=sex, view=table_fields.view(cells.get('view', '')), license=cells.get('license'), age=age
        )
        return Example(
            image=data,
            frame=frame or 0,
            role=coding.role(str(attributes.get('view', ''))),
            text=text,
            attributes=attributes,
            mask=mask,
            note=note,
        )

    def _mask(self, cell: str) -> tuple[bytes | np.ndarray | None, str]:
        """The mask that a line names and '', or None and the reason why the mask is left out."""
        try:
            return (self.masks.read(folders.read_bytes(self.finder.find(cell).file)) if cell else None), ''
        except Unreadable as error:
            return None, f'the mask is left out: {error}'


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size, --labels, --masks and --namespace."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument(
        '--labels', metavar='A,B', help='columns that are labels; a text column gives one label for each of its values'
    )
    parser.add_argument(
        '--masks',
        metavar='lungs|left=1,right=2',
        help='what the masks show: one structure, with all values but 0, or the value of each structure',
    )
    parser.add_argument(
        '--namespace', help="data sets with the same namespace share their patients (default: DIR's name)"
    )


def source(
    folder: str,
    labels: str | None = None,
    size: int | None = None,
    namespace: str | None = None,
    split: str = 'given',
    masks: str | None = None,
) -> Source:
    """The source of the table in `folder`. A line that cannot be used becomes a drop with its reason.

    split: 'drawn' leaves the column of the splits unused. UserError if the table is missing, if no column names
    images, or if `split` is 'given' and the table has an unknown split.
    """
    structures = mask_values.parse(masks)
    root = folders.release_folder(folder, 'metadata.csv', layout=LAYOUT)
    table = tables.read_table(root / 'metadata.csv', lower=tuple(column_names.NAMES))
    finder, is_drawn = Finder(root), split == 'drawn'
    fields = table_fields.read(table, _image_column(finder, table), is_drawn)
    found, unusable = _usable(finder, table, fields, is_drawn)
    lines = [line for line in fields.lines if line.number in found]
    persons = table_fields.people_of(lines)
    chosen, unused = label_columns.choose(
        lines, fields.columns, list(fields.column_of), _named(labels, fields), '--labels'
    )
    pictures = [
        picture
        for line, patient in zip(lines, persons.patients, strict=True)
        for picture in _pictures(line, found[line.number], patient)
    ]
    uses = [_image_use(fields, found), *table_fields.uses(fields, lines, persons, is_drawn)[1:]]
    uses += [*(label.use for label in chosen), *unused]

    names = tuple(name for label in chosen for name in label.names)
    licenses = sorted({line.cells['license'] for line in lines if line.cells.get('license')})
    release = Release(finder, pictures, chosen, structures)
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, labels=names, license='; '.join(licenses),
        size=size, entries=[_entry(finder, table, picture) for picture in pictures], label=release.label,
        load=release.load, dropped=[*table.dropped, *unusable], columns=_of_file(uses, fields, table),
        notes=[*_notes(fields, persons, names), *_mask_notes(lines, structures), *persons.notes],
        draw_namespace=namespace or '', masks=structures.names,
    )  # fmt: skip


def _image_column(finder: Finder, table: Table) -> str:
    """The column that names the images: 'image', else the first one like it (filename) whose cells are names of files.

    UserError if there is none.
    """
    if 'image' in table.columns:
        return 'image'
    similar = [column for column in table.columns if column_names.looks_like(column) == 'image']
    for column in similar:
        cells = [line.cells[column] for line in table.lines[:TRIED] if line.cells[column]]
        if cells and 2 * sum(_is_file(finder, cell) for cell in cells) > len(cells):
            return column
    near = f'; did you mean {similar[0]!r}? Its cells name no file here' if similar else suggest('image', table.columns)
    raise UserError(f'{table.path}: the column image is missing{near}')


def _is_file(finder: Finder, cell: str) -> bool:
    try:
        return bool(finder.find(cell))
    except Unreadable:
        return False


def _usable(finder: Finder, table: Table, fields: Fields, is_drawn: bool) -> tuple[dict[int, Found], list[Drop]]:
    """Number of a line -> its file, for the lines that can be used, and a drop for each other line.

    is_drawn: splits are drawn, so a line needs none.
    """
    has_splits = not is_drawn and any(line.cells.get('split') for line in fields.lines)
    found: dict[int, Found] = {}
    dropped = []
    meant: dict[pathlib.Path, list[Line]] = defaultdict(list)
    for line in fields.lines:
        try:
            found[line.number] = file = finder.find(line.cells['image'])
            meant[file.file].append(line)
            if has_splits and not line.cells['split']:
                raise Unreadable('the split is blank although other lines have one')
        except Unreadable as error:
            found.pop(line.number, None)
            dropped.append(Drop(line.cells['image'], table.where(line), str(error)))
    for lines in meant.values():
        for line, reason in _repeats([line for line in lines if line.number in found], found):
            del found[line.number]
            dropped.append(Drop(line.cells['image'], table.where(line), reason))
    return found, sorted(dropped, key=lambda drop: int(drop.where.rsplit(' ', 1)[1]))


def _repeats(lines: list[Line], found: dict[int, Found]) -> list[tuple[Line, str]]:
    """The lines that name a file which another line names, each with the reason why it is set aside.

    A line that names the file exactly goes before lines that name it in another way. If several lines name it only in
    another way, nobody knows which one is right, and all are set aside.
    """
    exact = [line for line in lines if not found[line.number].how]
    if len({line.cells['image'] for line in lines}) > 1 and not exact:
        return [(line, 'several lines may mean this file; give the paths as they are in the folder') for line in lines]
    first = (exact or lines)[:1]
    result = []
    for line in lines:
        if line not in first:
            values = '' if line.cells == first[0].cells else ' with other values'
            result.append((line, f'repeats the image of line {first[0].number}{values}'))
    return result


def _pictures(line: Line, found: Found, patient: str | None) -> list[Picture]:
    """The pictures in a file: one, or each frame of a DICOM file."""
    count = folders.frame_count(found.file)
    return [Picture(line, found, patient, frame) for frame in (range(count) if count > 1 else [None])]


def _entry(finder: Finder, table: Table, picture: Picture) -> Entry:
    """The entry of a picture. A study_id is a number within a patient; a record without one is a study of its own."""
    cells, patient, image = picture.line.cells, picture.patient, picture.found.image
    study = f'{patient or ""}/{cells["study_id"]}' if cells.get('study_id') else f'image/{image}'
    suffix = '' if picture.frame is None else f' frame {picture.frame + 1}'
    stamp = _stamp(finder, picture.found.file, cells.get('mask', ''))
    where = table.where(picture.line) + suffix
    return Entry(image + suffix, patient, study, cells.get('split') or None, where, stamp=stamp)


def _stamp(finder: Finder, file: pathlib.Path, mask: str) -> str:
    """The stamp of an image and of its mask, if the mask can be used."""
    try:
        return folders.stamp(file, finder.find(mask).file) if mask else folders.stamp(file)
    except Unreadable:
        return folders.stamp(file)


def _named(labels: str | None, fields: Fields) -> list[str] | None:
    """The columns that --labels names. A field may be named as in the file, and in any case."""
    if labels is None:
        return None
    field_of = {column: name for name, column in fields.names.items()}
    names = [name.strip() for name in labels.split(',') if name.strip()]
    names = [name.lower() if name.lower() in column_names.NAMES else name for name in names]
    return [field_of.get(name, name) for name in names]


def _image_use(fields: Fields, found: dict[int, Found]) -> ColumnUse:
    """How the column image names the files."""
    ways = Counter(file.how for file in found.values() if file.how)
    why = '; '.join(f'{n} of them {way}' for way, n in ways.most_common())
    return ColumnUse('image', 'image', len(found), len(fields.lines) - len(found), why=why)


def _of_file(uses: Sequence[ColumnUse], fields: Fields, table: Table) -> list[ColumnUse]:
    """One use for each column, in the order of the file. A field may be a label too."""
    twice = 'it is there twice with equal cells, and read once'
    merged: dict[str, ColumnUse] = {}
    for use in uses:
        column = fields.names.get(use.column, use.column)
        if column in merged:
            use = use._replace(use=f'{merged[column].use} and {use.use}')
        if column in table.twice and column not in merged:
            use = use._replace(why=f'{use.why}; {twice}' if use.why else twice)
        merged[column] = use._replace(column=column)
    return [merged[column] for column in table.columns]


def _notes(fields: Fields, persons: People, labels: tuple[str, ...]) -> list[str]:
    """Notes on lines without a patient, and on a table without labels."""
    notes = []
    if without := persons.blank:
        have = 'line has' if without == 1 else 'lines have'
        named = f'{without} {have} no patient_id, or one that says that it is nobody'
        where = named if 'patient_id' in fields.column_of else _no_patients(fields)
        notes.append(
            f'{where}: where splits are drawn, near-duplicates stay together; people may still be in two splits'
        )
    if persons.one:
        lines = len(persons.patients)
        notes.append(f'{persons.one} of {lines} lines have one patient: if the id stands for nobody, leave it blank')
    if not labels:
        notes.append('no labels: no column holds only 0, 1, -1 or nothing; name some with --labels to probe')
    return notes


def _mask_notes(lines: Sequence[Line], structures: mask_values.Structures) -> list[str]:
    """A note on masks without names. UserError for names without masks."""
    count = sum(bool(line.cells.get('mask')) for line in lines)
    if structures.names and not count:
        raise UserError('--masks: no line names a mask; the table needs a column mask with the paths of the files')
    if structures.names or not count:
        return []
    return [f'{count} masks: --masks lungs would say what they show, --masks left=1,right=2 what each value shows']


def _no_patients(fields: Fields) -> str:
    similar = [column for column in fields.columns if column_names.looks_like(column) == 'patient_id']
    return 'there is no column patient_id' + (f' ({similar[0]!r} looks like one)' if similar else '')
