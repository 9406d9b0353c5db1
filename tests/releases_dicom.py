"""Helpers for tests of releases: tiny pictures, DICOM files, a built data set, a search for plain ids in it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medjax.data import records
from medjax.data.builder import write


def png(path: Path, value: int = 0, shape: tuple[int, int] = (20, 16), mode: str = 'L') -> None:
    """Writes a picture of noise; each value gives another one. `mode`: L, RGB, RGBA, P or 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).convert('RGB' if mode == 'P' else mode).convert(mode).save(path)


def dicom(path: Path, value: int = 0, shape: tuple[int, int] = (20, 16), **facts) -> np.ndarray:
    """Writes an uncompressed 8-bit DICOM file whose header names a person, and returns its stored values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(value).integers(0, 256, shape, np.uint8)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = '1.2.840.10008.5.1.4.1.1.7', generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientName, file.PatientID, file.StudyDate = 'Doe^Jane', 'MRN-4711', '20200131'
    file.Rows, file.Columns = shape
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation, file.SamplesPerPixel = 7, 0, 1
    file.PhotometricInterpretation, file.Modality = 'MONOCHROME2', 'DX'
    file.WindowCenter, file.WindowWidth = 128, 256
    for name, fact in facts.items():
        setattr(file, name, fact)
    file.PixelData = stored.tobytes()
    file.save_as(path, enforce_file_format=True)
    return stored


def csv(path: Path, *lines: str, encoding: str = 'utf-8') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n', encoding)


def build(source, out: Path) -> tuple[records.DataSet, dict]:
    """Builds a data set as `medjax build` does. Returns the opened data set and the summary of the build."""
    summary = write.write(source, out)
    return records.open(out), summary


def by_image(source) -> dict[str, int]:
    """Plain image id -> the index of its entry."""
    return {entry.image: i for i, entry in enumerate(source.entries)}


def labels(source) -> dict[str, dict[str, int]]:
    """Plain image id -> {label: value}."""
    return {image: dict(zip(source.labels, source.label(i), strict=True)) for image, i in by_image(source).items()}


def reasons(source) -> dict[str, str]:
    """Where -> reason, for everything that was set aside before an image was opened."""
    return {drop.where: drop.reason for drop in source.dropped}


def assert_hidden(data: records.DataSet, *plain: str) -> None:
    """Checks that no plain id is in a file of the data set or in its decoded records."""
    decoded = [
        json.dumps({k: str(v) for k, v in data.split(name)[i].attributes.items()})
        for name, count in data.splits.items()
        for i in range(count)
    ]
    columns = [
        str(array)
        for name in data.splits
        for array in (data.split(name).column(fact) for fact in data.split(name).column_names)
    ]
    everything = [path.read_bytes() for path in data.path.rglob('*') if path.is_file()]
    everything.append('\n'.join([*decoded, *columns]).encode())
    for name in plain:
        assert not any(name.encode() in content for content in everything), name
