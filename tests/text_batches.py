"""Small data sets with texts, and a tokenizer for them: shared by the tests of text batches and of text training."""

from __future__ import annotations

import itertools

import numpy as np

from medjax.data import records
from medjax.data.builder import write
from medjax.data.text.tokenizer import Tokenizer, load
from medjax.data.types import Entry, Example, Source

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', 'no', 'effusion', 'nodule', 'mass', 'normal', 'one', 'two']
WORDS += ['three', 'caption', *'0123456789', *(f'##{n}' for n in range(10))]
PROMPTS = {
    'present': {'effusion': ['effusion.', 'effusion one.', 'effusion two.'], 'nodule': ['nodule.']},
    'normal': ['normal.'],
}
VIEWS = {
    'report': dict(view='text', part='cxr', length=12, prompts=PROMPTS),
    'sentence': dict(view='text', part='cxr', length=8, count=3, sentences=1, sections=['findings']),
}


def report(i):
    """The texts of record i of the data set 'paired'."""
    if i % 5 == 4:
        return {}
    if i % 5 == 3:
        return {'impression': 'no effusion.'}
    return {'findings': f'effusion one. nodule two. mass {i}.', 'impression': f'mass {i}.'}


def data_set(folder, name, count, text=lambda i: {}, labels=(), label=lambda i: []):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, 16, 16), np.uint8)
    entries = [Entry(f'{i}', f'{i}', f'{i}', 'train') for i in range(count)]
    write.write(
        Source(name, '1', name, labels, '', entries, label, lambda i: Example(images[i], text=text(i))), folder / name
    )
    return records.open(folder / name)


def datasets_in(folder):
    """Five data sets: with reports, with labels only, with images only, with captions, in an unknown script."""
    labels = ('effusion', 'nodule')
    return {
        'paired': data_set(folder, 'paired', 20, report),
        'labelled': data_set(folder, 'labelled', 6, labels=labels, label=lambda i: [[1, 0], [0, 0], [-2, -2]][i % 3]),
        'bare': data_set(folder, 'bare', 5),
        'captions': data_set(folder, 'captions', 5, lambda i: {'caption': f'caption {i}.'}),
        'foreign': data_set(folder, 'foreign', 4, lambda i: {'report': '胸部'}),
    }


def tokenizer_in(folder) -> Tokenizer:
    """A tokenizer of the vocabulary WORDS."""
    path = folder / 'vocab.txt'
    path.write_text('\n'.join(WORDS) + '\n')
    return load(path)


def part(rows=8, **sources):
    """A config's `data` with one part."""
    return {'cxr': dict(rows=rows, sources=sources or dict(paired=0.5, labelled=0.25, bare=0.25))}


def take(stream, steps, start=0, rows=None):
    """The batches of some steps."""
    return [batch['cxr'] for batch in itertools.islice(stream.batches(start, rows), steps)]
