"""What a phantom patient has: findings with a place and a size, and how they change from study to study."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

FINDINGS = ('nodule', 'consolidation', 'effusion', 'pneumothorax', 'cardiomegaly')
PREVALENCE = dict(nodule=0.22, consolidation=0.20, effusion=0.22, pneumothorax=0.16, cardiomegaly=0.20)
SIZES = dict(  # the range of what `Finding.size` measures
    nodule=(1.8, 3.4),  # diameter in cm
    consolidation=(4.5, 9.5),  # extent in cm
    effusion=(2.2, 7.5),  # depth of the fluid in cm, from the bottom of the recess
    pneumothorax=(0.11, 0.32),  # share by which the lung has shrunk
    cardiomegaly=(0.55, 0.66),  # width of the heart over the width of the chest
)
NORMAL_HEART = (0.41, 0.51)


class Finding(NamedTuple):
    side: str  # 'right' | 'left' of the patient; '' for the heart
    zone: str  # 'upper' | 'mid' | 'lower' third of the lung; '' where it has no meaning
    size: float  # in the unit that SIZES gives
    place: tuple[float, float, float]  # lateral, down, back, in the unit ball of the lung
    shape: tuple[
        tuple[float, ...], ...
    ]  # consolidation: blobs (x, y, z, radius) in units of its extent, and its density


class Status(NamedTuple):
    """One study of a patient."""

    present: dict[str, Finding]
    change: dict[str, str]  # finding -> 'new', 'larger', … for all that are there or were before; first study: empty


def history(rng: np.random.Generator, studies: int) -> list[Status]:
    """The findings of a patient at each study. The share that has a finding is the same at first and at follow-up."""
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
        elif rng.random() < 0.25 * PREVALENCE[name] / (1 - PREVALENCE[name]):  # as many as resolve
            present[name], change[name] = _draw(name, rng), 'new'
    return Status(present, change)


def _evolve(name: str, finding: Finding, rng: np.random.Generator) -> tuple[str, Finding | None]:
    """A quarter each resolves, grows, shrinks, stays; what would leave the range of sizes stays."""
    low, high = SIZES[name]
    fate, amount = int(rng.integers(4)), rng.uniform(0.3, 0.6)
    span = finding.size - (NORMAL_HEART[1] if name == 'cardiomegaly' else 0)  # what grows or shrinks by `amount`
    if fate == 0:
        return 'resolved', None
    if fate == 1 and finding.size + amount * span <= high:
        return 'larger', finding._replace(size=finding.size + amount * span)
    if fate == 2 and finding.size - amount * span >= low:
        return 'smaller', finding._replace(size=finding.size - amount * span)
    return 'unchanged', finding


def _draw(name: str, rng: np.random.Generator) -> Finding:
    size = float(rng.uniform(*SIZES[name]))
    if name == 'cardiomegaly':
        return Finding('', '', size, (0.0, 0.0, 0.0), ())
    side = ('right', 'left')[int(rng.integers(2))]
    if name in ('effusion', 'pneumothorax'):
        return Finding(side, '', size, (0.0, 0.0, 0.0), ())
    zone = ('upper', 'mid', 'lower')[int(rng.integers(3))]
    down = rng.uniform(*dict(upper=(-0.80, -0.68), mid=(-0.58, -0.34), lower=(-0.24, -0.08))[zone])
    reach = np.sqrt(1 - down**2) * rng.uniform(0.05, 0.68)
    angle = rng.uniform(-1.2, 1.2)  # 0 is straight to the side
    place = (float(reach * np.cos(angle)), float(down), float(reach * np.sin(angle)))
    shape = ()
    if name == 'consolidation':
        blobs = [(*rng.uniform(-0.27, 0.27, 3), rng.uniform(0.16, 0.30)) for _ in range(int(rng.integers(4, 8)))]
        shape = (*(tuple(map(float, blob)) for blob in blobs), (float(rng.uniform(0.5, 0.9)),))
    return Finding(side, zone, size, place, shape)
