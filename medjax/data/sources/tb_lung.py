"""Shenzhen and Montgomery, the tuberculosis films of the NLM: 662 and 138 frontal PNG with readings and lung masks.

    DIR/…/CXR_png/CHNCXR_0001_0.png, MCUCXR_0001_0.png    the last digit: 1 tuberculosis, 0 none
    DIR/…/ClinicalReadings/<the same name>.txt
    DIR/…/ManualMask/leftMask/, rightMask/<the same name>.png    Montgomery, a mask a lung
    DIR/…/CHNCXR_0001_0_mask.png    Shenzhen, made later by others; also masks/<the same name>.png of merged copies

DIR may hold one of the sets or both. Traps: Shenzhen's films are palette PNG, stored as grey whatever its tint; 96 of
them have no mask; copies hold films once more in other folders (test/), so that only CXR_png counts; one mask a lung in
Montgomery, joined here. Sex and age stand in the reading: "Patient's Sex: F", "Patient's Age: 027Y", or 'male 45yrs',
'femal 32yrs', 'male 16month', 'female 64days', 'Female, 28yrs'. They become facts and leave the text, the rest is the
section 'report'.

Label: tuberculosis, from the file name. The number in the name is the patient. No official split: drawn.

Checked in loaders and a listing of several public repositories (mlmed/torchxrayvision among them): names, counts, the
two forms of readings, the odd ones, palettes, 96 missing masks. Recalled, not checked: that no patient has two films;
that all films are PA (torchxrayvision says so, after the article); the licence.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import re

import numpy as np

from medjax.data.images import decode
from medjax.data.releases import coding, folders
from medjax.data.types import Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'NLM: open, with attribution'
LAYOUT = 'the folder that holds ChinaSet_AllFiles/ or MontgomerySet/ or both, each with CXR_png/ and ClinicalReadings/'
SITES = {'CHNCXR': 'Shenzhen', 'MCUCXR': 'Montgomery'}
NAME = re.compile(r'(CHNCXR|MCUCXR)_(\d+)_([01])')
YEAR = dict(y=1, m=12, d=365.25)


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    root = folders.release_folder(folder, layout=LAYOUT)
    pictures, readings = folders.paths(root, '.png'), folders.paths(root, '.txt')
    texts = {file.stem: name for name, file in readings.items() if file.parent.name == 'ClinicalReadings'}
    films = {name: file for name, file in pictures.items() if file.parent.name == 'CXR_png' or file.parent == root}
    masks = _masks(pictures)
    entries, place, dropped = [], [], []
    seen: set[str] = set()
    for number, (name, file) in enumerate(films.items(), 1):
        where = f'film {number} of {len(films)}'
        try:
            if not (match := NAME.fullmatch(file.stem)):
                raise Unreadable('the name is not CHNCXR_ or MCUCXR_, a number, _0 or _1')
            if file.stem in seen:
                raise Unreadable('a film of this name is there twice')
            folders.inside(root, name)
        except Unreadable as error:
            dropped.append(Drop(file.stem, where, str(error)))
            continue
        seen.add(file.stem)
        patient = f'{match[1]}_{match[2]}'
        parts = [pictures[mask] for mask in masks.get(file.stem, [])]
        parts += [readings[texts[file.stem]]] if file.stem in texts else []
        entries.append(Entry(file.stem, patient, patient, None, where, stamp=folders.stamp(file, *parts)))
        place.append(name)
    if not entries:
        raise UserError(
            f'{root}: no film named like CHNCXR_0001_0.png or MCUCXR_0001_0.png is in CXR_png; give {LAYOUT}'
        )

    def load(i: int) -> Example:
        image = entries[i].image
        data = folders.content(folders.inside(root, place[i]))
        text: dict[str, str] = {}
        facts: dict[str, str | float] = {}
        notes: list[str] = []
        try:
            text, facts = reading(folders.content(folders.inside(root, texts.get(image, f'{image}.txt'))))
        except Unreadable as error:
            notes.append(f'the reading is left out: {error}')
        mask = None
        try:
            mask = _joined(root, masks.get(image, []))
        except Unreadable as error:
            notes.append(f'the mask is left out: {error}')
        info = coding.known(site=SITES[image.split('_')[0]], view='PA', **facts)
        return Example(_grey(data), 'frontal', text, info, mask, note='; '.join(notes))

    without = sum(entry.image not in masks for entry in entries)
    notes = [f'{without} films have no lung mask'] if without else []
    sites = {entry.image.split('_')[0] for entry in entries}
    notes += [f'{SITES[site]} is not in the folder' for site in SITES if site not in sites]
    return Source(
        name='tb_lung', version='1', namespace='tb_lung', labels=('tuberculosis',), license=LICENSE, entries=entries,
        label=lambda i: [int(entries[i].image[-1])], load=load, dropped=dropped, notes=notes, size=size,
    )  # fmt: skip


def _grey(data: bytes) -> bytes | np.ndarray:
    """The file, or its luma (ITU-R BT.601) where its palette has a tint: films have no colour."""
    pixels = decode.read(data)
    if pixels.shape[2] == 1:
        return data
    return (pixels @ np.array([0.299, 0.587, 0.114])).round().astype(pixels.dtype)


def reading(data: bytes) -> tuple[dict[str, str], dict[str, str | float]]:
    """({'report': …}, {sex, age}) of a clinical reading; what is not understood stays text."""
    facts: dict[str, str | float] = {}
    left: list[str] = []
    for line in data.decode('utf-8-sig', 'replace').splitlines():
        line = ' '.join(line.split())
        if match := re.fullmatch(r'Patient.?s Sex: ?([MFO])?.*', line, re.IGNORECASE):
            facts |= coding.known(sex=(match[1] or '').upper().replace('O', ''))
        elif match := re.fullmatch(r'Patient.?s Age: ?(?:(\d+) ?([YMD]))?.*', line, re.IGNORECASE):
            facts |= coding.known(age=_age(match[1], match[2]))
        elif not left and (
            match := re.fullmatch(r'(male|femal|female)\b[ ,.]*(?:(\d+) ?([ymd])[a-z]*)?\.?', line, re.I)
        ):
            sex = 'M' if match[1].lower() == 'male' else 'F'
            facts |= coding.known(sex=sex, age=_age(match[2], match[3]))
        elif line:
            left.append(line)
    return ({'report': '\n'.join(left)} if left else {}), facts


def _age(number: str | None, unit: str | None) -> float | None:
    return coding.age(str(int(number) / YEAR[unit.lower()])) if number and unit else None


def _masks(pictures: dict[str, pathlib.Path]) -> dict[str, list[str]]:
    """image -> its masks: that of each lung, or the one of both."""
    found: dict[str, list[str]] = {}
    for name, file in pictures.items():
        if file.parent.name in ('leftMask', 'rightMask', 'masks', 'mask') or file.stem.endswith('_mask'):
            found.setdefault(file.stem.removesuffix('_mask'), []).append(name)
    return found


def _joined(root: pathlib.Path, names: list[str]) -> np.ndarray | None:
    """uint8 [H,W], 255 where any of the masks is not 0."""
    sides = {name.split('/')[-2] for name in names if '/' in name} & {'leftMask', 'rightMask'}
    if len(sides) == 1:
        raise Unreadable(f'only the {sides.pop()} of two is there')
    lungs = [decode.mask(folders.content(folders.inside(root, name))) > 0 for name in names]
    if len({lung.shape for lung in lungs}) > 1:
        raise Unreadable('the masks of the two lungs differ in size')
    return functools.reduce(np.logical_or, lungs).astype(np.uint8) * 255 if lungs else None
