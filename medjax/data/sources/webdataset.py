"""Images with captions in tar shards, as WebDataset and img2dataset write them; BIOMEDICA is one such set.

    DIR/**/*.tar     members key.jpg (or .jpeg, .png), key.txt, key.json

The key is the member's path up to the first '.' of its file name. The rest, in lower case, is the extension. (This is
the rule of webdataset/webdataset, read in its documentation.) The caption is key.txt, else `caption` or `text` of
key.json. From the JSON, `license` or `article_license` is kept, and the article (`article_accession_id` or `pmcid`) is
the study. (These are BIOMEDICA's names, read in several of its readers.)

Shards are not unpacked. The headers of every shard are read once, to list its members. An image is then read from its
place in the shard.

Splits: train, val and test, if all shards are named so (train/0001.tar, val-0001.tar, Testing/0001.tar), else drawn.
Labels: none.
Patients: not known.
Set aside, with the reason: links, sparse files, devices, absolute names and names with '..', a key and extension that
were there before, texts without an image, members over 256 MB, and what a damaged or cut-off shard no longer holds.
Names may tell of people, so drops show `shard 3 member 17`: the third line of
`find . -name '*.tar' ! -path '*/.*' | LC_ALL=C sort` and the 17th line of its `tar -tf`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from medjax.data.releases import coding, folders, pubmed_figures
from medjax.data.types import Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = ''
LAYOUT = 'a folder with .tar shards, at any depth, of images and their texts: key.jpg, key.txt, key.json'
IMAGES = ('jpg', 'jpeg', 'png')
MOST_BYTES = 256 << 20  # of a member
MOST_JSON_BYTES = 1 << 20  # of a JSON file that is read while the shard is listed


class Place(NamedTuple):
    """The place of a member in its shard."""

    number: int  # of the member; `tar -tf` lists them in this order
    start: int  # first byte
    size: int  # bytes


class Sample(NamedTuple):
    """An image in a shard, with its texts."""

    shard: int  # index in the list of shards
    key: str
    image: Place
    text: Place | None
    json: Place | None
    article: str
    license: str


class Shard(NamedTuple):
    """The content of one shard."""

    samples: list[Sample]
    dropped: list[Drop]
    others: Counter  # extension -> number of members that are neither image nor text
    has_end: bool  # a whole tar file ends with a mark


@dataclasses.dataclass(frozen=True)
class Release:
    """The images of all shards, in the order of the entries."""

    root: pathlib.Path
    paths: list[str]  # of each shard
    splits: list[str | None]  # of each shard; None: drawn
    samples: list[Sample]

    def entries(self) -> Iterator[Entry]:
        """The entry of each image."""
        stamps = [folders.stamp(self.root / path) for path in self.paths]
        for sample in self.samples:
            image = f'{self.paths[sample.shard]}/{sample.key}'
            where = f'shard {sample.shard + 1} member {sample.image.number}'
            stamp = f'{stamps[sample.shard]} {sample.image.start}'
            yield Entry(image, None, sample.article or image, self.splits[sample.shard], where, stamp=stamp)

    def label(self, i: int) -> tuple[()]:
        """No label."""
        return ()

    def load(self, i: int) -> Example:
        """Reads image i and its caption from its shard. Raises Unreadable."""
        sample = self.samples[i]
        path = self.root / self.paths[sample.shard]
        image = _read(path, sample.image)
        try:
            text, note = _caption(path, sample), ''
        except Unreadable as error:
            text, note = '', f'the caption is left out: {error}'
        attributes = coding.filled(license=sample.license)
        return Example(image, text={'caption': text} if text else {}, attributes=attributes, note=note)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size and --namespace."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument('--namespace', help="data sets with the same namespace share their ids (default: DIR's name)")


def source(folder: str, size: int | None = None, namespace: str | None = None) -> Source:
    """The source of the shards in `folder`. UserError if there are none, or if one is compressed."""
    root = folders.release_folder(folder, layout=LAYOUT)
    files, dropped, _ = folders.numbered_files(root)
    if compressed := [path for _, path in files if re.search(r'\.(tgz|tar\.(gz|bz2|xz|zst|lz4))$', path)]:
        raise UserError(
            f'{root}: {compressed[0]} is compressed, and images cannot be read from their place in it; '
            'unpack it to a plain .tar (gunzip, zstd -d)'
        )
    paths = [path for _, path in files if path.endswith('.tar')]
    if not paths:
        raise UserError(f'{root}: there is no .tar file; give {LAYOUT}')
    splits = [_split(path) for path in paths]
    folders.check_splits(root, splits, 'shards')
    shards = list(_shards(root, paths))
    samples = [sample for shard in shards for sample in shard.samples]
    dropped = [*dropped, *(drop for shard in shards for drop in shard.dropped)]
    if not samples:
        reasons = Counter(drop.reason for drop in dropped).most_common(1)
        most = f' ({reasons[0][1]} x {reasons[0][0]})' if reasons else ''
        raise UserError(f'{root}: no shard holds a JPEG or PNG{most}')
    release = Release(root, paths, splits, samples)
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, labels=(), license=LICENSE, size=size,
        entries=list(release.entries()), label=release.label, load=release.load, dropped=dropped,
        notes=_notes(samples, shards), draw_namespace=namespace or '',
    )  # fmt: skip


def _split(path: str) -> str | None:
    """The split with which a folder or the shard's name begins: train/0.tar, shards/val-0.tar. None without one."""
    words = [re.match('[a-z]*', name)[0] for name in path.lower().split('/')]  # type: ignore[index]
    return next((folders.SPLIT_SPELLINGS[word] for word in words if word in folders.SPLIT_SPELLINGS), None)


