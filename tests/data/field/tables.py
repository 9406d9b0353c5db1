"""Writes small folders with metadata.csv as people bring them; one folder a case.

python tables.py OUT     # needs numpy, pillow; all names and values are made up
"""

import csv
import pathlib
import sys
import unicodedata

import numpy as np
from PIL import Image


def images(folder, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[:48, :48]
        cx, cy, r = rng.uniform(10, 38, 3)
        picture = (
            90 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (r * 6)) + 60 * (x + y) / 96 + rng.normal(0, 12, (48, 48))
        )
        Image.fromarray(np.clip(picture + 40, 0, 255).astype(np.uint8)).save(path)


def table(folder, head, rows, encoding='utf-8', **kwargs):
    with (folder / 'metadata.csv').open('w', newline='', encoding=encoding) as file:
        csv.writer(file, **kwargs).writerows([head, *rows])


N = [f'images/{k:03d}.png' for k in range(24)]


def plain(folder, head, rows, **more):
    images(folder, N)
    table(folder, head, rows, **more)


def nan_labels(f):
    """pandas' na_rep: blanks written as nan. Want: labels with blanks, or a word about the column."""
    plain(
        f,
        ['image', 'patient_id', 'effusion', 'edema'],
        [[n, k // 2, k % 2, ['nan', 1, 0][k % 3]] for k, n in enumerate(N)],
    )


def bool_labels(f):
    """pandas' booleans. Want: labels, or a word."""
    plain(f, ['image', 'patient_id', 'effusion', 'edema'], [[n, k // 2, k % 2, k % 3 == 0] for k, n in enumerate(N)])


def other_patient_name(f):
    """Patients in `Patient ID`. Want: taken, or the note names the column that looks like it."""
    plain(f, ['image', 'Patient ID', 'effusion'], [[n, f'p{k // 4}', k % 2] for k, n in enumerate(N)])


def twice(f):
    """A column twice, as a join leaves it."""
    plain(f, ['image', 'patient_id', 'effusion', 'effusion'], [[n, k, k % 2, k % 2] for k, n in enumerate(N)])


def latin(f):
    """Excel's Windows-1252."""
    plain(
        f,
        ['image', 'patient_id', 'text', 'effusion'],
        [[n, k, 'Kein Erguß', k % 2] for k, n in enumerate(N)],
        encoding='cp1252',
    )


def absolute(f):
    """Paths as another machine had them."""
    plain(f, ['image', 'patient_id', 'effusion'], [[f'/data/set/{n}', k, k % 2] for k, n in enumerate(N)])


def no_suffix(f):
    """Ids without .png, as HAM10000 and most Kaggle tables have them."""
    plain(f, ['image', 'patient_id', 'effusion'], [[n[:-4], k, k % 2] for k, n in enumerate(N)])


def other_case(f):
    """.PNG in the table, .png on disk: a copy from Windows."""
    plain(
        f,
        ['image', 'patient_id', 'effusion'],
        [[n.upper().replace('IMAGES', 'images'), k, k % 2] for k, n in enumerate(N)],
    )


def decomposed(f):
    """File names from a Mac (NFD), the table from Excel (NFC)."""
    names = [f'images/Röntgen_{k:03d}.png' for k in range(24)]
    images(f, [unicodedata.normalize('NFD', n) for n in names])
    table(
        f,
        ['image', 'patient_id', 'effusion'],
        [[unicodedata.normalize('NFC', n), k, k % 2] for k, n in enumerate(names)],
    )


def fold_column(f):
    """A fold number of 0 and 1 and sex as 0/1. Want: not labels without a word (they are not findings)."""
    plain(
        f,
        ['image', 'patient_id', 'fold', 'sex', 'effusion'],
        [[n, k, k % 2, k // 2 % 2, k // 3 % 2] for k, n in enumerate(N)],
    )


def number_split(f):
    """Splits as dev / holdout."""
    plain(
        f,
        ['image', 'patient_id', 'split', 'effusion'],
        [[n, k, ['train', 'dev', 'holdout'][k % 3], k % 2] for k, n in enumerate(N)],
    )


def semicolon(f):
    """German Excel: semicolons, decimal commas in age, a BOM."""
    plain(
        f,
        ['image', 'patient_id', 'age', 'effusion'],
        [[n, k, f'{50 + k},5', k % 2] for k, n in enumerate(N)],
        encoding='utf-8-sig',
        delimiter=';',
    )


def excel_ids(f):
    """Patients' numbers that Excel made 1.23457E+12: different people get one id."""
    plain(f, ['image', 'patient_id', 'effusion'], [[n, f'1.{23456 + k // 8}E+12', k % 2] for k, n in enumerate(N)])


def repeated_text(f):
    """The report of a study on each of its two views, ids with leading zeros in half of the lines."""
    plain(
        f,
        ['image', 'patient_id', 'study_id', 'text', 'effusion'],
        [
            [n, f'{k // 4:04d}' if k % 2 else k // 4, k // 2, f'FINDINGS: Number {k // 2}.', k % 2]
            for k, n in enumerate(N)
        ],
    )


CASES = [nan_labels, bool_labels, other_patient_name, twice, latin, absolute, no_suffix, other_case,
         decomposed, fold_column, number_split, semicolon, excel_ids, repeated_text]  # fmt: skip

if __name__ == '__main__':
    for case in CASES:
        folder = pathlib.Path(sys.argv[1]) / case.__name__
        folder.mkdir(parents=True, exist_ok=True)
        case(folder)
