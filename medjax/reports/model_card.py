"""The model card: README.md of a folder that `medjax convert` writes, as Hugging Face's hub shows it.

It is written from the export and from the run around it, RUN/exports/<step>: RUN/config.json, RUN/data, RUN/probes and
the facts of the data sets. An export that was moved away from its run has a card that says what is not known. A card
holds no id of a patient, no name of a file and no path of the machine.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medjax import run_config
from medjax.data import records
from medjax.errors import UserError
from medjax.models.towers.resnet import ResnetTower
from medjax.models.towers.text import TextTower
from medjax.models.towers.vit import VitTower
from medjax.probes import best, provenance, tables
from medjax.probes.encode import pair_of
from medjax.probes.tables import plain
from medjax.reports import base, data_facts, result_sections, run_files, run_page, usage
from medjax.reports.run_files import Run
from medjax.weights import layouts_out
from medjax.weights.base import ExportWeights

FACTS = ('version', 'licence', 'records', 'patients', 'splits', 'images')  # of a data set, see data_facts.facts
MARK = 'Written by `medjax convert`'  # the last lines of a card begin with it
UNKNOWN = 'Not known: the export was converted without the folder of its run.'
LIBRARIES = dict(huggingface='transformers', timm='timm', stablehlo='jax', meta='pytorch')


class Trained(NamedTuple):
    """The run of an export and the data sets of its training that could be opened."""

    run: Run
    step: int
    names: Mapping[str, str]  # source -> name of its data set, as the run noted it
    datasets: Sequence[records.DataSet]
    missing: Sequence[str]  # names of the data sets that are no longer there, or have changed


def card(weights: ExportWeights, layout: str, notes: Sequence[str], folder: Path) -> str:
    """README.md of `folder`, where the weights were written in a layout; `notes` are those of the writer."""
    meta, trained = weights.meta, of_run(weights)
    step = meta.get('step')
    if trained is not None:
        name = f'{trained.run.name}, step {step:,}'
    else:
        name = str(meta.get('name') or (f'An encoder of step {step:,}' if step is not None else 'An encoder'))
    licence = given_licence(weights)
    return base.markdown(
        'model_card.md',
        front=front_matter(weights, layout, licence),
        name=plain(name),
        summary=summary(weights),
        parts=parts(weights),
        input=sees(meta),
        load=usage.blocks(weights, layout, folder),
        notes=[plain(without_place(note, weights.path)) for note in (*weights.notes, *notes)],
        datasets=[] if trained is None else [data_set(data) for data in trained.datasets],
        data_sentences=data_sentences(weights, trained),
        recipe=[] if trained is None else recipe(weights, trained),
        unknown=origin(meta) or UNKNOWN,
        results=[] if trained is None else result_tables(trained),
        no_results='No probe has been run on this step.' if trained else origin(meta) or UNKNOWN,
        overlap=overlap(trained),
        limits=limits(weights, trained),
        licences=licences(weights, trained, licence),
        has_run=trained is not None,
        mark=MARK,
    )


def of_run(weights: ExportWeights) -> Trained | None:
    """The run that an export lies in; None for an export that was moved, and for public weights."""
    path, step = weights.path.resolve(), weights.meta.get('step')
    folder = path.parent.parent
    if step is None or path.parent.name != 'exports' or path.name != str(step) or not (folder / 'config.json').exists():
        return None
    run = run_files.read_run(folder)
    for sentence in run_config.damaged(run_files.read_json(folder / 'config.json')).values():
        raise UserError(f'{folder / "config.json"} is damaged: {sentence}')
    towers = run.config.get('towers', {})
    if any(towers.get(name) != section for name, section in weights.meta['towers'].items()):
        return None  # an export of another run was put here
    noted = run_files.read_json(folder / 'data' / 'sources.json')
    noted = {source: identity for source, identity in noted.items() if isinstance(identity, Mapping)}
    names = {source: noted.get(source, {}).get('name', source) for source in run.config.get('data_paths', {})}
    datasets, missing = [], []
    for source, place in run.config.get('data_paths', {}).items():
        try:
            data = records.open(place)
        except UserError:
            missing.append(names[source])
            continue
        same = noted.get(source, {}).get('fingerprint') in (None, data.fingerprint)
        datasets.append(data) if same else missing.append(names[source])
    return Trained(run, int(step), names, datasets, missing)


def origin(meta: Mapping[str, Any]) -> str:
    """A sentence about weights that somebody else has trained; '' for those of a run."""
    if meta.get('step') is not None:
        return ''
    what = f' ({plain(meta["origin"])})' if meta.get('origin') else ''
    return (
        f'Not known here: the weights are those of {plain(meta.get("name"))}{what}; see what was published with them.'
    )


def without_place(note: str, path: Path) -> str:
    """A note without the folders in front of the weights: what lies in `path` keeps its name alone."""
    inside = re.sub(rf'(?<![\w./-]){re.escape(str(path))}/', '', note)
    return re.sub(rf'(?<![\w./-]){re.escape(str(path))}(?=[:,;\s]|$)', lambda _: path.resolve().name, inside)


# The head of the page


def front_matter(weights: ExportWeights, layout: str, licence: str | None) -> str:
    """The YAML that Hugging Face's hub reads."""
    kinds = {layouts_out.kinds(m.tower) for m in layouts_out.modules(weights, 'towers').values()} - {''}
    images, texts = kinds & {'vit', 'resnet'}, 'text' in kinds
    pair = pair_of(weights.meta) is not None
    task = 'zero-shot-image-classification' if pair else 'image-feature-extraction' if images else 'feature-extraction'
    tags = ['medjax', 'medical-imaging', *sorted(kinds - {'text'}), *(['text'] if texts else [])]
    values: dict[str, Any] = dict(license=licence) if licence else {}
    values |= dict(library_name=LIBRARIES[layout], pipeline_tag=task, tags=tags)
    return '\n'.join(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in values.items())  # JSON is YAML


