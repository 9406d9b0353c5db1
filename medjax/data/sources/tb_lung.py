"""Shenzhen and Montgomery, the tuberculosis films of the NLM: 662 and 138 frontal PNG with readings and lung masks.

    DIR/…/CXR_png/CHNCXR_0001_0.png, MCUCXR_0001_0.png    the last digit: 1 tuberculosis, 0 none
    DIR/…/ClinicalReadings/<the same name>.txt
    DIR/…/ManualMask/leftMask/, rightMask/<the same name>.png    Montgomery: one mask for each lung
    DIR/…/CHNCXR_0001_0_mask.png    Shenzhen, made later by others; also masks/<the same name>.png in merged copies

DIR holds one of the two sets, or both.

Splits: none is official; they are drawn.
Labels: `tuberculosis`, from the file name.
Mask: both lungs. The two masks of Montgomery are joined.
Patients: the number in the file name.
Readings: sex and age become attributes and are taken out of the text. The other lines are the section 'report'. Sex and
age are written as "Patient's Sex: F" and "Patient's Age: 027Y", or as 'male 45yrs', 'femal 32yrs', 'male 16month',
'female 64days', 'Female, 28yrs'.
Traps: Shenzhen's films are palette PNG. They are stored as grey, whatever tint the palette has. 96 of them have no
mask. Copies of the sets repeat films in other folders (test/), so only films in CXR_png count.

Checked in loaders and a listing of several public repositories (mlmed/torchxrayvision among them): names, counts, the
two forms of readings and the odd ones, palettes, 96 missing masks.
Recalled, not checked: that no patient has two films; that all films are PA (torchxrayvision says so, citing the
article).
Licence (recalled): NLM, open with attribution.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np

from medjax.data.images import decode
from medjax.data.releases import coding, folders
from medjax.data.types import Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'NLM: open, with attribution'
LAYOUT = 'the folder that holds ChinaSet_AllFiles/ or MontgomerySet/ or both, each with CXR_png/ and ClinicalReadings/'
SITES = {'CHNCXR': 'Shenzhen', 'MCUCXR': 'Montgomery'}
NAME = re.compile(r'(CHNCXR|MCUCXR)_(\d+)_([01])')
PER_YEAR = dict(y=1, m=12, d=365.25)  # years, months and days in a year


class Film(NamedTuple):
    """A film whose name is valid, with the paths of its other files."""

    entry: Entry
    file: str
    reading: str  # may be missing
    masks: list[str]


@dataclasses.dataclass(frozen=True)
class Release:
    """The usable films, in the order of the entries."""

    root: pathlib.Path
    films: list[Film]

    def label(self, i: int) -> list[int]:
        """The code of the label of film i, in a list: the last digit of the film's name."""
        return [int(self.films[i].entry.image[-1])]

    def load(self, i: int) -> Example:
        """Reads film i, its reading and its mask. Raises Unreadable."""
        film = self.films[i]
        data = folders.read_bytes(folders.inside(self.root, film.file))
        text: dict[str, str] = {}
        attributes: dict[str, str | float] = {}
        notes: list[str] = []
        try:
            text, attributes = reading(folders.read_bytes(folders.inside(self.root, film.reading)))
        except Unreadable as error:
            notes.append(f'the reading is left out: {error}')
        mask = None
        try:
            mask = _joined(self.root, film.masks)
        except Unreadable as error:
            notes.append(f'the mask is left out: {error}')
        attributes = coding.filled(site=_site(film.entry.image), view='PA', **attributes)
        return Example(_grey(data), 'frontal', text, attributes, mask, note='; '.join(notes))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The source of the sets in `folder`. UserError if no film is there."""
    root = folders.release_folder(folder, layout=LAYOUT)
    pictures, readings = folders.paths(root, '.png'), folders.paths(root, '.txt')
    texts = {file.stem: name for name, file in readings.items() if file.parent.name == 'ClinicalReadings'}
    candidates = {name: file for name, file in pictures.items() if file.parent.name == 'CXR_png' or file.parent == root}
    masks = _masks(pictures)
    films: dict[str, Film] = {}
    dropped: list[Drop] = []
    for number, (path, file) in enumerate(candidates.items(), 1):
        where = f'film {number} of {len(candidates)}'  # the file name is the patient's id, so it is not shown
        try:
            if not (match := NAME.fullmatch(file.stem)):
                raise Unreadable('the name is not CHNCXR_ or MCUCXR_, a number, _0 or _1')
            if file.stem in films:
                raise Unreadable('a film of this name is there twice')
            folders.inside(root, path)
        except Unreadable as error:
            dropped.append(Drop(file.stem, where, str(error)))
            continue
        patient = f'{match[1]}_{match[2]}'
        others = [pictures[mask] for mask in masks.get(file.stem, [])]
        others += [readings[texts[file.stem]]] if file.stem in texts else []
        entry = Entry(file.stem, patient, patient, None, where, stamp=folders.stamp(file, *others))
        text = texts.get(file.stem, f'{file.stem}.txt')
        films[file.stem] = Film(entry, path, text, masks.get(file.stem, []))
    if not films:
        raise UserError(
            f'{root}: no film named like CHNCXR_0001_0.png or MCUCXR_0001_0.png is in CXR_png; give {LAYOUT}'
        )
    release = Release(root, list(films.values()))
    return Source(
        name='tb_lung', version='1', namespace='tb_lung', labels=('tuberculosis',), license=LICENSE, size=size,
        entries=[film.entry for film in release.films], label=release.label, load=release.load, dropped=dropped,
        notes=_notes(films), masks=('lungs',),
    )  # fmt: skip


def _site(image: str) -> str:
    """'Shenzhen' for 'CHNCXR_0001_0'."""
    return SITES[image.split('_')[0]]


def _notes(films: dict[str, Film]) -> list[str]:
    """Notes on films without a mask, and on a set that is not in the folder."""
    without = sum(not film.masks for film in films.values())
    notes = [f'{without} films have no lung mask'] if without else []
    sites = set(map(_site, films))
    return notes + [f'{site} is not in the folder' for site in SITES.values() if site not in sites]


def _grey(data: bytes) -> bytes | np.ndarray:
    """The file itself if it is grey, else its luma (ITU-R BT.601): films have no colour, only some palettes have."""
    pixels = decode.read(data)
    if pixels.shape[2] == 1:
        return data
    return (pixels @ np.array([0.299, 0.587, 0.114])).round().astype(pixels.dtype)


def reading(data: bytes) -> tuple[dict[str, str], dict[str, str | float]]:
    """The sections and the attributes (sex, age) of a clinical reading. Other lines stay text."""
    attributes: dict[str, str | float] = {}
    text: list[str] = []
    for line in data.decode('utf-8-sig', 'replace').splitlines():
        line = ' '.join(line.split())
        if match := re.fullmatch(r'Patient.?s Sex: ?([MFO])?.*', line, re.IGNORECASE):
            attributes |= coding.filled(sex=(match[1] or '').upper().replace('O', ''))
        elif match := re.fullmatch(r'Patient.?s Age: ?(?:(\d+) ?([YMD]))?.*', line, re.IGNORECASE):
            attributes |= coding.filled(age=_age(match[1], match[2]))
        elif not text and (
            match := re.fullmatch(r'(male|femal|female)\b[ ,.]*(?:(\d+) ?([ymd])[a-z]*)?\.?', line, re.I)
        ):
            sex = 'M' if match[1].lower() == 'male' else 'F'
            attributes |= coding.filled(sex=sex, age=_age(match[2], match[3]))
        elif line:
            text.append(line)
    return ({'report': '\n'.join(text)} if text else {}), attributes


def _age(number: str | None, unit: str | None) -> float | None:
    """The age in years from '16' and 'm'."""
    return coding.age(str(int(number) / PER_YEAR[unit.lower()])) if number and unit else None


def _masks(pictures: dict[str, pathlib.Path]) -> dict[str, list[str]]:
    """Image -> the files of its masks: one for each lung, or one for both."""
    masks: dict[str, list[str]] = {}
    for name, file in pictures.items():
        if file.parent.name in ('leftMask', 'rightMask', 'masks', 'mask') or file.stem.endswith('_mask'):
            masks.setdefault(file.stem.removesuffix('_mask'), []).append(name)
    return masks


def _joined(root: pathlib.Path, names: list[str]) -> np.ndarray | None:
    """The joined mask: uint8 [H,W], 255 where any mask is not 0; None without masks."""
    sides = {name.split('/')[-2] for name in names if '/' in name} & {'leftMask', 'rightMask'}
    if len(sides) == 1:
        raise Unreadable(f'only the {sides.pop()} of two is there')
    lungs = [decode.mask(folders.read_bytes(folders.inside(root, name))) > 0 for name in names]
    if len({lung.shape for lung in lungs}) > 1:
        raise Unreadable('the masks of the two lungs differ in size')
    return functools.reduce(np.logical_or, lungs).astype(np.uint8) * 255 if lungs else None
