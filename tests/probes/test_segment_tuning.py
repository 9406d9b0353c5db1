"""The probe that trains a decoder of structures: its command, what an export draws, its choice and its judgement."""

from __future__ import annotations

import dataclasses
import json

import dense_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_cases import NAMES

from medjax import cli, config as configs
from medjax.data import records
from medjax.errors import UserError
from medjax.models import build as models
from medjax.overrides import split_overrides
from medjax.probes import encode, segment_tuning, structures
from medjax.probes.evaluate import ProbeInputs
from medjax.probes.methods import fine_tune_segmentation
from medjax.types import Input, View
from medjax.views.make import evaluation_view
from medjax.weights import export
from medjax.weights.meta import problem

SIZE = 16
TOWERS = dict(
    image=dict(tower='vit', variant='Ti/8', width=16, depth=2, heads=2, native_size=SIZE),
    decoder=dict(tower='patch_decoder', reads=['image'], width=6, depth=1, factor=4),
)
HEADS = dict(classifier=dict(head='linear', bias=True, out=2))
IMAGE = dict(channels=1, mean=0.4, std=0.2, fit='crop')
DRAWN = ('bar', 'disc')  # in another order than in the data


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> records.DataSet:
    return dense_cases.data(tmp_path_factory.mktemp('masks'), wide=6)


def make_export(run, step: int = 4, **meta):
    towers = models.towers(TOWERS, 1)
    head = models.head(HEADS['classifier'], 6, 'heads.classifier')
    params = {
        'towers': {name: tower.init(jax.random.key(step)) for name, tower in towers.items()},
        'heads': {'classifier': head.init(jax.random.key(step + 1))},
    }
    params['heads']['classifier']['fc1']['kernel'] *= 100  # log-odds of a few units
    told = dict(term='supervised', tower='decoder', output='cells', head='classifier', predicts='structures')
    described = dict(
        network='student', seen=None, step=step, towers=TOWERS, heads=HEADS, image=IMAGE, size=SIZE,
        decoders=[told | dict(names=DRAWN)],
    )  # fmt: skip
    return export.save(run / 'exports' / str(step), params, described | meta), params


def inputs(run, data, **meta) -> ProbeInputs:
    folder, _ = make_export(run, **meta)
    return ProbeInputs(encode.load(folder), data, run / 'cache', {}, None, 0, 20)


@jax.jit
def drawn_by_hand(params, image: jax.Array) -> jax.Array:
    """The log-odds [K,h,w] of a record: towers one after the other, and the head."""
    towers = models.towers(TOWERS, 1)
    x = evaluation_view(image[None], np.array([image.shape[:2]]), SIZE, IMAGE)
    view = View(x[:, None, None], np.arange(1, dtype=np.uint32), np.ones((1, 1), bool), None, {})
    outputs = towers['image'].apply(params['towers']['image'], Input(view))
    cells = towers['decoder'].apply(params['towers']['decoder'], Input(view, None, outputs))['cells'][0, 0]
    layer = params['heads']['classifier']['fc1']
    return jnp.moveaxis(cells @ layer['kernel'] + layer['bias'], -1, 0)


def dice(split: records.Split, params, threshold: dict[str, float]) -> dict[str, np.ndarray]:
    """The Dice of each structure over the records that show it, by the pixels of the mask."""
    found: dict[str, list[float]] = {name: [] for name in DRAWN}
    for i in range(len(split)):
        planes = split.structures(i)
        if planes is None:
            continue
        rows, columns = structures.seen_axes(planes.shape[1:], IMAGE)
        values = structures.on_pixels(np.asarray(drawn_by_hand(params, split.image(i))), rows, columns)
        for k, name in enumerate(DRAWN):
            shown = planes[NAMES.index(name)][structures.inside(rows), structures.inside(columns)]
            predicted = values[k] >= threshold[name]
            if shown.any():
                found[name].append(2 * (shown & predicted).sum() / (shown.sum() + predicted.sum()))
    return {name: np.array(values) for name, values in found.items()}