def given_licence(weights: ExportWeights) -> str | None:
    """The licence that the README.md of a public folder states; None: nothing is stated."""
    readme = weights.path / 'README.md'
    if weights.meta.get('step') is not None or not readme.is_file():
        return None
    head = re.match(r'---\n(.*?)\n---', readme.read_text(encoding='utf-8', errors='replace'), re.DOTALL)
    found = re.search(r'^license: *["\']?([\w.+-]+)["\']?\s*$', head[1], re.MULTILINE) if head else None
    return found[1] if found else None


def summary(weights: ExportWeights) -> str:
    meta = weights.meta
    what = 'An image and a text encoder with one space for both' if pair_of(meta) else 'An encoder'
    if meta.get('step') is None:
        return f'{what}, converted from {plain(meta.get("origin") or meta.get("name"))}.'
    return f'{what}, pretrained on medical images with medjax.'


# What it is


def parts(weights: ExportWeights) -> list[dict[str, Any]]:
    """A row of the table for each tower and head: name, what it is, number of parameters."""
    rows = []
    for kind in ('towers', 'heads'):
        for name, module in layouts_out.modules(weights, kind).items():
            count = sum(int(np.prod(weights.stored.shape(f'{kind}/{name}/{path}'))) for path in module.params)
            what = described(module.tower) or f'{kind[:-1]} `{module.section.get(kind[:-1], "of its own kind")}`'
            rows.append(dict(name=f'{kind[:-1]} {plain(name)}', what=what, parameters=count))
    return rows


def described(tower: Any) -> str:
    """The kind and sizes of a tower; '' for a head and for other towers."""
    if isinstance(tower, VitTower):
        net = tower.module
        registers = f', {net.registers} registers' if net.registers else ''
        return f'ViT: {net.depth} blocks of width {net.width}, {net.heads} heads, patches of {net.patch} px{registers}'
    if isinstance(tower, TextTower):
        net = tower.module
        return (
            f'text tower: {net.depth} blocks of width {net.width}, {net.heads} heads, '
            f'{net.family.vocabulary:,} tokens, texts of at most {net.family.context} tokens'
        )
    if isinstance(tower, ResnetTower):
        return f'ResNet: stages of {", ".join(map(str, tower.module.depths))} blocks, {tower.width:,} features'
    return ''


