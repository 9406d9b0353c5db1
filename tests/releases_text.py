"""Helpers for tests of sources with texts, folders and exports: small images, DICOM files, a data set read back."""

import io
import json
import pathlib
import zlib

import numpy as np
from PIL import Image

from medjax.data import records
from medjax.data.builder import write
from medjax.data.types import Source


def pixels(seed: int, height: int = 16, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def image(seed: int, kind: str = 'PNG', mode: str = 'L') -> bytes:
    """The bytes of a small image file; each seed gives another image."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).convert(mode).save(file, kind)
    return file.getvalue()


def save(path: pathlib.Path, content: bytes | str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def dicom(**facts) -> bytes:
    """The bytes of a DICOM radiograph of 12x10 pixels. `facts` are DICOM fields; None removes a field."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID = '1.2.840.10008.5.1.4.1.1.1'
    d.SOPInstanceUID, d.StudyInstanceUID, d.AccessionNumber = '1.2.3', '1.2', 'A1'
    d.PatientName, d.PatientID, d.PatientAge, d.PatientSex = 'Doe^Jane', 'MRN4711', '061Y', 'F'
    d.Modality, d.ViewPosition, d.StudyDate = 'DX', 'PA', '20200102'
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = 12, 10, 1, 'MONOCHROME2'
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 8, 8, 7, 0
    d.PixelData = pixels(zlib.crc32(str(facts).encode()), 12, 10).tobytes()
    for name, value in facts.items():
        setattr(d, name, value)
        if value is None:
            delattr(d, name)
    d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, '1.2.3'
    buffer = io.BytesIO()
    d.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def build(source: Source, out: pathlib.Path) -> tuple[records.DataSet, list, dict]:
    """Builds a data set. Returns it opened, its records as (split, label, info), and the summary of the build."""
    summary = write.write(source, out)
    data = records.open(out)
    rows = []
    for name in data.splits:
        split = data.split(name)
        rows += [(name, split[i].label.tolist(), split[i].attributes) for i in range(len(split))]
    return data, rows, summary


def all_text(out: pathlib.Path, rows: list, summary: dict) -> str:
    """All text that a data set holds and that its build prints. No plain id may be in it."""
    texts = [(out / 'medjax.json').read_text(), (out / 'drops.csv').read_text(), json.dumps(rows), *summary['notes']]
    return '\n'.join([*texts, *(drop.reason + drop.where for drop in summary['drops'])])


def reasons(source: Source) -> dict[str, str]:
    """Where -> reason, for everything that was set aside before an image was opened."""
    return {drop.where: drop.reason for drop in source.dropped}


def labels_of(source: Source) -> list[list[int]]:
    return [list(source.label(i)) for i in range(len(source.entries))]
