"""SIIM-ACR Pneumothorax Segmentation 2019: DICOM films and masks of the pneumothorax as runs of pixels.

    DIR/train-rle.csv               ImageId, ' EncodedPixels' (with a leading blank)
    DIR/dicom-images-train/…/<ImageId>.dcm    two folders deep, named by unique ids; found wherever they lie

Traps: 12,954 lines for 12,047 images. A line is one mask, so the masks of an image are joined, and the label is 1
where it has one, 0 where the line says -1, conflicting where lines say both (none in the released table). Runs are
relative and in column order. ' -1' occurs in copies of the table. Images without a line (the test images) are left
out. Header ages of 148 years and more are left out. The films are NIH ChestX-ray14's, but the release has no map.
The split of BenchX (9,303 / 1,372 / 1,372) names PNG files of another release and cannot be used with this one.

Checked: the table itself and the meaning of the runs (mlmed/torchxrayvision, whose loader keeps only the last mask;
its copy has no ' -1' and no contradiction). Recalled, not checked: the folders above the files; that header ages are
wrong in some (seen in RSNA's headers); the licence (Kaggle competition rules, non-commercial); that the films are
NIH's (SIIM says so).
"""

from __future__ import annotations

import argparse
import pathlib
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, rle, tables
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'Kaggle competition rules: non-commercial use'
LAYOUT = 'the folder that holds train-rle.csv and dicom-images-train/ of SIIM-ACR Pneumothorax Segmentation'


class Film(NamedTuple):
    """An image of the table whose file is there."""

    entry: Entry
    label: int
    runs: list[str]  # the column EncodedPixels of each line
    file: str


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    root = folders.release_folder(folder, 'train-rle.csv', layout=LAYOUT)
    table = tables.read_table(root / 'train-rle.csv', ['ImageId', 'EncodedPixels'])
    stamps = folders.files(root, '.dcm')
    files = {pathlib.PurePosixPath(path).stem: path for path in stamps}
    images, unusable = tables.by_image(table, 'ImageId', files)
    dropped = [*table.dropped, *unusable]
    films: list[Film] = []
    for image in images:
        runs = [line.cells['EncodedPixels'] for line in image.lines]
        labels = [rle.label(cell) for cell in runs]
        if None in labels:
            reason = 'EncodedPixels is neither runs nor -1; this line says nothing'
            dropped.append(Drop(image.image, table.where(image.lines[labels.index(None)]), reason, 'part'))
        label = coding.fuse(BLANK if label is None else label for label in labels)
        entry = Entry(image.image, None, f'image/{image.image}', None, image.where, stamp=stamps[image.file])
        films.append(Film(entry, label, runs, image.file))
    if not films:
        raise UserError(f'{root}: none of the {len(unusable)} images of train-rle.csv is there; give {LAYOUT}')

    def load(i: int) -> Example:
        film = films[i]
        data, mask, note = folders.content(folders.inside(root, film.file)), None, ''
        try:
            if film.label != BLANK:
                mask = rle.mask(film.runs, dicom.shape(data))
        except Unreadable as error:
            note = f'the mask is left out: {error}'
        facts = dicom.facts(data)
        role = coding.role(str(facts.get('view', '')))
        return Example(data, role, info=facts, mask=mask, note=note)

    notes = [
        'the films are from NIH ChestX-ray14 and nobody published which: do not test on SIIM-ACR after training on NIH',
        'no patients are named: where splits are drawn, near-duplicates stay together; people may still be in two',
        *folders.not_named(stamps, {film.file for film in films}, 'train-rle.csv'),
    ]
    return Source(
        name='siim_acr', version='1', namespace='siim_acr', labels=('pneumothorax',), license=LICENSE,
        entries=[film.entry for film in films], label=lambda i: [films[i].label], load=load, dropped=dropped,
        notes=notes, size=size,
    )  # fmt: skip
