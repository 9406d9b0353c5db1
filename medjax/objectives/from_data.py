"""What the terms of a config take from the train splits before a run begins, such as the weights of classes.

A term's module may have a function `from_data(context, records, **config)`. `records(view)` gives the train records
behind a view (medjax/data/train_records.py). It returns the keys of the term's config that the data decide. The
resolved config holds their values, so nothing is counted again when the run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medjax import plugins
from medjax.data import train_records
from medjax.data.records import DataSet
from medjax.data.train_records import TrainRecords
from medjax.errors import UserError, suggest
from medjax.objectives.terms import TermContext


def terms(config: Mapping[str, Any], datasets: Mapping[str, DataSet]) -> list[dict[str, Any]]:
    """The terms of a config whose labels and columns are resolved, with the values that the data decide."""

    def records(view: str) -> TrainRecords:
        if view not in config['views']:
            raise UserError(f'there is no view {view!r}{suggest(view, config["views"])}')
        part = config['views'][view].get('part')
        if part not in config['data']:
            raise UserError(f'views.{view}.part: there is no {part!r}{suggest(str(part), config["data"])}')
        return train_records.of_part(config['data'][part], datasets)

    found = []
    for i, cfg in enumerate(config['terms']):
        name = cfg.get('name', cfg.get('term'))
        where = f'terms[{i}] ({name})' if name else f'terms[{i}]'
        module, options = plugins.chosen(cfg, 'term', 'medjax.objectives.terms', where)
        from_data = getattr(module, 'from_data', None)
        decided = {}
        if from_data is not None:
            context = TermContext(
                where, config['total_steps'], config['rows_per_group'],
                labels=tuple(config['labels']), columns=config['columns'],
            )  # fmt: skip
            options = {key: value for key, value in options.items() if key not in ('name', 'weight')}
            decided = plugins.call(from_data, options, where, context=context, records=records)
        found.append({**cfg, **decided})
    return found
