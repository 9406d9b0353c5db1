"""The term `supervised` of structures: cells, loss and gradient in float64, micro-batches, devices, and mistakes."""

from __future__ import annotations

import math

import dense_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from collectives import collectives
from reference_losses import NETWORKS, close

from medjax import config as configs
from medjax.data import records
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.objectives.terms import TermContext, TermInputs, supervised
from medjax.parallel import sharding
from medjax.probes import structures
from medjax.training.rehearsal import rehearse
from medjax.training.step import gradients
from medjax.types import View
from medjax.views import geometry, make

OF, NAMES = 'student/decoder/crop/cells>classifier', ('lung', 'heart')
CANVAS, GRID, CROPS = 24, (5, 6), 2
covered = jax.jit(geometry.covered, static_argnums=3)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
def test_cells_of_the_evaluation_square_equal_those_of_the_probes(fit, flip):
    shape = (19, 24)
    planes = np.random.default_rng(0).random((3, *shape)) < 0.4
    canvas = np.ones((3, CANVAS, CANVAS), bool)  # what lies beside the image must not count
    canvas[:, : shape[0], : shape[1]] = planes
    box = geometry.seen_box(np.array(shape), fit, 1.0, np)
    share, on_image = covered(canvas, np.array(shape), box, (7, 7), flip)
    expected, there = structures.covered(planes, *structures.seen_axes(shape, dict(fit=fit)), 7)
    if flip:
        expected, there = expected[:, :, ::-1], there[:, ::-1]
    np.testing.assert_allclose(share, expected, atol=1e-5)
    np.testing.assert_allclose(on_image, there, atol=1e-5)


def batch(rows: int = 16, seed: int = 0) -> tuple[np.ndarray, View]:
    """Log-odds of cells, and rows with absent crops, unknown structures, no mask, and boxes partly beside the image."""
    rng = np.random.default_rng(seed)
    meta = {
        'mask': rng.integers(0, 8, (rows, 1, CANVAS, CANVAS)).astype(np.uint8),
        'mask/known': rng.choice([0, 1, 2, 4, 7], (rows, 1)).astype(np.uint8),
        'image/extent': rng.integers(16, CANVAS + 1, (rows, 1, 2)).astype(np.int32),
        'boxes': rng.uniform([-3, -3, 10, 10], [5, 5, 18, 18], (rows, CROPS, 4)).astype(np.float32),
        'flip': rng.random((rows, CROPS)) < 0.5,
        'key/patient': rng.integers(0, 2**32, (rows, 2), dtype=np.uint32),
    }
    present = rng.random((rows, CROPS)) < 0.8
    outputs = rng.normal(0, 2, (rows, CROPS, *GRID, len(NAMES))).astype(np.float32)
    return outputs, View(None, np.arange(rows, dtype=np.uint32), present, None, meta)


def built(**options):
    context = TermContext('terms[0] (supervised)', 10, 1, width=lambda name: len(NAMES), labels=())
    return supervised.build(context, OF, structures=list(NAMES), **options)


def run(term, outputs, view):
    """The `TermOutput`, and the gradient by the outputs. The batch knows one structure more than the term reads."""

    def loss(outputs, view):
        def inputs(features, per_row):
            return TermInputs(
                {}, {}, features, {OF: view.present}, {'crop': view}, {}, NETWORKS, jnp.int32(0), jax.random.key(7),
                per_row, marked={'crop': ('heart', 'rib', 'lung')},
            )  # fmt: skip

        out = term.loss(inputs({}, term.per_row(inputs({OF: outputs}, {}))))
        return out.loss, out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(outputs, view)
    return out, gradient


