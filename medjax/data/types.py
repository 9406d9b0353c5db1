"""The contract between sources and the rest of the data room: entries, examples, drops, label codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

POSITIVE, NEGATIVE, UNCERTAIN, BLANK, CONFLICTING = 1, 0, -1, -2, -3  # conflicting: readers or lines disagree


class Unreadable(Exception):
    """One image or mask cannot be used; the message is the reason, without any id or path in it."""


class Origin(NamedTuple):
    """The image of another data set that an image was made from: RSNA's and SIIM's pictures are NIH's."""

    namespace: str  # of the other data set: its builder's
    image: str  # its plain ids there
    patient: str
    via: tuple[str, str] | None = None  # (namespace, image id) of the set that it came through: RSNA's film of NIH's


class Entry(NamedTuple):
    """One image before it is opened."""

    image: str  # its id: a relative path, or a number as text; unique in the source
    patient: str | None  # None where nobody knows: such images are grouped by near-duplicates where splits are drawn
    study: str
    split: str | None  # 'train' | 'val' | 'test'; None for all entries: drawn per patient
    where: str = ''  # what the list of drops calls it, no id in it: 'metadata.csv line 17'
    origin: Origin | None = None  # its patient is then the patient, whatever the derived set calls so
    stamp: str = ''  # another one when the file changes (size and time), so that a resumed build reads it again


class Example(NamedTuple):
    """One image, opened."""

    image: bytes | np.ndarray  # the bytes of a JPEG, PNG or DICOM file, or pixels uint8|uint16 [H,W] or uint8 [H,W,3]
    role: str = 'image'  # 'frontal', 'lateral', …; 'image' where nothing is known
    text: Mapping[str, str] = {}  # section -> text: {'report': …} or {'findings': …, 'impression': …}
    # age, sex, view, site, license, …: numbers and words; a blank one is left out
    attributes: Mapping[str, str | float] = {}
    mask: bytes | np.ndarray | None = None  # PNG bytes or uint8 [H,W], the size of the image
    frame: int = 0  # which one, where the file is a DICOM file of several
    note: str = ''  # why a part of the example was left out ('the mask is left out: …'); listed with the drops


class Drop(NamedTuple):
    """An image, or a part of one, that was set aside."""

    image: str  # plain id; hashed before it is written
    where: str
    reason: str
    part: str = 'record'  # 'record': the image is not in the data set; 'part': it is, without this part


class Source(NamedTuple):
    """Everything that `data.write` needs to know of one data set."""

    name: str
    version: str  # enters the fingerprint of the data
    namespace: str  # ids are hashed as 'namespace:id'; sources with one namespace share patients
    labels: tuple[str, ...]
    license: str
    entries: Sequence[Entry]
    label: Callable[[int], Sequence[int]]  # entry -> [L], one for each of `labels`: 1, 0, -1, -2 or -3, see above
    load: Callable[[int], Example]
    dropped: Sequence[Drop] = ()  # set aside before any image was opened
    stamp: str = ''  # another one when a table changes, or an option: a resumed build then starts anew
    notes: Sequence[str] = ()  # what the person at the keyboard should know; printed by `medjax build`
    splits: str = ''  # the published list that the splits are, by `published.named`: 'nih/official', or '…, altered'
    size: int | None = None  # bound of the longer stored side in pixels; never enlarges
    key: bytes | None = None  # a fixed public key for invented ids; None: the private key of `data.ids`


SPLIT_NAMES = ('train', 'val', 'test')


def patient_of(entry: Entry) -> str:
    """Its patient's id; that of its origin where it has one; the study (slices of a volume, figures of an article)
    where nobody is known."""
    if entry.origin is not None:
        return f'{entry.origin.namespace}:{entry.origin.patient}'
    return f'study/{entry.study}' if entry.patient is None else entry.patient
