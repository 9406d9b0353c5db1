"""The recipes that continue a public backbone: their presets, and small runs over the border of their stages."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from published_names import to_meta
from safetensors.numpy import load_file, save_file

from medjax import cli, config as configs, presets, train
from medjax.errors import UserError
from medjax.models import build
from medjax.stages import stages
from medjax.training import forgetting
from medjax.training.checkpoint import Checkpoints

NAMES = ('continue_heads_first', 'continue_layerwise', 'continue_resolution')
TOWER = dict(tower='vit', variant='Ti/8', width=64, depth=2, heads=1, native_size=32)
SMALL = (
    'total_steps=8', 'batch_size=16', 'micro_batches=1', 'dtype=float32', 'rows_per_group=2', 'export.network=student',
    'views.global.size=32', 'views.local.size=16', 'views.local.count=2', 'masks.global~block.min_patches=1',
    'towers.image.variant=Ti/8', 'towers.image.width=64', 'towers.image.depth=2', 'towers.image.heads=1',
    'towers.image.native_size=32', 'towers.image.unroll=1', 'heads.dino.prototypes=32', 'heads.dino.hidden=32',
    'heads.dino.bottleneck=16', 'export.every=4', 'checkpoint.every=8', 'log.every=2',
    'optim.lr=2e-3', 'towers.image.drop_path=0.0', 'terms.0.student=student/image/global~block/cls>dino',
)  # fmt: skip
OF = dict(
    continue_heads_first=(
        'stages.0.at=4', 'optim.groups.2.frozen_until=0', 'optim.groups.3.frozen_until=4', 'optim.schedule.warmup=1',
    ),
    continue_layerwise=('optim.groups.3.frozen_until=0', 'optim.schedule.warmup=1'),
    continue_resolution=('stages.0.at=4', 'optim.groups.2.frozen_until=0', 'optim.schedule.warmup=1'),
)  # fmt: skip


@pytest.mark.parametrize('name', [*NAMES, 'dinov2_radiology'])
@pytest.mark.parametrize('preset', presets.PRESETS)
def test_presets_scale_with_the_batch(name, preset):
    config = configs.check(configs.resolve(configs.read(f'{name}:{preset}'), {}))
    one, batch = config['optim'], config['batch_size']
    lr = one['lr'] / (2 if name == 'continue_heads_first' else 1)  # before the release
    assert lr == pytest.approx(1e-4 * (batch / 1_024) ** 0.5)
    last = stages(config)[-1].config
    half_life = batch * np.log(0.5) / np.log(last['teachers']['teacher']['momentum']['start'])
    assert half_life == pytest.approx(presets.HALF_LIFE)
    assert batch // {'gpu': 1, 'node': 8, 'pod': 64}[preset] % (last['micro_batches'] * config['rows_per_group']) == 0
    assert 25 < batch / config['heads']['dino']['prototypes'] * 1_024 < 50
    assert all(stage.end - stage.begin > 0 for stage in stages(config))


def test_published_momenta_have_the_half_life():
    for batch, momentum in ((3_072, 0.994), (256, 0.9995)):
        assert presets.PRESETS['gpu']._replace(batch_size=batch).momentum() == pytest.approx(momentum, abs=3e-5)


def test_a_wrong_preset_is_a_sentence():
    with pytest.raises(UserError, match=r"no preset 'tpu'; write gpu .one GPU., node .8 GPUs. or pod"):
        configs.read('continue_resolution:tpu')


def test_a_folder_takes_the_place_of_the_weights_that_the_recipe_names(weights):
    config = configs.read('continue_heads_first', [f'towers.image={weights}'])
    assert [start['path'] for start in config.init_from] == [str(weights)]
    assert config.towers.image.width == 64


# Small runs.


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A backbone in the names of Meta."""
    tower = build.tower(TOWER, 3, 'x').init(jax.random.key(5))
    tower['blocks'] = jax.tree.map(lambda x: x + 0.05 * np.random.default_rng(0).normal(size=x.shape), tower['blocks'])
    path = tmp_path_factory.mktemp('public') / 'dinov2.safetensors'
    save_file({name: np.float32(array) for name, array in to_meta(jax.tree.map(np.asarray, tower)).items()}, path)
    return path


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'tiny'
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(['build', 'phantom', '--records', '48', '--size', '48', '--out', str(folder)]) == 0
    return folder


def go(name: str, data: Path, weights: Path, run: Path) -> None:
    config, datasets = configs.load(name, [str(data)], [*SMALL, *OF[name], f'init_from.path={weights}'])
    thawed = configs.thawed(config)
    for stage in thawed.stages:  # keys with a dot inside, which no override reaches
        sizes = {'views.global.size': 48, 'views.local.size': 32, 'micro_batches': 1}
        small = {'optim.lr': 1e-3, 'optim.schedule': dict(rule='cosine', start=1.0, end=0.1, warmup=1)} | sizes
        stage['change'].update({key: value for key, value in small.items() if key in stage['change']})
    config = configs.check(configs.frozen(thawed))
    assert train.run(config, datasets, run) == 0


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def tower(run: Path, step: int) -> dict[str, np.ndarray]:
    return {k: v for k, v in load_file(run / 'exports' / str(step) / 'weights.safetensors').items() if 'towers' in k}


@pytest.mark.long  # in CI tests/test_life.py goes over the border of a stage
@pytest.mark.parametrize('name', NAMES)
def test_a_run_over_the_border_that_is_stopped_and_resumed(name, data, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(forgetting, 'RHYTHM', 2)
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    go(name, data, weights, whole)
    with monkeypatch.context() as stop:
        stop.setattr(Checkpoints, 'stopping', lambda self, step: step == 3)
        go(name, data, weights, run)
    assert not (run / 'exports/4').exists()
    go(name, data, weights, run)

    a, b = (load_file(folder / 'exports/8/weights.safetensors') for folder in (whole, run))
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    timed = ('time', 'images_per_s', 'mfu', 'goodput', 'input_stall')
    ends = [
        [{k: v for k, v in line.items() if k not in timed} for line in lines(folder)[-2:]] for folder in (whole, run)
    ]
    assert ends[0] == ends[1], 'also the similarity to the true start'

    start, similarity = tower(whole, 0), {line['step']: line['similarity/start'] for line in lines(whole)}
    if name == 'continue_heads_first':
        for step in (4,):
            for key, array in tower(whole, step).items():
                np.testing.assert_array_equal(array, start[key], err_msg=f'{key} moved before the release')
        assert similarity[4] == pytest.approx(1, abs=1e-6)
        assert any((array != start[key]).any() for key, array in tower(whole, 8).items())
        rates = {line['step']: line['lr'] for line in lines(whole)}
        assert rates[4] > rates[8]
    if name == 'continue_resolution':
        assert stages(configs.load_json(whole / 'config.json'))[1].config['views']['global']['size'] == 48
    if name == 'continue_layerwise':
        moved = {key: np.abs(array - start[key]).mean() for key, array in tower(whole, 8).items()}
        first, last = (
            np.abs(tower(whole, 8)[k][i] - start[k][i]).mean() for k in moved if 'fc1/kernel' in k for i in (0, 1)
        )
        assert first < 0.9 * last
    assert similarity[8] < 1 - 1e-7
