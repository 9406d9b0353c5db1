"""`medjax encode`: writes the features of images to a file.

    medjax encode RUN images/ --out features.parquet                 # the newest export of a run
    medjax encode dinov2-base/ a.png b.dcm --out features.npz        # a public folder, or a file of weights
    medjax encode RUN/exports/1000 images/ --out features.npz --patches

IMAGES are JPEG, PNG and DICOM files, or folders, which are searched at any depth. Of a DICOM file with several frames,
the first is encoded. The column `path` joins the features to your tables: it is relative to the folder, if IMAGES is
one folder, else as you wrote it. Names of files may hold names of people; nothing is written from the headers of DICOM
files. Records of `medjax build` are encoded by `medjax probe`.

An image that cannot be read is told and left out, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import medjax
from medjax.errors import UserError
from medjax.probes import batches, encode, feature_files


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    out = pathlib.Path(args.out)
    feature_files.check(out)
    if out.is_dir():
        raise UserError(f'--out {out} is a folder; name a file')
    if os.path.lexists(out) and not args.overwrite:
        raise UserError(f'--out {out} exists; choose another name, or add --overwrite to replace it')
    if args.batch is not None and args.batch < 1:
        raise UserError(f'--batch {args.batch}: at least 1 image')
    images = named(args.images)
    encoder = encode.load(args.encoder, args.fit)
    for note in encoder.notes:
        print(f'medjax: {note}', file=sys.stderr)

    paths, names = [*images.values()], [*images]
    left_out: list[str] = []

    def leave_out(number: int, reason: str) -> None:
        left_out.append(names[number])
        print(f'medjax: left out {names[number]}: {reason}', file=sys.stderr, flush=True)

    outputs = ('cls', 'patches') if args.patches else ('cls',)
    about = dict(
        encoder=encoder.name, digest=encoder.digest, size=encoder.size, image=dict(encoder.image),
        medjax=medjax.__version__,
    )  # fmt: skip
    with feature_files.create(out, about) as table:
        for part in encoder.encode_batches(paths, outputs, batch=args.batch, left_out=leave_out):
            if len(part.numbers):
                table.write([names[i] for i in part.numbers], part.features)
        if len(left_out) == len(paths):
            raise UserError(f'none of the {len(paths)} images can be read, so {out} is not written')
    print(f'wrote {out}: {len(paths) - len(left_out)} images, by {encode.title(encoder.name)} of {args.encoder}')
    if left_out:
        print(f'medjax: {len(left_out)} of {len(paths)} images are left out, see above', file=sys.stderr)
    return 1 if left_out else 0


def named(given: Sequence[str]) -> dict[str, pathlib.Path]:
    """The images of some files and folders, by the name that the column `path` gives them."""
    found: dict[str, pathlib.Path] = {}
    for text in given:
        if not text:
            raise UserError('IMAGES: an empty name, perhaps from a variable that is not set')
        path = pathlib.Path(text)
        if not path.exists():
            raise UserError(f'there is no file or folder {path}')
        if not path.is_dir():
            found[_text(path)] = path
            continue
        inside = batches.in_folder(path)
        if not inside:
            records = any(path.glob('**/medjax.json'))
            raise UserError(
                f'{path} is a data set of `medjax build`; `medjax probe` encodes its records'
                if records
                else f'{path} holds no JPEG, PNG or DICOM file'
            )
        found |= {_text(one.relative_to(path) if len(given) == 1 else one): one for one in inside}
    return found


def _text(path: pathlib.Path) -> str:
    """The path as text; bytes of its name that are no UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode('utf-8', 'backslashreplace')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='medjax encode', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'encoder', metavar='ENCODER', help='a run (its newest export), an export, a public folder or a file of weights'
    )
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files and folders')
    parser.add_argument('--out', required=True, metavar='FILE', help='features.parquet or features.npz')
    parser.add_argument(
        '--fit',
        choices=encode.FITS,
        help='what the encoder sees of an image: crop, its centre square; pad, all of it with black beside; stretch, '
        'all of it, resized to a square (default: as the encoder says)',
    )
    parser.add_argument(
        '--patches', action='store_true', help='also the features of the patches: many times as many numbers as cls'
    )
    parser.add_argument(
        '--batch', type=int, metavar='N', help='images that run at once (default: 32 a device, fewer on a CPU)'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')
    return parser
