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
from collections import defaultdict

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, rle, tables
from medjax.data.releases.tables import Line
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'Kaggle competition rules: non-commercial use'
LAYOUT = 'the folder that holds train-rle.csv and dicom-images-train/ of SIIM-ACR Pneumothorax Segmentation'


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    root = folders.release_folder(folder, 'train-rle.csv', layout=LAYOUT)
    table = tables.read_table(root / 'train-rle.csv', ['ImageId', 'EncodedPixels'])
    files = folders.paths(root, '.dcm')
    place = {file.stem: name for name, file in files.items()}
    lines: defaultdict[str, list[Line]] = defaultdict(list)
    for line in table.lines:
        lines[line.cells['ImageId']].append(line)

    dropped, entries, labels, masks = list(table.dropped), [], [], []
    for image, mine in lines.items():
        where, cells = table.where(mine[0]), [line.cells['EncodedPixels'] for line in mine]
        try:
            file = folders.inside(root, place.get(image, f'dicom-images-train/{image}.dcm') if image else '')
        except Unreadable as error:
            dropped.append(Drop(image, where, str(error)))
            continue
        said = [rle.label(cell) for cell in cells]
        if None in said:
            reason = 'EncodedPixels is neither runs nor -1; this line says nothing'
            dropped.append(Drop(image, table.where(mine[said.index(None)]), reason, 'detail'))
        entries.append(Entry(image, None, f'image/{image}', None, where, stamp=folders.stamp(file)))
        labels.append(coding.fuse(BLANK if value is None else value for value in said))
        masks.append(cells)
    if not entries:
        raise UserError(f'{root}: none of the {len(lines)} images of train-rle.csv is there; give {LAYOUT}')

    def load(i: int) -> Example:
        data, mask, note = folders.content(folders.inside(root, place[entries[i].image])), None, ''
        try:
            if labels[i] != BLANK:
                mask = rle.mask(masks[i], dicom.shape(data))
        except Unreadable as error:
            note = f'the mask is left out: {error}'
        facts = dicom.attributes(data)
        role = coding.role(str(facts.get('view', '')))
        return Example(data, role, attributes=facts, mask=mask, note=note)

    notes = [
        'the films are from NIH ChestX-ray14 and nobody published which: do not test on SIIM-ACR after training on NIH',
        'no patients are named: where splits are drawn, near-duplicates stay together; people may still be in two',
        *folders.not_named(files, {place[image] for image in lines if image in place}, 'train-rle.csv'),
    ]
    return Source(
        name='siim_acr', version='1', namespace='siim_acr', labels=('pneumothorax',), license=LICENSE,
        entries=entries, label=lambda i: [labels[i]], load=load, dropped=dropped, notes=notes, size=size,
    )  # fmt: skip
