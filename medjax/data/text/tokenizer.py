"""Tokenizers from a file, without any network, and a WordPiece vocabulary trained on reports.

    tokenizer = load('tokenizer.json')          # of the library `tokenizers`, as Hugging Face has them; or a vocab.txt
    tokenizer.encode('No effusion.', 8)         # [2, 17, 31, 9, 3]: with first and last token, cut to 8, not filled up
    tokenizer.tokens.pad, tokenizer.fingerprint

A text of which the tokenizer knows no token (empty, or in a script that its vocabulary lacks) gives [].
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
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')  # of BERT, ids 0 to 4 in a trained vocabulary


class Tokens(NamedTuple):
    """What a tokenizer has: how many ids there are, and those with a meaning (None: it has no such)."""

    vocabulary: int  # ids are below it
    pad: int  # fills texts up
    first: int | None  # before every text: CLS or BOS
    last: int | None  # after every text: SEP or EOS, at position length - 1
    mask: int | None
    unknown: int | None


class Tokenizer(NamedTuple):
    path: Path
    raw: bytes  # the file, for exports: it may be another one by then
    fingerprint: str  # of the file, 16 hex digits
    tokens: Tokens
    encode: Callable[[str, int], list[int]]  # text, the most ids -> ids; pure, so any thread may call it
    around: int  # how many ids stand around every text: first and last


def load(path: str | Path, pad: str | None = None) -> Tokenizer:
    """The tokenizer of a file: a tokenizer.json, or the vocab.txt of a BERT (lower case if it has no capitals).

    `pad` is the token that fills texts up, where the file does not say it (SigLIP fills with '</s>'): by default the
    file's own, else [PAD] or <pad>, else the token that ends a text.
    """
    path = Path(path).expanduser()
    try:
        return _load(path, path.read_bytes(), pad)
    except OSError as error:
        said = f'tokenizer.path: {path} cannot be read ({error.strerror}); a tokenizer.json or a vocab.txt is'
        raise UserError(said) from None


@functools.lru_cache(maxsize=4)  # config and stream read the same file
def _load(path: Path, raw: bytes, pad: str | None) -> Tokenizer:
    try:
        content = raw.decode()
    except UnicodeDecodeError:
        raise UserError(f'tokenizer.path: {path} is no text in UTF-8; a tokenizer.json or a vocab.txt is') from None
    inner = _from_vocabulary(path, content) if path.suffix == '.txt' else _from_json(path, content)
    filler = inner.padding or {}
    inner.no_truncation()  # lengths are the views' business
    inner.no_padding()
    said = json.loads(inner.to_str())
    unknown = _unknown(inner, said['model'])
    bare, whole = inner.encode('a', add_special_tokens=False).ids, inner.encode('a').ids
    at = next((k for k in range(len(whole) - len(bare) + 1) if whole[k : k + len(bare)] == bare), 0)
    before, after = whole[:at], whole[at + len(bare) :]
    last = after[-1] if after else None
    tokens = Tokens(
        vocabulary=max(inner.get_vocab(with_added_tokens=True).values()) + 1,
        pad=_pad(inner, path, pad, filler.get('pad_id'), last),
        first=before[0] if before else None,
        last=last,
        mask=next((k for name in ('[MASK]', '<mask>') if (k := inner.token_to_id(name)) is not None), None),
        unknown=unknown,
    )

    def encode(text: str, most: int) -> list[int]:
        # a lone surrogate, as JSON may hold, is no text that Rust could take
        ids = inner.encode(text.encode('utf-8', 'replace').decode(), add_special_tokens=False).ids
        ids = ids[: most - len(before) - len(after)]
        return [*before, *ids, *after] if any(k != unknown for k in ids) else []

    return Tokenizer(path, raw, fingerprint(raw), tokens, encode, len(before) + len(after))


def fingerprint(raw: bytes) -> str:
    """Of a tokenizer's file: equal files are one tokenizer."""
    return hashlib.sha256(raw).hexdigest()[:16]


def _from_json(path: Path, content: str) -> Any:
    from tokenizers import Tokenizer as Inner

    try:
        return Inner.from_str(content)
    except Exception as error:  # the library raises Exception itself
        raise UserError(
            f'tokenizer.path: {path} is no file of the library tokenizers ({error}); a tokenizer.json, or a vocab.txt'
        ) from None


def _from_vocabulary(path: Path, content: str) -> Any:
    words = (
        content.replace('\r\n', '\n').rstrip('\n').split('\n')
    )  # not splitlines: a vocabulary has odd blanks of its own
    missing = [word for word in ('[UNK]', '[CLS]', '[SEP]') if word not in words]
    if missing:
        raise UserError(f'tokenizer.path: {path} is no vocab.txt of a BERT: it has no line {missing[0]}')
    # With capitals in no word, a text in capitals could only be unknown.
    return of_words(words, lower=not any(word != word.lower() for word in words if word[:1] != '['))


def of_words(words: list[str], lower: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer as Inner, models

    vocabulary = {word: k for k, word in enumerate(words)}
    inner = bert_pieces(Inner(models.WordPiece(vocabulary, unk_token='[UNK]')), lower)
    inner.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL if word in vocabulary])
    return inner


def bert_pieces(inner: Any, lower: bool) -> Any:
    """BERT's way to cut a text, around the model that is in `inner`."""
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


def _unknown(inner: Any, model: dict[str, Any]) -> int | None:
    """The id of what is not in the vocabulary; Unigram names it by number, the others by token."""
    if model.get('unk_id') is not None:
        return int(model['unk_id'])
    return inner.token_to_id(model['unk_token']) if model.get('unk_token') else None


def _pad(inner: Any, path: Path, wanted: str | None, own: int | None, last: int | None) -> int:
    if wanted is not None:
        if (found := inner.token_to_id(wanted)) is None:
            raise UserError(f'tokenizer.pad: {path} has no token {wanted!r}')
        return found
    if own is not None:
        return own
    known = [k for name in ('[PAD]', '<pad>') if (k := inner.token_to_id(name)) is not None]
    return known[0] if known else (last or 0)
