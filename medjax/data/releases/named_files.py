"""Finds the file that a cell of a table means, also if the cell names it in another way than the disk does.

Tables come from other machines and programs: paths begin with /data/…, names lack .png or end in .jpg for .jpeg,
Windows does not distinguish case, and a Mac writes ö as two characters. Only one file may match, else none is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
import unicodedata
import urllib.parse
from collections import defaultdict
from typing import NamedTuple

from medjax.data.releases import folders, people
from medjax.data.types import Unreadable

ELSEWHERE = 'by a path of another machine'
NO_SUFFIX = 'without its suffix'
OTHER_SUFFIX = 'with another suffix'
OTHER_CASE = 'in other case'
AS_URL = 'as an address of the web'
NO_FOLDER = 'without its folder'
NUMBER = 'by its number alone'
_SUFFIX = re.compile(r'\.(png|jpe?g|dcm|dicom|tiff?|bmp|gif|nii|npy|webp)$')


class Found(NamedTuple):
    """A file that a cell means."""

    file: pathlib.Path
    image: str  # the id of the image: the cell, or the file's path below the folder if the cell names it in another way
    how: str  # '' if the cell is the path of the file


@dataclasses.dataclass(frozen=True)
class Finder:
    """The files of a folder. They are listed when the first cell names no file as it is written."""

    root: pathlib.Path

    def find(self, cell: str) -> Found:
        """The file that a cell means. Raises Unreadable if there is none, or if there are several."""
        try:
            return Found(folders.inside(self.root, cell), cell, '')
        except Unreadable as error:
            if found := self._near(cell):
                return found
            if people.is_shortened(cell):
                raise Unreadable('there is no such file: a spreadsheet has shortened the name') from None
            raise error

    def _near(self, cell: str) -> Found | None:
        if found := self._by_path_or_name(cell):
            return found
        # 'https://…/a%20b.png?size=1'
        address = urllib.parse.unquote(re.sub(r'^https?://[^/]*/|[?#].*', '', cell))
        found = self._by_path_or_name(address) if address not in ('', cell) else None
        return found and found._replace(how=AS_URL)

    def _by_path_or_name(self, cell: str) -> Found | None:
        name = cell.replace('\\', '/')
        parts = [part for part in re.sub(r'^[A-Za-z]:', '', name).split('/') if part not in ('', '.')]
        if '..' in parts or '\0' in name or not parts or len(name) > 1000:
            return None
        ends = ['/'.join(parts[start:]) for start in range(len(parts))]
        end, paths = next(((end, paths) for end in ends if (paths := _matches(self._by_path, end))), (parts[-1], []))
        place = ELSEWHERE if end != ends[0] else ''
        if not paths and len(parts) > 1:  # train/1.png and test/1.png may be two pictures
            if _matches(self._by_name, end):
                raise Unreadable('there is no such file, but a file of this name in another folder')
            return None
        if not paths:
            paths, place = _matches(self._by_name, end), NO_FOLDER
        if not paths:  # '7' or '7.0' where a spreadsheet took the zeros of '007.png'
            paths, place = self._by_number.get(people.number(_stem(_key(end))) or end, []), NUMBER
        if not paths:
            return None
        if len(paths) > 1:
            raise Unreadable('several files have this name; give the path with its folder and suffix')
        path = paths[0]
        spelling = '' if place == NUMBER else _spelling(end.rpartition('/')[2], path.rpartition('/')[2])
        return Found(
            (self.root / path).resolve(),
            unicodedata.normalize('NFC', path),
            ' and '.join(way for way in (place, spelling) if way),
        )

    @functools.cached_property
    def _by_path(self) -> dict[str, list[str]]:
        """Path in lower case, with suffix and without -> the files that have it."""
        return _index({path: path for path in folders.files(self.root) if path != 'metadata.csv'})

    @functools.cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The same for names without their folder."""
        return _index({path: path.rpartition('/')[2] for paths in self._by_path.values() for path in paths})

    @functools.cached_property
    def _by_number(self) -> dict[str, list[str]]:
        """Number without zeros at its start -> the files whose name is this number."""
        index: dict[str, list[str]] = defaultdict(list)
        for path in dict.fromkeys(path for paths in self._by_path.values() for path in paths):
            if number := people.number(_stem(_key(path.rpartition('/')[2]))):
                index[number].append(path)
        return dict(index)


def _index(names: dict[str, str]) -> dict[str, list[str]]:
    """Name in lower case, with suffix and without -> the paths that have it. names: path -> name."""
    index: dict[str, list[str]] = defaultdict(list)
    for path, name in names.items():
        for key in dict.fromkeys((_key(name), _stem(_key(name)))):
            index[key].append(path)
    return dict(index)


def _key(path: str) -> str:
    return unicodedata.normalize('NFC', path).casefold()


def _stem(key: str) -> str:
    return _SUFFIX.sub('', key)


def _matches(index: dict[str, list[str]], name: str) -> list[str]:
    return index.get(_key(name), []) or index.get(_stem(_key(name)), [])


def _spelling(written: str, name: str) -> str:
    """The difference between the name in a cell and the name of the file; '' if they are one text."""
    if _key(written) != _key(name):
        return OTHER_SUFFIX if _SUFFIX.search(_key(written)) else NO_SUFFIX
    return OTHER_CASE if unicodedata.normalize('NFC', written) != unicodedata.normalize('NFC', name) else ''
