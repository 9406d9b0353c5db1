"""Latent prediction as a recipe: micro-batches, several devices, what it costs, absent rows."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import pytest
import recipes
from collectives import collectives

from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.parallel import sharding
from medjax.training.state import abstract_state, state_shardings
from medjax.training.step import gradients

STUDENT = 'student/predictor/crop~block/patches@block'
TEACHER = 'teacher/image/crop/patches@block'


def recipe(loss='smooth_l1', **changes):
    """Images of 48 px in 36 patches of 8 px; no array has the shape of a parameter."""
    cfg = dict(
        total_steps=10,
        rows_per_group=2,
        dtype='float32',
        image=dict(channels=1, mean=0.5, std=0.25),
        views=dict(crop=dict(view='crop', part='cxr', size=48, count=2, area=(0.4, 1.0), photometric=None)),
        masks={'crop~block': dict(mask='multiblock', min_keep=2, contexts=2, longest=13)},
        towers=dict(
            image=dict(tower='vit', variant='S/8', width=32, depth=2, heads=2, family='ijepa'),
            predictor=dict(tower='predictor', reads=['image'], width=20, depth=1, heads=2),
        ),
        heads={},
        teachers=dict(teacher=dict(of=['towers/image'], rule='ema', momentum=0.9)),
        terms=[dict(term='regress', student=STUDENT, teacher=TEACHER, loss=loss)],
        optim=dict(lr=1e-3),
    )
    return cfg | changes


OWN, OTHERS = (f'student/predictor/altered~block/{output}@block' for output in ('patches', 'others'))


def world(**changes):
    """The same with two crops of one size, of which each predicts the other too, and is told its changes."""
    cfg = recipe()
    regress = dict(term='regress', teacher='teacher/image/clean/mean2/patches@block')
    clean = dict(view='crop', part='cxr', size=48, count=2, area=(0.4, 1.0), flip=0.5, one_size=True)
    altered = dict(clean, boxes='clean', on_top=True, blur=0.5, photometric='exposure', noise=0.5)
    mask = dict(
        mask='multiblock', family='chexworld', targets=3, min_keep=2, contexts=2, merge=True, longest=13,
        longest_set=11,
    )  # fmt: skip
    predictor = dict(
        cfg['towers']['predictor'], positions='relative', condition='replace',
        told=['brightness', 'contrast', 'gamma', 'blur', 'noise'],
    )  # fmt: skip
    cfg |= dict(
        views=dict(clean=dict(clean, photometric=dict(set='exposure', gamma=1.0, per='row')), altered=altered),
        masks={'altered~block': mask},
        towers=dict(cfg['towers'], predictor=predictor),
        terms=[
            dict(regress, name='intra', student=OWN, weight=0.5),
            dict(regress, name='extra', student=OTHERS, weight=0.5),
            dict(term='token_deviation', of=[OWN, OTHERS], weight=0.1),
        ],
    )
    return cfg | changes


RECIPES = dict(smooth_l1=recipe, mse=functools.partial(recipe, 'mse'), world=world)


@functools.cache
def compiled(micro_batches, name):
    """A program that gives loss, metrics and gradient of a step, and the state for it."""
    objective, optim, step = recipes.parts(RECIPES[name](), micro_batches)
    state = recipes.start(objective, optim)

    def run(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        views = functools.partial(step.make_views, key=key, step=state.step)
        loss, metrics, _, grads = gradients(objective, state, batch, views, key, micro_batches)
        return loss, metrics, grads

    return jax.jit(run), state


@pytest.mark.long
@pytest.mark.parametrize('name', RECIPES)
def test_micro_batches_give_one_gradient(name):
    run, state = compiled(1, name)
    whole_loss, metrics, whole = run(state, recipes.batch(8))
    assert any(name.startswith('rank/student/image/') for name in metrics)
    for n in (2, 4):
        loss_n, metrics_n, grads = compiled(n, name)[0](state, recipes.batch(8))
        assert abs(loss_n - whole_loss) <= 1e-5 * abs(whole_loss)
        assert recipes.worst(grads, whole) <= 1e-5
        assert recipes.worst(metrics_n, metrics) <= 1e-4


@pytest.mark.long
@pytest.mark.parametrize('name', ['smooth_l1', 'world'])
def test_each_device_does_an_eighth_and_nothing_travels(name):
    rows, cfg = 32, RECIPES[name]()
    jax.set_mesh(recipes.one_device())
    objective, optim, step = recipes.parts(cfg)
    state = recipes.start(objective, optim)
    alone = jax.jit(step.train_step).lower(state, recipes.batch(rows // 8)).compile().cost_analysis()['flops']

    mesh = sharding.make_mesh(8, 1, 1)
    jax.set_mesh(mesh)
    shardings = state_shardings(objective, abstract_state(objective, optim), mesh)
    state = recipes.start(objective, optim, shardings)
    placed = jax.device_put(recipes.batch(rows), sharding.rows_sharding(mesh))
    program = jax.jit(step.train_step, out_shardings=(shardings, None)).lower(state, placed).compile()
    assert program.cost_analysis()['flops'] <= 1.1 * alone

    views, masks = jax.eval_shape(step.make_views, placed, state.key, state.step)
    computed, _ = jax.eval_shape(objective.features, state.params, state.aux, views, masks, state.key, state.step)
    predictions = [feature for feature in computed.features if '/predictor/' in feature]
    assert not predictions, 'predictions are dropped after the row-wise stage'
    allowed = objective.moves(rows, {name: x.shape for name, x in computed.features.items()})
    parameters = recipes.parameter_shapes(state.params, 8)
    moved = [dims for _, dims in collectives(program.as_text()) if recipes.plain(dims) not in parameters]
    assert sum(map(math.prod, moved)) <= allowed, moved


def changed(name, **options):
    """The recipe `world` with other options of a view or of the predictor."""
    kind = 'towers' if name == 'predictor' else 'views'
    section = world()[kind]
    return world(**{kind: {**section, name: dict(section[name], **options)}})


def term(**options):
    return world(terms=[dict(term='token_deviation', **options)])


def two_masks():
    views, (mask,) = world()['views'], world()['masks'].values()
    return world(views=dict(views, third=views['altered']), masks={'altered~block': mask, 'third~block': mask})


@pytest.mark.parametrize(
    ('cfg', 'words'),
    [
        (recipe(masks={'crop~block': dict(mask='random', share=0.5)}), 'must be targets, crop by crop; give the'),
        (recipe(masks={'crop~block': dict(mask='blocks')}), 'must be targets, crop by crop; give the'),
        (
            recipe(towers=dict(recipe()['towers'], predictor=dict(tower='predictor', reads=['image', None]))),
            'one tower',
        ),
        (
            recipe(towers=dict(recipe()['towers'], predictor=dict(tower='predictor', reads=['image'], width=22))),
            'width 22 must be divisible by 4 and by its 12 heads',
        ),
        (changed('predictor', positions='near'), "unknown positions 'near'"),
        (changed('predictor', positions='fixed'), "for the output 'others' it must know where crops lie; set"),
        (changed('predictor', condition='more'), "condition='more': must be 'replace', 'add', 'token' or None"),
        (changed('predictor', told=[]), r"condition='replace' and told=\[\]: give both, or none"),
        (changed('predictor', told='gamma'), "told='gamma': must be a list of texts"),
        (changed('predictor', told=['gama']), "told names 'gama', which the view does not draw .*did you mean 'gamma'"),
        (changed('predictor', told=['boxes']), "told names 'boxes', which the view does not draw for each crop"),
        (changed('predictor', positions='fixed', one_code=True), 'one_code=True is for relative positions'),
        (world(views={name: dict(view, count=1) for name, view in world()['views'].items()}), 'show two crops or more'),
        (changed('clean', blur=0.5), "views.altered.on_top: 'clean' has blur or noise"),
        (changed('altered', boxes=None), 'views.altered.on_top: name the view whose changes come first'),
        (changed('clean', one_size=1), 'views.clean.one_size=1: must be True or False'),
        (changed('altered', noise=2.0), 'views.altered.noise: one share in 0..1'),
        (changed('altered', noise_sigma=(0.2, 0.1)), 'views.altered.noise_sigma: two numbers, 0 < low <= high'),
        (changed('altered', photometric=dict(set='exposure', gamma=0.5)), 'photometric.gamma=0.5: must be a number of'),
        (changed('altered', photometric=dict(set='exposure', contrast=2)), 'photometric.contrast=2: must be a number'),
        (changed('altered', photometric=dict(set='exposure', share=2)), 'photometric.share=2: must be a share'),
        (changed('altered', photometric=dict(set='exposure', per='image')), "per='image': must be 'crop' or 'row'"),
        (term(of=['student/image/clean/cls']), 'its features must be tokens at one mask'),
        (term(of=['teacher/image/clean/mean3/patches@block']), "has no 3 blocks; name mean2/… at most"),
        (term(of=OWN, floor=0), 'floor=0: must be a number above 0'),
        (two_masks(), "altered and third show the boxes of 'clean', and each has a mask 'block'"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(cfg, words):
    def built():
        objective = compose(cfg)
        params, aux = jax.eval_shape(objective.init, jax.random.key(0))
        key, step = jax.random.key(0), jnp.int32(0)
        views, masks = jax.eval_shape(recipes.views(cfg, objective), recipes.batch(4), key, step)
        jax.eval_shape(objective.features, params, aux, views, masks, key, step)

    with pytest.raises(UserError, match=words):
        built()
