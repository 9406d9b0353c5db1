"""Hashes ids, so that a data set says nothing about people: HMAC-SHA256(key, 'namespace:id'), cut to 64 bits.

The key is the environment variable MEDJAX_ID_KEY, or a private file that the first build makes. Without the key
nobody can find a patient by hashing all likely ids. A data set stores the fingerprint of its key, and patients of two
data sets are compared only where both fingerprints are equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import pathlib
import secrets
import tempfile

import numpy as np

from medjax.errors import UserError


def hashed(key: bytes, namespace: str, plain: str) -> np.uint64:
    """The first 8 bytes of HMAC-SHA256(key, 'namespace:plain'), big-endian."""
    # 'surrogatepass': text from JSON may hold a lone surrogate, which UTF-8 refuses otherwise
    digest = hmac.new(key, f'{namespace}:{plain}'.encode('utf-8', 'surrogatepass'), hashlib.sha256).digest()
    return np.uint64(int.from_bytes(digest[:8], 'big'))


def fingerprint(key: bytes) -> str:
    """16 hex digits that identify a key without revealing it."""
    return hashlib.sha256(b'medjax id key:' + key).hexdigest()[:16]


def private_key() -> bytes:
    """MEDJAX_ID_KEY as UTF-8, or the content of the private key file. A missing file is made."""
    if (value := os.environ.get('MEDJAX_ID_KEY')) is not None:
        if not value.strip():
            raise UserError('MEDJAX_ID_KEY is set but empty; set it to a secret text, or unset it to use a key file')
        return value.encode()
    path = key_file()
    try:
        if not path.exists():
            _make_key_file(path)
    except OSError as error:
        raise UserError(f'the id key {path} cannot be made ({error.strerror}); set MEDJAX_ID_KEY instead') from None
    try:
        if path.stat().st_mode & 0o077:
            raise UserError(f'the id key {path} can be read by others; run: chmod 600 {path}')
        key = path.read_bytes().strip()
    except OSError as error:
        raise UserError(f'the id key {path} cannot be read ({error.strerror}); set MEDJAX_ID_KEY instead') from None
    if not key:
        raise UserError(f'the id key {path} is empty; restore it from a copy, or delete it to begin with a new key')
    return key


def key_file() -> pathlib.Path:
    """The path of the private key: $XDG_CONFIG_HOME/medjax/id_key, or ~/.config/medjax/id_key."""
    home = os.environ.get('XDG_CONFIG_HOME') or pathlib.Path.home() / '.config'
    return pathlib.Path(home) / 'medjax' / 'id_key'


def _make_key_file(path: pathlib.Path) -> None:
    """Writes a new random key that only its owner can read. If two first builds race, both end with the same key."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix='.id_key')  # mode 0600
    try:
        with os.fdopen(handle, 'w') as file:
            file.write(secrets.token_hex(32) + '\n')
        with contextlib.suppress(FileExistsError):  # `files.whole` would replace the key of a build that was first
            os.link(name, path)
    finally:
        os.unlink(name)
