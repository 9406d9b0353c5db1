"""BRAX 1.1.0: 40,967 radiographs of 24,959 studies of a hospital in Brazil, labelled from reports in Portuguese.

    DIR/master_spreadsheet_update.csv     master_spreadsheet.csv in 1.0.0
    DIR/images/id_<PatientID>/Study_<number>/Series_<number>/image-<number>.png
    DIR/Anonymized_DICOMs/id_<PatientID>/Study_…/Series_…/image-….dcm

The PNG that PngPath names is read, or, where it is not there, the DICOM file of DicomPath. No official split: drawn
per patient. Labels: the 14 of CheXpert, 1, 0, -1, blank as in the table. Several lines of one image are joined: where
they differ, the label is conflicting. The release has no reports.
Ids for derived sets: image = PngPath, patient = PatientID.

Traps: ages are groups of five years and '85 or more' (told as 85); Manufacturer is a number that hides the name;
StudyDate is fictitious and, like AccessionNumber, not stored; ViewPosition has PA, AP, LL, RL, RLD, RLO … and blanks.

Checked: columns and paths in f10409/RadHarmony, the meaning of ages, sex, labels and manufacturers in a public
description of the release (openmedlab/Awesome-Medical-Dataset), PngPath as a path below DIR in two public loaders.
Recalled, not checked: how a cell of five years is written (a number is read, '60 - 64' as 60). Licence recalled:
PhysioNet Credentialed Health Data 1.5.0.
"""

from __future__ import annotations

import argparse
import re

from medjax.data.releases import coding, folders, tables
from medjax.data.releases.coding import CHEXPERT
from medjax.data.releases.tables import Line
from medjax.data.types import Drop, Entry, Example, Source

LICENSE = 'PhysioNet credentialed 1.5.0'
TABLES = ('master_spreadsheet_update.csv', 'master_spreadsheet.csv')
LAYOUT = 'the folder that holds master_spreadsheet_update.csv, images/ and perhaps Anonymized_DICOMs/'


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    root = folders.release_folder(folder, '|'.join(TABLES), layout=LAYOUT)
    path = next(root / name for name in TABLES if (root / name).exists())
    table = tables.read_table(path, ['PngPath', 'PatientID', 'AccessionNumber', 'ViewPosition', *CHEXPERT])
    files = folders.files(root, '.png', '.dcm')
    dropped = list(table.dropped)
    lines: dict[str, list[Line]] = {}
    for line in table.lines:
        lines.setdefault(line.cells['PngPath'] or line.cells.get('DicomPath', ''), []).append(line)

    entries, labels, facts, paths = [], [], [], []
    for image, same in lines.items():
        where, cells = table.where(same[0]), same[0].cells
        there = [name for name in (cells['PngPath'], cells.get('DicomPath', '')) if name in files]
        if not there:
            dropped.append(Drop(image, where, 'there is no such file' if image else 'no file is named'))
            continue
        if len({line.cells['PatientID'] for line in same}) > 1:
            dropped.append(Drop(image, where, 'its lines name several patients'))
            continue
        codes, wrong = zip(*(coding.codes(line.cells, CHEXPERT) for line in same), strict=True)
        if names := ', '.join(dict.fromkeys(name for of in wrong for name in of)):
            dropped.append(Drop(image, where, f'neither 1, 0, -1 nor blank, taken as blank: {names}', 'detail'))
        patient = cells['PatientID'] or None
        number = cells['AccessionNumber']
        study = f'{patient}/{number}' if patient and number else f'image/{image}'
        entries.append(Entry(image, patient, study, None, where, stamp=files[there[0]]))
        labels.append(coding.join(codes))
        facts.append({name: cells[name] for name in cells if len({line.cells[name] for line in same}) == 1})
        paths.append(there[0])
    pictures = max(sum(name.endswith(end) for name in files) for end in ('.png', '.dcm'))
    notes = folders.account(root, path.name, LAYOUT, len(lines), len(entries), pictures)

    def load(i: int) -> Example:
        cells = facts[i]  # what all lines of the image agree on
        view, scanner = cells.get('ViewPosition', ''), cells.get('Manufacturer', '')
        facts_told = coding.known(
            age=_age(cells.get('PatientAge', '')),
            sex=coding.sex(cells.get('PatientSex', '')),
            view=view,
            scanner=f'manufacturer {scanner}' if re.fullmatch(r'\d+(\.0)?', scanner) else None,
        )
        data = folders.content(folders.inside(root, paths[i]))
        return Example(data, coding.role(view), attributes=facts_told)

    return Source(
        name='brax', version='1', namespace='brax', labels=tuple(map(coding.label_name, CHEXPERT)), license=LICENSE,
        size=size, entries=entries, label=labels.__getitem__, load=load, dropped=dropped, notes=notes,
    )  # fmt: skip


def _age(cell: str) -> float | None:
    """The lower end of '60', '60 - 64' or '85 or more'."""
    match = re.match(r'\d+(\.\d+)?', cell)
    return coding.age(match[0]) if match else None