def sees(meta: Mapping[str, Any]) -> list[str]:
    """Sentences about what the encoder sees of an image."""
    size, image = int(meta.get('size') or 0), meta['image']
    if not size:
        return []
    fit, zoom, channels = image.get('fit', 'crop'), float(image.get('zoom', 1)), image['channels']
    seen = dict(
        crop='It sees the centre square of an image, {}. What lies beside it is not seen.',
        pad='It sees the whole image with black beside it, {}.',
        stretch='It sees the whole image, resized to a square, {}.',
    )[fit]
    at = f'at {size} x {size} px' + (f', cut from the centre of {round(size * zoom)} px' if zoom != 1 else '')
    colour = 'one grey channel' if channels == 1 else f'{channels} channels; grey images are repeated'
    return [
        seen.format(at),
        f'{colour.capitalize()}. Values from 0 to 1, minus {levels(image["mean"])}, divided by {levels(image["std"])}.',
    ]


def levels(value: Any) -> str:
    return ', '.join(f'{x:.4g}' for x in np.atleast_1d(value))


# Training


def data_set(data: records.DataSet) -> dict[str, Any]:
    """The name and facts of a data set; licences of single records are counted where they are known."""
    facts = [(key, plain(value)) for key, value in data_facts.facts(data) if key in FACTS]
    train = data.split('train') if 'train' in data.splits else None
    if train is not None and 'license' in train.attribute_names:
        counts = collections.Counter(str(word) or 'not stated' for word in train.column('license'))
        listed = ', '.join(f'{plain(word)} {n:,}' for word, n in counts.most_common())
        facts.append(('licences of the training records', listed))
    return dict(name=plain(data.name), facts=facts)


def data_sentences(weights: ExportWeights, trained: Trained | None) -> list[str]:
    if trained is None:
        return [origin(weights.meta) or UNKNOWN]
    found = [f'The data set {plain(name)} is no longer where it was at training, so its numbers are missing here.'
             for name in trained.missing]  # fmt: skip
    if any(data.invented for data in trained.datasets):
        found.append('The images are synthetic: they show no patient.')
    return found if trained.datasets or found else ['Not known: the run does not name its data.']


def recipe(weights: ExportWeights, trained: Trained) -> list[tuple[str, str]]:
    """(name, value) of the main settings of the run."""
    config, meta = trained.run.config, weights.meta
    total, batch = config.get('total_steps'), config.get('batch_size')
    rows = [('step', f'{trained.step:,}' + (f' of {total:,}' if total else ''))]
    if batch:
        rows.append(('batch', f'{batch:,}; {run_page.images_seen(config, trained.step):,} examples until this step'))
    views = [f'{v.get("count", 1)} x {name} {v["size"]} px' for name, v in run_page.section(config, 'views')
             if 'size' in v]  # fmt: skip
    texts = [f'{name} of {v["length"]} tokens' for name, v in run_page.section(config, 'views') if 'length' in v]
    rows += [('views', ', '.join(views + texts))] if views + texts else []
    rows.append(('terms', ', '.join(run_page.term_title(term) for term in config.get('terms', []))))
    optim = config.get('optim', {})
    rows += [(name.replace('_', ' '), setting(optim[key]))
             for key, name in (('lr', 'learning rate'), ('weight_decay', 'weight decay')) if key in optim]  # fmt: skip
    rows.append(('weights', f'of the {meta.get("network")}'))
    rows += [('chosen', best.sentence(trained.run.best))] if trained.run.best.get('step') == trained.step else []
    is_branch = (config.get('life') or {}).get('parent') is not None
    rows.append(('started from', ', '.join(provenance.starts(config)) or ('' if is_branch else 'random weights')))
    rows += [(name, '; '.join(values)) for name, values in run_page.history(config) if values]
    if meta.get('config_fingerprint'):
        rows.append(('fingerprint of the configuration', meta['config_fingerprint']))
    return [(key, plain(value)) for key, value in rows if value]


def setting(value: Any) -> str:
    """'0.001', or '0.04 to 0.2' for a schedule."""
    if isinstance(value, Mapping) and {'start', 'end'} <= set(value):
        return f'{value["start"]:g} to {value["end"]:g} ({value.get("rule", "schedule")})'
    return f'{value:g}' if isinstance(value, int | float) else str(value)


