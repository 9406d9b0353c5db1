"""CheXpert 1.0, its small copy, its test set and CheXpert Plus: 224,316 radiographs of 65,240 patients.

    DIR/train.csv, valid.csv              Path, Sex, Age, Frontal/Lateral, AP/PA and 14 labels
    DIR/train/patient00001/study1/view1_frontal.jpg …, DIR/valid/…
    DIR/test_labels.csv, DIR/test/…       released later; labels by Path, or groundtruth.csv: by Study
    DIR/df_chexpert_plus_240401.csv       CheXpert Plus: sections of reports, race, ethnicity, insurance; PNG/train/…
    DIR/chexbert_labels/impression_fixed.json      its labels: an object a line, with path_to_image

DIR has at least one of these tables. Images are found by the end of their path (train/patient00001/study1/view1…), so
that JPEG, PNG and DICOM copies, small or not, are one image. Ids for derived sets: image
'train/patient00001/study1/view1_frontal.jpg' without the leading CheXpert-v1.0, patient 'patient00001'.

Split: train.csv is train, valid.csv val, the test labels test; images that CheXpert Plus alone names have its column
split. CheXpert 5x200 and the like are no official lists. Labels: 1, 0, -1, blank as in the tables; images without a
line in train.csv or valid.csv have those of impression_fixed.json (CheXpert too was labelled from impressions), and
the column label_source says so. Several lines of one image are joined: where they differ, the label is conflicting.

Traps: 78 % of train's cells are blank; valid and test have no -1 and no blank (read by radiologists); an age of 0 is
an unknown one; Sex has an 'Unknown'; some frontal images have AP/PA 'LL'; test_labels.csv has labels alone; in the
Plus table the path ends in .jpg where the file is a PNG, and its column report repeats the sections with accession
numbers, so only the sections are read. Race for CheXpert 1.0 is in a separate Excel file, which is not read.

Checked: train.csv of mlmed/torchxrayvision, valid and test lists of jlianglab/Ark, groundtruth.csv of
rajpurkarlab/cheXpert-test-set-labels (disjoint in patients; their counts and the facts above); the columns of the Plus
table in a public script that quotes its header, names of its label files and of PNG/ in several. Recalled, not
checked: what the sections hold, how ages are written there. Licence recalled: Stanford University School of Medicine
research use agreement.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.coding import CHEXPERT
from medjax.data.types import BLANK, Drop, Entry, Example, Source
from medjax.errors import UserError

LICENSE = 'Stanford research use agreement'
LAYOUT = (
    'the folder that holds train.csv and valid.csv with train/ and valid/ (CheXpert-v1.0 or CheXpert-v1.0-small), '
    'test_labels.csv or groundtruth.csv with test/, or df_chexpert_plus_240401.csv with PNG/'
)
SPLITS = ('official',)
TABLES = {'train.csv': 'train', 'valid.csv': 'val', 'test_labels.csv': 'test', 'groundtruth.csv': 'test'}
PLUS, CHEXBERT = 'df_chexpert_plus_240401.csv', 'chexbert_labels/impression_fixed.json'
SECTIONS = {  # of CheXpert Plus, in the order in which those of one name are joined
    'section_clinical_history': 'indication', 'section_history': 'indication', 'section_comparison': 'comparison',
    'section_technique': 'technique', 'section_procedure_comments': 'technique', 'section_findings': 'findings',
    'section_impression': 'impression',
}  # fmt: skip
SUFFIXES = ('.jpg', '.png', '.dcm')


class Film(NamedTuple):
    """An image that a table names and whose file is there."""

    entry: Entry
    labels: list[int]
    cells: dict[str, str]
    file: str


class Named(NamedTuple):
    """An image that a table names."""

    where: str
    split: str | None
    labels: list[list[int]]  # one for each line
    cells: dict[str, str]


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'official') -> Source:
    root = folders.release_folder(folder, '|'.join([*TABLES, PLUS]), layout=LAYOUT)
    found = folders.files(root, *SUFFIXES)
    paths = {}  # without its suffix: train/patient00001/study1/view1_frontal -> the file; JPEG before PNG before DICOM
    for path in sorted(found, key=lambda path: (SUFFIXES.index(path[-4:].lower()), path), reverse=True):
        paths[_image(path)[:-4]] = path
    images: dict[str, Named] = {}
    dropped: list[Drop] = []
    for name, part in TABLES.items():
        if (root / name).exists():
            _read(root / name, part, images, paths, dropped)
    listed = split != 'drawn' and any(named.split in ('train', 'val') for named in images.values())
    notes = _differences(images)
    read = len(images)
    if (root / PLUS).exists():
        _read_plus(root, images, dropped)
    if listed and (more := len(images) - read):
        notes.append(f'{more:,} images are in CheXpert Plus alone, so they are not in the list chexpert/official')
    name_of_list = published_splits.named('chexpert/official', notes) if listed else ''

    films: list[Film] = []
    for image, named in images.items():
        missing = image[:-4] not in paths
        if missing or not (named.split or split == 'drawn'):
            reason = 'there is no such file' if missing else 'its split is neither train, valid nor test'
            dropped.append(Drop(image, named.where, reason))
            continue
        _, patient, study, _ = image.split('/')
        path = paths[image[:-4]]
        part = None if split == 'drawn' else named.split
        entry = Entry(image, patient, f'{patient}/{study}', part, named.where, stamp=found[path])
        films.append(Film(entry, coding.join(named.labels), named.cells, path))
    notes += folders.account(root, 'its table', LAYOUT, len(images), len(films), len(found))

    def load(i: int) -> Example:
        cells = films[i].cells
        told = coding.known(
            age=coding.age(cells.get('age', '')) or None,  # 0 is unknown: all others are 18 or more
            sex=coding.sex(cells.get('sex', '')),
            **{name: cells.get(name) for name in ('view', 'race', 'ethnicity', 'insurance', 'label_source')},
        )
        data = folders.content(folders.inside(root, films[i].file))
        return Example(data, coding.role(cells.get('plane', '')), text=_text(cells), info=told)

    return Source(
        name='chexpert', version='1', namespace='chexpert', labels=tuple(map(coding.label_name, CHEXPERT)),
        license=LICENSE, size=size, entries=[film.entry for film in films], label=lambda i: films[i].labels, load=load,
        dropped=dropped, notes=notes, splits=name_of_list,
    )  # fmt: skip


def _image(path: str) -> str:
    """'CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg' -> 'train/…'; '' if it names no view."""
    match = re.search(r'(?:^|/)((?:train|valid|test)/patient\d+/study\d+/view\d+_(?:frontal|lateral)\.\w{3})$', path)
    return match[1] if match else ''


def _read(
    path: pathlib.Path, split: str, images: dict[str, Named], paths: Mapping[str, str], dropped: list[Drop]
) -> None:
    """Adds what train.csv, valid.csv, test_labels.csv (by Path) or groundtruth.csv (by Study) says to `images`."""
    key = 'Study' if path.name == 'groundtruth.csv' else 'Path'
    table = tables.read_table(path, [key, *CHEXPERT])
    dropped += table.dropped
    views: dict[str, list[str]] = {}
    if key == 'Study':
        for view in sorted(paths):
            views.setdefault(view.rsplit('/', 1)[0], []).append(f'{view}.jpg')
    for line in table.lines:
        where, cells = table.where(line), line.cells
        if key == 'Study':
            study = re.search(r'test/patient\d+/study\d+$', cells[key])
            names = views.get(study[0], []) if study else []
            reason = 'no view of the study is there'
        else:
            names = [name] if (name := _image(cells[key])) else []
            reason = 'its Path names no view of a study'
        if not names:
            dropped.append(Drop(cells[key], where, reason))
            continue
        codes, wrong = coding.codes(cells, CHEXPERT)
        if wrong:
            reason = f'neither 1, 0, -1 nor blank, taken as blank: {", ".join(wrong)}'
            dropped.append(Drop(cells[key], where, reason, 'part'))
        for name in names:
            facts = {
                'plane': 'lateral' if 'lateral' in name else 'frontal',
                'view': cells.get('AP/PA') or cells.get('Frontal/Lateral', ''),
                'sex': cells.get('Sex', ''),
                'age': cells.get('Age', ''),
            }
            images.setdefault(name, Named(where, split, [], facts)).labels.append(codes)


def _read_plus(root: pathlib.Path, images: dict[str, Named], dropped: list[Drop]) -> None:
    """Adds reports and groups of CheXpert Plus to `images`, and the images that it alone names."""
    table = tables.read_table(root / PLUS, ['path_to_image', 'split'])
    dropped += table.dropped
    labels = dict(_chexbert(root / CHEXBERT)) if (root / CHEXBERT).exists() else {}
    for line in table.lines:
        cells = line.cells
        if not (name := _image(cells['path_to_image'])):
            dropped.append(Drop(cells['path_to_image'], table.where(line), 'path_to_image names no view of a study'))
            continue
        facts = {section: cells[section] for section in SECTIONS if cells.get(section)}
        facts |= {
            'plane': cells.get('frontal_lateral', ''),
            'view': cells.get('ap_pa') or cells.get('frontal_lateral', ''),
            'insurance': cells.get('insurance_type', ''),
            **{fact: cells.get(fact, '') for fact in ('age', 'sex', 'race', 'ethnicity')},
        }
        if name not in images:
            codes = labels.get(name, [BLANK] * len(CHEXPERT))
            facts['label_source'] = 'chexbert' if name in labels else ''
            part = folders.SPLITS.get(cells['split'].lower())
            images[name] = Named(table.where(line), part, [codes], {})
        told = images[name].cells
        told |= {fact: value for fact, value in facts.items() if value and not told.get(fact)}


def _chexbert(path: pathlib.Path) -> Iterator[tuple[str, list[int]]]:
    """image -> labels of a file with one JSON object a line: 1.0, 0.0, -1.0 or null."""
    for number, line in tables.numbered(path):
        try:
            told = json.loads(line)
            cells = {name: '' if told.get(name) is None else str(told[name]) for name in CHEXPERT}
            yield _image(told['path_to_image']), coding.codes(cells, CHEXPERT)[0]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path}, line {number}: no JSON object with path_to_image and labels') from None


def _differences(images: Mapping[str, Named]) -> list[str]:
    """In what the tables of CheXpert 1.0 and of its test set differ from the published lists."""
    parts = {'chexpert/official': ('train', 'val'), 'chexpert/test': ('test',)}
    said = []
    for name, splits in parts.items():
        if chosen := [(image, str(named.split)) for image, named in images.items() if named.split in splits]:
            said += published_splits.differences(name, chosen)
    return said


def _text(cells: Mapping[str, str]) -> dict[str, str]:
    """Sections by their usual names."""
    texts: dict[str, list[str]] = {}
    for column, section in SECTIONS.items():
        if cells.get(column):
            texts.setdefault(section, []).append(cells[column])
    return {section: '\n'.join(parts) for section, parts in texts.items()}
