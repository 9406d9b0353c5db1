"""Configs: from a recipe file to a checked, frozen dict, its JSON and its fingerprint.

    configs/demo.py  --get_config-->  ConfigDict  --override-->  --resolve (from the data)-->  Config  --check

A config file is Python with `get_config()`, or `get_config(data)` where the recipe adapts to the data set
(`data` is a `medjax.data.records.DataSet`, or None where no data is at hand), or `get_config(arg)` for `file.py:arg`.
It returns a dict or an `ml_collections.ConfigDict` with these keys:

    total_steps, batch_size, seed, rows_per_group, micro_batches    whole numbers; batch_size is the sum of all rows
    dtype                                'float32' or 'bfloat16', of activations
    image        channels, mean, std     in units of [0,1]; None: from the data
    data         part -> rows, canvas, sources {name: weight}    rows=None: the rest of the batch;
                                                                 canvas=None: the longest stored side
    data_paths   source -> folder        filled in from --data
    tokenizer    path, pad               path=None: the file that `medjax tokenizer` wrote beside the data;
                                         pad=None: the file's own padding token
    views        name -> dict(view='crop', part=, count=, size=, ...)     see medjax.views.make
                 name -> dict(view='text', part=, count=, length=, ...)   see medjax.data.text.views
    masks        'view~mask' -> dict(mask='blocks', ...)                  see medjax.views.masks
    towers       name -> dict(tower='vit', variant='S/14', ...)           see medjax.models
                 name -> 'dinov2-base/'                                   the tower that published weights describe; it
                                                                          starts from these weights
                 name -> dict(tower='decoder', reads=['image'], ...)      a tower that reads the outputs of others
    heads        name -> dict(head='dino_head', ...)                      see medjax.models.heads
    teachers     name -> dict(of=['towers/image', ...], rule='ema', momentum=)   or 'frozen', 'refreshed'
    terms        list of dict(term='koleo', ...)                          see medjax.objectives.terms
    optim        lr, schedules, groups                                    see medjax.training.optimizer
    mesh         sizes of data, fsdp, tensor; one may be -1
    labels       names of the labels of the data; None: from the data
    columns      name -> 'number', or the list of its words: facts of the records, such as age and sex, that terms may
                 read beside the labels; None: from the data
    export       network, towers, heads, every, encoder (the tower that probes run; None: 'image', or the image tower of
                 the first contrastive term), fit (what readers of the export show it of an image: 'crop', the centre
                 square; 'pad', all of it with black beside), keep (None: all; n: the last n, the one of step 0 and the
                 best one, see `medjax probe --best`)
    checkpoint   every, keep          log   every
    init_from    None, dict(path=..., take=[...]) or a list of these: weights to start from, see medjax.train
    stages       list of dict(at=STEP, change={'optim.lr': 1e-5, ...}): what changes at some steps, see medjax.stages

Builders check the keys of their own sections. Every mistake is a `UserError` that names the key.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import runpy
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from medjax import plugins, recipes, run_config
from medjax.data.text import tokenizer, views as text_views
from medjax.errors import UserError, suggest
from medjax.objectives import from_data
from medjax.objectives.schedules import is_rule, with_ends
from medjax.overrides import override, place_tower, split_overrides
from medjax.parallel.groups import check_rows
from medjax.types import is_number, is_whole

__all__ = [
    'Config',
    'check',
    'difference',
    'fingerprint',
    'load',
    'load_json',
    'read',
    'resolve',
    'split_overrides',
    'to_json',
]

REQUIRED = ('total_steps', 'batch_size', 'views', 'towers', 'terms', 'optim')
# What a config file may leave out. A None in `image` or in a part is resolved from the data.
DEFAULTS: dict[str, Any] = dict(
    seed=0,
    rows_per_group=1,
    micro_batches=1,
    dtype='float32',
    data=dict(images=dict(sources=dict(main=1.0))),
    data_paths={},
    image=dict(channels=None, mean=None, std=None),
    tokenizer=dict(path=None, pad=None),
    masks={},
    heads={},
    teachers={},
    labels=None,
    columns={},
    export=dict(network='student', towers=['image'], heads=[], encoder=None, every=1_000, keep=None, fit='crop'),
    checkpoint=dict(every=1_000, keep=2),
    log=dict(every=10),
    mesh=dict(data=-1, fsdp=1, tensor=1),
    init_from=None,
    stages=[],
)
PART: dict[str, Any] = dict(rows=None, canvas=None, sources=dict(main=1.0))
LEAST_VARIANCE = 1e-12  # of pixels in units of [0,1]; rounding leaves up to 1e-16 of a constant data set
# Sections whose entries are dicts, with what one looks like.
SECTIONS = dict(
    views="dict(local=dict(view='crop', …))",
    masks="{'global~block': dict(mask='blocks', …)}",
    towers="dict(image=dict(tower='vit', …))",
    heads="dict(dino=dict(head='dino_head', …))",
    teachers="dict(teacher=dict(rule='ema', …))",
    terms="[dict(term='koleo', …)]",
)
FITS = ('crop', 'pad')  # how the encoder of an export makes an image square
CLOSED = ('image', 'tokenizer', 'export', 'checkpoint', 'log', 'mesh')  # sections with exactly the keys above
# Keys that do not change what a run computes: where and how often things are read, written and placed. `total_steps`
# changes it through the schedules that end with the run. `life` is what happened to the run, see `life.py`.
NOT_IN_FINGERPRINT = ('data_paths', 'mesh', 'log', 'checkpoint', 'micro_batches', 'total_steps', 'life')


class Config(dict):
    """A nested dict that refuses changes. Its lists are tuples."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError('a resolved config does not change')

    __setitem__ = __delitem__ = __ior__ = _refuse  # type: ignore[assignment]
    update = pop = popitem = clear = setdefault = _refuse  # type: ignore[assignment]


