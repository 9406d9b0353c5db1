"""ROCO (2018) and ROCOv2 (2024): figures of open-access articles, mostly radiology, with their captions.

ROCO: {train,validation,test}/{radiology,non-radiology}/ with captions.txt (id, tab, blank, caption; no header),
licences.txt (ROCO_ID,PMC_ID,CC) and dlinks.txt; images/<id>.jpg where scripts/fetch.py loaded them, images/<PMC_ID> in
the copy that circulates as all_data. Read in razorx89/roco-dataset, all lists whole; the other names of images in
several loaders. Its links rot: images that could not be loaded are set aside, one by one.

ROCOv2: {train,valid,test}_captions.csv (ID,Caption), _concepts.csv and _concepts_manual.csv (ID,CUIs with ';'),
license_information.csv (ID,PMCID,Attribution,Link); <ID>.jpg in train/, train_images/ or train_images/train/, as the
archives unpack. Columns and counts agree in several public loaders and descriptions; a released file was not read.

Splits: the official ones. They are drawn by image: of ROCO's 46,597 articles 9,274 have figures in more than one, and
4,972 of the 7,984 articles of test images are in train too; 86 figures are there under several ids, 22 of them in two
splits (computed from its lists). The build says what it finds of that, and in what the captions differ from the
published list. UMLS concepts are told as `concepts`, 'C0040405;C1306645'; there are no labels. Licences are per
article. Only their code is kept; whoever shows an image needs the release's own attribution.
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
GROUPS = ('radiology', 'non-radiology')


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'official') -> Source:
    """Whichever of the two the folder holds; UserError where it holds none or both."""
    root = folders.release_folder(folder, layout=LAYOUT)
    second = [s for s in ('train', 'valid', 'test') if (root / f'{s}_captions.csv').is_file()]
    first = [
        f'{s}/{group}'
        for s in ('train', 'validation', 'test')
        for group in GROUPS
        if (root / s / group / 'captions.txt').is_file()
    ]
    if bool(first) == bool(second):
        raise UserError(f'{root}: {"captions of both ROCO and ROCOv2" if first else "no captions"}; give {LAYOUT}')
    notes: list[str] = []
    if second:
        figures = [figure for s in second for figure in _second(root, s, notes)]
        name, splits = 'rocov2', 'roco/v2'
    else:
        figures = [figure for part in first for figure in _first(root, part)]
        name, splits = 'roco', 'roco/v1' if any('non-' in part for part in first) else 'roco/v1_radiology'
    split_of = {figure.image: str(figure.split) for figure in figures if isinstance(figure, Figure)}
    differ = published_splits.differences(splits, split_of.items())
    notes += differ
    wanted = ('train', 'valid', 'test') if second else ('train', 'validation', 'test')
    if missing := [s for s in wanted if not any(part.split('/')[0] == s for part in second or first)]:
        notes.append(f'there are no captions of {" and ".join(missing)}')
    release = pubmed_figures.Figures(name, LICENSE, figures, notes, published_splits.named(splits, differ))
    return pubmed_figures.source(root, release, size)


def _first(root: pathlib.Path, part: str) -> Iterator[Figure | Drop]:
    """The figures of 'train/radiology' of ROCO."""
    here = root / part
    names, licenses = _origins(here)
    there = set(os.listdir(here / 'images')) if (here / 'images').is_dir() else set()
    for number, line in tables.numbered(here / 'captions.txt'):
        where = f'{part}/captions.txt line {number}'
        image, _, caption = line.partition('\t')
        if not re.fullmatch(r'ROCO_\d+', image):
            yield Drop('', where, 'no id of ROCO')
            continue
        name = names.get(image, '')
        file = name if name in there and f'{image}.jpg' not in there else f'{image}.jpg'
        yield Figure(
            image, f'{part}/images/{file}', pubmed_figures.article(name), where, (caption,),
            folders.SPLITS[part.split('/')[0]],
            coding.known(license=licenses.get(image), group=part.split('/')[1]),
        )  # fmt: skip


def _origins(here: pathlib.Path) -> tuple[dict[str, str], dict[str, str]]:
    """id -> 'PMC4083729_AMHSR-4-14-g002.jpg', the article and its file, and id -> licence."""
    names, licenses = {}, {}
    if (here / 'dlinks.txt').is_file():
        for line in tables.read_list(here / 'dlinks.txt'):
            image, link, name = (*line.split('\t'), '', '')[:3]
            names[image.strip()] = f'{pubmed_figures.article(link)}_{name.strip()}'
    if (here / 'licences.txt').is_file():
        for row in tables.read_table(here / 'licences.txt', ['ROCO_ID', 'PMC_ID', 'CC']).lines:
            names[row.cells['ROCO_ID']] = row.cells['PMC_ID']
            licenses[row.cells['ROCO_ID']] = pubmed_figures.license(row.cells['CC'])
    return names, licenses


def _second(root: pathlib.Path, split: str, notes: list[str]) -> Iterator[Figure | Drop]:
    """The figures of one split of ROCOv2."""
    table = tables.read_table(root / f'{split}_captions.csv', ['ID', 'Caption'])
    yield from table.dropped
    facts: dict[str, dict[str, str]] = defaultdict(dict)
    for name, file in (
        ('concepts', f'{split}_concepts.csv'),
        ('concepts_manual', f'{split}_concepts_manual.csv'),
    ):
        if (root / file).is_file():
            for line in tables.read_table(root / file, ['ID', 'CUIs']).lines:
                facts[line.cells['ID']][name] = line.cells['CUIs']
    articles = {}
    if (root / 'license_information.csv').is_file():
        for line in tables.read_table(root / 'license_information.csv', ['ID', 'PMCID', 'Attribution']).lines:
            articles[line.cells['ID']] = pubmed_figures.article(line.cells['PMCID'])
            facts[line.cells['ID']]['license'] = pubmed_figures.license(line.cells['Attribution'])
    candidates = (split, f'{split}_images/{split}', f'{split}_images', 'images')
    folder = next((f for f in candidates if (root / f).is_dir() and any((root / f).glob('*.jpg'))), split)
    if not (root / folder).is_dir():
        notes.append(f'there is no folder {" or ".join(candidates)}: unpack {split}_images.zip')
    for line in table.lines:
        image, where = line.cells['ID'], table.where(line)
        if not re.fullmatch(r'\w+', image):
            yield Drop('', where, 'no id of ROCOv2')
            continue
        yield Figure(
            image, f'{folder}/{image}.jpg', articles.get(image, ''), where, (line.cells['Caption'],),
            folders.SPLITS[split], coding.known(**facts.get(image, {})),
        )  # fmt: skip
