"""A thorax phantom: the embedded data set, and the load generator for everything else.

    record(index, settings) -> Image      picture, masks, labels, report, keys of record `index`
    identity(index, seed) -> Identity     whose picture it is, without rendering

Record i is a function of (seed, i) and the knobs alone: every draw comes from a Philox generator whose key is the
seed and whose counter is what the draw is for (patient, study or record), so neither the number of records nor
the order in which they are asked for matters, and a knob changes nothing but what it is for.
Patients lie in blocks of 16 records that are filled whole; a patient has 1 to 4 studies, a study a frontal and
mostly a lateral picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medjax.data.phantom import anatomy, detector, findings, projection, report
from medjax.errors import UserError

VERSION = 2  # raise it with every change of pixels, labels or texts: it enters the data set's fingerprint
KEY = b'medjax phantom: invented patients, a public key'  # ids of people who do not exist need no secret
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
SHOWN = dict(
    lung=0.5, heart=0.5, nodule=0.2, consolidation=0.2, effusion=0.4, pneumothorax=2.0, tube=0.1
)  # cm along the ray
BLOCK = 16
_LAYOUT, _BODY, _COURSE, _STUDY, _IMAGE, _NOISE, _FLIP, _TUBE, _HEALTHY = range(9)  # what draws are for


class Settings(NamedTuple):
    seed: int = 0
    size: int = 256  # pixels, square
    label_noise: float = 0.0  # share of labels that are flipped, by study; reports and masks stay true
    shortcut: float = 0.0  # probability of a chest tube with a pneumothorax (and of .05 of that without); 0: no tubes
    healthy: float = 0.0  # share of patients who never have a finding, beside the 30 % who happen to have none
    bits: int = 8  # 8 | 16


class Identity(NamedTuple):
    patient: str
    study: str
    image: str
    number: int  # of the patient
    studies: int  # of the patient in all
    visit: int  # which of them, from 0
    role: str  # 'frontal' | 'lateral'


class Image(NamedTuple):
    identity: Identity
    image: np.ndarray  # uint8|uint16 [H,W]
    mask: np.ndarray  # uint8 [H,W], bits as in MASKS
    labels: dict[str, int]  # what the data set says: 1, 0, perhaps flipped
    status: findings.Status  # what is there
    text: dict[str, str]  # indication, comparison, findings, impression
    attributes: dict[str, str | float]  # age, sex, site, view, tube


def check(settings: Settings) -> Settings:
    if not 32 <= settings.size <= 1024:
        raise UserError(f'phantom: the size {settings.size} is outside 32 to 1024 pixels')
    if settings.bits not in (8, 16):
        raise UserError(f'phantom: {settings.bits} bits; 8 and 16 are possible')
    for name in ('label_noise', 'shortcut', 'healthy'):
        if not 0 <= getattr(settings, name) <= 1:
            raise UserError(f'phantom: {name} is a share between 0 and 1, not {getattr(settings, name)}')
    if not 0 <= settings.seed < 2**63:
        raise UserError(f'phantom: the seed {settings.seed} is not a whole number between 0 and 2^63')
    return settings


def identity(index: int, seed: int) -> Identity:
    """Whose picture record `index` is."""
    block, place = divmod(index, BLOCK)
    return _layout(block, seed)[place]


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
    pose, exposure, breath = (
        detector.draw_pose(rng, view, body.height),
        detector.draw_exposure(rng, site),
        rng.uniform(0, 1),
    )
    tube = _tube_side(settings, who, status)
    pieces = anatomy.scene(body, breath, view == 'lateral', status.present, tube)
    path, mask = _project(pieces, pose, settings.size)
    bright = detector.expose(path, site, exposure, pose.field / settings.size, _rng(seed, _NOISE, index))

    top = np.float32(2**settings.bits - 1)
    age = body.age + days[who.visit] / 365.25
    return Image(
        identity=who,
        image=np.rint(bright * top).astype(np.uint8 if settings.bits == 8 else np.uint16),
        mask=mask,
        labels=_labels(settings, who, status),
        status=status,
        text=report.write(
            _rng(seed, _STUDY, who.number, who.visit + 1),
            status,
            int(age),
            body.sex,
            _gap(days, who.visit),
            view,
            bool(tube),
        ),
        attributes=dict(age=int(age), sex=body.sex, site=sites[who.visit], view=view, tube=tube or 'none'),
    )


def _rng(seed: int, purpose: int, *which: int) -> np.random.Generator:
    """The draws for one thing: no two share a counter, so none depends on another having been drawn."""
    counter = np.zeros(4, np.uint64)
    counter[1 : 1 + len(which)] = which
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter))


def _layout(block: int, seed: int) -> list[Identity]:
    """The 16 records of a block: patients are drawn until it is full, and the last one's studies are cut to fit."""
    rng = _rng(seed, _LAYOUT, block)
    images: list[tuple[int, int, str]] = []  # patient in the block, visit, role
    patient = 0
    while len(images) < BLOCK:
        for visit in range(1 + int(rng.choice(4, p=(0.45, 0.30, 0.17, 0.08)))):
            images.append((patient, visit, 'frontal'))
            if rng.random() < 0.8:
                images.append((patient, visit, 'lateral'))
        patient += 1
    studies = {p: visit + 1 for p, visit, _ in images[:BLOCK]}
    who = []
    for p, visit, role in images[:BLOCK]:
        number = block * BLOCK + p
        name = f'p{number}'
        who.append(Identity(name, f'{name}s{visit}', f'{name}s{visit}{role[0]}', number, studies[p], visit, role))
    return who