def load(
    spec: str, data: Sequence[str] = (), overrides: Sequence[str] = (), before: Mapping[str, Any] | None = None
) -> tuple[Config, dict[str, Any]]:
    """A recipe that is ready to train, and its open data sets by source.

    spec       'configs/demo.py', or the name of a shipped recipe, 'demo'; with an argument 'x.py:ARG'
    data       'PATH' for the only source of the config, or 'source=PATH', one for each
    overrides  'optim.lr=1e-3', 'terms.2.weight=.05', 'views.global.area=(.4, 1.)'
    before     the config.json of the run that goes on: public weights that it began with may be gone
    """
    opened = _opened(data)
    config = read(spec, overrides, opened[0][1] if opened else None, before)
    datasets = _by_source(opened, config)
    return check(resolve(config, datasets)), datasets


def _opened(data: Sequence[str]) -> list[tuple[str, Any]]:
    """The data sets of 'PATH' or 'source=PATH', each with its source, or with ''."""
    from medjax.data import records

    paths = [item.partition('=')[::2] if '=' in item else ('', item) for item in data]
    return [(source, records.open(path)) for source, path in paths]


def load_run(
    before: Mapping[str, Any], data: Sequence[str] = (), overrides: Sequence[str] = ()
) -> tuple[Config, dict[str, Any]]:
    """The config.json of a run with overrides, ready for a branch of it, and its open data sets.

    Without `data` they are those of the run. Other data bring their own labels and canvas. Mean and deviation of the
    images stay, because the weights were trained with them.
    """
    config = thawed({name: value for name, value in before.items() if name != 'life'})
    for name, default in DEFAULTS.items():  # the run may be older than a key
        if name not in config:
            config[name] = ConfigDict(copy.deepcopy(default)) if isinstance(default, dict) else default
        elif name in CLOSED:
            config[name] = ConfigDict({**copy.deepcopy(default), **config[name]})
    if data:
        config.labels = None
        for part in config.data.values():
            part.canvas = None
    if len(config.data) == 1:  # then an override of batch_size needs no second one
        next(iter(config.data.values())).rows = None
    _override(config, overrides)
    opened = _opened(data or [f'{source}={path}' for source, path in before['data_paths'].items()])
    datasets = _by_source(opened, config)
    return check(resolve(config, datasets)), datasets


