"""Files of features, written batch by batch: a Parquet table or an npz, one row for each image.

    path      text, the name of the image
    cls       float32 [n,D]
    patches   float32 [n,h,w,D] in an npz. In Parquet a list of h*w*D numbers, with the columns height (h) and width (w)
    about     JSON: the encoder and its preprocessing; in Parquet under the key 'medjax' of the table's metadata

A file appears whole or not at all, and no more than a batch is held in memory.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, Protocol

import numpy as np

from medjax import files
from medjax.errors import UserError

COPY = 1 << 20  # bytes


class Table(Protocol):
    """A file that is being written."""

    def write(self, paths: Sequence[str], features: Mapping[str, np.ndarray]) -> None:
        """Adds rows: 'cls' [n,D] and perhaps 'patches' [n,h,w,D]."""

    def close(self) -> None:
        """Ends the file."""


@contextlib.contextmanager
def create(path: pathlib.Path, about: Mapping[str, Any]) -> Iterator[Table]:
    """A table to write, by the suffix of `path`; the file gets its name when the block ends without an error."""
    kind = KINDS[check(path)]
    try:
        with files.writing(f'the features {path}'), files.whole_path(path) as hidden:
            table = kind(hidden, about)
            yield table
            table.close()
    except OSError as error:
        raise UserError(f'{path}: cannot be written: {error.strerror or error}') from None


def check(path: pathlib.Path) -> str:
    """The suffix of the path; UserError for one that names no kind of file."""
    if path.suffix not in KINDS:
        raise UserError(f'{path}: the name of a file of features ends in {" or ".join(KINDS)}')
    return path.suffix


class Parquet:
    """A table of Apache Parquet."""

    def __init__(self, path: pathlib.Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, about
        self.file: Any = None

    def write(self, paths: Sequence[str], features: Mapping[str, np.ndarray]) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        def lists(x: np.ndarray) -> Any:
            flat = np.ascontiguousarray(x, np.float32).reshape(len(x), -1)
            return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])

        columns = dict(path=pa.array(paths, pa.string()), cls=lists(features['cls']))
        if (patches := features.get('patches')) is not None:
            _, height, width, _ = patches.shape
            columns |= {
                name: pa.array(np.full(len(paths), side, np.int32))
                for name, side in (('height', height), ('width', width))
            }
            columns['patches'] = lists(patches)
        table = pa.table(columns).replace_schema_metadata({'medjax': json.dumps(self.about)})
        if self.file is None:
            self.file = pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class Npz:
    """An npz. Its arrays state their length at the start, so each lies in a nameless file until all rows are there."""

    def __init__(self, path: pathlib.Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, about
        self.paths: list[str] = []
        self.arrays: dict[str, tuple[IO[bytes], tuple[int, ...]]] = {}

    def write(self, paths: Sequence[str], features: Mapping[str, np.ndarray]) -> None:
        self.paths += paths
        for name, x in features.items():
            if name not in self.arrays:  # `close` closes them
                self.arrays[name] = tempfile.TemporaryFile(dir=self.path.parent), x.shape[1:]  # noqa: SIM115
            self.arrays[name][0].write(np.ascontiguousarray(x, np.float32).data)

    def close(self) -> None:
        with zipfile.ZipFile(self.path, 'w', allowZip64=True) as archive:
            for name, text in dict(path=np.array(self.paths), about=np.array(json.dumps(self.about))).items():
                with archive.open(f'{name}.npy', 'w') as member:
                    np.lib.format.write_array(member, text, allow_pickle=False)
            for name, (file, shape) in self.arrays.items():
                with file, archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                    header = dict(descr='<f4', fortran_order=False, shape=(len(self.paths), *shape))
                    np.lib.format.write_array_header_1_0(member, header)
                    file.seek(0)
                    shutil.copyfileobj(file, member, COPY)


KINDS: dict[str, type[Parquet] | type[Npz]] = {'.parquet': Parquet, '.npz': Npz}
