"""ROCO (2018) and ROCOv2 (2024): figures of open-access articles, mostly radiology, with their captions.

    ROCO:
    DIR/{train,validation,test}/{radiology,non-radiology}/captions.txt     id, tab, blank, caption; no header
    …/licences.txt (ROCO_ID,PMC_ID,CC), …/dlinks.txt
    …/images/<id>.jpg, as scripts/fetch.py loads them; or images/<PMC_ID>, as in the copy all_data

    ROCOv2:
    DIR/{train,valid,test}_captions.csv     ID,Caption
    DIR/…_concepts.csv, …_concepts_manual.csv     ID,CUIs (separated by ';')
    DIR/license_information.csv     ID,PMCID,Attribution,Link
    DIR/train/<ID>.jpg, or in train_images/ or train_images/train/, as the archives unpack

Splits: the official ones. Notes say where the captions differ from the published list.
Labels: none. UMLS concepts are stored as `concepts`: 'C0040405;C1306645'.
Patients: not known.
Traps:
- The links of ROCO rot. Images that could not be loaded are set aside one by one.
- The splits were drawn by image. Of ROCO's 46,597 articles, 9,274 have figures in more than one split, and 4,972 of the
  7,984 articles of test images are in train too. 86 figures are there under several ids, 22 of them in two splits. (All
  computed from its lists.) The build prints what it finds of this.

Checked: ROCO in razorx89/roco-dataset, all lists whole; the other names of images in several loaders. ROCOv2: columns
and counts agree in several public loaders and descriptions; a released file was not read.
Licence: of each article. Only its name is stored. Whoever shows an image needs the attribution in the release.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterator

from medjax.data.releases import coding, folders, published_splits, pubmed_figures, tables
from medjax.data.releases.pubmed_figures import Figure
from medjax.data.types import Drop, Source
from medjax.errors import UserError

LICENSE = 'of each article: CC BY, CC BY-NC, …'
LAYOUT = (
    'the folder that holds train/, validation/ and test/ (ROCO: data/ of its repository, or all_data/), or '
    'train_captions.csv, valid_captions.csv, test_captions.csv and the unpacked images (ROCOv2)'
)
SPLITS = ('official',)
FOLDERS = ('radiology', 'non-radiology')


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'official') -> Source:
    """The source of ROCO or ROCOv2, whichever the folder holds. UserError if it holds none or both."""
    root = folders.release_folder(folder, layout=LAYOUT)
    v1_splits, v2_splits = ('train', 'validation', 'test'), ('train', 'valid', 'test')
    v1 = [
        f'{name}/{inner}' for name in v1_splits for inner in FOLDERS if (root / name / inner / 'captions.txt').is_file()
    ]
    v2 = [name for name in v2_splits if (root / f'{name}_captions.csv').is_file()]
    if bool(v1) == bool(v2):
        raise UserError(f'{root}: {"captions of both ROCO and ROCOv2" if v1 else "no captions"}; give {LAYOUT}')
    notes: list[str] = []
    if v2:
        name, list_name = 'rocov2', 'roco/v2'
        figures = [figure for split_name in v2 for figure in _figures_v2(root, split_name, notes)]
        missing = [split_name for split_name in v2_splits if split_name not in v2]
    else:
        name, list_name = 'roco', 'roco/v1' if any('non-' in path for path in v1) else 'roco/v1_radiology'
        figures = [figure for path in v1 for figure in _figures_v1(root, path)]
        missing = [split_name for split_name in v1_splits if not any(path.startswith(split_name) for path in v1)]
    split_of = {figure.image: str(figure.split) for figure in figures if isinstance(figure, Figure)}
    differences = published_splits.differences(list_name, split_of.items())
    notes += differences
    if missing:
        notes.append(f'there are no captions of {" and ".join(missing)}')
    list_name = published_splits.list_name(list_name, differences)
    return pubmed_figures.source(root, pubmed_figures.Figures(name, LICENSE, figures, notes, list_name), size)


def _figures_v1(root: pathlib.Path, path: str) -> Iterator[Figure | Drop]:
    """The figures of one folder of ROCO, such as 'train/radiology'."""
    folder = root / path
    split, kind = path.split('/')
    names, licenses = _origins(folder)
    present = set(os.listdir(folder / 'images')) if (folder / 'images').is_dir() else set()
    for number, line in tables.numbered_lines(folder / 'captions.txt'):
        where = f'{path}/captions.txt line {number}'
        image, _, caption = line.partition('\t')
        if not re.fullmatch(r'ROCO_\d+', image):
            yield Drop('', where, 'not an id of ROCO')
            continue
        name = names.get(image, '')
        file = name if name in present and f'{image}.jpg' not in present else f'{image}.jpg'
        yield Figure(
            image, f'{path}/images/{file}', pubmed_figures.article_id(name), where, (caption,),
            folders.SPLIT_SPELLINGS[split], coding.filled(license=licenses.get(image), group=kind),
        )  # fmt: skip


def _origins(folder: pathlib.Path) -> tuple[dict[str, str], dict[str, str]]:
    """Id -> article and file name, such as 'PMC4083729_AMHSR-4-14-g002.jpg'; and id -> licence."""
    names, licenses = {}, {}
    if (folder / 'dlinks.txt').is_file():
        for line in tables.read_list(folder / 'dlinks.txt'):
            image, link, name = (*line.split('\t'), '', '')[:3]
            names[image.strip()] = f'{pubmed_figures.article_id(link)}_{name.strip()}'
    if (folder / 'licences.txt').is_file():
        for line in tables.read_table(folder / 'licences.txt', ['ROCO_ID', 'PMC_ID', 'CC']).lines:
            names[line.cells['ROCO_ID']] = line.cells['PMC_ID']
            licenses[line.cells['ROCO_ID']] = pubmed_figures.license_name(line.cells['CC'])
    return names, licenses


def _figures_v2(root: pathlib.Path, split: str, notes: list[str]) -> Iterator[Figure | Drop]:
    """The figures of one split of ROCOv2. Adds a note if its images are missing."""
    table = tables.read_table(root / f'{split}_captions.csv', ['ID', 'Caption'])
    yield from table.dropped
    attributes: dict[str, dict[str, str]] = defaultdict(dict)
    for name in ('concepts', 'concepts_manual'):
        if (path := root / f'{split}_{name}.csv').is_file():
            for line in tables.read_table(path, ['ID', 'CUIs']).lines:
                attributes[line.cells['ID']][name] = line.cells['CUIs']
    articles = {}
    if (root / 'license_information.csv').is_file():
        for line in tables.read_table(root / 'license_information.csv', ['ID', 'PMCID', 'Attribution']).lines:
            articles[line.cells['ID']] = pubmed_figures.article_id(line.cells['PMCID'])
            attributes[line.cells['ID']]['license'] = pubmed_figures.license_name(line.cells['Attribution'])
    choices = (split, f'{split}_images/{split}', f'{split}_images', 'images')
    folder = next((f for f in choices if (root / f).is_dir() and any((root / f).glob('*.jpg'))), split)
    if not (root / folder).is_dir():
        notes.append(f'there is no folder {" or ".join(choices)}: unpack {split}_images.zip')
    for line in table.lines:
        image, where = line.cells['ID'], table.where(line)
        if not re.fullmatch(r'\w+', image):
            yield Drop('', where, 'not an id of ROCOv2')
            continue
        yield Figure(
            image, f'{folder}/{image}.jpg', articles.get(image, ''), where, (line.cells['Caption'],),
            folders.SPLIT_SPELLINGS[split], coding.filled(**attributes.get(image, {})),
        )  # fmt: skip
