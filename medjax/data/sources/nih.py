"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients as 8-bit PNG, labels mined from reports by text.

    DIR/Data_Entry_2017_v2020.csv     or Data_Entry_2017.csv; with both, the newer
    DIR/train_val_list.txt, test_list.txt
    DIR/images_001/images/00000001_000.png …     or all in images/, or anywhere else below DIR

Splits. `official` (default): the two lists of the release. They name no validation images, so one in eight patients of
train_val_list.txt becomes val, by sha256 of the patient's number: the same patients everywhere (74,583 train, 11,941
val, 25,596 test images). `official_val`, which papers use too (75,312 train, 11,212 val, the same test), and
`chestmnist` come from text files that you give (--lists): train.txt, val.txt and test.txt with one image a line,
labels after it are ignored; train_list.txt … and Xray14_train_official.txt … are found too.
A list that differs from the published one of that name is told.

Labels: 14 findings and no_finding. 1 named, 0 not named; a blank cell is blank for all. 'No Finding' beside a finding
is conflicting for both. Several lines of one image are joined: where they differ, the label is conflicting. Effusion
is called pleural_effusion, as it is elsewhere. Ids for derived sets: image '00000013_005.png', patient '13'.

Traps: several hundred files have an alpha channel (decoded as grey); 'Patient Age' was '058Y' or as much as 411 in
Data_Entry_2017.csv; its lines end with a comma; downloads of single parts are common. The spacing column is that of the
film before it was reduced to 1024 px, so it is not stored. Boxes (BBox_List_2017.csv, 984 in test images) are not read.

Checked: columns, labels, counts, ages (0 to 95), one patient per file-name prefix in the v2020 table and the boxes of
mlmed/torchxrayvision; lists of jlianglab/BenchmarkTransformers and yangzhou12/BenchX (disjoint in patients); the blank
last column in the code of yangzhou12/BenchX; the folder names in several public loaders. Recalled, not checked: '058Y',
411, the number of alpha channels. Licence recalled: free to use with acknowledgement of the NIH Clinical Center.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
from collections import Counter
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.tables import Table
from medjax.data.types import BLANK, CONFLICTING, NEGATIVE, POSITIVE, Drop, Entry, Example, Source
from medjax.errors import UserError

LICENSE = 'NIH Clinical Center, free with acknowledgement'
LAYOUT = (
    'the folder that holds Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), train_val_list.txt, test_list.txt and '
    'the images, in images_001/images/ … images_012/images/ or in images/'
)
SPLITS = ('official', 'official_val', 'chestmnist')
FINDINGS = (
    'Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', 'Pneumonia', 'Pneumothorax',
    'Consolidation', 'Edema', 'Emphysema', 'Fibrosis', 'Pleural_Thickening', 'Hernia', 'No Finding',
)  # fmt: skip
LABELS = tuple('pleural_effusion' if name == 'Effusion' else coding.label_name(name) for name in FINDINGS)
TABLES = ('Data_Entry_2017_v2020.csv', 'Data_Entry_2017.csv')
LISTS = ('{}.txt', '{}_list.txt', 'Xray14_{}_official.txt')
COLUMNS = ('Image Index', 'Finding Labels', 'Follow-up #', 'Patient ID', 'Patient Age', 'Patient Gender')
VALIDATION = 0.125  # of the patients of train_val_list.txt


class Film(NamedTuple):
    """An image of the table whose file is there."""

    entry: Entry
    labels: list[int]
    cells: dict[str, str]  # those in which all lines of the image agree
    file: str


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)
    parser.add_argument('--lists', metavar='DIR', help='train.txt, val.txt and test.txt, for all splits but official')