def by_loops(outputs, view, used):
    """loss, start, gradient and the sum of the weights in float64, one pixel after the other."""
    total = weight = 0.0
    of_names = np.zeros((len(NAMES), 2))
    gradient = np.zeros(outputs.shape)
    for b, v, i, j in np.ndindex(*outputs.shape[:4]):
        if not view.present[b, v] or not used[b]:
            continue
        extent = view.meta['image/extent'][b, 0]
        top, left, height, width = view.meta['boxes'][b, v].astype(float)
        column = GRID[1] - 1 - j if view.meta['flip'][b, v] else j
        cell = [(top + i * height / GRID[0], height / GRID[0]), (left + column * width / GRID[1], width / GRID[1])]
        for k, bit in enumerate((2, 0)):
            if not view.meta['mask/known'][b, 0] >> bit & 1:
                continue
            on_image = shown = 0.0
            for y, x in np.ndindex(*extent.tolist()):
                share = 1.0
                for at, (low, size) in zip((y, x), cell, strict=True):
                    share *= max(min(low + size, at + 1) - max(low, at), 0) / size
                on_image += share
                shown += share * (view.meta['mask'][b, 0, y, x] >> bit & 1)
            if on_image == 0:
                continue
            s, t = float(outputs[b, v, i, j, k]), shown / on_image
            total += on_image * (math.log1p(math.exp(-abs(s))) + max(s, 0) - t * s)
            gradient[b, v, i, j, k] = on_image * (1 / (1 + math.exp(-s)) - t)
            of_names[k] += on_image * np.array([1 - t, t])
            weight += on_image
    entropy = -(of_names * np.log(of_names / of_names.sum(1, keepdims=True))).sum()
    return total / weight, entropy / weight, gradient / weight, weight


@pytest.mark.parametrize('share', [1.0, 0.5])
def test_loss_gradient_and_start_equal_loops(share):
    outputs, view = batch(8)
    out, gradient = run(built(share=share), outputs, view)
    used = supervised.is_used(view.meta['key/patient'], share, 0)
    loss, start, slopes, weight = by_loops(outputs, view, used)
    np.testing.assert_allclose([out.loss, out.start, out.metrics['targets']], [loss, start, weight], rtol=1e-5)
    close(gradient, slopes, 1e-5, 'by the outputs')


def test_without_any_mask_the_loss_is_0():
    outputs, view = batch(4)
    view.meta['mask/known'][:] = 0
    outputs[0] = np.inf  # of a record that does not count
    out, gradient = run(built(), outputs, view)
    assert out.loss == out.start == 0 and not np.asarray(gradient).any()


@pytest.mark.skipif(jax.device_count() != 8, reason='needs 8 (virtual) devices')
def test_eight_devices_give_the_same_and_move_what_the_term_says():
    jax.set_mesh(recipes.one_device())
    term, (outputs, view) = built(), batch(16)
    alone, gradient = run(term, outputs, view)
    mesh = sharding.make_mesh(4, 2, 1)
    jax.set_mesh(mesh)
    placed = jax.device_put((outputs, view), sharding.rows_sharding(mesh))
    out, same = run(term, *placed)
    np.testing.assert_allclose([out.loss, out.start], [alone.loss, alone.start], rtol=1e-5)
    close(same, gradient, 1e-5, 'by the outputs')
    compiled = jax.jit(lambda *x: run(term, *x)).lower(*placed).compile()
    moved = collectives(compiled.as_text())
    assert moved and sum(math.prod(dims) for _, dims in moved) <= term.moves(16, {OF: outputs.shape}), moved


# In a recipe.


def recipe(of: str = 'student/decoder/global/cells>classifier', **changes) -> dict:
    base = recipes.tiny(
        masks={}, teachers={}, labels=('odd',), columns={}, heads=dict(classifier=dict(head='linear', bias=True)),
        terms=[dict(term='supervised', of=of, structures=['lung', 'heart'])],
    )  # fmt: skip
    if 'decoder' in of:
        base['towers'] = base['towers'] | dict(decoder=dict(tower='patch_decoder', reads=['image'], width=8, factor=2))
    return base | changes


