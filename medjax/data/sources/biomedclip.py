"""Figures and captions from microsoft/BiomedCLIP_data_pipeline, which rebuilds PMC-15M (it was never released).

    DIR/pubmed_parsed_data.jsonl (or .json, the default of its function)      one article on each line
    DIR/pubmed_open_access_files/<article>/<figure>.jpg
    DIR/pubmed_open_access_file_list.txt      PubMed Central's list, with the licences; only needed for these

DIR is the pipeline's _results/data. A line of the first file is {"pmid", "pmc": "15015", "location", "figures":
[{"fig_caption", "fig_id", "fig_label", "graphic_ref", "pair_id"}]}. graphic_ref is the path of the figure on the
machine that ran the pipeline; the end of it, after pubmed_open_access_files/, is looked for in DIR. The list of PubMed
Central has a date on its first line. Its other lines are path, citation, PMCID, PMID and licence, separated by tabs.
The PMID is often blank.

Splits: none; they are drawn. A split is drawn for a whole article, which is the study.
Labels: none.
Patients: not known.
Captions: figures that share one file keep all their captions. --licenses takes the articles with these licences alone.
Traps: most figures consist of several panels, which are not cut apart. The pipeline names every figure .jpg, so figures
with another suffix are set aside as missing.
Checked: the files, in the code and the notebook of the pipeline.
Licence: of each article.
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
ARTICLES = ('pubmed_parsed_data.jsonl', 'pubmed_parsed_data.json')
FILES, LICENSE_LIST = 'pubmed_open_access_files', 'pubmed_open_access_file_list.txt'
LICENSES = ('CC0', 'CC BY', 'CC BY-SA', 'CC BY-ND', 'CC BY-NC', 'CC BY-NC-SA', 'CC BY-NC-ND', 'NO-CC CODE')


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size and --licenses."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument(
        '--licenses', metavar='A,B', help=f'use only articles with these licences: {", ".join(LICENSES)} (default: all)'
    )


def source(folder: str, licenses: str | None = None, size: int | None = None) -> Source:
    """The source of the figures. Captions stay in the file until their image is opened."""
    root = folders.release_folder(folder, '|'.join(ARTICLES), FILES, layout=LAYOUT)
    articles_file = next(root / name for name in ARTICLES if (root / name).exists())
    wanted = _wanted_licenses(licenses)
    if wanted and not (root / LICENSE_LIST).is_file():
        raise UserError(f'--licenses: {root / LICENSE_LIST} is missing; it says the licence of each article')
    named = list(_figures(articles_file))
    articles = {figure.article for figure in named if isinstance(figure, Figure)}
    license_of = _licenses(root / LICENSE_LIST, articles)
    figures: list[Figure | Drop] = []
    for figure in named:
        if isinstance(figure, Drop):
            figures.append(figure)
            continue
        license = license_of.get(figure.article, '')
        if wanted and license not in wanted:
            reason = f'the licence of its article is {license or "unknown"}, not among --licenses'
            figures.append(Drop(figure.image, figure.where, reason))
        else:
            figures.append(figure._replace(attributes=coding.filled(license=license)))
    if articles and not any(isinstance(figure, Figure) for figure in figures):
        raise UserError(f'--licenses {licenses}: none of the articles has one of these')

    def read_caption(key: Any) -> str:
        start, number = key
        caption = tables.read_json_line(articles_file, start)['figures'][number].get('fig_caption')
        if not isinstance(caption, str):
            raise Unreadable('it is not a text')
        return caption

    release = pubmed_figures.Figures('biomedclip', LICENSE, figures, read_caption=read_caption)
    return pubmed_figures.source(root, release, size)


def _figures(articles_file: pathlib.Path) -> Iterator[Figure | Drop]:
    """The figures of all articles. A caption is (first byte of the article's line, number of the figure in it)."""
    for number, start, line in tables.read_json_lines(articles_file):
        where = f'{articles_file.name} line {number}'
        figures = line.get('figures') if isinstance(line, dict) else None
        if isinstance(line, str) or not isinstance(figures, list):
            yield Drop('', where, line if isinstance(line, str) else 'the article has no list of figures')
            continue
        article = pubmed_figures.article_id(str(line.get('pmc') or ''))
        for k, figure in enumerate(figures):
            path = figure.get('graphic_ref') if isinstance(figure, dict) else None
            where_figure = f'{where} figure {k + 1}'
            if not isinstance(path, str) or not path.strip():
                yield Drop('', where_figure, 'no file is named')
                continue
            image = '/'.join(path.replace('\\', '/').split(f'{FILES}/')[-1].split('/')[-2:])
            yield Figure(
                folders.encodable(image), f'{FILES}/{image}', article or pubmed_figures.article_id(image), where_figure,
                captions=((start, k),),
            )  # fmt: skip


def _licenses(path: pathlib.Path, articles: set[str]) -> dict[str, str]:
    """Article -> licence, for these articles only, because the list has millions."""
    license_of = {}
    if path.is_file():
        tables.record_read(path)
        with path.open(encoding='utf-8', errors='replace') as file:
            for line in file:
                cells = line.rstrip('\n').split('\t')
                if len(cells) >= 4 and cells[2] in articles:
                    license_of[cells[2]] = pubmed_figures.license_name(cells[-1])
    return license_of


def _wanted_licenses(licenses: str | None) -> set[str]:
    """The licences that --licenses names. UserError if one of them is unknown."""
    wanted = {name.strip().upper() for name in (licenses or '').split(',') if name.strip()}
    for name in sorted(wanted):
        if name not in LICENSES:
            raise UserError(f'--licenses: there is no {name!r}{suggest(name, LICENSES)}')
    return wanted
