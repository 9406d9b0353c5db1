"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients as 8-bit PNG, labels mined from reports by text.

    DIR/Data_Entry_2017_v2020.csv     or Data_Entry_2017.csv; of both, the newer one is used
    DIR/train_val_list.txt, test_list.txt
    DIR/images_001/images/00000001_000.png …     or all in images/, or anywhere else below DIR

Splits:
- `official` (default): the two lists of the release. They name no validation images, so one in eight patients of
  train_val_list.txt becomes val, chosen by the sha256 of the patient's number. These are the same patients everywhere
  (74,583 train, 11,941 val, 25,596 test images).
- `official_val`, which papers use too (75,312 train, 11,212 val, the same test), and `chestmnist` need text files that
  you give with --lists DIR: train.txt, val.txt and test.txt, one image a line. Labels after the image are ignored. The
  names train_list.txt … and Xray14_train_official.txt … are found too.
- A note says where a list differs from the published list of its name.
Labels: 14 findings and no_finding. 1 is named, 0 is not named. With a blank cell, all labels are blank. 'No Finding'
beside a finding is conflicting for both. Several lines of one image are joined. Where they differ, the label is
conflicting. Effusion is called pleural_effusion, as in other data sets.
Ids that derived data sets use: image = '00000013_005.png', patient = '13'.
Traps:
- Several hundred files have an alpha channel; they are decoded as grey.
- In Data_Entry_2017.csv, 'Patient Age' was '058Y', or as much as 411, and each line ends with a comma.
- Many copies hold only some of the images_… folders.
- The spacing column is that of the film before it was reduced to 1024 px, so it is not stored.
- Boxes (BBox_List_2017.csv: 984, in test images) are not read.

Checked: columns, labels, counts, ages (0 to 95) and one patient per file-name prefix, in the v2020 table and the boxes
of mlmed/torchxrayvision; the lists of jlianglab/BenchmarkTransformers and yangzhou12/BenchX (disjoint in patients); the
blank last column in the code of yangzhou12/BenchX; the folder names in several public loaders.
Recalled, not checked: '058Y', 411, the number of files with an alpha channel.
Licence (recalled): free to use with acknowledgement of the NIH Clinical Center.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import pathlib
from collections import Counter
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.films import FilmRelease
from medjax.data.releases.tables import Table
from medjax.data.types import BLANK, CONFLICTING, NEGATIVE, POSITIVE, SPLIT_NAMES, Drop, Entry, Example, Source
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
LISTS = ('{}.txt', '{}_list.txt', 'Xray14_{}_official.txt')  # {} is the split
COLUMNS = ('Image Index', 'Finding Labels', 'Follow-up #', 'Patient ID', 'Patient Age', 'Patient Gender')
VALIDATION = 0.125  # share of the patients of train_val_list.txt


class Film(NamedTuple):
    """An image that the table names and whose file is there."""

    entry: Entry
    labels: list[int]
    cells: dict[str, str]  # the cells in which all lines of the image agree
    file: str


@dataclasses.dataclass(frozen=True)
class Release(FilmRelease):
    """The usable images, in the order of the entries."""

    films: list[Film]

    def load(self, i: int) -> Example:
        """Reads image i. Raises Unreadable."""
        cells = self.films[i].cells
        view = cells.get('View Position', '')
        age, sex = coding.age(cells.get('Patient Age', '')), coding.sex(cells.get('Patient Gender', ''))
        data = folders.read_bytes(folders.inside(self.root, self.films[i].file))
        return Example(data, coding.role(view), attributes=coding.filled(age=age, sex=sex, view=view))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size and --lists."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument(
        '--lists', metavar='DIR', help='holds train.txt, val.txt and test.txt; needed for official_val and chestmnist'
    )


