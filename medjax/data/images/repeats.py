"""Whether two DICOM files show one picture of one patient: digests that are equal then.

Exports hold files twice, also in another coding. And wrong exports give one SOPInstanceUID to different pictures. A
digest is computed once for each file, so that many files of one UID take time that grows with their number, not with
its square.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np

from medjax.data.images import dicom_pixels, grey
from medjax.data.images.dicom import first_number, open_file, pixel_aspect

# What shows of stored values beside `grey.facts`.
SHAPE = ('Rows', 'Columns', 'SamplesPerPixel', 'PixelRepresentation', 'BitsStored')
PADDING = ('PixelPaddingValue', 'PixelPaddingRangeLimit')
CODED = ('PlanarConfiguration', 'BitsAllocated', 'HighBit')  # how the values are stored
PALETTES = [
    f'{kind}{colour}PaletteColorLookupTable{part}'
    for colour in ('Red', 'Green', 'Blue')
    for kind, part in (('', 'Descriptor'), ('', 'Data'), ('Segmented', 'Data'))
]


def of_bytes(data: bytes, patient: str, frames: int) -> bytes | None:
    """The digest of a file."""
    return hashlib.sha256(data).digest()


def of_coded(data: bytes, patient: str, frames: int) -> bytes | None:
    """The digest of patient, pixel data as they are stored, and what shows of them. None: they cannot be read."""
    try:
        file = open_file(io.BytesIO(data))
        colours, syntax = str(file.PhotometricInterpretation), str(file.file_meta.TransferSyntaxUID)
        facts = [patient, frames, colours, syntax, *(str(file.get(name)) for name in CODED), *_facts(file, frames)]
        return hashlib.sha256(repr(facts).encode() + bytes(file.PixelData)).digest()
    except Exception:  # a damaged file may raise almost any exception
        return None


def of_values(data: bytes, patient: str, frames: int) -> bytes | None:
    """The digest of patient, decoded values, and what shows of them, whatever their coding. None: no values."""
    try:
        file = open_file(io.BytesIO(data))
        colours = 'RGB' if int(file.SamplesPerPixel) == 3 else str(file.PhotometricInterpretation)
        total = hashlib.sha256(repr([patient, frames, colours, *_facts(file, frames)]).encode())
        for frame in range(frames):
            values = np.ascontiguousarray(dicom_pixels.stored_values(file, frame))
            total.update(repr((values.shape, values.dtype.newbyteorder('=').str)).encode())
            total.update(values.astype(values.dtype.newbyteorder('=')))
        return total.digest()
    except Exception:  # a damaged file may raise almost any exception
        return None


DIGESTS = (of_bytes, of_coded, of_values)  # the cheapest first; one equal digest is enough


def _facts(file: Any, frames: int) -> list[Any]:
    facts: list[Any] = [first_number(file.get(name)) for name in SHAPE]
    facts += [file.get(name) for name in (*PADDING, *PALETTES)]
    for frame in range(frames):
        found = grey.facts(file, frame)._asdict()
        facts.append([(name, _plain(value)) for name, value in found.items()])
        facts.append(pixel_aspect(file, frame))
    return facts


def _plain(value: Any) -> Any:
    """The value with tables as the bytes of their entries; an array's own text leaves out its middle."""
    if isinstance(value, grey.Table):
        return value.first, value.entries.tobytes()
    return tuple(map(_plain, value)) if type(value) is tuple else value
