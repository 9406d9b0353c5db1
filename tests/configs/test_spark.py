"""`spark_resnet50` with a small network learns to fill in phantoms, and its encoder is exported and probed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medjax import cli, config as configs, train
from medjax.data.builder import write
from medjax.data.sources import phantom

SMALL = [
    'total_steps=80', 'batch_size=32', 'dtype=float32', 'views.crop.size=32', 'towers.image.variant=18',
    'towers.image.stem=8', 'towers.image.depths=[1,1]', 'towers.decoder.width=32', 'optim.lr=.02',
    'optim.schedule.warmup=10', 'log.every=1', 'export.every=80', 'checkpoint.every=80',
]  # fmt: skip


@pytest.mark.slow
def test_eighty_steps_beat_the_best_constant_cell_and_the_encoder_is_probed(tmp_path):
    """Two stages make cells of 8 px, 16 of them in a crop of 32 px."""
    data, folder = tmp_path / 'data', tmp_path / 'run'
    write.write(phantom.source(400, 32), data)
    config, datasets = configs.load('spark_resnet50', [str(data)], SMALL)
    assert train.run(config, datasets, folder) == 0
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert len(lines) == 80 and all(np.isfinite(line['loss']) for line in lines)
    end = {name: np.mean([line[f'term/pixels/{name}'] for line in lines[-10:]]) for name in ('loss', 'start')}
    assert end['loss'] < end['start'], end
    meta = json.loads((folder / 'exports/80/meta.json').read_text())
    assert list(meta['towers']) == ['image']
    assert cli.main(['probe', '--run', str(folder), '--data', str(data), '--probes', 'knn']) == 0
    assert list((folder / 'probes/80').glob('*.knn.json'))
