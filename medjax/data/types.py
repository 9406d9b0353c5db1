"""The contract between a source and the rest of medjax/data: entries, examples, drops, codes of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Codes of a label. Conflicting: readers, or lines of a table, disagree.
POSITIVE, NEGATIVE, UNCERTAIN, BLANK, CONFLICTING = 1, 0, -1, -2, -3
CODES = dict(uncertain=UNCERTAIN, blank=BLANK, conflicting=CONFLICTING)  # for which a policy may give a value


def known(labels: Any) -> Any:
    """True where a label of an array (of numpy or jax) is positive or negative."""
    return (labels == POSITIVE) | (labels == NEGATIVE)


def given(labels: Any) -> Any:
    """True where a label says something: it is known or uncertain. Blank and conflicting labels say nothing."""
    return known(labels) | (labels == UNCERTAIN)


SPLIT_NAMES = ('train', 'val', 'test')


class Unreadable(Exception):
    """An image or a mask cannot be used. The message is the reason; it holds no id and no path."""


class Origin(NamedTuple):
    """The image of another data set that an image was made from. Example: the images of RSNA and SIIM are NIH's."""

    namespace: str  # of the other data set, as its source names it
    image: str  # plain id of the image in the other data set
    patient: str  # plain id of the patient there
    # (namespace, image id) of a data set in between. Example: COVIDx took images from RSNA, which took them from NIH.
    via: tuple[str, str] | None = None


class Entry(NamedTuple):
    """One image that is not opened yet."""

    image: str  # its id: a relative path, or a number as text; unique in the source
    # None: the release names no patient. Where splits are drawn, such images are grouped by near-duplicates.
    patient: str | None
    study: str
    split: str | None  # 'train' | 'val' | 'test'; None for all entries: splits are drawn, patient by patient
    where: str = ''  # its name in the list of drops, such as 'metadata.csv line 17'; holds no id
    origin: Origin | None = None  # if given, its patient replaces `patient`
    stamp: str = ''  # changes with the file (size and time): a resumed build then opens the image again


class Example(NamedTuple):
    """One image that is opened, with all that belongs to it."""

    image: bytes | np.ndarray  # the bytes of a JPEG, PNG or DICOM file, or pixels uint8|uint16 [H,W] or uint8 [H,W,3]
    role: str = 'image'  # 'frontal', 'lateral', …; 'image': unknown
    text: Mapping[str, str] = {}  # section -> text: {'report': …} or {'findings': …, 'impression': …}
    # Age, sex, view, site, license, …: numbers and words. An empty value is not stored.
    attributes: Mapping[str, str | float] = {}
    mask: bytes | np.ndarray | None = None  # PNG bytes or uint8 [H,W], of the size of the image; see `Source.masks`
    frame: int = 0  # the frame to read, if the file is a DICOM file of several frames
    note: str = ''  # why a detail was left out ('the mask is left out: …'); is written to the list of drops


class Picture(NamedTuple):
    """The pixels of an example, and what a reader should know about them."""

    pixels: np.ndarray  # uint8 or uint16 [H,W,C]
    remarks: tuple[str, ...] = ()  # 'it shows nothing: …'; equal sentences are counted; no id, name or number in them
    aspect: float = 1.0  # height of a pixel divided by its width


class Drop(NamedTuple):
    """An image that was set aside, a detail of an image (its mask, a text, a label), or a remark on an image."""

    image: str  # plain id; hashed before it is written
    where: str
    reason: str
    # 'record': the image is not in the data set; 'detail': the image is, the detail is not; 'remark': nothing misses
    scope: str = 'record'


class Shown(NamedTuple):
    """Which images a data set shows, and how; `medjax build` has an option for each."""

    windows: Sequence[Any] = ()  # `windows.Window`s for CT, in place of those of the headers; three give three channels
    fit: str | None = None  # 'crop': the centre square; 'pad': black beside it; None: the whole image with its aspect
    conditions: Sequence[Any] = ()  # `where.Condition`s on the attributes: all of them must hold


class ColumnUse(NamedTuple):
    """What became of one column of a table. Printed by the build and written to medjax.json, so it holds no id."""

    column: str
    use: str  # 'image', 'patient_id', …, 'label' (of yes and no), '3 labels' (one for each value); '' if it is not used
    cells: int  # that are used, or not blank in a column that is not used
    blank: int  # that say nothing, or that cannot be read
    words: Mapping[str, tuple[str, int]] = {}  # word -> (its meaning, number of cells): {'nan': ('blank', 8)}
    why: str = ''  # why the column is not used and what would use it; or what else is to be known of its cells


class Source(NamedTuple):
    """A release, ready to be written as a data set."""

    name: str
    version: str  # enters the fingerprint of the data set
    namespace: str  # ids are hashed as 'namespace:id'; sources of one namespace share patients
    labels: tuple[str, ...]
    license: str
    entries: Sequence[Entry]
    label: Callable[[int], Sequence[int]]  # number of an entry -> [L], the code of each of `labels`
    load: Callable[[int], Example]  # number of an entry -> its example; raises Unreadable
    dropped: Sequence[Drop] = ()  # set aside before any image was opened
    stamp: str = ''  # changes with a table or an option: a resumed build then starts again
    columns: Sequence[ColumnUse] = ()  # of the table that the user brings; () for releases, whose tables are known
    notes: Sequence[str] = ()  # messages to the user; `medjax build` prints them
    splits: str = ''  # the published split list, by `published_splits.list_name`: 'nih/official' or '…, altered'
    # Drawn splits depend on this text and on the patient's id. None: the namespace. A source whose namespace is the
    # name of a folder gives '', so that the splits are the same whatever the folder is called.
    draw_namespace: str | None = None
    size: int | None = None  # bound of the longer stored side in pixels; smaller images stay as they are
    key: bytes | None = None  # a public key for the hashes of invented ids; None: the private key of `builder.ids`
    shown: Shown = Shown()  # the user's choices; `medjax build` sets them, a source does not
    # The structures that masks show: bit k of a mask is masks[k]. Of a single structure, all values but 0 show it.
    masks: tuple[str, ...] = ()


def patient_of(entry: Entry) -> str:
    """The id of an entry's patient.

    An entry with an origin has the patient of its origin. Where no patient is known, the study stands for the patient:
    the slices of a volume, or the figures of an article.
    """
    if entry.origin is not None:
        return f'{entry.origin.namespace}:{entry.origin.patient}'
    return f'study/{entry.study}' if entry.patient is None else entry.patient
