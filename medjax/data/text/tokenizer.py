"""Tokenizers from a local file.

    tokenizer = load('tokenizer.json')          # a file of the library `tokenizers` (Hugging Face), or a vocab.txt
    tokenizer.encode('No effusion.', 8)         # [2, 17, 31, 9, 3]: with first and last token, at most 8, not padded
    tokenizer.tokens.pad, tokenizer.fingerprint

A text without any token of the vocabulary gives []: an empty text, or a text in a script that the vocabulary lacks.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from medjax.errors import UserError

NAME = 'tokenizer.json'  # beside the records: the tokenizer that was trained on them
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # of BERT; ids 0 to 4 in a trained vocabulary


class Tokens(NamedTuple):
    """The size of a vocabulary, and the ids of its special tokens. None: the tokenizer has no such token."""

    vocabulary: int  # all ids are below it
    pad: int  # fills texts up
    first: int | None  # before every text: CLS or BOS
    last: int | None  # after every text: SEP or EOS, at position length - 1
    mask: int | None
    unknown: int | None


class Tokenizer(NamedTuple):
    """A loaded tokenizer: its file, its special tokens and its function."""

    path: Path
    raw: bytes  # content of the file, for exports: the file may change during a run
    fingerprint: str  # of the file, 16 hex digits
    tokens: Tokens
    encode: Callable[[str, int], list[int]]  # (text, maximal number of ids) -> ids; pure, so any thread may call it
    around: int  # number of special tokens around every text: first and last


def load(path: str | Path, pad: str | None = None) -> Tokenizer:
    """The tokenizer of a file: a tokenizer.json, or the vocab.txt of a BERT.

    A vocab.txt without capital letters makes a tokenizer in lower case. `pad` is the token that fills texts up, for
    files that do not name it (SigLIP pads with '</s>'). Default: the pad token of the file, else [PAD] or <pad>, else
    the last token of a text.
    """
    path = Path(path).expanduser()
    try:
        return _load(path, path.read_bytes(), pad)
    except OSError as error:
        raise UserError(
            f'tokenizer.path: {path} cannot be read ({error.strerror}); a tokenizer.json or a vocab.txt works'
        ) from None


@functools.lru_cache(maxsize=4)  # the config and the training read the same file
def _load(path: Path, raw: bytes, pad: str | None) -> Tokenizer:
    try:
        content = raw.decode()
    except UnicodeDecodeError:
        raise UserError(f'tokenizer.path: {path} is no text in UTF-8; a tokenizer.json or a vocab.txt works') from None
    inner = _from_vocabulary(path, content) if path.suffix == '.txt' else _from_json(path, content)
    padding = inner.padding or {}
    inner.no_truncation()  # a text view sets the length
    inner.no_padding()
    unknown = _unknown(inner)
    before, after = _special_ids(inner)
    last = after[-1] if after else None
    tokens = Tokens(
        vocabulary=max(inner.get_vocab(with_added_tokens=True).values()) + 1,
        pad=_named_pad(inner, path, pad) if pad is not None else _default_pad(inner, padding.get('pad_id'), last),
        first=before[0] if before else None,
        last=last,
        mask=_first_id(inner, '[MASK]', '<mask>'),
        unknown=unknown,
    )

    def encode(text: str, longest: int) -> list[int]:
        # Rust takes no lone surrogate, but JSON may hold one: it becomes '?'.
        ids = inner.encode(text.encode('utf-8', 'replace').decode(), add_special_tokens=False).ids
        ids = ids[: longest - len(before) - len(after)]
        return [*before, *ids, *after] if any(k != unknown for k in ids) else []

    return Tokenizer(path, raw, fingerprint(raw), tokens, encode, len(before) + len(after))


def fingerprint(raw: bytes) -> str:
    """The fingerprint of a tokenizer's file. Equal files have equal fingerprints."""
    return hashlib.sha256(raw).hexdigest()[:16]


def _from_json(path: Path, content: str) -> Any:
    from tokenizers import Tokenizer as Inner

    try:
        return Inner.from_str(content)
    except Exception as error:  # the library raises Exception itself
        raise UserError(
            f'tokenizer.path: {path} is no file of the library tokenizers ({error}); a tokenizer.json or a vocab.txt '
            'works'
        ) from None


def _from_vocabulary(path: Path, content: str) -> Any:
    # split, not splitlines: some words of a vocabulary are unusual blanks, at which splitlines would cut
    words = content.replace('\r\n', '\n').rstrip('\n').split('\n')
    missing = [word for word in ('[UNK]', '[CLS]', '[SEP]') if word not in words]
    if missing:
        raise UserError(f'tokenizer.path: {path} is no vocab.txt of a BERT: it has no line {missing[0]}')
    # In a vocabulary without capital letters, every word with a capital would be unknown.
    return of_words(words, lower=not any(word != word.lower() for word in words if word[:1] != '['))


def of_words(words: list[str], lower: bool) -> Any:
    """A WordPiece tokenizer of the library `tokenizers`. The id of a word is its place in the list."""
    from tokenizers import AddedToken, Tokenizer as Inner, models

    vocabulary = {word: k for k, word in enumerate(words)}
    inner = bert_pieces(Inner(models.WordPiece(vocabulary, unk_token='[UNK]')), lower)
    inner.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL if word in vocabulary])
    return inner


def bert_pieces(inner: Any, lower: bool) -> Any:
    """Gives a tokenizer BERT's normalisation, splitting into words, and special tokens around a text."""
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    inner.normalizer = normalizers.BertNormalizer(lowercase=lower)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    ids = [(word, inner.token_to_id(word)) for word in ('[CLS]', '[SEP]')]
    if all(k is not None for _, k in ids):
        inner.post_processor = processors.TemplateProcessing(
            single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1', special_tokens=ids
        )
    return inner


def _special_ids(inner: Any) -> tuple[list[int], list[int]]:
    """The ids before every text and those after it, from the encoding of a text with and without them."""
    bare, full = inner.encode('a', add_special_tokens=False).ids, inner.encode('a').ids
    start = next((k for k in range(len(full) - len(bare) + 1) if full[k : k + len(bare)] == bare), 0)
    return full[:start], full[start + len(bare) :]


def _unknown(inner: Any) -> int | None:
    """The id of unknown tokens. Unigram names it by number, the other models by token."""
    model = json.loads(inner.to_str())['model']
    if model.get('unk_id') is not None:
        return int(model['unk_id'])
    return inner.token_to_id(model['unk_token']) if model.get('unk_token') else None


def _named_pad(inner: Any, path: Path, pad: str) -> int:
    if (pad_id := inner.token_to_id(pad)) is None:
        raise UserError(f'tokenizer.pad: {path} has no token {pad!r}')
    return pad_id


def _default_pad(inner: Any, pad_of_file: int | None, last: int | None) -> int:
    if pad_of_file is not None:
        return pad_of_file
    pad_id = _first_id(inner, '[PAD]', '<pad>')
    return pad_id if pad_id is not None else (last or 0)


def _first_id(inner: Any, *words: str) -> int | None:
    """The id of the first of these words that the vocabulary has."""
    return next((k for word in words if (k := inner.token_to_id(word)) is not None), None)
