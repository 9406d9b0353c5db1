"""Image-text pairs in tar shards, as WebDataset and img2dataset write them: BIOMEDICA is one.

DIR/**/*.tar, each with members key.jpg (jpeg, png), key.txt and key.json; the key is the path up to the first '.' of
its file name, the rest in lower case is the extension (so does webdataset/webdataset, read in its documentation). The
caption is key.txt, else `caption` or `text` of key.json; of the JSON also `license` or `article_license` is kept, and
the article, `article_accession_id` or `pmcid`, is the study (BIOMEDICA's names, read in several of its readers).

Nothing is extracted. The members of every shard are listed once, by their headers; an image is then read from its place
in the shard. Set aside with their reason: links, sparse files, devices, names that are absolute or have '..', a key and
extension that were there before, texts without an image, members over 256 MB, and what a damaged or cut-off shard
no longer holds. Drops say `shard 3 member 17`, since names may tell of people: the third line of
`find . -name '*.tar' ! -path '*/.*' | LC_ALL=C sort` and the 17th of its `tar -tf`. Splits are given where all shards
are called so (train/0001.tar, val-0001.tar, Testing/0001.tar), else drawn.
"""

from __future__ import annotations

import argparse
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
MOST = 256 << 20  # bytes of a member
MOST_JSON = 1 << 20  # bytes of a JSON that is read while listing


class Place(NamedTuple):
    """Where a member lies in its shard."""

    number: int  # of the member, as `tar -tf` lists them
    at: int
    size: int


class Sample(NamedTuple):
    shard: int
    key: str
    image: Place
    text: Place | None
    json: Place | None
    article: str
    license: str


class Listed(NamedTuple):
    """What one shard holds."""

    samples: list[Sample]
    dropped: list[Drop]
    others: Counter  # extension -> members that are neither image nor text
    ended: bool  # with a tar's end mark


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)
    parser.add_argument('--namespace', help="sets with one namespace share their ids (default: DIR's name)")


def source(folder: str, size: int | None = None, namespace: str | None = None) -> Source:
    """The shards as a source; UserError where there are none, or only compressed ones."""
    root = folders.release_folder(folder, layout=LAYOUT)
    found, dropped, _ = folders.tree(root)
    if packed := [path for _, path in found if re.search(r'\.(tgz|tar\.(gz|bz2|xz|zst|lz4))$', path)]:
        raise UserError(
            f'{root}: {packed[0]} is compressed, and images cannot be read from their place in it; '
            'unpack it to a plain .tar (gunzip, zstd -d)'
        )
    shards = [path for _, path in found if path.endswith('.tar')]
    if not shards:
        raise UserError(f'{root}: there is no .tar file; give {LAYOUT}')
    splits = [_split(path) for path in shards]
    folders.all_or_none(root, splits, 'shards')
    listed = list(_listed(root, shards))
    samples = [sample for shard in listed for sample in shard.samples]
    dropped = [*dropped, *(drop for shard in listed for drop in shard.dropped)]
    if not samples:
        why = Counter(drop.reason for drop in dropped).most_common(1)
        raise UserError(f'{root}: no shard holds a JPEG or PNG' + (f' ({why[0][1]} x {why[0][0]})' if why else ''))

    def load(i: int) -> Example:
        sample = samples[i]
        path = root / shards[sample.shard]
        image = _read(path, sample.image)
        try:
            text, note = _caption(path, sample), ''
        except Unreadable as error:
            text, note = '', f'the caption is left out: {error}'
        info = coding.known(license=sample.license)
        return Example(image, text={'caption': text} if text else {}, attributes=info, note=note)

    stamps = [folders.stamp(root / path) for path in shards]
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, labels=(), license=LICENSE, size=size,
        entries=[
            Entry(
                f'{shards[s.shard]}/{s.key}', None, s.article or f'{shards[s.shard]}/{s.key}', splits[s.shard],
                f'shard {s.shard + 1} member {s.image.number}', stamp=f'{stamps[s.shard]} {s.image.at}',
            )
            for s in samples
        ],
        label=lambda i: (), load=load, dropped=dropped, notes=_notes(samples, listed),
    )  # fmt: skip


def _split(path: str) -> str | None:
    """The split that the first folder or the shard's name begins with: train/0.tar, shards/val-0.tar."""
    words = [re.match('[a-z]*', part)[0] for part in path.lower().split('/')]  # type: ignore[index]
    return next((folders.SPLITS[word] for word in words if word in folders.SPLITS), None)


def _listed(root: pathlib.Path, shards: list[str]) -> Iterator[Listed]:
    from tqdm import tqdm

    child = multiprocessing.parent_process() is not None  # of a build that shows its own progress
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda n: _list(root / shards[n], shards[n], n), range(len(shards)))
        yield from tqdm(made, 'listing', len(shards), unit=' shards', disable=child or None)


