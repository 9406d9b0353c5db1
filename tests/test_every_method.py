"""Every method without words and labels, from its recipe to a probe: trained on eight devices, killed and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import recipes
import small_runs
from published_names import to_meta
from report_recipes import ROOT, smaller
from safetensors.numpy import save_file

import medjax
from medjax import cli, config as configs, train
from medjax.data import records
from medjax.data.builder import write
from medjax.data.sources import phantom
from medjax.models import build

STEPS = 4


def without_words(name: str) -> bool:
    """Whether a recipe reads images alone, and so trains on any data set."""
    config = configs.read(name)
    return all(view.view == 'crop' for view in config.views.values()) and all(
        term['term'] != 'supervised' for term in config.terms
    )


# The method with most kinds of state (a queue, prototypes, batch statistics, LARS) with the slow tests, all others with
# the long ones, as each takes half a minute. A new recipe comes in by itself.
SLOW = ('less_is_more_swav',)
METHODS = [name for name in sorted(path.stem for path in (ROOT / 'configs').glob('*.py')) if without_words(name)]
CASES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.long) for name in METHODS]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made') / 'data'
    write.write(phantom.source(200, 32), folder)
    return folder


def at_small_size(name: str, data: Path, folder: Path) -> tuple[configs.Config, dict]:
    """The recipe with a row for each of eight devices, and files of weights in place of those that it names."""
    config = smaller(name, rows=8, rows_per_group=1, drop_path=0.0)
    config.update(total_steps=STEPS)
    if config.get('stages'):
        config.stages = None  # test_continue.py has runs over their borders
    config.checkpoint.every, config.export.every, config.log.every = STEPS // 2, STEPS, 1
    for term in config.terms:
        if term.get('queue'):
            term.update(queue=8, queue_from=0)  # full after the first step
    if config.get('init_from'):
        config.init_from['path'] = weights(config.towers.image, folder / 'student.safetensors')
    for teacher in config.get('teachers', {}).values():
        if teacher.get('init_from'):
            teacher.init_from['path'] = weights(
                config.towers[teacher.of[0].partition('/')[2]], folder / 't.safetensors'
            )
    datasets = {source: records.open(data) for part in config.data.values() for source in part.sources}
    return configs.check(configs.resolve(config, datasets)), datasets


def weights(tower: configs.ConfigDict, path: Path) -> str:
    """A file of a tower in the names of Meta, with random numbers."""
    params = build.tower(tower.to_dict(), 3, 'x').init(jax.random.key(5))
    save_file({name: np.float32(array) for name, array in to_meta(jax.device_get(params)).items()}, path)
    return str(path)


@pytest.mark.parametrize('name', CASES)
def test_a_killed_run_goes_on_to_the_same_bits_and_a_probe_reads_its_export(name, data, tmp_path, monkeypatch):
    ends, loop = [], train.loop

    def kept(*args):
        state, *rest = loop(*args)
        ends.append(jax.tree.map(lambda x: x.copy(), state))
        return state, *rest

    monkeypatch.setattr(train, 'loop', kept)
    config, datasets = at_small_size(name, data, tmp_path)
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    assert train.run(config, datasets, whole) == 0
    shutil.copytree(whole, run)
    small_runs.unfinished(run, STEPS // 2, STEPS)
    assert train.run(config, datasets, run) == 0
    assert recipes.worst(ends[-1], ends[0]) == 0 and int(ends[0].step) == STEPS
    small_runs.same_end(whole, run)

    encoder = medjax.load(run)
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    (cls,) = encoder.encode([image])['cls']
    assert np.isfinite(cls).all() and cls.std() > 0
    asked = ['--probes', 'knn', '--baselines', 'none', '--draws', '20']
    assert cli.main(['probe', '--run', str(run), '--data', str(data), *asked]) == 0
    (result,) = (run / 'probes' / str(STEPS)).glob('*.knn.json')
    assert 0 <= json.loads(result.read_text())['results']['auroc']['mean']['value'] <= 1
