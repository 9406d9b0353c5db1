"""Figures and captions as microsoft/BiomedCLIP_data_pipeline leaves them: the way to rebuild PMC-15M, never released.

DIR is its _results/data. pubmed_parsed_data.jsonl (.json in its function's default) has a line for each article:
{"pmid", "pmc": "15015", "location", "figures": [{"fig_caption", "fig_id", "fig_label", "graphic_ref", "pair_id"}]};
graphic_ref is the figure's path on the machine that ran the pipeline, and what follows pubmed_open_access_files/ is
looked for here. pubmed_open_access_file_list.txt, PubMed Central's list, has a first line with a date and then path,
citation, PMCID, PMID and licence by tabs, the PMID often blank. All read in the pipeline's code and notebook.

Most figures are compound and not cut apart. Several figures of one file keep all their captions. The pipeline names
every figure .jpg: those of other kinds are set aside as missing. --licenses takes articles of these licences alone.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

from medjax.data.releases import coding, folders, pubmed_figures, tables
from medjax.data.releases.pubmed_figures import Figure
from medjax.data.types import Drop, Source, Unreadable
from medjax.errors import UserError, suggest

LICENSE = 'of each article: CC BY, CC BY-NC, …'
LAYOUT = (
    '_results/data of microsoft/BiomedCLIP_data_pipeline: pubmed_parsed_data.jsonl, pubmed_open_access_files/ and, '
    'for the licences, pubmed_open_access_file_list.txt'
)
FILES, LIST = 'pubmed_open_access_files', 'pubmed_open_access_file_list.txt'
KNOWN = ('CC0', 'CC BY', 'CC BY-SA', 'CC BY-ND', 'CC BY-NC', 'CC BY-NC-SA', 'CC BY-NC-ND', 'NO-CC CODE')


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)
    parser.add_argument('--licenses', metavar='A,B', help=f'only articles of these: {", ".join(KNOWN)} (default: all)')


def source(folder: str, licenses: str | None = None, size: int | None = None) -> Source:
    """The figures as a source; captions stay in the file until their image is opened."""
    root = folders.release_folder(folder, 'pubmed_parsed_data.jsonl|pubmed_parsed_data.json', FILES, layout=LAYOUT)
    names = ('pubmed_parsed_data.jsonl', 'pubmed_parsed_data.json')
    lines = next(root / name for name in names if (root / name).exists())
    chosen = _chosen(licenses)
    if chosen and not (root / LIST).is_file():
        raise UserError(f'--licenses: {root / LIST} is missing, which says the licence of each article')
    figures = list(_figures(lines))
    articles = {figure.article for figure in figures if isinstance(figure, Figure)}
    license_of = _licenses(root / LIST, articles)
    chosen_figures: list[Figure | Drop] = []
    for figure in figures:
        if isinstance(figure, Drop):
            chosen_figures.append(figure)
            continue
        license = license_of.get(figure.article, '')
        if chosen and license not in chosen:
            reason = f'the licence of its article is {license or "unknown"}, not among --licenses'
            chosen_figures.append(Drop(figure.image, figure.where, reason))
        else:
            chosen_figures.append(figure._replace(info=coding.known(license=license)))
    if articles and not any(isinstance(figure, Figure) for figure in chosen_figures):
        raise UserError(f'--licenses {licenses}: none of the articles has one of these')

    def read_caption(place: Any) -> str:
        at, k = place
        caption = tables.json_line(lines, at)['figures'][k].get('fig_caption')
        if not isinstance(caption, str):
            raise Unreadable('it is no text')
        return caption

    release = pubmed_figures.Figures('biomedclip', LICENSE, chosen_figures, read_caption=read_caption)
    return pubmed_figures.source(root, release, size)


def _figures(lines: pathlib.Path) -> Iterator[Figure | Drop]:
    """The figures of each article; a caption is (place of the article's line in the file, number of the figure)."""
    for number, at, line in tables.json_lines(lines):
        where = f'{lines.name} line {number}'
        listed = line.get('figures') if isinstance(line, dict) else None
        if isinstance(line, str) or not isinstance(listed, list):
            yield Drop('', where, line if isinstance(line, str) else 'the article has no list of figures')
            continue
        article = pubmed_figures.article(str(line.get('pmc') or ''))
        for k, figure in enumerate(listed):
            path = figure.get('graphic_ref') if isinstance(figure, dict) else None
            here = f'{where} figure {k + 1}'
            if not isinstance(path, str) or not path.strip():
                yield Drop('', here, 'no file is named')
                continue
            image = '/'.join(path.replace('\\', '/').split(f'{FILES}/')[-1].split('/')[-2:])
            yield Figure(
                folders.plain(image), f'{FILES}/{image}', article or pubmed_figures.article(image), here, ((at, k),)
            )


def _licenses(path: pathlib.Path, articles: set[str]) -> dict[str, str]:
    """article -> licence, of these articles alone: the list has millions."""
    found = {}
    if path.is_file():
        tables.record_read(path)
        with path.open(encoding='utf-8', errors='replace') as file:
            for line in file:
                cells = line.rstrip('\n').split('\t')
                if len(cells) >= 4 and cells[2] in articles:
                    found[cells[2]] = pubmed_figures.license(cells[-1])
    return found


def _chosen(licenses: str | None) -> set[str]:
    chosen = {name.strip().upper() for name in (licenses or '').split(',') if name.strip()}
    for name in sorted(chosen):
        if name not in KNOWN:
            raise UserError(f'--licenses: there is no {name!r}{suggest(name, KNOWN)}')
    return chosen