def _list(path: pathlib.Path, name: str, shard: int) -> Listed:
    """One pass over the headers of a shard, and over its JSON."""
    where = f'shard {shard + 1}'
    members: dict[str, dict[str, Place]] = {}
    facts: dict[str, dict[str, Any]] = {}
    dropped: list[Drop] = []
    others: Counter = Counter()
    ended = True
    try:
        with path.open('rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
            total = os.fstat(file.fileno()).st_size
            for number, member in enumerate(_members(tar), 1):
                if member.isdir():
                    continue
                try:
                    key, extension = _key(member, total)
                    kind = 'image' if extension in IMAGES else extension
                    place = Place(number, member.offset_data, member.size)
                    if kind not in ('image', 'txt', 'json'):
                        others[_told(extension)] += 1
                    elif (first := members.setdefault(key, {}).setdefault(kind, place)) != place:
                        raise Unreadable(f'its sample has this already, member {first.number}')
                    elif kind == 'json' and member.size <= MOST_JSON:
                        facts[key] = _facts(file, place)
                except Unreadable as error:
                    dropped.append(Drop(folders.plain(f'{name}/{member.name}'), f'{where} member {number}', str(error)))
            file.seek(tar.offset)
            block = file.read(512)
            ended = bool(block)
            if block.strip(b'\0'):
                raise tarfile.ReadError('a damaged header')
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        what = 'the rest of it' if members else 'it'
        dropped.append(Drop('', where, f'{what} cannot be read as a tar file: {_why(error)}'))
    samples = []
    for key, parts in members.items():
        if 'image' not in parts:
            number = next(iter(parts.values())).number
            dropped.append(Drop(f'{name}/{key}', f'{where} member {number}', 'a text without a JPEG or PNG'))
            continue
        article, license = facts.get(key, {}).get('article', ''), facts.get(key, {}).get('license', '')
        samples.append(Sample(shard, key, parts['image'], parts.get('txt'), parts.get('json'), article, license))
    return Listed(samples, dropped, others, ended)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        yield member


def _why(error: Exception) -> str:
    """Why a shard cannot be read, in words that quote neither its name nor what is in it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)[:80] if isinstance(error, tarfile.TarError) and str(error) else type(error).__name__


def _key(member: tarfile.TarInfo, total: int) -> tuple[str, str]:
    """Key and extension of a member that can be read from its place."""
    if not member.isreg() or member.issparse():
        kind = 'a link' if member.islnk() or member.issym() else 'a sparse file' if member.issparse() else 'no file'
        raise Unreadable(f'{kind}; members are plain files')
    if member.size > MOST:
        raise Unreadable(f'it has {member.size >> 20} MB; at most {MOST >> 20} are read')
    if member.offset_data + member.size > total:
        raise Unreadable('the shard ends within it')
    try:
        name = folders.relative(member.name)
        name.encode()
    except UnicodeEncodeError:
        raise Unreadable('its name is not UTF-8') from None
    found = re.fullmatch(r'((?:.*/)?[^./]+)\.([^/]*)', name)
    if not found:
        raise Unreadable('its name has no key and extension')
    return found[1], found[2].lower()


def _told(extension: str) -> str:
    """An extension as it may be told: a file name with more dots than one may hold anything."""
    last = extension.rpartition('.')[2]
    if not re.fullmatch('[a-z0-9_]{1,8}', last):
        return '*'
    return last if last == extension else f'*.{last}'


def _facts(file: Any, place: Place) -> dict[str, Any]:
    """Article and licence out of a sample's JSON; what is wrong with it is told when its caption is read."""
    file.seek(place.at)
    try:
        data = json.loads(file.read(place.size))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    article = data.get('article_accession_id') or data.get('pmcid') or ''
    license = data.get('article_license') or data.get('license') or ''
    return {'article': pubmed_figures.article(str(article)), 'license': pubmed_figures.license(str(license))}


def _caption(path: pathlib.Path, sample: Sample) -> str:
    place = sample.text or sample.json
    if place is None:
        return ''
    try:
        text: Any = _read(path, place).decode('utf-8-sig')
        if sample.text is None:
            data = json.loads(text)
            text = (data.get('caption') or data.get('text') or '') if isinstance(data, dict) else None
    except (ValueError, RecursionError):
        raise Unreadable('it is no UTF-8 text' if sample.text else 'the sample has no JSON that can be read') from None
    if not isinstance(text, str):
        raise Unreadable('it is no text')
    return text.strip()


def _read(path: pathlib.Path, place: Place) -> bytes:
    try:
        with path.open('rb') as file:
            file.seek(place.at)
            data = file.read(place.size)
    except OSError as error:
        raise Unreadable(f'the shard cannot be opened: {error.strerror}') from None
    if len(data) < place.size:
        raise Unreadable('the shard ends within it')
    return data


def _notes(samples: list[Sample], listed: list[Listed]) -> list[str]:
    notes = []
    if without := sum(sample.text is None and sample.json is None for sample in samples):
        notes.append(f'{without} images have neither .txt nor .json: they have no caption')
    if others := sum((shard.others for shard in listed), Counter()):
        told = ', '.join(f'{n} members key.{kind}' for kind, n in others.most_common(5))
        notes.append(f"passed over: {told}; the extension begins at the first '.'")
    if cut := sum(not shard.ended for shard in listed):
        notes.append(f'{cut} shards have no end mark: they may be cut off')
    return notes
