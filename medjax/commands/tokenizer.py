"""`medjax tokenizer`: trains a WordPiece tokenizer on the texts of the train splits of data sets.

    medjax tokenizer DATA --size 8000                      # writes DATA/tokenizer.json, which training finds by itself
    medjax tokenizer DATA OTHER --size 8000 --out FILE     # for several: train with --config.tokenizer.path=FILE

Equal texts give an equal file. A public tokenizer (tokenizer.json of Hugging Face, vocab.txt of a BERT) needs no
command: train with --config.tokenizer.path=FILE.
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
    parser.add_argument('data', nargs='+', metavar='DATA', help='the folder of a data set (--out of medjax build)')
    parser.add_argument(
        '--size', type=int, default=SIZE, metavar='N', help=f'the largest number of tokens (default: {SIZE:,})'
    )
    parser.add_argument('--out', type=Path, metavar='FILE', help='the file to write (default: DATA/tokenizer.json)')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')
    args = parser.parse_args(argv)
    if args.out is None and len(args.data) > 1:
        raise UserError('several data sets share one tokenizer, so --out is needed: --out FILE.json')
    out = args.out or Path(args.data[0]).expanduser() / tokenizer.NAME
    if out.exists() and not args.overwrite:
        raise UserError(f'{out} exists, and runs may use it; choose another --out, or add --overwrite to replace it')

    content = vocabulary.train([records.open(path) for path in args.data], args.size)
    try:
        with files.writing(f'the tokenizer {out}'):
            files.write_text(out, content)
    except OSError as error:
        raise UserError(f'{out}: cannot be written: {error.strerror}') from None
    loaded = tokenizer.load(out)
    print(f'wrote {out}: {loaded.tokens.vocabulary:,} tokens, fingerprint {loaded.fingerprint}')
    return 0