def test_the_export_is_judged_as_towers_and_head_by_hand(tmp_path, data):
    one = inputs(tmp_path / 'run', data)
    _, params = make_export(tmp_path / 'same')
    content, arrays = segment_tuning.judge(one)
    assert content['skipped_labels'] == {'never': 'the decoder does not draw it'}
    assert content['records'] == dict(val=6, test=10) and arrays['names'].tolist() == ['disc', 'bar']
    assert {'iou', 'false_area', 'pixels', 'record', 'patient'} < arrays.keys(), 'what a comparison needs'
    expected = dice(data.split('test'), params, content['thresholds'])
    for k, name in enumerate(('disc', 'bar')):
        shown = ~np.isnan(arrays['dice'][:, k])
        np.testing.assert_allclose(arrays['dice'][shown, k], expected[name], atol=0.01)
    on_val = dice(data.split('val'), params, content['thresholds'])
    assert content['chosen']['validation_dice'] == pytest.approx(np.mean([x.mean() for x in on_val.values()]), abs=0.02)
    assert fine_tune_segmentation.job.on_validation(one) == content['chosen']['validation_dice']


def test_without_masks_in_val_the_last_export_is_judged_with_thresholds_of_0(tmp_path):
    data = dense_cases.data(tmp_path, masked=lambda i: not 24 <= i < 32)  # none in val
    one = inputs(tmp_path / 'run', data)
    assert fine_tune_segmentation.job.on_validation(one) is None
    content, _ = segment_tuning.judge(one)
    assert set(content['thresholds'].values()) == {0.0} and len(content['threshold_notes']) == 2
    assert content['validation'] == 'nothing is chosen: no record of val has a mask'


def test_the_training_has_cells_enough_and_none_below_a_pixel(tmp_path, data):
    job, one = fine_tune_segmentation.job, inputs(tmp_path / 'run', data)
    argv, overrides = split_overrides(job.command(one, tmp_path / 'w')[4:])
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    config = configs.load(given['--config'], [given['--data']], overrides)[0]
    assert config['towers']['decoder']['factor'] == 8, '2 rows of patches of 8 px cannot have 48 rows of cells'
    assert config['terms'][0]['structures'] == NAMES and config['views']['crop']['size'] == SIZE
    assert config['init_from'][0]['path'] == str(tmp_path / 'run' / 'exports' / '4')


def test_what_cannot_be_trained_or_judged_is_a_sentence(tmp_path, data):
    one = inputs(tmp_path / 'run', data, decoders=[])
    with pytest.raises(UserError, match='the export has no decoder of structures; a recipe exports one if'):
        segment_tuning.judge(one)
    assert problem(dict(decoders=[dict(term='supervised', tower='decoder', predicts='structures', names=['disc'])]))
    assert not problem(inputs(tmp_path / 'run', data).encoder.meta)
    none = dense_cases.data(tmp_path, counts=(4, 2, 2), names=(), masked=lambda i: False)
    with pytest.raises(UserError, match='the data set has no masks'):
        fine_tune_segmentation.requirements(dataclasses.replace(one, data=none))
    patchless = dataclasses.replace(
        one.encoder, forward=lambda params, images, outputs: dict(layers=images.mean((1, 2))[:, None])
    )
    with pytest.raises(UserError, match='the encoder step 4 has no feature for each patch'):
        fine_tune_segmentation.requirements(dataclasses.replace(one, encoder=patchless))


@pytest.mark.slow
def test_a_job_learns_to_draw_and_a_frozen_encoder_stays(tmp_path, data):
    run = tmp_path / 'run'
    folder, params = make_export(run)
    args = ['--run', str(run), '--data', str(data.path), '--probes', 'fine_tune_segmentation', '--draws', '10']
    args += ['--baselines', 'none', '--epochs', '80', '--config.dtype=float32', '--config.batch_size=8']
    args += [
        '--config.rows_per_group=1',
        '--config.optim.lr=.01',
        '--config.optim.groups.0.frozen_until=end',
        '--config.towers.image.drop_path=0.0',
    ]
    assert cli.main(['probe', *args]) == 0
    result = json.loads((run / 'probes' / '4' / f'{data.name}.fine_tune_segmentation.json').read_text())
    planes = [data.split('test').structures(i) for i in range(data.splits['test'])]
    discs = [one[NAMES.index('disc')].mean() for one in planes if one is not None]
    everywhere = np.mean([2 * share / (1 + share) for share in discs if share])  # the Dice of a decoder that draws all
    assert result['results']['dice']['disc']['value'] > (1 + everywhere) / 2
    assert result['chosen']['chosen_by'] == 'mean Dice over structures on validation'
    assert len(result['tuned']['validation']) > 1
    tuned, meta = export.load(f'{result["tuned"]["run"]}/exports/{result["tuned"]["step"]}')
    before, after = (export.flatten(tree['towers']['image']) for tree in (export.load(folder)[0], tuned))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert meta['decoders'][0]['names'] == list(NAMES) and meta['classifiers'] == []