def read(
    spec: str, overrides: Sequence[str] = (), data: Any = None, before: Mapping[str, Any] | None = None
) -> ConfigDict:
    """The config of a file, with its overrides and all defaults. Values that depend on the data are still None."""
    config = ConfigDict(_unshared(_call_get_config(spec, data)))
    for name in config:
        if name not in REQUIRED and name not in DEFAULTS:
            keys = (*REQUIRED, *DEFAULTS)
            raise UserError(f'{spec}: unknown key {name!r}{plugins.renamed(name, keys) or suggest(name, keys)}')
    for name in REQUIRED:
        if name not in config:
            raise UserError(f'{spec}: the key {name!r} is missing')
    for name, default in DEFAULTS.items():
        if name not in config:
            config[name] = ConfigDict(copy.deepcopy(default)) if isinstance(default, dict) else default
        elif name in CLOSED:
            config[name] = _fill(config[name], default, name)
    if not isinstance(config.data, ConfigDict):
        raise UserError(f'data={config.data!r}: must be a dict of parts, such as dict(images=dict(rows=None))')
    for part in config.data:
        config.data[part] = _fill(config.data[part], PART, f'data.{part}')
    if isinstance(config.towers, ConfigDict):
        for name, tower in config.towers.items():
            if isinstance(tower, str):
                place_tower(config, name, tower, f'towers.{name}', before)
    _override(config, overrides, before)
    return config


def _override(config: ConfigDict, overrides: Sequence[str], before: Mapping[str, Any] | None = None) -> None:
    for item in overrides:
        key, equals, text = item.partition('=')
        if not equals:
            raise UserError(f'--config.{key}: write it with its value, --config.{key}=VALUE')
        override(config, key, text, before)
    _check_sections(config)


def _check_sections(config: ConfigDict) -> None:
    """UserError where a section that names its entries holds something else than dicts, as towers=dict(image='vit')."""
    for name, example in SECTIONS.items():
        section, kind = config[name], 'list' if name == 'terms' else 'dict'
        if not isinstance(section, (list, tuple) if kind == 'list' else ConfigDict):
            raise UserError(f'{name}={section!r}: must be a {kind}, such as {example}')
        entries: Any = section.items() if isinstance(section, ConfigDict) else enumerate(section)
        for key, entry in entries:
            if not isinstance(entry, (ConfigDict, dict)):
                raise UserError(f'{name}.{key}={entry!r}: must be a dict, as in {name}={example}')
    for part, cfg in config.data.items():
        if not isinstance(cfg.sources, ConfigDict):
            raise UserError(f'data.{part}.sources={cfg.sources!r}: must be a dict of weights, such as dict(main=1.0)')
    if not isinstance(config.columns, ConfigDict):
        raise UserError(f"columns={config.columns!r}: must be a dict, such as dict(age='number', sex=['F', 'M'])")
    if not isinstance(config.optim, ConfigDict):
        raise UserError(f'optim={config.optim!r}: must be a dict, such as dict(lr=1e-3)')


def _fill(given: Any, default: dict[str, Any], where: str) -> ConfigDict:
    if not isinstance(given, ConfigDict):
        raise UserError(f'{where}: must be a dict with keys of {", ".join(default)}; got {given!r}')
    for name in given:
        if name not in default:
            raise UserError(f'{where}: unknown key {name!r}{plugins.renamed(name, default) or suggest(name, default)}')
    return ConfigDict({**copy.deepcopy(default), **given})


def _unshared(value: Any) -> Any:
    """A copy in which no dict or list stands twice, so that an override changes one place."""
    if isinstance(value, ConfigDict):
        return {name: _unshared(item) for name, item in value.items(preserve_field_references=True)}
    if isinstance(value, dict):
        return {name: _unshared(item) for name, item in value.items()}
    return type(value)(map(_unshared, value)) if type(value) in (list, tuple) else value


