"""Every recipe at small sizes: absent rows change nothing; micro-batches, and eight devices, give one gradient."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import recipes
from report_recipes import ROOT, smaller

from medjax import config as configs
from medjax.errors import UserError
from medjax.parallel import sharding
from medjax.training.rehearsal import some_rows
from medjax.training.state import state_shardings
from medjax.training.step import gradients

ROWS = 8
NO_IMAGE, NO_TEXT, NO_MASK = [1, 6], [2, 6], [3]  # row 6 has neither image nor text
# One recipe a family with the slow tests, all others with the long ones.
FAMILIES = (
    'rad_dino_vitb14', 'distill_vits14', 'medical_mae', 'ijepa_vitb16', 'spark_resnet50', 'mixture', 'medclip',
    'medsiglip', 'supervised_vitb16', 'fine_tune_segmentation',
)  # fmt: skip
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
CASES = [pytest.param(name, marks=[pytest.mark.slow if name in FAMILIES else pytest.mark.long]) for name in NAMES]


def at_small_sizes(name: str, rows_per_group: int = 4, drop_path: float = 0.25) -> configs.Config:
    """The recipe at small sizes with eight rows in each part, for data with two labels."""
    config = smaller(name, ROWS, rows_per_group, drop_path)
    config.labels = ['effusion', 'nodule']
    if config.image.channels is None:
        config.image.channels = 1
    if config.image.mean is None:
        config.image.update(mean=0.5, std=0.25)
    if name == 'fine_tune_segmentation':
        config.terms[0]['structures'] = ['lung', 'heart']
    for view in config.views.values():
        if rows_per_group == 1 and view.get('cutmix'):
            view.cutmix = 0.0  # it mixes the rows of a group
    return configs.check(configs.resolve(config, {}))


def random_batch(objective, config, seed: int) -> dict:
    """A batch of random numbers in which some images and texts are absent."""
    rng = np.random.default_rng(seed)

    def values(field: str, x: jax.ShapeDtypeStruct) -> np.ndarray:
        if field.startswith('text/') and field.endswith('/length'):
            return rng.integers(3, 8, x.shape).astype(x.dtype)
        if field == 'image/extent':
            return rng.integers(24, 33, x.shape).astype(x.dtype)
        if field == 'label':
            return rng.integers(-2, 2, x.shape).astype(x.dtype)
        if x.dtype == bool:
            return np.ones(x.shape, bool)
        if field in ('row', 'index'):
            return np.arange(*x.shape, dtype=x.dtype)
        return rng.integers(1, 200, x.shape).astype(x.dtype)

    shapes = some_rows(objective, config, ROWS)
    batch = {part: {field: values(field, x) for field, x in fields.items()} for part, fields in shapes.items()}
    for fields in batch.values():
        fields['image/present'][NO_IMAGE] = False
        if 'mask/known' in fields:
            fields['mask/known'][NO_MASK] = 0
        for field, x in fields.items():
            if field.startswith('text/') and field.endswith('/length'):
                x[NO_TEXT] = 0
    return batch


def with_noise(batch: dict, other: dict) -> dict:
    """The batch with the pixels, tokens, keys and labels of another one wherever something is absent."""
    noisy = {part: {field: x.copy() for field, x in fields.items()} for part, fields in batch.items()}
    for part, fields in noisy.items():
        texts = any(field.startswith('text/') for field in fields)
        nothing = [6] if texts else NO_IMAGE
        for field, x in fields.items():
            if field in ('image', 'image/extent'):
                x[NO_IMAGE] = other[part][field][NO_IMAGE]
            elif field.startswith('text/') and not field.endswith('/length'):
                x[NO_TEXT] = other[part][field][NO_TEXT]
            elif field.startswith('mask'):
                unseen = NO_IMAGE + NO_MASK * (field == 'mask')
                x[unseen] = other[part][field][unseen]
            elif field == 'label' or field.startswith('key/'):
                x[nothing] = other[part][field][nothing]
    return noisy


@pytest.mark.parametrize('name', CASES)
def test_noise_in_absent_rows_changes_nothing(name):
    config = at_small_sizes(name)
    objective, optim, step = recipes.parts(config)
    state = recipes.start(objective, optim)
    batch = random_batch(objective, config, 0)
    noisy = with_noise(batch, random_batch(objective, config, 1))

    @jax.jit
    def run(state, batch):
        views = lambda rows: step.make_views(rows, state.key, state.step)  # noqa: E731
        loss, metrics, (_, statistics), grads = gradients(objective, state, batch, views, state.key, 1)
        return loss, metrics, statistics, grads

    expected, found = run(state, batch), run(state, noisy)
    assert np.isfinite(expected[0]) and recipes.worst(expected[3], jax.tree.map(np.zeros_like, expected[3])) > 0
    for what, a, b in zip(('loss', 'metrics', 'statistics', 'gradients'), found, expected, strict=True):
        assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)) or (
            recipes.worst(a, b) <= 1e-6
        ), what


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        ('simclr', r'terms\[0\] \(nt_xent\): compares the rows of a batch, and the batch has 1 row here'),
        ('byol', 'a batch norm gets one value of each channel'),
        ('demo', r'\(koleo\): compares the rows of a batch'),
    ],
)
def test_a_batch_of_one_row_is_refused_where_rows_are_compared(name, sentence):
    config = at_small_sizes(name, rows_per_group=1, drop_path=0.0)
    objective, optim, step = recipes.parts(config)
    state = jax.eval_shape(lambda: recipes.start(objective, optim))
    one = jax.tree.map(lambda x: x[:1], random_batch(objective, config, 0))
    with pytest.raises(UserError, match=sentence):
        jax.eval_shape(gradient_of(objective, step, 1), state, one)


def gradient_of(objective, step, micro_batches: int):
    """(state, batch) -> loss and gradient of a step in micro-batches, compiled."""

    def run(state, batch):
        views = lambda rows: step.make_views(rows, state.key, state.step)  # noqa: E731
        loss, _, _, grads = gradients(objective, state, batch, views, state.key, micro_batches)
        return loss, grads

    return jax.jit(run)


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.long) for name in NAMES])
def test_micro_batches_give_one_gradient_or_are_refused_by_name(name):
    config = at_small_sizes(name, rows_per_group=2, drop_path=0.0)  # groups of two rows make four micro-batches
    objective, optim, step = recipes.parts(config)
    if objective.batch_statistics:
        with pytest.raises(UserError, match=f'{objective.batch_statistics[0]} normalises by the statistics'):
            recipes.parts(config, micro_batches=2)
        return
    state, batch = recipes.start(objective, optim), random_batch(objective, config, 0)
    loss, whole = gradient_of(objective, step, 1)(state, batch)
    for micro_batches in (2, 4):
        split_loss, split = gradient_of(objective, step, micro_batches)(state, batch)
        assert abs(split_loss - loss) <= 1e-5 * abs(loss)
        assert recipes.worst(split, whole) <= 1e-5


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow if name == 'vicreg' else pytest.mark.long) for name in NAMES]
)
def test_eight_devices_give_one_gradient(name):
    """Each device has one row, and two of them an absent one; parameters are split over two devices."""
    config = at_small_sizes(name, rows_per_group=1, drop_path=0.0)
    found = []
    for mesh in (recipes.one_device(), sharding.make_mesh(4, 2, 1)):
        jax.set_mesh(mesh)
        objective, optim, step = recipes.parts(config)
        shardings = state_shardings(objective, jax.eval_shape(lambda: recipes.start(objective, optim)), mesh)  # noqa: B023
        state = recipes.start(objective, optim, shardings)
        batch = jax.device_put(random_batch(objective, config, 0), sharding.rows_sharding(mesh))
        found.append(jax.device_get(gradient_of(objective, step, 1)(state, batch)))
    (loss, one), (loss_of_eight, eight) = found
    assert np.isfinite(loss) and abs(loss_of_eight - loss) <= 1e-5 * abs(loss)
    # A bias before a batch norm has no gradient but rounding, and batch norms over eight rows multiply rounding.
    largest = max(np.abs(x).max() for x in jax.tree.leaves(one))
    tolerance = 3e-4 if jax.tree.leaves(state.aux['stats']) else 1e-5
    assert recipes.worst(eight, one, least=1e-3 * largest) <= tolerance