def source(folder: str, size: int | None = None, split: str = 'official', lists: str | None = None) -> Source:
    root = folders.release_folder(folder, '|'.join(TABLES), layout=LAYOUT)
    table = tables.read_table(next(root / name for name in TABLES if (root / name).exists()), COLUMNS)
    split_of, notes = _splits(root, split, lists)
    name_of_list = published_splits.named(f'nih/{split}', notes) if split_of else ''
    stamps = folders.files(root, '.png')
    files = {path.rsplit('/', 1)[-1]: path for path in sorted(stamps, reverse=True)}  # of equal names the first path
    table, without_patient = _with_patients(table)
    images, unusable = tables.by_image(table, 'Image Index', files, patient='Patient ID')
    dropped = [*table.dropped, *without_patient, *unusable]
    films: list[Film] = []
    for image in images:
        patient = str(int(image.cells['Patient ID']))
        split_name = _cut(patient, split_of.get(image.image), split)
        if split_of and split_name is None:
            dropped.append(Drop(image.image, image.where, f'not in the lists of the split {split}'))
            continue
        labels, unknown = zip(*(_labels(line.cells['Finding Labels']) for line in image.lines), strict=True)
        if names := ', '.join(dict.fromkeys(name for line in unknown for name in line)):
            dropped.append(Drop(image.image, image.where, f'unknown findings are left out: {names}', 'part'))
        study = f'{patient}/{image.cells["Follow-up #"]}'
        entry = Entry(image.image, patient, study, split_name, image.where, stamp=stamps[image.file])
        films.append(Film(entry, coding.join(labels), image.shared_cells, image.file))
    notes += folders.account(root, table.path.name, LAYOUT, len(images) + len(unusable), len(films), len(stamps))

    def load(i: int) -> Example:
        cells = films[i].cells
        view = cells.get('View Position', '')
        age, sex = coding.age(cells.get('Patient Age', '')), coding.sex(cells.get('Patient Gender', ''))
        data = folders.content(folders.inside(root, films[i].file))
        return Example(data, coding.role(view), info=coding.known(age=age, sex=sex, view=view))

    return Source(
        name='nih', version='1', namespace='nih', labels=LABELS, license=LICENSE, size=size,
        entries=[film.entry for film in films], label=lambda i: films[i].labels, load=load, dropped=dropped,
        notes=notes, splits=name_of_list,
    )  # fmt: skip


def _with_patients(table: Table) -> tuple[Table, list[Drop]]:
    """The table without the lines whose Patient ID is no number, and a drop for each of those lines."""
    lines, dropped = [], []
    for line in table.lines:
        if (number := line.cells['Patient ID']).isascii() and number.isdecimal():  # '²' is a digit, but no number
            lines.append(line)
        else:
            dropped.append(Drop(line.cells['Image Index'], table.where(line), 'the Patient ID is no number'))
    return table._replace(lines=lines), dropped


def _splits(root: pathlib.Path, split: str, lists: str | None) -> tuple[dict[str, str], list[str]]:
    """image -> split as the lists say, and in what they differ from the published ones; nothing for 'drawn'."""
    if split == 'drawn':
        return {}, []
    if split == 'official':
        folders.release_folder(
            str(root), 'train_val_list.txt', 'test_list.txt', layout=f'{LAYOUT}; or add --split drawn'
        )
        paths = {'train': root / 'train_val_list.txt', 'test': root / 'test_list.txt'}
    else:
        if lists is None:
            raise UserError(
                f'--split {split}: give the folder of its lists: --lists DIR with train.txt, val.txt, test.txt'
            )
        given = pathlib.Path(lists).expanduser()
        paths = {}
        for part in ('train', 'val', 'test'):
            choices = [given / pattern.format(part) for pattern in LISTS]
            paths[part] = next((path for path in choices if path.is_file()), choices[0])
            if not paths[part].is_file():
                raise UserError(f'{given}: {" or ".join(path.name for path in choices)} is missing')
    named = [(_image(line), part) for part, path in paths.items() for line in tables.read_list(path)]
    if twice := sum(n > 1 for n in Counter(image for image, _ in set(named)).values()):
        raise UserError(
            f'{" and ".join(path.name for path in paths.values())}: {twice} images are in more than one list'
        )
    return dict(named), published_splits.differences(f'nih/{split}', dict(named).items())


def _image(line: str) -> str:
    return line.split()[0].replace('\\', '/').rsplit('/', 1)[-1]


def _cut(patient: str, name: str | None, split: str) -> str | None:
    """The split of an image of this patient: `official` has validation patients cut out of train."""
    if split != 'official' or name != 'train':
        return name
    digest = hashlib.sha256(f'val:nih:{patient}'.encode()).digest()
    return 'val' if int.from_bytes(digest[:8], 'big') / 2**64 < VALIDATION else 'train'


def _labels(cell: str) -> tuple[list[int], list[str]]:
    """The labels that a cell 'Effusion|Mass' means, and the words in it that are no finding."""
    named = [word.strip() for word in cell.split('|') if word.strip()]
    if not named:
        return [BLANK] * len(FINDINGS), []
    present = CONFLICTING if 'No Finding' in named and len(named) > 1 else POSITIVE
    return (
        [present if finding in named else NEGATIVE for finding in FINDINGS],
        [word for word in named if word not in FINDINGS],
    )
