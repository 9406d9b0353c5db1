"""`medjax tokenizer`: data sets -> a WordPiece vocabulary trained on the texts of their train splits.

    medjax tokenizer DATA --size 8000                      # writes DATA/tokenizer.json, where training looks for it
    medjax tokenizer DATA OTHER --size 8000 --out FILE     # of several: train with --config.tokenizer.path=FILE

The same texts give the same file. Public tokenizers (tokenizer.json of Hugging Face, vocab.txt of a BERT) need no
command: give --config.tokenizer.path=FILE.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medjax import files
from medjax.data import records
from medjax.data.builder import vocabulary
from medjax.data.text import tokenizer
from medjax.errors import UserError

SIZE = 8_000


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax tokenizer', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', nargs='+', metavar='DATA', help='a folder of medjax build')
    parser.add_argument('--size', type=int, default=SIZE, metavar='N', help=f'tokens at most, {SIZE:,} if not given')
    parser.add_argument('--out', type=Path, metavar='FILE', help='DATA/tokenizer.json if not given')
    parser.add_argument('--overwrite', action='store_true', help='replace the file that is there')
    args = parser.parse_args(argv)
    if args.out is None and len(args.data) > 1:
        raise UserError('--out: several data sets share this tokenizer, so say where to: --out FILE.json')
    out = args.out or Path(args.data[0]).expanduser() / tokenizer.NAME
    if out.exists() and not args.overwrite:
        raise UserError(f'{out} exists; runs may have been trained with it. Choose another --out, or add --overwrite')

    made = vocabulary.train([records.open(path) for path in args.data], args.size)
    try:
        files.write_text(out, made)
    except OSError as error:
        raise UserError(f'{out}: cannot be written: {error.strerror}') from None
    loaded = tokenizer.load(out)
    print(f'{out}: {loaded.tokens.vocabulary:,} tokens, fingerprint {loaded.fingerprint}')
    return 0
