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


def dicom(stored: np.ndarray, big: bool = False, frames: int = 0, **fields) -> bytes:
    """The bytes of an uncompressed DICOM file of the values [H,W] or [H,W,3], with more fields of its header.

    `big`: big-endian. `frames`: the first axis has this number of frames. A field may be (VR, value).
    """
    pydicom = pytest.importorskip('pydicom')
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1'
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = '1.2.3'
    d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID
    d.PatientName, d.PatientID = 'Doe^Jane', '4711'
    shape = stored.shape[bool(frames) :]
    d.Rows, d.Columns = shape[:2]
    d.SamplesPerPixel = 1 if len(shape) == 2 else 3
    if len(shape) == 3:
        d.PlanarConfiguration = 0
    if frames:
        d.NumberOfFrames = frames
    d.PhotometricInterpretation = 'MONOCHROME2' if len(shape) == 2 else 'RGB'
    d.BitsAllocated = stored.dtype.itemsize * 8
    d.BitsStored = d.BitsAllocated
    d.PixelRepresentation = int(stored.dtype.kind == 'i')
    for name, value in fields.items():
        if isinstance(value, tuple):
            d.add_new(name, *value)
        else:
            setattr(d, name, value)
    d.HighBit = d.BitsStored - 1
    d.add_new(
        'PixelData',
        'OW' if d.BitsAllocated > 8 else 'OB',
        stored.astype(stored.dtype.newbyteorder('>' if big else '<')).tobytes(),
    )
    buffer = io.BytesIO()
    d.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