def source(folder: str, size: int | None = None, split: str = 'official', lists: str | None = None) -> Source:
    """The source of the release in `folder`. UserError if a table, a list or all images are missing."""
    root = folders.release_folder(folder, '|'.join(TABLES), layout=LAYOUT)
    table = tables.read_table(next(root / name for name in TABLES if (root / name).exists()), COLUMNS)
    split_of, notes = _splits(root, split, lists)
    list_name = published_splits.list_name(f'nih/{split}', notes) if split_of else ''
    stamps = folders.files(root, '.png')
    files = {path.rsplit('/', 1)[-1]: path for path in sorted(stamps, reverse=True)}  # of equal names the first path
    table, without_patient = _with_patients(table)
    images, unusable = tables.by_image(table, 'Image Index', files, patient='Patient ID')
    dropped = [*table.dropped, *without_patient, *unusable]
    films: list[Film] = []
    for image in images:
        patient = str(int(image.cells['Patient ID']))
        image_split = _image_split(patient, split_of.get(image.image), split)
        if split_of and image_split is None:
            dropped.append(Drop(image.image, image.where, f'not in the lists of the split {split}'))
            continue
        labels, unknown = zip(*(_labels(line.cells['Finding Labels']) for line in image.lines), strict=True)
        if findings := ', '.join(dict.fromkeys(finding for line in unknown for finding in line)):
            dropped.append(Drop(image.image, image.where, f'unknown findings are left out: {findings}', 'detail'))
        study = f'{patient}/{image.cells["Follow-up #"]}'
        entry = Entry(image.image, patient, study, image_split, image.where, stamp=stamps[image.file])
        films.append(Film(entry, coding.combine_lines(labels), image.shared_cells, image.file))
    notes += folders.usage_notes(root, table.path.name, LAYOUT, len(images) + len(unusable), len(films), len(stamps))

    release = Release(root, films)
    return Source(
        name='nih', version='1', namespace='nih', labels=LABELS, license=LICENSE, size=size,
        entries=[film.entry for film in films], label=release.label, load=release.load, dropped=dropped,
        notes=notes, splits=list_name,
    )  # fmt: skip


def _with_patients(table: Table) -> tuple[Table, list[Drop]]:
    """The table without the lines whose Patient ID is not a number, and a drop for each of those lines."""
    lines, dropped = [], []
    for line in table.lines:
        if (number := line.cells['Patient ID']).isascii() and number.isdecimal():  # '²' is a digit, but int('²') fails
            lines.append(line)
        else:
            dropped.append(Drop(line.cells['Image Index'], table.where(line), 'the Patient ID is not a number'))
    return table._replace(lines=lines), dropped


def _splits(root: pathlib.Path, split: str, lists: str | None) -> tuple[dict[str, str], list[str]]:
    """Image -> split, and sentences on how the lists differ from the published ones; both empty for 'drawn'."""
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
        list_folder = pathlib.Path(lists).expanduser()
        paths = {}
        for name in SPLIT_NAMES:
            choices = [list_folder / pattern.format(name) for pattern in LISTS]
            paths[name] = next((path for path in choices if path.is_file()), choices[0])
            if not paths[name].is_file():
                raise UserError(f'{list_folder}: {" or ".join(path.name for path in choices)} is missing')
    listed = [(_image_id(line), name) for name, path in paths.items() for line in tables.read_list(path)]
    if repeated := sum(n > 1 for n in Counter(image for image, _ in set(listed)).values()):
        raise UserError(
            f'{" and ".join(path.name for path in paths.values())}: {repeated} images are in more than one list'
        )
    split_of = dict(listed)
    return split_of, published_splits.differences(f'nih/{split}', split_of.items())


def _image_id(line: str) -> str:
    """'00000013_005.png' from 'images/00000013_005.png 0 1 0'."""
    return line.split()[0].replace('\\', '/').rsplit('/', 1)[-1]


def _image_split(patient: str, listed: str | None, split: str) -> str | None:
    """The split of an image: that of its list. In `official`, one in eight patients of train becomes val."""
    if split != 'official' or listed != 'train':
        return listed
    digest = hashlib.sha256(f'val:nih:{patient}'.encode()).digest()
    return 'val' if int.from_bytes(digest[:8], 'big') / 2**64 < VALIDATION else 'train'


def _labels(cell: str) -> tuple[list[int], list[str]]:
    """The label codes of a cell such as 'Effusion|Mass', and the findings in it that are unknown."""
    named = [finding.strip() for finding in cell.split('|') if finding.strip()]
    if not named:
        return [BLANK] * len(FINDINGS), []
    code = CONFLICTING if 'No Finding' in named and len(named) > 1 else POSITIVE
    unknown = [finding for finding in named if finding not in FINDINGS]
    return [code if finding in named else NEGATIVE for finding in FINDINGS], unknown