# Results


def result_tables(trained: Trained) -> list[str]:
    """A table for each data set: means over labels with intervals, of this step and of what it is compared with.

    That are the baselines, other encoders beside the run, and step 0, the weights that the run began with.
    """
    by_data: dict[str, list[Mapping[str, Any]]] = {}
    for result in trained.run.results:
        compared = result.encoder in (0, trained.step) or isinstance(result.encoder, str)
        if compared and is_complete(result.content):
            content = result_sections.identified(result) | dict(data=plain(result.data))
            by_data.setdefault(result.data, []).append(content)
    return [
        tables.markdown(table)
        for found in by_data.values()
        if any(one['encoder']['step'] == trained.step for one in found)
        for table in tables.of_results(found, list(dict.fromkeys(one['probe'] for one in found)))
    ]


def is_complete(content: Mapping[str, Any]) -> bool:
    """Whether a result has what a table needs; those of a user's own probe may lack it."""
    rows = content['results'].values()
    counted = 'test' in content.get('records', {}) and {'patients', 'level'} <= set(content.get('bootstrap', {}))
    return (
        bool(rows) and counted and all(m and {'value', 'low', 'high'} <= set(m) for m in (r.get('mean') for r in rows))
    )


def of_this_step(trained: Trained) -> list[run_files.ResultFile]:
    return [result for result in trained.run.results if result.encoder == trained.step]


def overlap(trained: Trained | None) -> list[str]:
    """A sentence for each data set of the results: the share of its test records that were in training."""
    if trained is None:
        return ['Not known.']
    found = [plain(sentence) for sentence in result_sections.overlap(trained.run, trained.step)]
    found = found or ['Not known: no probe has been run on this step.']
    begun = provenance.starts(trained.run.config)
    if begun and not any('began with other weights' in sentence for sentence in found):
        names = ', '.join(map(plain, begun))
        found.append(
            f'Training started from other weights ({names}). Whether these have seen test data is not known here.'
        )
    return found


# Limits and licences


def limits(weights: ExportWeights, trained: Trained | None) -> list[str]:
    """What the encoder was not tested for, and what it cannot see."""
    tested = [] if trained is None else sorted({plain(result.data) for result in of_this_step(trained)})
    found = [
        f'It was tested on the test split of {", ".join(tested)}, and on nothing else. Other hospitals, devices, body '
        'parts, ages and findings may give other results.'
        if tested
        else 'No test of it is known here.'
    ]
    skipped = {} if trained is None else {
        label: reason for result in of_this_step(trained)
        for label, reason in (result.content.get('skipped_labels') or {}).items()
    }  # fmt: skip
    if skipped:
        listed = ', '.join(f'{plain(label)} ({plain(reason)})' for label, reason in skipped.items())
        found.append(f'Not tested: {listed}.')
    size = int(weights.meta.get('size') or 0)
    if size:
        found.append(f'What cannot be seen at {size} x {size} px, it cannot find.')
        if weights.meta['image'].get('fit', 'crop') == 'crop':
            found.append('Findings at the edge of a long image lie outside of the centre square.')
    found.append('Differences between groups of patients, such as sexes or ages, were not tested.')
    found.append('Whether training images or texts can be found out from the weights was not tested.')
    return found


def licences(weights: ExportWeights, trained: Trained | None, licence: str | None) -> list[str]:
    found = []
    if licence:
        found.append(f'Of the weights: {licence}, as their publisher states.')
    elif weights.meta.get('step') is None:
        found.append('Of the weights: that of the original, which does not lie beside these files.')
    else:
        found.append('Of the weights: not stated. Whoever trained them decides, within the rules of the training data.')
    if trained is None:
        return found if weights.meta.get('step') is None else [*found, 'Of the training data: not known here.']
    found += [f'Of the training data {plain(data.name)}: {plain(data.license or "not stated by the source")}.'
              for data in trained.datasets]  # fmt: skip
    found += [f'Of the training data {plain(name)}: not known here.' for name in trained.missing]
    if begun := provenance.starts(trained.run.config):
        found.append(
            f'Of the weights that training started from ({", ".join(map(plain, begun))}): see their publisher.'
        )
    return found
