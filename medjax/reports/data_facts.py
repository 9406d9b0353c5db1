"""What a report says of the data: where it lies, its splits, its labels, what was dropped."""

from __future__ import annotations

import collections
import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medjax.data import records
from medjax.errors import UserError
from medjax.probes import policy
from medjax.reports.run_files import Run

REASONS = 5  # of drops, the most frequent ones


class Found(NamedTuple):
    """The data sets that could be opened, and a sentence for each that could not."""

    sets: list[records.DataSet]
    words: str


def find(run: Run, data: str | None) -> Found:
    """The data set of --data, or those of the run's config; the config's may lie on another machine."""
    if data is not None:
        return Found([records.open(data)], '')
    sets, words = [], []
    for source, path in run.config.get('data_paths', {}).items():
        try:
            sets.append(records.open(path))
        except UserError:
            words.append(f'The data of source {source} is not where the config says; --data DATA shows it.')
    return Found(sets, ' '.join(words) or 'The config names no data; --data DATA shows it.')


def summary(data: records.DataSet) -> dict[str, Any]:
    """Facts and a table of labels: positive and known (see `policy.known`) records of each split."""
    split_names = list(data.splits)
    table = []
    for i, label in enumerate(data.labels):
        columns = [data.split(s).labels_array[:, i] for s in split_names]
        table.append((label, [f'{np.sum(c == 1):,} / {np.sum(policy.known(c)):,}' for c in columns]))
    return {'name': data.name, 'facts': facts(data), 'splits': split_names, 'labels': table}


def facts(data: records.DataSet) -> list[tuple[str, str]]:
    """What a data set is, in a few lines."""
    lists = {'given': 'given by the source', 'drawn': 'drawn per patient'}
    return [
        ('version', f'{data.version}, fingerprint {data.fingerprint}'),
        ('licence', data.license or 'not stated by the source'),
        ('records', ', '.join(f'{n:,} {split}' for split, n in data.splits.items())),
        ('patients', ', '.join(f'{n:,} {split}' for split, n in data.patients.items())),
        ('split list', lists.get(data.split_list, data.split_list)),
        ('images', f'channels {data.channels}, {data.bits} bit, longer side at most {data.size} px'),
        ('pixels', f'mean {data.mean:.3f}, deviation {data.std:.3f} (train split, of [0,1])'),
        ('set aside', drops(data.path / 'drops.csv')),
    ]


def drops(path: Path) -> str:
    """How many records the build left out, and why; reasons only, no ids and no file names."""
    with path.open(newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['part'] == 'record']
    reasons = collections.Counter(row['reason'] for row in rows).most_common(REASONS)
    listed = '; '.join(f'{n:,} x {reason}' for reason, n in reasons)
    return f'{len(rows):,} records ({listed})' if rows else 'no record'
