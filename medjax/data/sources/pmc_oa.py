"""PMC-OA (Lin et al., arXiv 2303.07240): sub-figures of open-access articles and the parts of captions aligned to them.

pmc_oa.jsonl, a line {"image", "caption", "alignment_type", "alignment_score"} for each sub-figure, or pmc_oa_beta.jsonl
with the whole figure's caption and no alignment; the pictures are those of images.zip, unpacked: in the folder
caption_T060_filtered_top4_sep_v0_subfigures/, itself or in images/. The file name begins with the article:
PMC212319_Fig3_4.jpg. Names, fields and folder agree in the release's own loader (axiong/pmc_oa, read in a copy) and in
three others; the file itself was not read.

A sub-figure of several lines keeps all its captions. The alignment was made by a language model and a detector, and
is told as `alignment_score`. The release has no splits, and no licence of the articles: its own, OpenRAIL, is recalled.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

from medjax.data.releases import coding, folders, pubmed_figures, tables
from medjax.data.releases.pubmed_figures import Figure
from medjax.data.types import Drop, Source, Unreadable
from medjax.errors import UserError

LICENSE = ''
LAYOUT = 'the folder that holds pmc_oa.jsonl (or pmc_oa_beta.jsonl) and the unpacked images.zip'
PICTURES = 'caption_T060_filtered_top4_sep_v0_subfigures'


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The sub-figures as a source; captions stay in the file until their image is opened."""
    root = folders.release_folder(folder, 'pmc_oa.jsonl|pmc_oa_beta.jsonl', layout=LAYOUT)
    lines = next(root / name for name in ('pmc_oa.jsonl', 'pmc_oa_beta.jsonl') if (root / name).exists())
    pictures = next((f for f in (PICTURES, f'images/{PICTURES}', 'images') if (root / f).is_dir()), None)
    if pictures is None:
        raise UserError(f'{root}: there is no folder {PICTURES} or images; unpack images.zip there')

    def read_caption(at: Any) -> str:
        caption = tables.json_line(lines, at).get('caption')
        if not isinstance(caption, str):
            raise Unreadable('it is no text')
        return caption

    figures = pubmed_figures.Figures('pmc_oa', LICENSE, _figures(lines, pictures), read_caption=read_caption)
    return pubmed_figures.source(root, figures, size)


def _figures(lines: pathlib.Path, pictures: str) -> Iterator[Figure | Drop]:
    """The figure of each line; its caption is the place of the line in the file."""
    for number, at, line in tables.json_lines(lines):
        where = f'{lines.name} line {number}'
        if isinstance(line, str):
            yield Drop('', where, line)
        elif not isinstance(image := line.get('image'), str):
            yield Drop('', where, 'no image is named')
        else:
            score = line.get('alignment_score')
            known = coding.known(alignment_score=score if isinstance(score, float) else None)
            yield Figure(
                folders.plain(image), f'{pictures}/{image}', pubmed_figures.article(image), where, (at,), info=known
            )
