"""The findings of a phantom patient, with their places and sizes, and their changes from study to study.

nodule: a round spot in a lung. consolidation: a region of a lung that is filled with fluid instead of air. effusion:
fluid between lung and chest wall, at the bottom. pneumothorax: air between lung and chest wall, so the lung has shrunk.
cardiomegaly: an enlarged heart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FINDINGS = ('nodule', 'consolidation', 'effusion', 'pneumothorax', 'cardiomegaly')
PREVALENCE = dict(nodule=0.22, consolidation=0.20, effusion=0.22, pneumothorax=0.16, cardiomegaly=0.20)
SIZES = dict(  # the range of `Finding.size`
    nodule=(1.8, 3.4),  # diameter in cm
    consolidation=(4.5, 9.5),  # extent in cm
    effusion=(2.2, 7.5),  # depth of the fluid in cm, from the lowest point between lung and chest wall
    pneumothorax=(0.11, 0.32),  # the lung has shrunk by this share
    cardiomegaly=(0.55, 0.66),  # width of the heart divided by the width of the chest
)
NORMAL_HEART = (0.41, 0.51)  # the same ratio without cardiomegaly


class Finding(NamedTuple):
    """One finding of a phantom patient: its place and its size."""

    side: str  # 'right' | 'left' of the patient; '' for the heart
    zone: str  # 'upper' | 'mid' | 'lower' third of the lung; '' for findings without a zone
    size: float  # in the unit of SIZES
    place: tuple[float, float, float]  # lateral, down, back, in the unit ball of the lung
    blobs: tuple[tuple[float, ...], ...] = ()  # of a consolidation: balls (x, y, z, radius) in units of its extent
    density: float = 0.0  # of a consolidation: share of the air that fluid has replaced


class Status(NamedTuple):
    """The findings of one study of a patient."""

    present: dict[str, Finding]
    change: dict[str, str]  # finding -> 'new', 'larger', 'resolved', … since the last study; empty in the first study


def history(rng: np.random.Generator, studies: int) -> list[Status]:
    """Draws the findings of a patient for each study. Their prevalence is the same in first and follow-up studies."""
    present = {name: _draw(name, rng) for name in FINDINGS if rng.random() < PREVALENCE[name]}
    course = [Status(present, {})]
    for _ in range(studies - 1):
        course.append(_follow_up(course[-1].present, rng))
    return course


def _follow_up(before: dict[str, Finding], rng: np.random.Generator) -> Status:
    present, change = {}, {}
    for name in FINDINGS:
        if name in before:
            change[name], now = _evolve(name, before[name], rng)
            if now is not None:
                present[name] = now
        elif rng.random() < 0.25 * PREVALENCE[name] / (1 - PREVALENCE[name]):  # as many appear as resolve
            present[name], change[name] = _draw(name, rng), 'new'
    return Status(present, change)


def _evolve(name: str, finding: Finding, rng: np.random.Generator) -> tuple[str, Finding | None]:
    """The change of a finding, and the finding after it. A quarter each resolves, grows, shrinks or stays.

    A finding also stays where its new size would leave the range of SIZES.
    """
    low, high = SIZES[name]
    fate, amount = int(rng.integers(4)), rng.uniform(0.3, 0.6)
    change = amount * (finding.size - (NORMAL_HEART[1] if name == 'cardiomegaly' else 0))
    if fate == 0:
        return 'resolved', None
    if fate == 1 and finding.size + change <= high:
        return 'larger', finding._replace(size=finding.size + change)
    if fate == 2 and finding.size - change >= low:
        return 'smaller', finding._replace(size=finding.size - change)
    return 'unchanged', finding


def _draw(name: str, rng: np.random.Generator) -> Finding:
    size = float(rng.uniform(*SIZES[name]))
    if name == 'cardiomegaly':
        return Finding('', '', size, (0.0, 0.0, 0.0))
    side = ('right', 'left')[int(rng.integers(2))]
    if name in ('effusion', 'pneumothorax'):
        return Finding(side, '', size, (0.0, 0.0, 0.0))
    zone = ('upper', 'mid', 'lower')[int(rng.integers(3))]
    down = rng.uniform(*dict(upper=(-0.80, -0.68), mid=(-0.58, -0.34), lower=(-0.24, -0.08))[zone])
    radius = np.sqrt(1 - down**2) * rng.uniform(0.05, 0.68)
    angle = rng.uniform(-1.2, 1.2)  # 0 is straight to the side
    place = (float(radius * np.cos(angle)), float(down), float(radius * np.sin(angle)))
    if name != 'consolidation':
        return Finding(side, zone, size, place)
    blobs = [(*rng.uniform(-0.27, 0.27, 3), rng.uniform(0.16, 0.30)) for _ in range(int(rng.integers(4, 8)))]
    density = float(rng.uniform(0.5, 0.9))
    return Finding(side, zone, size, place, tuple(tuple(map(float, blob)) for blob in blobs), density)
