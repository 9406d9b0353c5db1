"""A thorax phantom: the embedded data set, made of invented patients.

    record(index, settings) -> Image      image, masks, labels, report and ids of record `index`
    identity(index, seed) -> Identity     the patient, study and image of record `index`, without rendering

Record i depends only on (seed, i) and the settings. Every draw comes from a Philox generator whose key is the seed and
whose counter says what the draw is for (patient, study or record). So a record depends neither on the number of records
nor on the records before it, and a setting changes only its own property.

Each block of 16 records is filled with whole patients. A patient has 1 to 4 studies. A study has a frontal image, and
most studies have a lateral image too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medjax.data.phantom import anatomy, detector, findings, projection, report
from medjax.errors import UserError

VERSION = 2  # increase it with every change of pixels, labels or texts: it enters the fingerprint of the data set
KEY = b'medjax phantom: invented patients, a public key'  # hashed ids of invented patients need no secret key
LABELS = findings.FINDINGS
MASKS = (
    'lung',
    'heart',
    'nodule',
    'consolidation',
    'effusion',
    'pneumothorax',
    'tube',
)  # bit k of the mask is MASKS[k]
MIN_LENGTHS = dict(
    lung=0.5, heart=0.5, nodule=0.2, consolidation=0.2, effusion=0.4, pneumothorax=2.0, tube=0.1
)  # a pixel is in a mask if its ray passes at least this length through it, in cm
BLOCK = 16  # records that share their draw of patients
_PATIENTS, _BODY, _COURSE, _STUDY, _IMAGE, _NOISE, _FLIP, _TUBE, _HEALTHY = range(9)  # the purposes of draws


class Settings(NamedTuple):
    """The settings of a phantom data set."""

    seed: int = 0
    size: int = 256  # pixels, square
    label_noise: float = 0.0  # share of flipped labels, per study; reports and masks stay correct
    shortcut: float = 0.0  # probability of a chest tube with a pneumothorax (and .05 of it without); 0: no tubes
    healthy: float = 0.0  # share of patients who never have a finding, in addition to the 30 % without one by chance
    bits: int = 8  # 8 | 16


class Identity(NamedTuple):
    """The ids of one record, and its place among the studies of its patient."""

    patient: str
    study: str
    image: str
    number: int  # of the patient
    studies: int  # number of studies of the patient
    visit: int  # number of this study, from 0
    role: str  # 'frontal' | 'lateral'


class Image(NamedTuple):
    """One rendered record."""

    identity: Identity
    image: np.ndarray  # uint8|uint16 [H,W]
    mask: np.ndarray  # uint8 [H,W], bits as in MASKS
    labels: dict[str, int]  # the labels of the data set: 1 or 0, and possibly flipped
    status: findings.Status  # the true findings
    text: dict[str, str]  # indication, comparison, findings, impression
    attributes: dict[str, str | float]  # age, sex, site, view, tube


def check(settings: Settings) -> Settings:
    """Returns the settings; UserError where one of them is out of range."""
    if not 32 <= settings.size <= 1024:
        raise UserError(f'phantom: the size {settings.size} is outside 32 to 1024 pixels')
    if settings.bits not in (8, 16):
        raise UserError(f'phantom: bits must be 8 or 16, not {settings.bits}')
    for name in ('label_noise', 'shortcut', 'healthy'):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f'phantom: {name} must lie between 0 and 1, but it is {getattr(settings, name)}')
    if not 0 <= settings.seed < 2**63:
        raise UserError(f'phantom: the seed must be a whole number from 0 to 2^63 - 1, but it is {settings.seed}')
    return settings


def identity(index: int, seed: int) -> Identity:
    """The patient, study and image of record `index`."""
    block, place = divmod(index, BLOCK)
    return _identities(block, seed)[place]


def labels(index: int, settings: Settings) -> dict[str, int]:
    """The labels of record `index`, without rendering it."""
    who = identity(index, settings.seed)
    return _labels(settings, who, _course(settings, who)[who.visit])


def record(index: int, settings: Settings) -> Image:
    """Renders record `index`."""
    seed, who = settings.seed, identity(index, settings.seed)
    body = anatomy.draw_body(_rng(seed, _BODY, who.number))
    status = _course(settings, who)[who.visit]
    days, sites = _calendar(seed, who)
    site = detector.SITES[sites[who.visit]]

    rng = _rng(seed, _IMAGE, index)
    view = 'lateral' if who.role == 'lateral' else ('AP' if rng.random() < 0.25 else 'PA')
    pose = detector.draw_pose(rng, view, body.height)
    exposure = detector.draw_exposure(rng, site)
    breath = rng.uniform(0, 1)
    tube = _tube_side(settings, who, status)
    pieces = anatomy.scene(body, breath, view == 'lateral', status.present, tube)
    path, mask = _project(pieces, pose, settings.size)
    bright = detector.expose(path, site, exposure, pose.field / settings.size, _rng(seed, _NOISE, index))

    max_value = np.float32(2**settings.bits - 1)
    age = int(body.age + days[who.visit] / 365.25)
    return Image(
        identity=who,
        image=np.rint(bright * max_value).astype(np.uint8 if settings.bits == 8 else np.uint16),
        mask=mask,
        labels=_labels(settings, who, status),
        status=status,
        text=report.write(
            _rng(seed, _STUDY, who.number, who.visit + 1),
            status,
            age,
            body.sex,
            _days_since_last(days, who.visit),
            view,
            bool(tube),
        ),
        attributes=dict(age=age, sex=body.sex, site=sites[who.visit], view=view, tube=tube or 'none'),
    )


def _rng(seed: int, purpose: int, *numbers: int) -> np.random.Generator:
    """The random generator for one purpose, of the patient, study or record with these numbers.

    No two of them share a counter, so no draw depends on the others.
    """
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(numbers)] = numbers
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter))


def _identities(block: int, seed: int) -> list[Identity]:
    """The 16 records of a block. Patients are drawn until it is full; the last one's studies are cut to fit."""
    rng = _rng(seed, _PATIENTS, block)
    images: list[tuple[int, int, str]] = []  # patient in the block, visit, role
    patient = 0
    while len(images) < BLOCK:
        for visit in range(1 + int(rng.choice(4, p=(0.45, 0.30, 0.17, 0.08)))):
            images.append((patient, visit, 'frontal'))
            if rng.random() < 0.8:
                images.append((patient, visit, 'lateral'))
        patient += 1
    studies = {p: visit + 1 for p, visit, _ in images[:BLOCK]}
    identities = []
    for p, visit, role in images[:BLOCK]:
        number = block * BLOCK + p
        name = f'p{number}'
        identities.append(
            Identity(name, f'{name}s{visit}', f'{name}s{visit}{role[0]}', number, studies[p], visit, role)
        )
    return identities


