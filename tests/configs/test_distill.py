"""The recipes of distillation with small towers: public weights as the teacher, the loss by its formula, the export."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import published_names
import pytest
import recipes
from safetensors.numpy import save_file

from medjax import config as configs
from medjax.errors import UserError
from medjax.models import build
from medjax.objectives.compose import compose
from medjax.training import rehearsal
from medjax.training.export import Exporter
from medjax.training.state import create, make_optimizer, start_from
from medjax.training.step import make_step
from medjax.types import Input
from medjax.weights import export

WIDTH = 24  # of the teacher
SMALL = [
    'total_steps=10', 'batch_size=8', 'dtype=float32', 'views.crop.size=28', f'towers.large.width={WIDTH}',
    'towers.large.depth=2', 'towers.large.heads=3', 'towers.large.native_size=42', f'heads.cls.out={WIDTH}',
    'optim.schedule.warmup=0',
]  # fmt: skip
OF = dict(
    distill_vits14=[
        'towers.image.width=16', 'towers.image.depth=1', 'towers.image.heads=2', 'towers.image.native_size=28',
        f'heads.patches.out={WIDTH}',
    ],
    distill_resnet50=[
        'towers.image.variant=18', 'towers.image.stem=8', 'towers.image.depths=(1, 1)', 'heads.cls.hidden=16'
    ],
)  # fmt: skip


@pytest.fixture(scope='module')
def public(tmp_path_factory) -> Path:
    """A file in DINOv2's names with random weights of a small ViT, whose positions are for other images."""
    tower = build.tower(dict(tower='vit', variant='B/14', width=WIDTH, depth=2, heads=3, native_size=42), 3, 'x')
    params = tower.init(jax.random.key(7))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(8), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    state = published_names.to_meta(jax.device_get(jax.tree.unflatten(structure, noisy)))
    path = tmp_path_factory.mktemp('public') / 'vitb14.safetensors'
    save_file({name: np.ascontiguousarray(x, np.float32) for name, x in state.items()}, path)
    return path


def small(public: Path, name: str = 'distill_vits14', *more: str) -> configs.Config:
    """The shipped recipe with small towers."""
    return configs.check(configs.resolve(configs.read(f'{name}:{public}', [*SMALL, *OF[name], *more]), {}))


def test_the_argument_is_the_path_of_the_weights(public):
    start = small(public)['teachers']['public']['init_from']
    assert start == dict(path=str(public), take=('towers/large=towers/image',))
    other = configs.read('distill_vits14', ['teachers.public.init_from.path=other.safetensors'])
    assert other.teachers.public.init_from.path == 'other.safetensors'


@pytest.mark.slow
@pytest.mark.parametrize('name', OF)
def test_three_steps(name, public, tmp_path):
    config = small(public, name)
    objective = compose(config)
    optim = make_optimizer(objective, config['optim'], 10)
    step = make_step(objective, optim, recipes.views(config, objective))
    state = jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))
    start = config['teachers']['public']['init_from']
    state, _ = start_from(**start, state=state, towers=objective.towers, network='public')
    assert set(state.params['towers']) == {'image'} and set(state.params['heads']) == set(config['heads'])
    theirs = published_names.backbone(export.read_safetensors(public), heads=3)
    run = jax.jit(step.step_on_views)
    for n in range(3):
        views, masks = step.make_views(recipes.batch(8, seed=n), jax.random.key(n), jnp.int32(n))
        assert recipes.worst(state.aux['teachers']['public'], dict(towers=dict(large=theirs))) == 0
        expected = losses(objective, state, views['crop'], theirs)
        before, (state, metrics) = state, run(state, views, masks)
        for term, (loss, start) in expected.items():
            assert float(metrics[f'term/{term}/loss']) == pytest.approx(loss, rel=1e-5)
            assert float(metrics[f'term/{term}/start']) == pytest.approx(start, rel=1e-5)
        assert float(metrics['loss']) == pytest.approx(sum(loss for loss, _ in expected.values()), rel=1e-5)
        assert recipes.worst(state.params, before.params) > 1e-4
    assert set(expected) == ({'cls', 'patches'} if name == 'distill_vits14' else {'cls'})

    Exporter(tmp_path, objective, config, 'x', None, True).write(3, state)
    tree, meta = export.load(tmp_path / 'exports' / '3')
    assert list(tree) == ['towers'] and list(tree['towers']) == ['image'] == list(meta['towers'])
    kept = objective.export(state.params, state.aux, 'student', ('towers/image',))
    assert recipes.worst(tree, jax.device_get(kept)) == 0


def losses(objective: Any, state: Any, view: Any, theirs: Any) -> dict[str, tuple[float, float]]:
    """Loss and start of each term in float64: targets normalised over their numbers, the mean of squared errors."""
    params = objective.export(
        state.params, state.aux, 'student', ('towers/image', *(f'heads/{h}' for h in objective.heads))
    )
    ours = objective.towers['image'].apply(params['towers']['image'], Input(view), train=True)  # batch statistics
    public = objective.towers['large'].apply(theirs, Input(view))
    result = {}
    for name in objective.terms:
        z = np.float64(ours[name])
        for i in range(1, len(params['heads'][name]) + 1):
            layer = jax.tree.map(np.float64, params['heads'][name][f'fc{i}'])
            z = (z if i == 1 else np.maximum(z, 0)) @ layer['kernel'] + layer['bias']
        t = np.float64(public[name])
        t = (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-5)
        result[name] = np.mean((z - t) ** 2), t.reshape(-1, WIDTH).var(0).mean()
    return result


@pytest.mark.parametrize(
    ('start', 'words'),
    [
        (
            dict(take=('towers/image',)),
            ['teachers.public.init_from.take', "the teacher 'public' has no 'towers/image'", 'towers/large'],
        ),
        (
            dict(take=('towers/large=towers/large',)),
            ['teachers.public.init_from.take', "has no 'towers/large'", 'towers/image'],
        ),
        (dict(path='nowhere.safetensors'), ['teachers.public.init_from.path', 'nowhere.safetensors', 'no such file']),
        (dict(), ['teachers.public.init_from.path', "take=['towers/large=towers/image']"]),
    ],
)
def test_weights_that_do_not_fit(start, words, public):
    config = small(public)
    objective = compose(config)
    optim = make_optimizer(objective, config['optim'], 10)
    state = jax.eval_shape(lambda key: create(objective, optim, key), jax.random.key(0))
    with pytest.raises(UserError) as error:
        start_from(**(dict(path=str(public)) | start), state=state, towers=objective.towers, network='public')
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(('side', 'fits'), [(16, True), (24, False)])
def test_patches_of_a_resnet_need_the_grid_of_the_teacher(side, fits, public):
    """As the docstring of the recipe says: a second view of the same boxes, here for 2 x 2 places of 8 px."""
    config = configs.read(f'distill_resnet50:{public}', [*SMALL, *OF['distill_resnet50']])
    config.views.large = dict(view='crop', part='cxr', size=side, boxes='crop', photometric='radiograph')
    config.heads.patches = dict(head='linear', out=WIDTH, bias=True)
    student, teacher = 'student/image/large/patches>patches', 'public/large/crop/patches'
    config.terms.append(dict(term='regress', name='patches', student=student, teacher=teacher))
    config, objective, views = rehearsal.without_data(configs.check(configs.resolve(config, {})))
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match='grids of patches'):
        rehearsal.rehearse(objective, views, config)