def _call_get_config(spec: str, data: Any) -> Any:
    name, _, argument = spec.partition(':')
    path = recipes.find(name)
    try:
        get_config = runpy.run_path(str(path), run_name='medjax_config').get('get_config')
        if get_config is None:
            raise UserError(f'{name}: a config file defines get_config() and this one does not')
        takes = inspect.signature(get_config).parameters
        given = {key: data if key == 'data' else argument for key in takes if key == 'data' or argument}
        needed = [key for key, p in takes.items() if key not in given and p.default is p.empty]
        if needed:
            raise UserError(f'{name}: needs an argument, {needed[0]!r}: write {name}:{needed[0].upper()}')
        if argument and set(given) <= {'data'}:
            raise UserError(f'{name}: its get_config takes no argument, so leave out {":" + argument!r}')
        return get_config(**given)
    except UserError:
        raise
    except Exception as error:  # the config file is the user's: point at its line instead of showing a traceback
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, 'lineno', None) or (lines[-1] if lines else '?')
        raise UserError(f'{name}, line {line}: {type(error).__name__}: {error}') from error


# Values that the data decide.


def _by_source(opened: list[tuple[str, Any]], config: ConfigDict) -> dict[str, Any]:
    """The data set of each source that the config names."""
    sources = sorted({source for part in config.data.values() for source in part.sources})
    if not opened:
        wanted = 'PATH' if len(sources) == 1 else ' --data '.join(f'{source}=PATH' for source in sources)
        raise UserError(f'no data set: give it with --data {wanted} (a folder made by `medjax build`)')
    if any(not source for source, _ in opened):
        if len(opened) > 1 or len(sources) > 1:
            forms = ' '.join(f'--data {source}=PATH' for source in sources)
            raise UserError(f'--data: this config reads {len(sources)} source(s), say which is which: {forms}')
        opened = [(sources[0], opened[0][1])]
    datasets = dict(opened)
    if len(datasets) < len(opened):
        raise UserError('--data: one path for each source, and a source was given twice')
    for source in datasets:
        if source not in sources:
            raise UserError(f'--data: the config has no source {source!r}{suggest(source, sources)}')
    missing = [source for source in sources if source not in datasets]
    if missing:
        raise UserError(f'--data: the source {missing[0]!r} has no path; add --data {missing[0]}=PATH')
    return datasets


def resolve(config: ConfigDict, datasets: Mapping[str, Any]) -> Config:
    """Fills in the values that are None from the data set.

    They are channels, mean and std of the image, canvas and rows of the parts, labels and columns, and what terms take
    from the train splits. It also reads the files that the config names: the tokenizer, the prompts of text views.

    The mean is that of a pixel of the mixture, sum_s w_s m_s, and the variance sum_s w_s (std_s^2 + m_s^2) - mean^2,
    with w_s the share of a source in the batch.
    """
    resolved: dict[str, Any] = _plain(config)
    _check_names(resolved)
    parts = resolved['data']
    open_parts = [name for name, part in parts.items() if part['rows'] is None]
    for name in open_parts[:1]:  # one part may leave its rows open: it takes the rest of the batch
        given = [part['rows'] for part in parts.values() if part['rows'] is not None]
        if all(is_whole(n) for n in [*given, resolved['batch_size']]):
            parts[name]['rows'] = resolved['batch_size'] - sum(given)
    if datasets:
        from medjax.data import records

        resolved['data_paths'] = {source: str(data.path) for source, data in datasets.items()}
        for part in parts.values():
            if part['canvas'] is None:
                part['canvas'] = max(int(datasets[source].size) for source in part['sources'])
        resolved['image'] = _resolve_image(resolved['image'], parts, datasets)
        labels = records.label_vocabulary(frozen(parts), datasets)
        if resolved['labels'] is not None and tuple(resolved['labels']) != labels:
            raise UserError(f'labels={resolved["labels"]!r}: the data have {list(labels)}; leave this key out')
        resolved['labels'] = labels
        for name, given in resolved['columns'].items():
            resolved['columns'][name] = records.column_words(name, given, frozen(parts), datasets)
        resolved['terms'] = from_data.terms(resolved, datasets)
    texts = text_views.from_config(resolved['views'])
    for name, text in texts.items():
        if text.prompts:
            resolved['views'][name]['prompts'] = text.prompts
    if texts:
        resolved['tokenizer'] = _resolve_tokenizer(resolved['tokenizer'], datasets)
    return frozen(resolved)


