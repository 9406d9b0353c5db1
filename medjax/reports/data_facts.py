"""The facts about a data set that pages show: version, splits, labels, dropped images."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medjax.data import records
from medjax.data.format import read_drops
from medjax.errors import UserError
from medjax.probes import policy
from medjax.reports.run_files import Run

REASONS = 5  # drops are listed by reason; only the most frequent reasons are listed


class OpenedData(NamedTuple):
    """The data sets of a run that could be opened."""

    sets: list[records.DataSet]
    missing: str  # sentences about those that could not be opened


def open_data(run: Run, path: str | None) -> OpenedData:
    """Opens the data set of --data, else those of the run's config, which may lie on another machine."""
    if path is not None:
        return OpenedData([records.open(path)], '')
    sets, missing = [], []
    for source, folder in run.config.get('data_paths', {}).items():
        try:
            sets.append(records.open(folder))
        except UserError:
            missing.append(
                f'The data of source {source} is not where the config says. Give its folder with --data DATA.'
            )
    return OpenedData(sets, ' '.join(missing) or 'The config names no data. Give a data set with --data DATA.')


def summary(data: records.DataSet) -> dict[str, Any]:
    """Facts, and a table of labels: the records of each split that are positive, and those where the label is known."""
    split_names = list(data.splits)
    table = []
    for i, label in enumerate(data.labels):
        columns = [data.split(s).labels_array[:, i] for s in split_names]
        table.append((label, [f'{np.sum(c == 1):,} / {np.sum(policy.known(c)):,}' for c in columns]))
    return {'name': data.name, 'facts': facts(data), 'splits': split_names, 'labels': table}


def facts(data: records.DataSet) -> list[tuple[str, str]]:
    """(name, value) of the main facts about a data set."""
    lists = {'given': 'given by the source', 'drawn': 'drawn at random, patient by patient'}
    return [
        ('version', f'{data.version}, fingerprint {data.fingerprint}'),
        ('licence', data.license or 'not stated by the source'),
        ('records', ', '.join(f'{n:,} {split}' for split, n in data.splits.items())),
        ('patients', ', '.join(f'{n:,} {split}' for split, n in data.patients.items())),
        ('splits', lists.get(data.split_list, data.split_list)),
        ('images', f'{data.channels} channel{"s" * (data.channels > 1)}, {data.bits} bit, at most {data.size} px'),
        ('pixel values', f'mean {data.mean:.3f}, standard deviation {data.std:.3f} (train split, scale 0 to 1)'),
        ('dropped', drops(data.path / 'drops.csv')),
        *([('masks', ', '.join(data.masks))] if data.masks else []),
        *([('remarks', '; '.join(f'{n:,} x {remark}' for remark, n in data.remarks.items()))] if data.remarks else []),
    ]


def drops(path: Path) -> str:
    """The number of records that the build dropped, with the reasons; without ids and file names."""
    records_dropped = [drop for drop in read_drops(path) if drop.scope == 'record']
    reasons = collections.Counter(drop.reason for drop in records_dropped).most_common(REASONS)
    listed = '; '.join(f'{n:,} x {reason}' for reason, n in reasons)
    return f'{len(records_dropped):,} records ({listed})' if records_dropped else 'no record'
