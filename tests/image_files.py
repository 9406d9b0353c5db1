"""Makes small JPEG, PNG and DICOM files."""

import io

import numpy as np
import pytest
from PIL import Image


def smooth(height: int, width: int, channels: int = 1, top: int = 255) -> np.ndarray:
    """A smooth pattern of waves, 0 to `top`, uint8 or uint16 [height,width,channels]."""
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / (9 + c)) * np.cos(y / (7 + c)) for c in range(channels)]
    values = (np.stack(planes, -1) + 1) / 2 * top
    return values.round().astype(np.uint8 if top == 255 else np.uint16)


def file(pixels: np.ndarray, kind: str, **options) -> bytes:
    """The bytes of an image file that Pillow writes. `kind`: 'JPEG', 'PNG', …"""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(stored: np.ndarray, **fields) -> bytes:
    """The bytes of an uncompressed DICOM file of the values [H,W] or [H,W,3], with more fields of its header."""
    pydicom = pytest.importorskip('pydicom')
    from pydicom.uid import ExplicitVRLittleEndian

    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1'
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = '1.2.3'
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID
    d.PatientName, d.PatientID = 'Doe^Jane', '4711'
    d.Rows, d.Columns = stored.shape[:2]
    d.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    if stored.ndim == 3:
        d.PlanarConfiguration = 0
    d.PhotometricInterpretation = 'MONOCHROME2' if stored.ndim == 2 else 'RGB'
    d.BitsAllocated = stored.dtype.itemsize * 8
    d.BitsStored = d.BitsAllocated
    d.PixelRepresentation = int(stored.dtype.kind == 'i')
    for name, value in fields.items():
        setattr(d, name, value)
    d.HighBit = d.BitsStored - 1
    d.PixelData = stored.tobytes()
    buffer = io.BytesIO()
    d.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