def _resolve_tokenizer(given: dict[str, Any], datasets: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's path, the fingerprint of its file, and the tokens that towers need."""
    path = given['path']
    if path is None and datasets:
        beside = {source: Path(data.path) / tokenizer.NAME for source, data in datasets.items()}
        there = {source: file for source, file in beside.items() if file.is_file()}
        if len({file.read_bytes() for file in there.values()}) != 1:
            which = f'the sources {" and ".join(there)} have different ones' if there else 'no data set has one'
            raise UserError(
                f'tokenizer.path: text views need a tokenizer, and {which}; give --config.tokenizer.path=FILE, a '
                'tokenizer.json or a vocab.txt, or make one with `medjax tokenizer DATA`'
            )
        path = str(next(iter(there.values())))
    if path is None:  # without data a config goes as far as it can
        return given
    loaded = tokenizer.load(path, given['pad'])
    return dict(path=str(path), pad=given['pad'], fingerprint=loaded.fingerprint, tokens=loaded.tokens._asdict())


def _resolve_image(image: dict[str, Any], parts: Mapping[str, Any], datasets: Mapping[str, Any]) -> dict[str, Any]:
    channels = sorted({int(data.channels) for data in datasets.values()})
    if image['channels'] is None and len(channels) > 1:
        raise UserError(f'image.channels: the data sets have {channels} channels; say which, --config.image.channels=1')
    share: dict[str, float] = {}
    for part in parts.values():
        total = sum(part['sources'].values())
        for source, weight in part['sources'].items():
            share[source] = share.get(source, 0.0) + (part['rows'] or 1) * weight / total
    everything = sum(share.values())
    weighted = [(w / everything, float(datasets[s].mean), float(datasets[s].std)) for s, w in share.items()]
    mean = sum(w * m for w, m, _ in weighted)
    variance = sum(w * (std**2 + m**2) for w, m, std in weighted) - mean**2
    if image['std'] is None and variance < LEAST_VARIANCE:
        raise UserError(
            f'image.std: all pixels of the data are equal (mean {mean:.4g}), so there is nothing to learn and no '
            'deviation to divide by; look at the data with `medjax show`'
        )
    of_data = dict(channels=channels[0], mean=mean, std=math.sqrt(variance))
    return {name: of_data[name] if value is None else value for name, value in image.items()}


# Checks that no single builder can make.


def check(config: Config) -> Config:
    """The config itself, or a UserError that names the key."""
    _check_numbers(config)
    rows = {name: part['rows'] for name, part in config['data'].items()}
    if sum(rows.values()) != config['batch_size']:
        summands = ' + '.join(f'data.{name}.rows {n}' for name, n in rows.items())
        raise UserError(
            f'batch_size {config["batch_size"]} must be the sum of the rows: {summands} = {sum(rows.values())}'
        )
    fixed = [size for axis, size in config['mesh'].items() if axis != 'tensor' and is_whole(size) and size > 0]
    check_rows(rows, config['rows_per_group'], config['micro_batches'], math.prod(fixed))  # -1: seen with the devices
    for name, view in config['views'].items():
        _check_choice(view.get('part'), config['data'], f'views.{name}.part')
    text_views.from_config(config['views'])
    _check_names(config)
    _check_export(config)
    return config


def _check_numbers(config: Config) -> None:
    counts = {name: config[name] for name in ('total_steps', 'batch_size', 'rows_per_group', 'micro_batches')}
    counts |= {f'{name}.every': config[name]['every'] for name in ('export', 'checkpoint', 'log')}
    counts |= {'checkpoint.keep': config['checkpoint']['keep']}
    if config['export'].get('keep') is not None:  # runs may be older than this key
        counts |= {'export.keep': config['export']['keep']}
    counts |= {f'data.{name}.rows': part['rows'] for name, part in config['data'].items()}
    for key, value in counts.items():
        if not is_whole(value) or value < 1:
            raise UserError(f'{key}={value!r}: must be a whole number of at least 1')
    if config['checkpoint']['keep'] < 2:
        raise UserError('checkpoint.keep=1: must be at least 2; if the newest is damaged, the one before it is taken')
    if not is_whole(config['seed']) or not 0 <= config['seed'] < 2**32:
        raise UserError(f'seed={config["seed"]!r}: must be a whole number from 0 to 2**32 - 1')
    _check_choice(config['dtype'], ('float32', 'bfloat16'), 'dtype')
    _check_choice(config['image']['channels'], (1, 3, None), 'image.channels')
    _check_levels('image.mean', config['image']['mean'], config['image']['channels'], -math.inf)
    _check_levels('image.std', config['image']['std'], config['image']['channels'], 0)
    starts = config['init_from']
    for start in starts if isinstance(starts, tuple) else () if starts is None else (starts,):
        if not (isinstance(start, Mapping) and start.get('path') and isinstance(start['path'], str)):
            form = """--config.init_from='dict(path="x.safetensors")'"""
            raise UserError(f'init_from={start!r}: must be None or a dict with the path of weights, {form}, or a list')
        if start.get('take') is not None:
            plugins.text_list(start['take'], 'init_from.take', 'towers/image')
    for name, part in config['data'].items():
        for source, weight in part['sources'].items():
            if not is_number(weight) or not 0 < weight < math.inf:
                raise UserError(f'data.{name}.sources.{source}={weight!r}: the weight must be a number above 0')


def _check_levels(key: str, value: Any, channels: int | None, above: float) -> None:
    """A number for all channels, or a list with one for each; None if the data decide."""
    numbers = value if isinstance(value, tuple) else () if value is None else (value,)
    if not all(is_number(x) and above < x < math.inf for x in numbers):
        what = 'a number' if above < 0 else f'a number above {above}'
        raise UserError(f'{key}={value!r}: must be {what}, or a list with one for each channel')
    if isinstance(value, tuple) and len(value) != (channels or len(value) or 1):
        raise UserError(f'{key}={value!r}: a list must have one number for each channel, and image.channels={channels}')


def _check_names(config: Mapping[str, Any]) -> None:
    """Labels are None or a list of names; columns are 'number', a list of words, or None."""
    labels = config['labels']
    if labels is not None and not _are_names(labels, 0):
        raise UserError(f'labels={labels!r}: must be None, or the list of names that the data have')
    for name, words in config['columns'].items():
        if name in (labels or ()):
            raise UserError(f'columns.{name}: a label of the data has this name, and a term could not tell them apart')
        if words is not None and words != 'number' and not _are_names(words, 2):
            raise UserError(
                f"columns.{name}={words!r}: must be 'number', a list of at least two different words, or None to find "
                'it in the data'
            )


def _are_names(names: Any, least: int) -> bool:
    """Whether `names` is a list of different texts, at least so many."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        return False
    return len(set(names)) == len(names) >= least


def _check_export(config: Config) -> None:
    for kind in ('towers', 'heads'):
        plugins.text_list(config['export'][kind], f'export.{kind}', 'image' if kind == 'towers' else 'dino')
    for name, teacher in config['teachers'].items():
        if 'of' in teacher:
            plugins.text_list(teacher['of'], f'teachers.{name}.of', 'towers/image')
    network, teachers = config['export']['network'], config['teachers']
    _check_choice(network, ('student', *teachers), 'export.network')
    _check_choice(config['export']['fit'], FITS, 'export.fit')
    if config['export']['encoder'] is not None:
        _check_choice(config['export']['encoder'], config['export']['towers'], 'export.encoder, of export.towers')
    for kind in ('towers', 'heads'):
        for name in config['export'][kind]:
            _check_choice(name, config[kind], f'export.{kind}')
            if network != 'student':
                _check_choice(
                    f'{kind}/{name}', teachers[network].get('of', ()), f'export.{kind}, of the teacher {network!r}'
                )


def _check_choice(name: Any, choices: Iterable[Any], where: str) -> None:
    choices = list(choices)
    if name not in choices:
        raise UserError(f'{where}: there is no {name!r}{suggest(str(name), map(str, choices))}')


# JSON and fingerprint.


def _plain(value: Any) -> Any:
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def frozen(value: Any) -> Any:
    """A `Config` of nested dicts and lists; `thawed` is its inverse."""
    if isinstance(value, (ConfigDict, Mapping)):
        value = _plain(value)
        return Config({name: frozen(value[name]) for name in sorted(value)})
    return tuple(frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def thawed(config: Mapping[str, Any]) -> ConfigDict:
    """A copy of a resolved config that takes changes."""
    return ConfigDict(_plain(config))


def to_json(config: Mapping[str, Any]) -> str:
    """The config as JSON with sorted keys: the same text for the same config, on every machine."""
    return json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + '\n'


def load_json(path: str | Path) -> Config:
    """The inverse of `to_json`: the config in a file. UserError where an entry has a form that no run wrote."""
    from etils import epath

    try:
        found = frozen(json.loads(epath.Path(path).read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: is not the config.json of a run: {error}') from None
    lacks = not isinstance(found, Config) or any(name not in found for name in REQUIRED)
    if lacks and not (isinstance(found, Config) and is_version_1(found)):
        raise UserError(f'{path}: is not the config.json of a run: it lacks some of {", ".join(REQUIRED)}')
    for sentence in () if is_version_1(found) else run_config.damaged(found).values():
        raise UserError(f'{path} is damaged: {sentence}')
    return found


def is_version_1(config: Mapping[str, Any]) -> bool:
    """Whether this is the config.json of a run of medjax 0.1, which had other names for some keys."""
    return 'copies' in config


def fingerprint(config: Mapping[str, Any]) -> str:
    """16 hex digits of the sha256 of the config, without keys that do not change what a run computes."""
    text = json.dumps(_computed(config), sort_keys=True, separators=(',', ':'), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two configs differ, as far as the keys count for the fingerprint."""
    of_a, of_b, nothing = leaves(_computed(a)), leaves(_computed(b)), object()
    return sorted(key for key in of_a | of_b if of_a.get(key, nothing) != of_b.get(key, nothing))


def difference_on_resuming(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys in which the config of a run and a new one differ, as far as the steps to come depend on them.

    Weights are read at the first step alone. Another `total_steps` is judged apart, see `ends_with_run`.
    """
    return difference(_started(before), _started(now) | {'total_steps': before['total_steps']})


def _started(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the weights that a run starts from."""
    teachers = {
        name: {key: value for key, value in cfg.items() if key != 'init_from'}
        for name, cfg in config['teachers'].items()
    }
    return {**config, 'init_from': None, 'teachers': teachers}


def ends_with_run(config: Mapping[str, Any]) -> list[str]:
    """The dotted keys of the rules that end at `total_steps`, because they have no `steps` of their own."""
    rules = leaves({**config, 'life': None}, until=is_rule)
    earlier = tuple(f'stages.{i}.' for i in range(len(config.get('stages') or ()) - 1))  # they end with their stage
    return sorted(
        key for key, value in rules.items() if is_rule(value) and 'steps' not in value and not key.startswith(earlier)
    )


def leaves(value: Any, key: str = '', until: Callable[[Any], bool] = lambda value: False) -> dict[str, Any]:
    """The values in nested dicts and lists by their dotted keys. Values for which `until` holds are not entered."""
    if isinstance(value, (Mapping, tuple)) and value and not until(value):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {k: v for name, item in items for k, v in leaves(item, f'{key}.{name}', until).items()}
    return {key[1:]: value}


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
    ended = with_ends(config, config['total_steps'])
    computed = {name: value for name, value in ended.items() if name not in NOT_IN_FINGERPRINT}
    if not computed.get('stages'):  # runs may be older than stages
        computed.pop('stages', None)
    export = {key: value for key, value in computed.get('export', {}).items() if key not in ('every', 'keep')}
    if export.get('fit') == 'crop':  # the default, which older runs lack
        del export['fit']
    computed['export'] = export
    tokenizer = computed.pop('tokenizer', {})
    if 'tokens' in tokenizer:  # the content of the file counts, not its path, and only for a config with texts
        computed['tokenizer'] = {name: value for name, value in tokenizer.items() if name != 'path'}
    return computed
