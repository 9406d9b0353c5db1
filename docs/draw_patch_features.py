"""Draws docs/patch_features.png: phantoms as DICOM files, and beside each the patch features of an encoder in colours.

    medjax build phantom --records 600 --size 64 --out data/small
    medjax train --config demo --data data/small --workdir runs/small --config.towers.image.variant=Ti/8 \\
        --config.total_steps=150 --config.batch_size=16
    python docs/draw_patch_features.py runs/small

The colours are the first three principal components of the patch features of all images. No image is of a person.
"""

import dataclasses
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

import medjax
from medjax.data.sources import phantom
from medjax.reports import pictures

IMAGES, SIDE, SHOWN = 4, 512, 200  # of the phantoms, and pixels of one picture
SIZE = 192  # of the images that the encoder reads: more patches than at the 64 px of its training


def main() -> None:
    encoder = dataclasses.replace(medjax.load(sys.argv[1]), size=SIZE)
    images, files = phantoms(), []
    with tempfile.TemporaryDirectory() as place:
        for i, pixels in enumerate(images):
            files.append(Path(place, f'{i}.dcm'))
            files[-1].write_bytes(dicom(pixels))
        patches = encoder.encode(files, outputs=['patches'])['patches']
    colours, _ = pictures.components(patches)
    page = Image.new('RGB', (IMAGES * SHOWN, 2 * SHOWN))
    for i, (pixels, colour) in enumerate(zip(images, colours, strict=True)):
        grey = Image.fromarray(pixels).convert('RGB').resize((SHOWN, SHOWN))
        map_ = Image.fromarray((255 * colour).astype(np.uint8)).resize((SHOWN, SHOWN), Image.Resampling.NEAREST)
        page.paste(grey, (i * SHOWN, 0))
        page.paste(map_, (i * SHOWN, SHOWN))
    out = Path(__file__).with_name('patch_features.png')
    page.quantize(128).save(out, optimize=True)
    print(f'{out}: {out.stat().st_size / 1e3:.0f} kB')


def phantoms() -> list[np.ndarray]:
    """Phantoms of patients that no usual data set of phantoms has: uint8 [SIDE,SIDE]."""
    source = phantom.source(8 * IMAGES, size=SIDE, seed=2026)
    return [np.asarray(source.load(8 * i).image).reshape(SIDE, SIDE) for i in range(IMAGES)]


def dicom(pixels: np.ndarray) -> bytes:
    """A DICOM file of 8 bits, with a window over all values."""
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = ComputedRadiographyImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    d.Modality, d.Rows, d.Columns = 'CR', *pixels.shape
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, 'MONOCHROME2', 0
    d.BitsAllocated, d.BitsStored, d.HighBit = 8, 8, 7
    d.WindowCenter, d.WindowWidth = 128, 256
    d.PixelData = pixels.tobytes()
    file = io.BytesIO()
    d.save_as(file, enforce_file_format=True)
    return file.getvalue()


if __name__ == '__main__':
    main()