def _calendar(seed: int, who: Identity) -> tuple[np.ndarray, list[str]]:
    """Days since the first study, and the site of each study. Most studies are made at the patient's home site."""
    rng = _rng(seed, _STUDY, who.number)
    days = np.concatenate([[0], np.cumsum(np.exp(rng.uniform(0.7, 6.2, 8)).astype(int) + 1)])
    names = list(detector.SITES)
    home = int(rng.integers(2))
    return days, [names[home ^ int(away)] for away in rng.random(9) < 0.1]


def _days_since_last(days: np.ndarray, visit: int) -> int:
    """Days since the last study, 0 for the first one."""
    return int(days[visit] - days[visit - 1]) if visit else 0


def _course(settings: Settings, who: Identity) -> list[findings.Status]:
    """The findings of the patient at each study."""
    if _rng(settings.seed, _HEALTHY, who.number).random() < settings.healthy:
        return [findings.Status({}, {})] * who.studies
    return findings.history(_rng(settings.seed, _COURSE, who.number), who.studies)


def _labels(settings: Settings, who: Identity, status: findings.Status) -> dict[str, int]:
    flip = _rng(settings.seed, _FLIP, who.number, who.visit).random(len(LABELS)) < settings.label_noise
    return {name: int((name in status.present) ^ bool(f)) for name, f in zip(LABELS, flip)}


def _tube_side(settings: Settings, who: Identity, status: findings.Status) -> str:
    """The side of the chest tube, or ''. With a pneumothorax, it is the side of that."""
    rng = _rng(settings.seed, _TUBE, who.number, who.visit)
    chance, side = rng.random(), ('right', 'left')[int(rng.integers(2))]
    if 'pneumothorax' in status.present:
        return status.present['pneumothorax'].side if chance < settings.shortcut else ''
    return side if chance < 0.05 * settings.shortcut else ''


def _project(pieces: list[projection.SolidPiece], pose: detector.Pose, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Line integrals and masks. Small images are rendered at twice the size and averaged, to avoid aliasing of ribs."""
    oversampling = 2 if size <= 160 else 1
    path, lengths = projection.project(pieces, detector.camera(pose, size * oversampling))
    mask = np.zeros((size, size), np.uint8)
    for bit, name in enumerate(MASKS):
        if name in lengths:
            shown = lengths[name] > MIN_LENGTHS[name]
            mask |= _pixel_blocks(shown, oversampling).max((1, 3)).astype(np.uint8) << bit
    return _pixel_blocks(path, oversampling).mean((1, 3)), mask


def _pixel_blocks(image: np.ndarray, side: int) -> np.ndarray:
    """(h side) (w side) -> h side w side."""
    h, w = image.shape
    return image.reshape(h // side, side, w // side, side)
