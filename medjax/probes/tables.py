"""Tables of results, as Markdown for a terminal or a README and as LaTeX for a paper.

A table is text in cells, with a caption and notes. Values have their intervals; those of contaminated results have the
mark of `medjax.probes.provenance`, which a note explains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medjax.probes import provenance
from medjax.probes.encode import BASELINES, title
from medjax.probes.results import METRIC_TITLES, cell

KINDS = dict(percentile='bootstrap percentiles', bca='bootstrap, BCa')  # of intervals
NOT_IN_TABLES = ('adjusted_auprc', 'mcc')  # the JSON has them; tables stay narrow
# Characters that LaTeX reads as commands, or that its first fonts do not have.
LATEX = {
    '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}',
    '>': r'\textgreater{}', '|': r'\textbar{}', '"': r'\textquotedbl{}', '†': r'\textsuperscript{\textdagger}',
    '★': r'$\star$', '–': '--', '±': r'$\pm$', '≥': r'$\geq$', '≤': r'$\leq$', '×': r'$\times$', '²': r'$^2$',
    **{character: f'\\{character}' for character in '&%$#_{}'},
}  # fmt: skip


class Table(NamedTuple):
    """A table of text."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    names: int = 1  # columns of words, which come first; the others hold numbers


def of_results(results: Sequence[Mapping[str, Any]], probes: Sequence[str]) -> list[Table]:
    """The contents of results on one data set, means over labels with their intervals.

    Probes come in the order of `probes`, and encoders as baselines, named encoders, steps. Probes whose first metric is
    one, as a mean over the same labels and units, share a table.
    """
    ordered = sorted(results, key=lambda r: (list(probes).index(r['probe']), _position(r['encoder']['step'])))
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in ordered:
        metric, rows = next(iter(result['results'].items()))
        caption = _pooled(result), result['bootstrap'].get('interval')
        found.setdefault((metric, *caption, *rows), []).append(result)
    return list(map(_one_table, found.values()))


def _one_table(results: Sequence[Mapping[str, Any]]) -> Table:
    bootstrap, rows = results[0]['bootstrap'], next(iter(results[0]['results'].values()))
    directions = ' and '.join(row for row in rows if row != 'mean')
    averaged = (
        f'{rows["mean"]["labels"]} {results[0].get("rows", "label")}(s)' if 'labels' in rows['mean'] else directions
    )
    if skipped := len(results[0].get('skipped_labels', ())):
        averaged += f' ({skipped} left out, see below)'
    metrics = dict.fromkeys(m for result in results for m in result['results'] if m not in NOT_IN_TABLES)
    caption = (
        f'{results[0]["data"]}, test split: {results[0]["records"]["test"]:,} records of '
        f'{bootstrap["patients"]:,} patients{_pooled(results[0])}; means over {averaged} with '
        f'{100 * bootstrap["level"]:.0f} % intervals over patients ({KINDS[bootstrap.get("interval", "percentile")]})'
    )
    lines = []
    for result in results:
        mark = provenance.mark(result)
        cells = [cell(result['results'].get(metric, {}).get('mean'), mark) for metric in metrics]
        lines.append([title(result['encoder']['step']), result['probe'], *cells, provenance.seen(result)])
    columns = ['encoder', 'probe', *(METRIC_TITLES.get(metric, metric) for metric in metrics), provenance.COLUMN]
    explained = provenance.explanation(results)
    return Table(caption, columns, lines, [explained] if explained else [], names=2)


def _pooled(result: Mapping[str, Any]) -> str:
    """', scored by patient (450 of them, max over records)'; '' where records are scored."""
    about = result.get('unit', {})
    if about.get('unit', 'image') == 'image':
        return ''
    return f', scored by {about["unit"]} ({about["units"]:,} of them, {about["pool"]} over records)'


def _position(step: int | str) -> tuple[int, str, int]:
    """Sorts baselines first, then named encoders, then steps by number."""
    return (int(step not in BASELINES), step, 0) if isinstance(step, str) else (2, '', step)


def markdown(table: Table) -> str:
    """The table with its caption before it and its notes after it."""

    def line(cells: Sequence[str]) -> str:
        safe = [plain(cell) if i < table.names else cell.replace('|', r'\|') for i, cell in enumerate(cells)]
        return f'| {" | ".join(safe)} |'

    lines = [table.caption, ''] if table.caption else []
    lines += [line(table.columns), '|' + '---|' * len(table.columns), *map(line, table.rows)]
    return '\n'.join([*lines, *(['', *table.notes] if table.notes else [])])


def plain(text: Any) -> str:
    """Text for Markdown, also for the cell of a table: one line, in which no character is a mark."""
    return re.sub(r'([\\`*\[\]<>|#])', r'\\\1', ' '.join(str(text).split()))


def latex(table: Table) -> str:
    """The table for a paper: `tabular` with the rules of the package booktabs, in a `table` with caption and notes.

    A table that is wider than the text is made smaller. The preamble needs \\usepackage{booktabs,graphicx}, and
    \\usepackage[T1]{fontenc} for quotation marks.
    """
    lines = [' & '.join(map(escaped, row)) + r' \\' for row in (table.columns, *table.rows)]
    notes = ' '.join(escaped(_sentence(note)) for note in table.notes)
    return '\n'.join([
        r'\begin{table}',
        r'  \centering',
        f'  \\caption{{{escaped(table.caption)}.}}',
        r'  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%',
        f'  \\begin{{tabular}}{{{"l" * table.names}{"c" * (len(table.columns) - table.names)}}}',
        r'    \toprule',
        f'    {lines[0]}',
        r'    \midrule',
        *(f'    {line}' for line in lines[1:]),
        r'    \bottomrule',
        r'  \end{tabular}}',
        *([f'  \\par\\smallskip\\footnotesize {notes}'] if notes else []),
        r'\end{table}',
    ])  # fmt: skip


def _sentence(text: str) -> str:
    return text if text.endswith('.') else f'{text}.'


def escaped(text: str) -> str:
    """Text for LaTeX, in which no character is a command. A bold number of Markdown becomes bold."""
    parts = re.split(r'\*\*(.+?)\*\*', text)
    plain = [''.join(LATEX.get(character, character) for character in part) for part in parts]
    return ''.join(rf'\textbf{{{part}}}' if i % 2 else part for i, part in enumerate(plain))