def _calendar(seed: int, who: Identity) -> tuple[np.ndarray, list[str]]:
    """Days since the first study, and the site of each study: most are done where the patient is at home."""
    rng = _rng(seed, _STUDY, who.number)
    days = np.concatenate([[0], np.cumsum(np.exp(rng.uniform(0.7, 6.2, 8)).astype(int) + 1)])
    names = list(detector.SITES)
    home = int(rng.integers(2))
    return days, [names[home ^ int(away)] for away in rng.random(9) < 0.1]


def _gap(days: np.ndarray, visit: int) -> int:
    """Days since the study before, 0 for the first."""
    return int(days[visit] - days[visit - 1]) if visit else 0


def _course(settings: Settings, who: Identity) -> list[findings.Status]:
    if _rng(settings.seed, _HEALTHY, who.number).random() < settings.healthy:
        return [findings.Status({}, {})] * who.studies
    return findings.history(_rng(settings.seed, _COURSE, who.number), who.studies)


def _labels(settings: Settings, who: Identity, status: findings.Status) -> dict[str, int]:
    flip = _rng(settings.seed, _FLIP, who.number, who.visit).random(len(LABELS)) < settings.label_noise
    return {name: int((name in status.present) ^ bool(f)) for name, f in zip(LABELS, flip)}


def _tube_side(settings: Settings, who: Identity, status: findings.Status) -> str:
    rng = _rng(settings.seed, _TUBE, who.number, who.visit)
    chance, side = rng.random(), ('right', 'left')[int(rng.integers(2))]
    if 'pneumothorax' in status.present:
        return status.present['pneumothorax'].side if chance < settings.shortcut else ''
    return side if chance < 0.05 * settings.shortcut else ''


def _project(pieces: list[projection.Piece], pose: detector.Pose, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Line integrals and masks; small pictures are the mean of 2 x 2 finer ones, so that ribs do not alias."""
    fine = 2 if size <= 160 else 1
    path, lengths = projection.project(pieces, detector.camera(pose, size * fine))
    mask = np.zeros((size, size), np.uint8)
    for bit, name in enumerate(MASKS):
        if name in lengths:
            shown = lengths[name] > SHOWN[name]  # cm along the ray
            mask |= _pool(shown, fine).max((1, 3)).astype(np.uint8) << bit
    return _pool(path, fine).mean((1, 3)), mask


def _pool(image: np.ndarray, fine: int) -> np.ndarray:
    """(h f) (w f) -> h f w f."""
    h, w = image.shape
    return image.reshape(h // fine, fine, w // fine, fine)