def _shards(root: pathlib.Path, paths: list[str]) -> Iterator[Shard]:
    """The content of every shard, listed by several threads."""
    from tqdm import tqdm

    is_worker = multiprocessing.parent_process() is not None  # then the main process shows the progress
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = pool.map(lambda n: _list(root / paths[n], paths[n], n), range(len(paths)))
        yield from tqdm(shards, 'listing', len(paths), unit=' shards', disable=is_worker or None)


def _list(path: pathlib.Path, name: str, number: int) -> Shard:
    """Lists the members of one shard in one pass over its headers. Reads its JSON files on the way."""
    where = f'shard {number + 1}'
    members: dict[str, dict[str, Place]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    dropped: list[Drop] = []
    others: Counter = Counter()
    has_end = True
    try:
        with path.open('rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
            total = os.fstat(file.fileno()).st_size
            for position, member in enumerate(_members(tar), 1):
                if member.isdir():
                    continue
                try:
                    key, extension = _key(member, total)
                    kind = 'image' if extension in IMAGES else extension
                    place = Place(position, member.offset_data, member.size)
                    if kind not in ('image', 'txt', 'json'):
                        others[_shown(extension)] += 1
                    elif (first := members.setdefault(key, {}).setdefault(kind, place)) != place:
                        raise Unreadable(f'its sample has this already, member {first.number}')
                    elif kind == 'json' and member.size <= MOST_JSON_BYTES:
                        metadata[key] = _metadata(file, place)
                except Unreadable as error:
                    image = folders.encodable(f'{name}/{member.name}')
                    dropped.append(Drop(image, f'{where} member {position}', str(error)))
            file.seek(tar.offset)
            block = file.read(512)
            has_end = bool(block)
            if block.strip(b'\0'):
                raise tarfile.ReadError('a damaged header')
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        what = 'the rest of it' if members else 'it'
        dropped.append(Drop('', where, f'{what} cannot be read as a tar file: {_reason(error)}'))
    samples = []
    for key, places in members.items():
        if 'image' not in places:
            position = next(iter(places.values())).number
            dropped.append(Drop(f'{name}/{key}', f'{where} member {position}', 'a text without a JPEG or PNG'))
            continue
        article, license = metadata.get(key, {}).get('article', ''), metadata.get(key, {}).get('license', '')
        samples.append(Sample(number, key, places['image'], places.get('txt'), places.get('json'), article, license))
    return Shard(samples, dropped, others, has_end)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all members in memory
        yield member


def _reason(error: Exception) -> str:
    """The reason why a shard cannot be read. It quotes neither the shard's name nor its content."""
    if isinstance(error, OSError):
        return error.strerror or 'the disk gives no reason'
    return str(error)[:80] if isinstance(error, tarfile.TarError) and str(error) else 'it is damaged'


def _key(member: tarfile.TarInfo, total: int) -> tuple[str, str]:
    """Key and extension of a member. Raises Unreadable if it cannot be read. `total`: number of bytes of the shard."""
    if not member.isreg() or member.issparse():
        kind = 'a link' if member.islnk() or member.issym() else 'a sparse file' if member.issparse() else 'not a file'
        raise Unreadable(f'{kind}; members are plain files')
    if member.size > MOST_BYTES:
        raise Unreadable(f'it has {member.size >> 20} MB; at most {MOST_BYTES >> 20} are read')
    if member.offset_data + member.size > total:
        raise Unreadable('the shard ends within it')
    try:
        name = folders.relative_path(member.name)
        name.encode()
    except UnicodeEncodeError:
        raise Unreadable('its name is not UTF-8') from None
    match = re.fullmatch(r'((?:.*/)?[^./]+)\.([^/]*)', name)
    if not match:
        raise Unreadable('its name has no key and extension')
    return match[1], match[2].lower()


def _shown(extension: str) -> str:
    """An extension in a form that can be printed: 'a.b.jpg' -> '*.jpg', since a name with dots may hold anything."""
    last = extension.rpartition('.')[2]
    if not re.fullmatch('[a-z0-9_]{1,8}', last):
        return '*'
    return last if last == extension else f'*.{last}'


def _metadata(file: Any, place: Place) -> dict[str, Any]:
    """Article and licence from a sample's JSON; {} if it is invalid, which `_caption` reports later."""
    file.seek(place.start)
    try:
        data = json.loads(file.read(place.size))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    article = data.get('article_accession_id') or data.get('pmcid') or ''
    license = data.get('article_license') or data.get('license') or ''
    return {'article': pubmed_figures.article_id(str(article)), 'license': pubmed_figures.license_name(str(license))}


def _caption(path: pathlib.Path, sample: Sample) -> str:
    """The caption of a sample, '' if it has none. Raises Unreadable."""
    place = sample.text or sample.json
    if place is None:
        return ''
    try:
        text: Any = _read(path, place).decode('utf-8-sig')
        if sample.text is None:
            data = json.loads(text)
            text = (data.get('caption') or data.get('text') or '') if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        raise Unreadable('it is not UTF-8 text' if sample.text else 'its JSON cannot be read') from None
    if not isinstance(text, str):
        raise Unreadable('it is not a text')
    return text.strip()


def _read(path: pathlib.Path, place: Place) -> bytes:
    """The bytes of a member. Raises Unreadable."""
    try:
        with path.open('rb') as file:
            file.seek(place.start)
            data = file.read(place.size)
    except OSError as error:
        raise Unreadable(f'the shard cannot be opened: {error.strerror}') from None
    if len(data) < place.size:
        raise Unreadable('the shard ends within it')
    return data


def _notes(samples: list[Sample], shards: list[Shard]) -> list[str]:
    """Notes on images without a caption, on other members and on shards that are cut off."""
    notes = []
    if without := sum(sample.text is None and sample.json is None for sample in samples):
        notes.append(f'{without} images have neither .txt nor .json: they have no caption')
    if others := sum((shard.others for shard in shards), Counter()):
        counts = ', '.join(f'{n} members key.{extension}' for extension, n in others.most_common(5))
        notes.append(f"not read: {counts}; the extension begins at the first '.'")
    if cut := sum(not shard.has_end for shard in shards):
        notes.append(f'{cut} shards have no end mark: they may be cut off')
    return notes
