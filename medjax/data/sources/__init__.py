"""Sources: where images come from. A source is data and one function; everything else is done by `data.write`.

A module `medjax/data/sources/<kind>.py` has two functions, and `medjax build <kind>` is there:

    arguments(parser) -> None       adds its own options to an argparse parser
    source(**options) -> Source     the options by their names in the parser; a user's mistake raises UserError

`Source.entries` says what is known before an image is opened: plain ids and perhaps a split. `Source.load(i)`
opens or renders entry i and gives the rest; it is called from several threads at once and in any order, so it
must be a pure function of i. A file that cannot be read raises `Unreadable(reason)`: the entry is set aside with
the reason and the build goes on. `medjax.data.write.write(source, out)` then does, for every source alike: splits,
hashed ids, bounded size, encoding, pixel hashes, mean and deviation, the list of what was set aside, publishing.

Ids are plain strings, unique within `Source.namespace` for their kind; they never reach the disk unhashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Unreadable(Exception):
    """One image or mask cannot be used; the message is the reason, without any id or path in it."""


class Entry(NamedTuple):
    """One image before it is opened."""

    image: str  # its id: a relative path, or a number as text; unique in the source
    patient: str
    study: str
    split: str | None  # 'train' | 'val' | 'test'; None for all entries: drawn per patient
    where: str = ''  # what the list of drops calls it, no id in it: 'metadata.csv line 17'


class Example(NamedTuple):
    """One image, opened."""

    image: bytes | np.ndarray  # the bytes of a JPEG, PNG or DICOM file, or pixels uint8|uint16 [H,W] or uint8 [H,W,3]
    label: Sequence[int]  # [L], one for each of Source.labels: 1, 0, -1 uncertain, -2 blank
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
    load: Callable[[int], Example]
    dropped: Sequence[Drop] = ()  # set aside before any image was opened
    notes: Sequence[str] = ()  # what the person at the keyboard should know; printed by `medjax build`
    size: int | None = None  # bound of the longer stored side in pixels; never enlarges
    key: bytes | None = None  # a fixed public key for invented ids; None: the private key of `data.ids`
