"""PMC-OA (Lin et al., arXiv 2303.07240): sub-figures of open-access articles, each with its part of the caption.

    DIR/pmc_oa.jsonl         a line for each sub-figure: {"image", "caption", "alignment_type", "alignment_score"}
    DIR/pmc_oa_beta.jsonl    instead of it: the caption of the whole figure, without an alignment
    DIR/caption_T060_filtered_top4_sep_v0_subfigures/PMC212319_Fig3_4.jpg    from images.zip; also in DIR/images/

A file name begins with the article. A sub-figure that has several lines keeps all their captions. A language model and
a detector aligned captions and sub-figures; the score is stored as `alignment_score`.

Splits: none; they are drawn. A split is drawn for a whole article, which is the study.
Labels: none.
Patients: not known.

Checked: names, fields and folder, which agree in the release's own loader (a copy of axiong/pmc_oa) and in three other
loaders. The file itself was not read.
Licence: none is given for the articles. That of the release (recalled): OpenRAIL.
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
CAPTIONS = ('pmc_oa.jsonl', 'pmc_oa_beta.jsonl')
PICTURES = 'caption_T060_filtered_top4_sep_v0_subfigures'


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The source of the sub-figures. Captions stay in the file until their image is opened."""
    root = folders.release_folder(folder, '|'.join(CAPTIONS), layout=LAYOUT)
    captions_file = next(root / name for name in CAPTIONS if (root / name).exists())
    choices = (PICTURES, f'images/{PICTURES}', 'images')
    pictures = next((choice for choice in choices if (root / choice).is_dir()), None)
    if pictures is None:
        raise UserError(f'{root}: there is no folder {PICTURES} or images; unpack images.zip there')

    def read_caption(start: Any) -> str:
        caption = tables.read_json_line(captions_file, start).get('caption')
        if not isinstance(caption, str):
            raise Unreadable('it is not a text')
        return caption

    figures = _figures(captions_file, pictures)
    release = pubmed_figures.Figures('pmc_oa', LICENSE, figures, read_caption=read_caption)
    return pubmed_figures.source(root, release, size)


def _figures(captions_file: pathlib.Path, pictures: str) -> Iterator[Figure | Drop]:
    """The figure of each line. Its caption is the first byte of the line."""
    for number, start, line in tables.read_json_lines(captions_file):
        where = f'{captions_file.name} line {number}'
        if isinstance(line, str):
            yield Drop('', where, line)
        elif not isinstance(image := line.get('image'), str):
            yield Drop('', where, 'no image is named')
        else:
            score = line.get('alignment_score')
            attributes = coding.filled(alignment_score=score if isinstance(score, float) else None)
            article, file = pubmed_figures.article_id(image), f'{pictures}/{image}'
            yield Figure(folders.encodable(image), file, article, where, (start,), attributes=attributes)
