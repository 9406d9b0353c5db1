"""SIIM-ACR Pneumothorax Segmentation 2019: DICOM films, and masks of the pneumothorax as run lengths.

    DIR/train-rle.csv               ImageId, ' EncodedPixels' (with a leading blank)
    DIR/dicom-images-train/…/<ImageId>.dcm    two folders deep, named by unique ids; any other place is accepted

Splits: the release has none; they are drawn. The split of BenchX (9,303 / 1,372 / 1,372) names PNG files of another
release and cannot be used here.
Labels: `pneumothorax` is 1 if a line has a mask, 0 if the line says -1, and conflicting if lines say both (none in the
released table).
Mask: the pneumothorax. A line is one mask, and the masks of an image are joined. Runs are relative and go down the
columns.
Patients: not known.
Traps: 12,954 lines describe 12,047 images. Some copies of the table have ' -1' with a blank. Images without a line (the
test images) are left out. Some headers have ages of 148 years and more, which are left out. The films are images of NIH
ChestX-ray14, but the release does not say which image is which.

Checked: the table itself and the meaning of the runs (mlmed/torchxrayvision, whose loader keeps only the last mask; its
copy has no ' -1' and no contradiction).
Recalled, not checked: the folders above the files; wrong ages in some headers (seen in RSNA's headers); that the films
are NIH's (SIIM says so).
Licence (recalled): Kaggle competition rules, non-commercial.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, rle, tables
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'Kaggle competition rules: non-commercial use'
LAYOUT = 'the folder that holds train-rle.csv and dicom-images-train/ of SIIM-ACR Pneumothorax Segmentation'


class Film(NamedTuple):
    """An image that the table names and whose file is there."""

    entry: Entry
    label: int
    runs: list[str]  # the column EncodedPixels of each line
    file: str


@dataclasses.dataclass(frozen=True)
class Release:
    """The usable images, in the order of the entries."""

    root: pathlib.Path
    films: list[Film]

    def label(self, i: int) -> list[int]:
        """The code of the label of image i, in a list."""
        return [self.films[i].label]

    def load(self, i: int) -> Example:
        """Reads image i and its mask. Raises Unreadable."""
        film = self.films[i]
        data, mask, note = folders.read_bytes(folders.inside(self.root, film.file)), None, ''
        try:
            if film.label != BLANK:
                mask = rle.mask(film.runs, dicom.shape(data))
        except Unreadable as error:
            note = f'the mask is left out: {error}'
        attributes = dicom.attributes(data)
        role = coding.role(str(attributes.get('view', '')))
        return Example(data, role, attributes=attributes, mask=mask, note=note)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The source of the release in `folder`. UserError if the table or all images are missing."""
    root = folders.release_folder(folder, 'train-rle.csv', layout=LAYOUT)
    table = tables.read_table(root / 'train-rle.csv', ['ImageId', 'EncodedPixels'])
    stamps = folders.files(root, '.dcm')
    files = {pathlib.PurePosixPath(path).stem: path for path in stamps}
    images, unusable = tables.by_image(table, 'ImageId', files)
    dropped = [*table.dropped, *unusable]
    films: list[Film] = []
    for image in images:
        runs = [line.cells['EncodedPixels'] for line in image.lines]
        codes = [rle.label_code(cell) for cell in runs]
        if None in codes:
            reason = 'EncodedPixels is neither runs nor -1; this line is ignored'
            dropped.append(Drop(image.image, table.where(image.lines[codes.index(None)]), reason, 'detail'))
        label = coding.combine(BLANK if code is None else code for code in codes)
        entry = Entry(image.image, None, f'image/{image.image}', None, image.where, stamp=stamps[image.file])
        films.append(Film(entry, label, runs, image.file))
    if not films:
        raise UserError(f'{root}: none of the {len(unusable)} images of train-rle.csv is there; give {LAYOUT}')

    notes = [
        'the films are from NIH ChestX-ray14, but nobody published which image is which: do not test on SIIM-ACR after '
        'training on NIH',
        'no patients are named: where splits are drawn, near-duplicates stay together; people may still be in two',
        *folders.unlisted_notes(stamps, {film.file for film in films}, 'train-rle.csv'),
    ]
    release = Release(root, films)
    return Source(
        name='siim_acr', version='1', namespace='siim_acr', labels=('pneumothorax',), license=LICENSE,
        entries=[film.entry for film in films], label=release.label, load=release.load, dropped=dropped,
        notes=notes, size=size, masks=('pneumothorax',),
    )  # fmt: skip
