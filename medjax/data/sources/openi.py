"""Open-I, the chest radiographs of Indiana University: 7,470 PNG films, 3,955 reports with sections and MeSH terms.

    DIR/…/*.xml    NLMCXR_reports.tgz: ecgen-radiology/1.xml …: uId, AbstractText by Label, MeSH/major, parentImage
    DIR/…/*.png    NLMCXR_png.tgz: CXR1_1_IM-0001-3001.png …: named after the id of the parentImage
    DIR/…/indiana_projections.csv    optional, from the Kaggle copy: uid, filename, projection (Frontal, Lateral)

Splits: none is official; they are drawn. (A split of R2Gen, 2,069 / 296 / 590 reports, is in use; it is not read here.)
Labels: a finding is 1 if one of its headings is among the MeSH/major terms of the report, else 0. A heading is the part
of a term before the first slash. All labels are blank if the report says 'No Indexing' (95 reports) or has no term. In
all 1,391 reports with 'normal', it is the only term. People gave the terms from the text, for all films of a report
alike. Automatic MeSH terms are not used.
Patients: a report is one examination, and its number is used as the patient. Nobody is named, and whether a person came
twice is not known.
Traps:
- 104 reports have no film. Some sections are empty (530 findings, 34 impressions).
- 'XXXX' stands for words that the de-identification removed, ordinary ones too. It is stored as '___', as in all data
  sets.
- The films do not say their view. indiana_projections.csv does.
- XML that declares a document type is refused, so that no entity can grow without bound.

Checked: all 3,955 reports, in the copy of mlmed/torchxrayvision: ids, sections, terms, licence, the counts above. The
columns of the Kaggle table, in the loaders of several public repositories.
Recalled, not checked: who gave the terms; that the PNG files are named after the ids; R2Gen's counts.
Licence: CC BY-NC-ND 4.0.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Mapping
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
FINDINGS = {  # label -> headings of MeSH/major in lower case; 'x/y' means heading x with y as the first qualifier
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
    """One report and its films, from an XML file."""

    patient: str
    text: dict[str, str]  # section -> text
    labels: list[int]


class Film(NamedTuple):
    """A film that a report names and whose file is there."""

    entry: Entry
    report: Report
    file: str


@dataclasses.dataclass(frozen=True)
class Release:
    """The usable films, in the order of the entries."""

    root: pathlib.Path
    films: list[Film]
    views: dict[str, str]  # short id of a film -> 'Frontal' or 'Lateral'

    def label(self, i: int) -> list[int]:
        """The code of each label of film i."""
        return self.films[i].report.labels

    def load(self, i: int) -> Example:
        """Reads film i. Raises Unreadable."""
        film = self.films[i]
        data = folders.read_bytes(folders.inside(self.root, film.file))
        view = self.views.get(_short_id(film.entry.image), '')
        attributes = coding.filled(view=view, license=LICENSE, language='en')
        return Example(data, coding.role(view), film.report.text, attributes)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None) -> Source:
    """The source of the release in `folder`. UserError if no report is there, or no film of any report."""
    root = folders.release_folder(folder, layout=LAYOUT)
    reports, pictures = folders.paths(root, '.xml'), folders.paths(root, '.png')
    if not reports:
        raise UserError(f'{root}: no .xml report is there; give {LAYOUT}')
    views = _views(root)
    films, dropped, without_film = _films(root, reports, pictures)
    if not films:
        raise UserError(f'{root}: no report has a .png film in the folder; give {LAYOUT}')
    notes = [f'{without_film} report{"s have" if without_film > 1 else " has"} no film'] if without_film else []
    notes += folders.unlisted_notes(pictures, {film.file for film in films}, 'the reports')
    notes += [] if views else [f'no views are known: put {PROJECTIONS} of the Kaggle copy into DIR to have them']
    release = Release(root, films, views)
    return Source(
        name='openi', version='1', namespace='openi', labels=tuple(FINDINGS), license=LICENSE, size=size,
        entries=[film.entry for film in films], label=release.label, load=release.load, dropped=dropped, notes=notes,
    )  # fmt: skip


def _films(
    root: pathlib.Path, reports: Mapping[str, pathlib.Path], pictures: Mapping[str, pathlib.Path]
) -> tuple[list[Film], list[Drop], int]:
    """The films of all reports, drops for what cannot be used, and the number of reports without a film.

    reports, pictures: path in the folder -> full path.
    """
    files = {file.stem: name for name, file in pictures.items()}
    films: dict[str, Film] = {}
    dropped: list[Drop] = []
    without_film = 0
    for number, name in enumerate(sorted(reports, key=_number), 1):
        where = f'report {number} of {len(reports)}'  # the file name is the patient's id, so it is not shown
        try:
            report, images = _report(folders.read_bytes(folders.inside(root, name)))
        except Unreadable as error:
            dropped.append(Drop('', where, str(error)))
            continue
        without_film += not images
        for image in images:
            try:
                if image in films:
                    raise Unreadable('the image is named twice')
                file = folders.inside(root, files.get(image, f'{image}.png') if image else '')
            except Unreadable as error:
                dropped.append(Drop(image, where, str(error)))
                continue
            stamp = folders.stamp(file, reports[name])
            entry = Entry(image, report.patient, report.patient, None, where, stamp=stamp)
            films[image] = Film(entry, report, files[image])
    return list(films.values()), dropped, without_film


def _report(data: bytes) -> tuple[Report, list[str]]:
    """The report in an XML file, and the ids of its films. Raises Unreadable."""
    root = parse(data)
    uid = root.find('uId')
    patient = '' if uid is None else uid.get('id', '').strip()
    if not patient:
        raise Unreadable('the report has no uId')
    sections: dict[str, str] = {}
    for element in root.iter('AbstractText'):
        name, text = element.get('Label', '').strip().lower(), ' '.join((element.text or '').split())
        if text:
            name = name if name in SECTIONS else 'report'
            sections[name] = f'{sections[name]} {text}' if name in sections else text
    sections = {name: language.unify_placeholders(text) for name, text in sections.items()}
    terms = [(term.text or '').strip().lower() for term in root.findall('.//MeSH/major')]
    images = [image.get('id', '').strip() for image in root.iter('parentImage')]
    return Report(patient, sections, _labels(terms)), images


def _labels(terms: list[str]) -> list[int]:
    """The label codes of a report with these MeSH terms, such as 'thickening/pleura/right'."""
    if not any(terms) or 'no indexing' in terms:
        return [BLANK] * len(FINDINGS)
    headings = {'/'.join(term.split('/')[:length]) for term in terms for length in (1, 2)}
    return [int(not headings.isdisjoint(wanted)) for wanted in FINDINGS.values()]


def parse(data: bytes) -> Element:
    """The root of an XML file. Raises Unreadable if it is damaged or declares a document type.

    Entities other than &amp; and the like need such a declaration. So no entity can grow or read a file.
    """

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
    """Short id of a film -> 'Frontal' or 'Lateral', from the table of the Kaggle copy; {} without the table."""
    path = next(iter(folders.paths(root, PROJECTIONS).values()), None)
    if path is None:
        return {}
    lines = tables.read_table(path, ['filename', 'projection']).lines
    return {_short_id(line.cells['filename'].split('.')[0]): line.cells['projection'] for line in lines}


def _short_id(image: str) -> str:
    """The end of a film's id that all copies share: 'CXR1_1_IM-0001-3001' or '1_IM-0001-3001' -> '1_IM-0001-3001'."""
    match = re.search(r'\d+_IM-.*$', image)
    return match[0] if match else image


def _number(name: str) -> tuple[int, str]:
    """The key that sorts reports by number: 2.xml before 10.xml."""
    digits = re.findall(r'\d+', name)
    return int(digits[-1]) if digits else -1, name
