"""The recipes that learn from reports, as committed but for their sizes: each takes some steps on the phantom."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from report_recipes import ROOT, ROWS, SIDE, STEPS, small, trained

from medjax import config as configs
from medjax.data import records
from medjax.data.builder import vocabulary, write
from medjax.data.sources import phantom
from medjax.data.text import tokenizer
from medjax.weights import export

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


@pytest.mark.parametrize(
    'name', [name if name == 'convirt' else pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS]
)
def test_a_system_takes_some_steps(name, data):
    config = small(name)
    datasets = {source: data for part in config.data.values() for source in part.sources}
    lines = trained(configs.check(configs.resolve(config, datasets)), datasets)
    terms = [term.get('name', term['term']) for term in config.terms]
    assert len(lines) == STEPS
    for term in terms:
        losses = [line[f'term/{term}/loss'] for line in lines]
        assert np.isfinite(losses).all()
        start = lines[0].get(f'term/{term}/untrained', lines[0][f'term/{term}/start'])
        # of features that say nothing yet; the sigmoid's start takes images and texts for orthogonal
        assert losses[0] == pytest.approx(start, rel=0.5 if name == 'medsiglip' else 0.35), term
        assert min(losses[1:]) < losses[0] * 1.1 and max(losses) < 2.5 * start  # of 16 numbers, cosines scatter
        assert all(line[f'term/{term}/rows'] == ROWS for line in lines)
    assert all(np.isfinite(line['loss']) and line['skipped'] == 0 for line in lines)


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
