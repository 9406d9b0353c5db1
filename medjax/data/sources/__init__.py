"""Sources: where images come from. A source is data and two functions; everything else is done by `data.write`.

A module `medjax/data/sources/<kind>.py` has two functions, and `medjax build <kind>` is there:

    arguments(parser) -> None       adds its own options to an argparse parser
    source(**options) -> Source     the options by their names in the parser; a user's mistake raises UserError
    SPLITS = ('official', …)        if the release has splits: their names in `data.splits`, the first is the default;
                                    `source` then takes the chosen one as `split=` ('drawn' leaves Entry.split None)

`Source.entries` says what is known before an image is opened: plain ids and perhaps a split. `Source.label(i)` gives
its labels, without opening it either. `Source.load(i)` opens or renders entry i and gives the rest; it is called from
several threads and processes at once and in any order, so it must be a pure function of i. A file that cannot be read
raises `Unreadable(reason)`: the entry is set aside with the reason and the build goes on.
`medjax.data.write.write(source, out)` then does, for every source alike: splits, hashed ids, bounded size, encoding,
pixel and perceptual hashes, mean and deviation, the list of what was set aside, the audit, publishing.

Ids are plain strings, unique within `Source.namespace` for their kind; they never reach the disk unhashed.
"""

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
    info: Mapping[str, str | float] = {}  # age, sex, view, site, license, …: numbers and words; blank = leave it out
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
