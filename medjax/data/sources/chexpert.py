"""CheXpert 1.0, its small copy, its test set and CheXpert Plus: 224,316 radiographs of 65,240 patients.

    DIR/train.csv, valid.csv              Path, Sex, Age, Frontal/Lateral, AP/PA and 14 labels
    DIR/train/patient00001/study1/view1_frontal.jpg …, DIR/valid/…
    DIR/test_labels.csv, DIR/test/…       released later; labels by Path. Or groundtruth.csv: labels by Study
    DIR/df_chexpert_plus_240401.csv       CheXpert Plus: sections of reports, race, ethnicity, insurance; PNG/train/…
    DIR/chexbert_labels/impression_fixed.json      labels of CheXpert Plus: one object a line, with path_to_image

DIR holds at least one of these tables. An image is found by the end of its path (train/patient00001/study1/view1…), so
the JPEG, PNG and DICOM copies of an image, small or not, are one image.

Splits: train.csv is train, valid.csv is val, the test labels are test. An image that only CheXpert Plus names has the
split of its column `split`. CheXpert 5x200 and similar selections are not official lists.
Labels: 1, 0, -1 and blank as in the tables. An image without a line in train.csv or valid.csv has the labels of
impression_fixed.json, and the column label_source says so. (The labels of CheXpert come from impressions too.) Several
lines of one image are joined. Where they differ, the label is conflicting.
Ids that derived data sets use: image = 'train/patient00001/study1/view1_frontal.jpg' without the leading CheXpert-v1.0,
patient = 'patient00001'.
Traps:
- 78 % of train's cells are blank. valid and test have no -1 and no blanks, since radiologists read them.
- An age of 0 means unknown. Sex can be 'Unknown'. Some frontal images have AP/PA 'LL'.
- test_labels.csv has labels and nothing else.
- In the table of CheXpert Plus, a path ends in .jpg although the file is a PNG. Its column report repeats the sections
  with accession numbers, so only the sections are read.
- The race of CheXpert 1.0 is in a separate Excel file, which is not read.

Checked: train.csv of mlmed/torchxrayvision; the valid and test lists of jlianglab/Ark; groundtruth.csv of
rajpurkarlab/cheXpert-test-set-labels (the splits are disjoint in patients; counts and facts above); the columns of
the Plus table in a public script that quotes its header; the names of its label files and of PNG/ in several scripts.
Recalled, not checked: what the sections hold, and how ages are written there.
Licence (recalled): Stanford University School of Medicine research use agreement.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.data.releases.films import FilmRelease
from medjax.data.types import BLANK, Drop, Entry, Example, Source
from medjax.errors import UserError

LICENSE = 'Stanford research use agreement'
LAYOUT = (
    'the folder that holds train.csv and valid.csv with train/ and valid/ (CheXpert-v1.0 or CheXpert-v1.0-small), '
    'test_labels.csv or groundtruth.csv with test/, or df_chexpert_plus_240401.csv with PNG/'
)
SPLITS = ('official',)
TABLES = {'train.csv': 'train', 'valid.csv': 'val', 'test_labels.csv': 'test', 'groundtruth.csv': 'test'}
PLUS_TABLE, PLUS_LABELS = 'df_chexpert_plus_240401.csv', 'chexbert_labels/impression_fixed.json'
SECTIONS = {  # column of CheXpert Plus -> section; columns of one section are joined in this order
    'section_clinical_history': 'indication', 'section_history': 'indication', 'section_comparison': 'comparison',
    'section_technique': 'technique', 'section_procedure_comments': 'technique', 'section_findings': 'findings',
    'section_impression': 'impression',
}  # fmt: skip
SUFFIXES = ('.jpg', '.png', '.dcm')  # of several copies of an image, the first suffix is used


class Film(NamedTuple):
    """An image that a table names and whose file is there."""

    entry: Entry
    labels: list[int]
    fields: dict[str, str]
    file: str


class Listed(NamedTuple):
    """The facts about one image from the tables."""

    where: str
    split: str | None
    labels: list[list[int]]  # one list for each line
    fields: dict[str, str]  # plane, view, sex, age, sections, …


@dataclasses.dataclass(frozen=True)
class Release(FilmRelease):
    """The usable images, in the order of the entries."""

    films: list[Film]

    def load(self, i: int) -> Example:
        """Reads image i and its report. Raises Unreadable."""
        fields = self.films[i].fields
        attributes = coding.filled(
            age=coding.age(fields.get('age', '')) or None,  # 0 is unknown: all others are 18 or more
            sex=coding.sex(fields.get('sex', '')),
            **{name: fields.get(name) for name in ('view', 'race', 'ethnicity', 'insurance', 'label_source')},
        )
        data = folders.read_bytes(folders.inside(self.root, self.films[i].file))
        return Example(data, coding.role(fields.get('plane', '')), text=_sections(fields), attributes=attributes)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'official') -> Source:
    """The source of the release in `folder`. UserError if all tables or all images are missing."""
    root = folders.release_folder(folder, '|'.join([*TABLES, PLUS_TABLE]), layout=LAYOUT)
    stamps = folders.files(root, *SUFFIXES)
    files = {}  # image without its suffix -> its file
    for path in sorted(stamps, key=lambda path: (SUFFIXES.index(path[-4:].lower()), path), reverse=True):
        files[_image_id(path)[:-4]] = path
    images: dict[str, Listed] = {}
    dropped: list[Drop] = []
    for name, table_split in TABLES.items():
        if (root / name).exists():
            _read_table(root / name, table_split, images, files, dropped)
    is_official = split != 'drawn' and any(listed.split in ('train', 'val') for listed in images.values())
    notes = _differences(images)
    before = len(images)
    if (root / PLUS_TABLE).exists():
        _read_plus(root, images, dropped)
    if is_official and (more := len(images) - before):
        notes.append(f'{more:,} images are in CheXpert Plus alone, so they are not in the list chexpert/official')
    list_name = published_splits.list_name('chexpert/official', notes) if is_official else ''
    films, unusable = _films(images, files, stamps, split)
    notes += folders.usage_notes(root, 'its table', LAYOUT, len(images), len(films), len(stamps))

    release = Release(root, films)
    return Source(
        name='chexpert', version='1', namespace='chexpert', labels=tuple(map(coding.label_name, CHEXPERT_LABELS)),
        license=LICENSE, size=size, entries=[film.entry for film in films], label=release.label,
        load=release.load, dropped=[*dropped, *unusable], notes=notes, splits=list_name,
    )  # fmt: skip


def _image_id(path: str) -> str:
    """'CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg' -> 'train/…'; '' if the path names no image."""
    match = re.search(r'(?:^|/)((?:train|valid|test)/patient\d+/study\d+/view\d+_(?:frontal|lateral)\.\w{3})$', path)
    return match[1] if match else ''


def _read_table(
    path: pathlib.Path, split: str, images: dict[str, Listed], files: Mapping[str, str], dropped: list[Drop]
) -> None:
    """Adds the lines of a table of CheXpert 1.0 to `images`.

    The key of a line is its Path, in groundtruth.csv its Study: such a line stands for all images of the study.
    """
    key = 'Study' if path.name == 'groundtruth.csv' else 'Path'
    table = tables.read_table(path, [key, *CHEXPERT_LABELS])
    dropped += table.dropped
    images_of: dict[str, list[str]] = {}  # study -> its images
    if key == 'Study':
        for name in sorted(files):
            images_of.setdefault(name.rsplit('/', 1)[0], []).append(f'{name}.jpg')
    for line in table.lines:
        where, cells = table.where(line), line.cells
        if key == 'Study':
            study = re.search(r'test/patient\d+/study\d+$', cells[key])
            names = images_of.get(study[0], []) if study else []
            reason = 'no view of the study is there'
        else:
            names = [name] if (name := _image_id(cells[key])) else []
            reason = 'its Path names no view of a study'
        if not names:
            dropped.append(Drop(cells[key], where, reason))
            continue
        labels, invalid = coding.label_codes(cells, CHEXPERT_LABELS)
        if invalid:
            reason = f'neither 1, 0, -1 nor blank, taken as blank: {", ".join(invalid)}'
            dropped.append(Drop(cells[key], where, reason, 'detail'))
        for name in names:
            fields = {
                'plane': 'lateral' if 'lateral' in name else 'frontal',
                'view': cells.get('AP/PA') or cells.get('Frontal/Lateral', ''),
                'sex': cells.get('Sex', ''),
                'age': cells.get('Age', ''),
            }
            images.setdefault(name, Listed(where, split, [], fields)).labels.append(labels)


def _read_plus(root: pathlib.Path, images: dict[str, Listed], dropped: list[Drop]) -> None:
    """Adds the sections and fields of CheXpert Plus to `images`, and the images that it alone names.

    A field that is already there stays.
    """
    table = tables.read_table(root / PLUS_TABLE, ['path_to_image', 'split'])
    dropped += table.dropped
    labels_of = dict(_chexbert_labels(root / PLUS_LABELS)) if (root / PLUS_LABELS).exists() else {}
    for line in table.lines:
        cells = line.cells
        if not (name := _image_id(cells['path_to_image'])):
            dropped.append(Drop(cells['path_to_image'], table.where(line), 'path_to_image names no view of a study'))
            continue
        fields = {section: cells[section] for section in SECTIONS if cells.get(section)}
        fields |= {
            'plane': cells.get('frontal_lateral', ''),
            'view': cells.get('ap_pa') or cells.get('frontal_lateral', ''),
            'insurance': cells.get('insurance_type', ''),
            **{field: cells.get(field, '') for field in ('age', 'sex', 'race', 'ethnicity')},
        }
        if name not in images:
            labels = labels_of.get(name, [BLANK] * len(CHEXPERT_LABELS))
            fields['label_source'] = 'chexbert' if name in labels_of else ''
            split = folders.SPLIT_SPELLINGS.get(cells['split'].lower())
            images[name] = Listed(table.where(line), split, [labels], {})
        present = images[name].fields
        present |= {field: value for field, value in fields.items() if value and not present.get(field)}


def _chexbert_labels(path: pathlib.Path) -> Iterator[tuple[str, list[int]]]:
    """(image, label codes) of each line: a JSON object whose labels are 1.0, 0.0, -1.0 or null."""
    for number, line in tables.numbered_lines(path):
        try:
            value = json.loads(line)
            cells = {name: '' if value.get(name) is None else str(value[name]) for name in CHEXPERT_LABELS}
            yield _image_id(value['path_to_image']), coding.label_codes(cells, CHEXPERT_LABELS)[0]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path}, line {number}: no JSON object with path_to_image and labels') from None


def _differences(images: Mapping[str, Listed]) -> list[str]:
    """Sentences on how the tables of CheXpert 1.0 and of its test set differ from the published lists."""
    splits_of = {'chexpert/official': ('train', 'val'), 'chexpert/test': ('test',)}
    sentences = []
    for name, splits in splits_of.items():
        if split_list := [(image, str(listed.split)) for image, listed in images.items() if listed.split in splits]:
            sentences += published_splits.differences(name, split_list)
    return sentences


def _films(
    images: Mapping[str, Listed], files: Mapping[str, str], stamps: Mapping[str, str], split: str
) -> tuple[list[Film], list[Drop]]:
    """The images that have a file and, unless `split` is 'drawn', a split; and a drop for each other image.

    files: image without its suffix -> its file. stamps: file -> stamp.
    """
    films, dropped = [], []
    for image, listed in images.items():
        if image[:-4] not in files:
            dropped.append(Drop(image, listed.where, 'there is no such file'))
            continue
        if split != 'drawn' and not listed.split:
            dropped.append(Drop(image, listed.where, 'its split is neither train, valid nor test'))
            continue
        _, patient, study, _ = image.split('/')
        path = files[image[:-4]]
        image_split = None if split == 'drawn' else listed.split
        entry = Entry(image, patient, f'{patient}/{study}', image_split, listed.where, stamp=stamps[path])
        films.append(Film(entry, coding.combine_lines(listed.labels), listed.fields, path))
    return films, dropped


def _sections(fields: Mapping[str, str]) -> dict[str, str]:
    """The sections of a report by their usual names."""
    texts: dict[str, list[str]] = {}
    for column, section in SECTIONS.items():
        if fields.get(column):
            texts.setdefault(section, []).append(fields[column])
    return {section: '\n'.join(paragraphs) for section, paragraphs in texts.items()}
