"""Shipped recipes at sizes that a test can train; those that read reports also on the phantom."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax

from medjax import config as configs, train
from medjax.data.stream import Stream
from medjax.objectives.compose import compose
from medjax.plugins import call
from medjax.training.optimizer import optimizer
from medjax.training.state import create
from medjax.training.step import make_step
from medjax.views import make

ROOT = Path(__file__).parents[1]


SIDE, ROWS, STEPS = 32, 10, 6


PROMPTS = {
    'present': {'effusion': ['There is a pleural effusion.'], 'nodule': ['There is a nodule.', 'A nodule.']},
    'normal': ['No acute findings.'],
}


SMALL = {
    'vit': dict(width=32, depth=2, heads=2, native_size=SIDE),
    'resnet': dict(variant='18', stem=8, depths=[1, 1]),
    'text': dict(width=32, depth=2, heads=2),
    'decoder': dict(width=32, depth=1, heads=2),
    'patch_decoder': dict(width=8, depth=1, factor=2),
    'predictor': dict(width=32, depth=1, heads=2),
    'unet_decoder': dict(width=16),
}


FILES = {
    'medimageinsight': dict(report=PROMPTS),
    'unimed_clip': dict(caption=PROMPTS),
    'cxr_clip': dict(report=PROMPTS),
}


def small(name: str) -> configs.ConfigDict:
    """The committed recipe with smaller sizes, and the prompts that its docstring asks for."""
    config = configs.read(str(ROOT / 'configs' / f'{name}.py'))
    for tower in config.towers.values():
        patch = str(tower.get('variant', '')).partition('/')[2]
        tower.update(SMALL[tower.tower])
        if patch:
            tower.variant = 'Ti/16'
    for mask in config.masks.values():
        if mask.mask == 'multiblock':  # blocks need a grid of more than 2 x 2 patches
            mask.update(min_keep=0)
            config.towers.image.variant = 'Ti/8'
    for head in config.heads.values():
        head.update({key: 16 for key in ('out', 'hidden', 'prototypes', 'bottleneck') if key in head})
    for head in {'medsiglip': ['text'], 'data2vec_vitb16': ['predictor']}.get(name, []):
        config.heads[head].out = 32  # as wide as the image tower
    for term in config.terms:
        if 'mean6/' in str(term.get('teacher')):
            term['teacher'] = term['teacher'].replace('mean6/', 'mean2/')  # of all blocks
        if term['term'] == 'gram':
            term['weight'] = 1.0  # as from its stage on
    for view_name, view in config.views.items():
        if 'size' in view:
            finer = view.get('boxes') and not view.get('on_top')  # the same crops in more patches
            view.size = 2 * SIDE if finer else SIDE
        elif name != 'medsiglip':  # SigLIP's texts fill the context
            view.length = 32
        view.update(dict(prompts=FILES[name][view_name]) if view_name in FILES.get(name, {}) else {})
    parts = len(config.data)
    for part in config.data.values():
        part.rows = ROWS
    config.update(total_steps=STEPS, batch_size=ROWS * parts, dtype='float32')
    if isinstance(config.optim.get('schedule'), configs.ConfigDict):
        config.optim.schedule.warmup = 1
    return config


def smaller(name: str, rows: int, rows_per_group: int, drop_path: float) -> configs.ConfigDict:
    """The recipe with crops of 32 px (local ones of 16), patches of 8 px, and `rows` rows in each part."""
    config = small(name)
    config.update(rows_per_group=rows_per_group, micro_batches=1)
    for tower in config.towers.values():
        if tower.tower == 'vit':
            tower.variant = 'Ti/8'
        if tower.get('drop_path'):
            tower.drop_path = drop_path
    if 'local' in config.views:
        config.views.local.update(size=16, count=2)
    if name.startswith('distill_'):
        for head in config.heads.values():
            head.out = SMALL['vit']['width']  # that of the teacher
    for part in config.data.values():
        part.rows = rows
    config.batch_size = rows * len(config.data)
    return config


def trained(config: configs.Config, datasets: dict) -> list[dict[str, float]]:
    """The metrics of every step of a run on one device."""
    objective = compose(config)
    stream = Stream(
        config['data'], datasets, config['seed'], views=config['views'], tokenizer=train.open_tokenizer(config)
    )
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    optim = call(optimizer, config['optim'], 'optim', params=shapes, total_steps=config['total_steps'])
    views = make.build(objective.views, config['masks'], config['image'], objective.grids(), config['rows_per_group'])
    step = jax.jit(make_step(objective, optim, views, config['micro_batches']).train_step, donate_argnums=0)
    state = jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))
    lines = []
    for batch in itertools.islice(stream.batches(), config['total_steps']):
        state, metrics = step(state, batch)
        lines.append({key: float(value) for key, value in metrics.items()})
    return lines