@pytest.mark.parametrize(
    'of',
    [
        pytest.param('student/decoder/global/cells>classifier', marks=pytest.mark.slow),
        pytest.param('student/image/global/patches>classifier', marks=pytest.mark.long),
    ],
)
def test_micro_batches_give_one_loss_and_one_gradient(of):
    rows = recipes.batch(8)
    rng = np.random.default_rng(1)
    rows['cxr']['mask'] = rng.integers(0, 4, (8, 1, 40, 40)).astype(np.uint8)
    rows['cxr']['mask/known'] = np.array([3, 0, 1, 3, 2, 3, 0, 3], np.uint8)[:, None]
    results = []
    for micro_batches in (1, 2, 4):
        objective, optim, step = recipes.parts(recipe(of) | dict(rows_per_group=2), micro_batches)
        state = recipes.start(objective, optim)

        def run(state, batch, objective=objective, step=step, n=micro_batches):
            views = lambda rows: step.make_views(rows, state.key, state.step)  # noqa: E731
            loss, _, _, grads = gradients(objective, state, batch, views, state.key, n)
            return loss, grads

        results.append(jax.jit(run)(state, rows))
    (loss, grads), *others = results
    assert recipes.worst(grads['towers'], jax.tree.map(np.zeros_like, grads['towers'])) > 0
    for split_loss, split_grads in others:
        assert abs(loss - split_loss) <= 1e-6 * abs(loss) and recipes.worst(split_grads, grads) <= 1e-5


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(structures='lung'), 'must be a list of texts'),
        (dict(structures=['lung', 'lung']), 'must name at least one structure, each once'),
        (dict(structures=['lung'], policy=dict(blank='negative')), "unknown key 'policy'"),
        (dict(structures=['lung'], classes='sex'), 'it predicts classes or structures, not both'),
        (dict(structures=[f's{i}' for i in range(9)]), 'the terms read 9 structures .*, and a batch holds 8 at most'),
    ],
)
def test_mistakes_are_sentences(options, sentence):
    terms = [dict(term='supervised', of='student/decoder/global/cells>classifier', **options)]
    with pytest.raises(UserError, match=sentence):
        _ = compose(recipe(terms=terms)).structures


@pytest.mark.parametrize(
    ('of', 'towers', 'sentence'),
    [
        ('image/global/cls', {}, 'structures are learned from the patches of an encoder of images or from the cells'),
        ('image/global~block/cls', {}, 'there is no mask'),
        (
            'decoder/global/cells',
            dict(factor=16),
            'factor=16 makes cells smaller than a pixel .*can be 8 at most',
        ),
        ('decoder/global/cells', dict(factor=0), 'factor=0: must be a whole number of at least 1'),
        ('decoder/global/patches', {}, "there is no output 'patches'"),
        ('decoder/global/cells', dict(reads=['image', 'image2=image']), 'it reads one tower of images, the encoder'),
    ],
)
def test_features_without_cells_are_refused(of, towers, sentence):
    cfg = recipe(f'student/{of}>classifier')
    if towers:
        cfg['towers']['decoder'] |= towers
    with pytest.raises(UserError, match=sentence):
        rehearsed(cfg)


def rehearsed(cfg: dict) -> None:
    objective = compose(cfg)
    rehearse(objective, make.build(objective.views, {}, cfg['image'], objective.grids(), 1), cfg)


# With data.


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> records.DataSet:
    return dense_cases.data(tmp_path_factory.mktemp('masks'), counts=(12, 4, 4))


@pytest.fixture(scope='module')
def without(tmp_path_factory) -> records.DataSet:
    return dense_cases.data(tmp_path_factory.mktemp('no masks'), counts=(6, 2, 2), names=(), masked=lambda i: False)


def test_the_structures_come_from_the_data_and_unknown_ones_are_refused(data, without):
    read = lambda data, *options: configs.load('fine_tune_segmentation', [str(data.path)], options)[0]  # noqa: E731
    assert read(data)['terms'][0]['structures'] == dense_cases.NAMES
    with pytest.raises(UserError, match="the masks of the data show no 'disk'; did you mean 'disc'"):
        read(data, 'terms.0.structures=["disk"]')
    with pytest.raises(UserError, match='no train record that it may use has a mask, so there is nothing to learn'):
        read(without)
