"""Open-I, the chest X-rays of Indiana University: 7,470 PNG films and 3,955 reports with sections and MeSH codes.

    DIR/…/*.xml    NLMCXR_reports.tgz: ecgen-radiology/1.xml …: uId, AbstractText by Label, MeSH/major, parentImage
    DIR/…/*.png    NLMCXR_png.tgz: CXR1_1_IM-0001-3001.png …: the id of the parentImage
    DIR/…/indiana_projections.csv    if there: uid, filename, projection (Frontal, Lateral), from the Kaggle copy

Traps: 104 reports have no film; sections are empty in part (530 findings, 34 impressions); 'XXXX' stands for words
that the de-identification took, ordinary ones too, and is stored as '___', as in all sets; the films tell no view. A
report is one examination and its number the patient: nobody is named, and whether people came twice is unknown.
Automatic MeSH terms are not used.

Labels: a finding is 1 where one of its headings is among the report's MeSH/major terms (the part before the first
slash), 0 where not; all are blank where the report says 'No Indexing' (95 reports) or has no term. 'normal' stands
alone in all 1,391 reports that have it. People gave the terms from the text, for all films of a report alike.

No official split (R2Gen's 2,069 / 296 / 590 reports circulate; not read here): drawn. XML that declares a document type
is refused, so that no entity can grow.

Checked: the reports themselves (all 3,955, the copy in mlmed/torchxrayvision): ids, sections, terms, licence, counts
above. The columns of the Kaggle table: loaders of several public repositories. Recalled, not checked: who gave the
terms; that the PNG files bear the ids; R2Gen's counts.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from medjax.data.releases import coding, folders, tables
from medjax.data.text import language
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'CC BY-NC-ND 4.0'
LAYOUT = 'the folder that holds the unpacked NLMCXR_png.tgz (*.png) and NLMCXR_reports.tgz (ecgen-radiology/*.xml)'
PROJECTIONS = 'indiana_projections.csv'
SECTIONS = {'comparison', 'indication', 'findings', 'impression'}
FINDINGS = {  # label -> headings of MeSH/major, lower case; 'x/y' needs y as the first qualifier
    'normal': ('normal',),
    'atelectasis': ('pulmonary atelectasis',),
    'cardiomegaly': ('cardiomegaly',),
    'pleural_effusion': ('pleural effusion',),
    'opacity': ('opacity',),
    'airspace_disease': ('airspace disease',),
    'infiltration': ('infiltrate',),
    'consolidation': ('consolidation',),
    'pneumonia': ('pneumonia',),
    'edema': ('pulmonary edema',),
    'pulmonary_congestion': ('pulmonary congestion',),
    'nodule': ('nodule',),
    'mass': ('mass',),
    'granuloma': ('granuloma', 'calcified granuloma', 'granulomatous disease'),
    'emphysema': ('emphysema', 'pulmonary emphysema'),
    'copd': ('pulmonary disease, chronic obstructive',),
    'fibrosis': ('pulmonary fibrosis',),
    'scar': ('cicatrix',),
    'pleural_thickening': ('thickening/pleura',),
    'pneumothorax': ('pneumothorax',),
    'hernia': ('hernia, hiatal', 'hernia, diaphragmatic'),
    'fracture': ('fractures, bone',),
    'scoliosis': ('scoliosis',),
    'calcinosis': ('calcinosis',),
    'atherosclerosis': ('atherosclerosis',),
    'catheter': ('catheters, indwelling',),
    'medical_device': ('implanted medical device', 'medical device', 'tube, inserted', 'surgical instruments'),
}


class Report(NamedTuple):
    patient: str
    text: dict[str, str]
    labels: list[int]


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    root = folders.release_folder(folder, layout=LAYOUT)
    reports, pictures = folders.paths(root, '.xml'), folders.paths(root, '.png')
    if not reports:
        raise UserError(f'{root}: no .xml report is there; give {LAYOUT}')
    place = {file.stem: name for name, file in pictures.items()}
    views = _views(root)
    entries, told, dropped, filmless = [], [], [], 0
    seen: set[str] = set()
    for number, name in enumerate(sorted(reports, key=_by_number), 1):
        where = f'report {number} of {len(reports)}'  # its name is its id
        try:
            report, images = _report(folders.content(folders.inside(root, name)))
        except Unreadable as error:
            dropped.append(Drop('', where, str(error)))
            continue
        filmless += not images
        for image in images:
            try:
                if image in seen:
                    raise Unreadable('the image is named twice')
                file = folders.inside(root, place.get(image, f'{image}.png') if image else '')
            except Unreadable as error:
                dropped.append(Drop(image, where, str(error)))
                continue
            seen.add(image)
            entries.append(
                Entry(image, report.patient, report.patient, None, where, stamp=folders.stamp(file, reports[name]))
            )
            told.append(report)
    if not entries:
        raise UserError(f'{root}: no report has a .png film in the folder; give {LAYOUT}')

    def load(i: int) -> Example:
        image = entries[i].image
        data = folders.content(folders.inside(root, place[image]))
        view = views.get(_bare(image), '')
        info = coding.known(view=view, license=LICENSE, language='en')
        return Example(data, coding.role(view), told[i].text, info)

    notes = [f'{filmless} report{"s have" if filmless > 1 else " has"} no film'] if filmless else []
    notes += folders.not_named(pictures, {place[image] for image in seen}, 'the reports')
    notes += [] if views else [f'no views are known: put {PROJECTIONS} of the Kaggle copy into DIR to have them']
    return Source(
        name='openi', version='1', namespace='openi', labels=tuple(FINDINGS), license=LICENSE, entries=entries,
        label=lambda i: told[i].labels, load=load, dropped=dropped, notes=notes, size=size,
    )  # fmt: skip


def _report(data: bytes) -> tuple[Report, list[str]]:
    """A report and the ids of its films. Raises Unreadable."""
    root = parse(data)
    uid = root.find('uId')
    patient = '' if uid is None else uid.get('id', '').strip()
    if not patient:
        raise Unreadable('the report has no uId')
    text: dict[str, str] = {}
    for part in root.iter('AbstractText'):
        name, words = part.get('Label', '').strip().lower(), ' '.join((part.text or '').split())
        if words:
            name = name if name in SECTIONS else 'report'
            text[name] = f'{text[name]} {words}' if name in text else words
    text = {name: language.unify_placeholders(words) for name, words in text.items()}
    terms = [(term.text or '').strip().lower() for term in root.findall('.//MeSH/major')]
    images = [image.get('id', '').strip() for image in root.iter('parentImage')]
    return Report(patient, text, _labels(terms)), images


def _labels(terms: list[str]) -> list[int]:
    if not any(terms) or 'no indexing' in terms:
        return [BLANK] * len(FINDINGS)
    said = {'/'.join(term.split('/')[:parts]) for term in terms for parts in (1, 2)}
    return [int(not said.isdisjoint(headings)) for headings in FINDINGS.values()]


def parse(data: bytes) -> Element:
    """The root of an XML file that declares no document type; Unreadable else. Entities other than &amp; and its like
    need such a declaration, so none can grow or read files."""

    def refuse(*_: object) -> None:
        raise Unreadable('XML with a document type, which could grow without bound')

    tree, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = tree.start
    parser.EndElementHandler = tree.end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(data, True)
        return tree.close()
    except (expat.ExpatError, ValueError) as error:
        raise Unreadable(f'damaged XML: {error}') from None


def _views(root: pathlib.Path) -> dict[str, str]:
    """Bare image name -> 'Frontal' or 'Lateral', from the Kaggle copy's table; {} without it."""
    path = next(iter(folders.paths(root, PROJECTIONS).values()), None)
    if path is None:
        return {}
    lines = tables.read_table(path, ['filename', 'projection']).lines
    return {_bare(line.cells['filename'].split('.')[0]): line.cells['projection'] for line in lines}


def _bare(image: str) -> str:
    """'CXR1_1_IM-0001-3001', '1_IM-0001-3001' -> '1_IM-0001-3001'; 'CXR1000_IM-0003-2001' -> '1000_IM-0003-2001'."""
    match = re.search(r'\d+_IM-.*$', image)
    return match[0] if match else image


def _by_number(name: str) -> tuple[int, str]:
    digits = re.findall(r'\d+', name)
    return int(digits[-1]) if digits else -1, name
