"""What the figures of probes share: a figure with its caption, marked estimates, dots for the rows of a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from medjax.probes import provenance
from medjax.probes.encode import title
from medjax.reports import probe_plots
from medjax.reports.probe_plots import Level, Rows
from medjax.reports.result_sections import marked, metric_title
from medjax.reports.run_files import ResultFile

LABELS = 6  # reliability diagrams, those of the labels with the most records; values in a caption
ROWS = 40  # of a figure with dots


class Drawn(NamedTuple):
    """A figure with the sentence below it."""

    svg: Markup
    caption: str


def name(result: ResultFile) -> str:
    """'step 20†': an encoder in the legend of a figure."""
    return title(result.encoder) + provenance.mark(result.content)


def with_mark(estimate: Mapping[str, Any] | None, result: ResultFile) -> dict[str, Any] | None:
    """An estimate with the mark of its result."""
    return None if estimate is None else dict(estimate) | dict(mark=provenance.mark(result.content))


def rows_of(
    shown: ResultFile, metric: str, others: Sequence[ResultFile], level: Level | None, caption: str
) -> list[Drawn]:
    """Dots for each row of a metric, an own series for each encoder."""
    results = [result for result in (shown, *others) if metric in result.content['results']]
    rows = [row for row in shown.content['results'].get(metric, {}) if row != 'mean'][:ROWS]
    if not rows:
        return []
    block = Rows('', [(row, [marked(result.content, metric, row) for result in results]) for row in rows])
    return [
        Drawn(
            probe_plots.dots(metric_title(metric), [block], [name(r) for r in results], metric_title(metric), level),
            caption,
        )
    ]
