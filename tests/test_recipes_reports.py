"""The recipes that learn from reports, as committed but for their sizes: each takes some steps on the phantom."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from medjax import config as configs, train
from medjax.data import records
from medjax.data.builder import vocabulary, write
from medjax.data.sources import phantom
from medjax.data.stream import Stream
from medjax.data.text import tokenizer
from medjax.errors import build
from medjax.objectives.compose import objective
from medjax.training.optimizer import optimizer
from medjax.training.step import create, make_step
from medjax.views import make
from medjax.weights import export

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
}
FILES = {
    'medimageinsight': dict(report=PROMPTS),
    'unimed_clip': dict(caption=PROMPTS),
    'cxr_clip': dict(report=PROMPTS),
}
SYSTEMS = ('convirt', 'biomedclip', 'unimed_clip', 'medsiglip', 'medimageinsight', 'chexzero', 'medclip', 'cxr_clip')
SYSTEMS += ('low_data',)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """64 phantoms with their reports and a vocabulary of these."""
    folder = tmp_path_factory.mktemp('recipes') / 'phantom'
    write.write(phantom.source(64, SIDE), folder)
    opened = records.open(folder)
    (folder / tokenizer.NAME).write_text(vocabulary.train([opened], 400))
    return opened


def small(name: str) -> configs.ConfigDict:
    """The committed recipe with smaller sizes, and the prompts that its docstring asks for."""
    config = configs.read(str(ROOT / 'configs' / f'{name}.py'))
    for tower in config.towers.values():
        patch = str(tower.get('variant', '')).partition('/')[2]
        tower.update(SMALL[tower.tower])
        if patch:
            tower.variant = 'Ti/16'
    for head in config.heads.values():
        head.update({key: 16 for key in ('out', 'hidden', 'prototypes', 'bottleneck') if key in head})
    if name == 'medsiglip':
        config.heads.text.out = 32  # as wide as the image tower
    for view_name, view in config.views.items():
        if 'size' in view:
            view.size = SIDE
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


@pytest.mark.parametrize('name', SYSTEMS)
def test_a_system_takes_some_steps(name, data):
    config = small(name)
    datasets = {source: data for part in config.data.values() for source in part.sources}
    lines = trained(configs.check(configs.resolve(config, datasets)), datasets)
    terms = [term.get('name', term['term']) for term in config.terms]
    assert len(lines) == STEPS
    for term in terms:
        losses = [line[f'term/{term}/loss'] for line in lines]
        assert np.isfinite(losses).all()
        start = lines[0][f'term/{term}/start']
        # of features that say nothing yet; the sigmoid's start takes images and texts for orthogonal
        assert losses[0] == pytest.approx(start, rel=0.5 if name == 'medsiglip' else 0.35), term
        assert min(losses[1:]) < losses[0] * 1.1 and max(losses) < 2.5 * start  # of 16 numbers, cosines scatter
        assert all(line[f'term/{term}/rows'] == ROWS for line in lines)
    assert all(np.isfinite(line['loss']) and line['skipped'] == 0 for line in lines)


def trained(config: configs.Config, datasets: dict) -> list[dict[str, float]]:
    """The metrics of every step of a run on one device."""
    goal = objective(config)
    stream = Stream(config['data'], datasets, config['seed'], views=config['views'], tokenizer=train.reader(config))
    shapes, _ = jax.eval_shape(goal.init, jax.random.key(0))
    optim = build(optimizer, config['optim'], 'optim', params=shapes, total_steps=config['total_steps'])
    views = make.build(
        config['views'], config['masks'], config['image'], train.grids(goal, config), config['rows_per_group']
    )
    step = jax.jit(make_step(goal, optim, views, config['micro_batches']).train_step, donate_argnums=0)
    state = jax.jit(lambda key: create(goal, lambda _: optim, key))(jax.random.key(0))
    lines = []
    for batch in itertools.islice(stream.batches(), config['total_steps']):
        state, metrics = step(state, batch)
        lines.append({key: float(value) for key, value in metrics.items()})
    return lines


@pytest.mark.slow
def test_a_system_from_the_command_line(data, tmp_path):
    """`medjax train` to the end, with the overrides that people would write, and what it leaves."""
    run = tmp_path / 'run'
    overrides = dict(
        total_steps=4,
        batch_size=8,
        **{
            'towers.image': 'dict(tower="resnet", variant="18", stem=8, depths=[1, 1])',
            'towers.text': 'dict(tower="text", width=32, depth=2, heads=2, vocabulary=400, context=32, pool="max")',
            'views.crop.size': SIDE,
            'views.sentence.length': 32,
            'export.every': 4,
            'log.every': 1,
        },
    )
    command = ['train', '--config', ROOT / 'configs/convirt.py', '--data', data.path, '--workdir', run]
    done = subprocess.run(
        [sys.executable, '-m', 'medjax', *map(str, command), *(f'--config.{k}={v}' for k, v in overrides.items())],
        cwd=ROOT, env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [1, 2, 3, 4]
    assert lines[0]['term/pair_softmax/loss'] == pytest.approx(lines[0]['term/pair_softmax/start'], rel=0.35)
    tree, meta = export.load(run / 'exports' / '4')
    assert set(tree['towers']) == {'image', 'text'} and set(tree['heads']) == {'vi', 'vt'}
    assert (run / 'exports' / '4' / meta['tokenizer']['file']).read_bytes() == (data.path / tokenizer.NAME).read_bytes()
