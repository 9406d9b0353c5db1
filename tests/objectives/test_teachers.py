"""Teachers: frozen, refreshed and ema, what the student has of them, and the sentences of mistakes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.parallel import sharding
from medjax.training.state import (
    abstract_state,
    copies_of_sources,
    create,
    make_optimizer,
    state_shardings,
)
from medjax.training.step import make_step

VIT = dict(tower='vit', variant='S/8', width=16, depth=1, heads=2, native_size=16)
LARGE = dict(VIT, width=24)
RESNET = dict(tower='resnet', variant='18', stem=8, depths=(1, 1))
OF = ['towers/image', 'heads/to']
PUBLIC = dict(rule='frozen', of=['towers/large'], init_from=dict(path='x', take=['towers/large=towers/image']))


def recipe(teachers: dict[str, Any], teacher: str, width: int = 16, **changes: Any) -> dict[str, Any]:
    """A ViT whose CLS features, after a head, follow those of a teacher."""
    base = dict(
        total_steps=10,
        rows_per_group=1,
        dtype='float32',
        image=dict(channels=1, mean=0.5, std=0.25),
        views=dict(crop=dict(view='crop', part='cxr', size=16)),
        masks={},
        towers=dict(image=VIT),
        heads=dict(to=dict(head='linear', out=width)),
        teachers=teachers,
        terms=[dict(term='regress', student='student/image/crop/cls>to', teacher=teacher)],
        optim=dict(lr=1e-2),
    )
    return base | changes


def same(a: Any, b: Any) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


def test_what_each_rule_does_in_four_steps():
    teachers = dict(
        target=dict(rule='refreshed', of=['towers/image'], source='slow', every=2),
        start=dict(rule='frozen', of=OF, init_from=dict(path='x', take=OF)),
        slow=dict(rule='ema', of=OF, momentum=0.9),
        copy=dict(rule='refreshed', of=OF, every=3),
    )
    objective, optim, step = recipes.parts(recipe(teachers, 'start/image/crop/cls'))
    state = jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))
    run = jax.jit(step.train_step)
    first = state
    held = {name: {kind: set(named) for kind, named in tree.items()} for name, tree in state.aux['teachers'].items()}
    both = dict(towers={'image'}, heads={'to'})
    assert held == dict(target=dict(towers={'image'}), start=both, slow=both, copy=both)
    for name in ('start', 'slow', 'copy'):
        assert same(state.aux['teachers'][name], {kind: state.params[kind] for kind in ('towers', 'heads')})
    for n in range(1, 5):
        before, (state, metrics) = state, jax.device_get(run(state, recipes.batch(8, seed=n)))
        assert int(state.skipped['total']) == 0 and float(metrics['loss']) > 0
        now, old = state.aux['teachers'], before.aux['teachers']
        student = {kind: state.params[kind] for kind in ('towers', 'heads')}
        assert not same(student['towers'], before.params['towers'])
        assert same(now['start'], first.aux['teachers']['start'])
        expected = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, old['slow'], student)
        assert recipes.worst(now['slow'], expected) <= 1e-5
        if n % 2 == 0:
            # the compiler may round the same sum in two ways
            assert recipes.worst(now['target'], dict(towers=now['slow']['towers'])) <= 1e-6
        else:
            assert same(now['target'], old['target'])
        assert recipes.worst(now['copy'], student if n % 3 == 0 else old['copy']) <= 1e-6


@pytest.mark.parametrize('large', [LARGE, RESNET], ids=['vit', 'resnet'])
def test_the_student_has_nothing_of_a_tower_that_is_the_teachers_alone(large):
    cfg = recipe({'public': PUBLIC}, 'public/large/crop/cls', towers=dict(image=VIT, large=large))
    cfg['heads']['to']['out'] = compose_width(cfg)
    objective = compose(cfg)
    state = abstract_state(objective, make_optimizer(objective, cfg['optim'], 10))
    assert objective.teacher_only == ('towers/large',)
    assert set(state.params['towers']) == {'image'} and set(state.aux['teachers']['public']['towers']) == {'large'}
    moments = jax.tree.leaves(state.opt)
    assert len(moments) <= 2 * len(jax.tree.leaves(state.params)) + 1  # two for each parameter, and the count
    assert objective.axes[0].keys() == state.params.keys()
    if large is RESNET:  # its statistics are those of the teacher, which no pass moves
        assert 'large' in state.aux['stats']['public']['towers'] and 'towers' not in state.aux['stats']['student']
        assert objective.batch_statistics == ()


def compose_width(cfg: dict[str, Any]) -> int:
    from medjax.models import build

    return build.towers(cfg['towers'], 1)['large'].width


@pytest.mark.slow
def test_a_teacher_has_no_gradient_and_its_tower_stays():
    cfg = recipe({'public': PUBLIC}, 'public/large/crop/cls', 24, towers=dict(image=VIT, large=LARGE))
    objective = compose(cfg)
    optim = make_optimizer(objective, cfg['optim'], 10)
    step = make_step(objective, optim, recipes.views(cfg, objective))
    state = jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))
    after, metrics = jax.jit(step.train_step)(state, recipes.batch(8))
    assert same(after.aux['teachers'], state.aux['teachers'])
    assert not same(after.params['towers']['image'], state.params['towers']['image'])
    views, masks = step.make_views(recipes.batch(8), state.key, jnp.int32(0))

    def loss(aux):
        args = views, masks, state.key, state.step
        computed, _ = objective.features(state.params, aux, *args)
        return objective.loss(state.params, aux, computed, *args)[0]

    gradient = jax.grad(lambda teachers: loss({**state.aux, 'teachers': teachers}))(state.aux['teachers'])
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))
    assert float(metrics['loss']) == pytest.approx(float(loss(state.aux)), rel=1e-4)


@pytest.mark.slow
def test_a_frozen_teacher_on_a_mesh_is_split_and_stays():
    """The loss is that of one device, the large tower is split over fsdp and tensor, and a step leaves it as it is."""
    cfg = recipe({'public': PUBLIC}, 'public/large/crop/cls', 24, towers=dict(image=VIT, large=LARGE))
    losses = []
    for mesh in (recipes.one_device(), sharding.make_mesh(2, 2, 2)):
        jax.set_mesh(mesh)
        objective, optim, step = recipes.parts(cfg)
        shardings = state_shardings(objective, abstract_state(objective, optim), mesh)
        state = recipes.start(objective, optim, shardings)
        batch = jax.device_put(recipes.batch(8), sharding.rows_sharding(mesh))
        after, metrics = jax.jit(step.train_step, out_shardings=(shardings, None))(state, batch)
        assert same(after.aux['teachers'], state.aux['teachers'])
        losses.append(float(metrics['loss']))
    kernel = after.aux['teachers']['public']['towers']['large']['blocks']['mlp']['fc1']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_tower_that_the_student_runs_too_needs_no_weights_of_its_own():
    frozen = dict(rule='frozen', of=['towers/large'])
    cfg = recipe({'start': frozen}, 'start/large/crop/cls', 24, towers=dict(image=VIT, large=LARGE))
    cfg['terms'].append(dict(term='koleo', of='student/large/crop/cls'))
    with pytest.raises(UserError, match="teachers.start: 'towers/large' has new weights, and a frozen teacher would"):
        compose(cfg)
    objective = compose(cfg | dict(init_from=dict(path='x')))
    params, aux = jax.eval_shape(objective.init, jax.random.key(0))
    assert objective.teacher_only == () and set(params['towers']) == {'image', 'large'}


FROZEN = dict(rule='frozen', of=['towers/large'])
SLOW = dict(rule='ema', of=['towers/image'], momentum=0.9)


@pytest.mark.parametrize(
    ('teachers', 'changes', 'words'),
    [
        (
            dict(public=FROZEN),
            {},
            [
                "teachers.public: 'towers/large' belongs to this teacher alone",
                'would teach noise',
                "take=['towers/large=towers/image']",
            ],
        ),
        # weights for another tower are no weights for this one
        (dict(public=FROZEN), dict(init_from=dict(path='x', take=['towers/image'])), ['would teach noise']),
        (dict(public=dict(FROZEN, init_from=dict(path='x', take=['towers/image']))), {}, ['would teach noise']),
        (dict(public=dict(PUBLIC, init_from='x')), {}, ["teachers.public.init_from='x'", "dict(path='x')"]),
        (
            dict(public=dict(PUBLIC, init_from=dict(path='x', take='towers/large'))),
            {},
            ["teachers.public.init_from.take='towers/large'", 'must be a list'],
        ),
        (dict(public=dict(PUBLIC, init_from=dict(take=[]))), {}, ['teachers.public.init_from', 'the path of weights']),
        (dict(public=dict(PUBLIC, of=['towers/lrage'])), {}, ["of: there is no 'towers/lrage'; did you mean"]),
        (
            dict(public=dict(PUBLIC, of=['towers/image'])),
            {},
            ["'public' does not hold 'towers/large'; add it to teachers.public.of"],
        ),
        (
            dict(public=PUBLIC, a=dict(rule='refreshed', of=['towers/image'], source='public', every=2)),
            {},
            ["teachers.a.of: the teacher 'public' does not hold 'towers/image'"],
        ),
        (
            dict(
                public=PUBLIC,
                a=dict(rule='refreshed', of=['towers/image'], source='b', every=2),
                b=dict(rule='refreshed', of=['towers/image'], source='a', every=2),
            ),
            {},
            ['teachers.a.source: teachers follow each other in a circle: a -> b'],
        ),
        (
            dict(public=PUBLIC, a=dict(rule='refreshed', of=['towers/image'], source='a', every=2)),
            {},
            ["teachers.a.source: there is no other network 'a'"],
        ),
        (
            dict(public=PUBLIC, slow=SLOW, a=dict(rule='refreshed', of=['towers/image'], source='slwo', every=2)),
            {},
            ["no other network 'slwo'; did you mean 'slow'?"],
        ),
        (
            dict(public=PUBLIC, a=dict(rule='refreshed', of=['towers/image'], every=0)),
            {},
            ['teachers.a.every=0', 'at least 1'],
        ),
        (dict(public=PUBLIC, a=dict(rule='refreshed', of=['towers/image'])), {}, ["the key 'every' is missing"]),
        (dict(public=dict(PUBLIC, momentum=0.9)), {}, ["teachers.public: unknown key 'momentum'"]),
        (
            dict(public=PUBLIC, a=dict(rule='frosen', of=['towers/image'])),
            {},
            ["no rule 'frosen'", "did you mean 'frozen'?"],
        ),
        (
            dict(public=PUBLIC),
            dict(export=dict(network='student', towers=['large'], heads=[], encoder=None)),
            ["export.towers: 'large' belongs to a teacher alone", 'export.network'],
        ),
    ],
)
def test_a_mistake_is_a_sentence(teachers, changes, words):
    cfg = recipe(teachers, 'public/large/crop/cls', 24, towers=dict(image=VIT, large=LARGE), **changes)
    with pytest.raises(UserError) as error:
        compose(cfg)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_student_and_teacher_of_other_widths_need_a_head():
    cfg = recipe({'public': PUBLIC}, 'public/large/crop/cls', 16, towers=dict(image=VIT, large=LARGE))
    with pytest.raises(UserError, match=r"has 16 numbers and 'public/large/crop/cls' has 24; .*head='linear', out=24"):
        compose(cfg)


def test_a_teacher_that_follows_a_teacher_begins_as_its_copy():
    """The weights of a frozen teacher are loaded into it alone; without a copy the other would teach noise at first."""
    teachers = dict(
        near=dict(rule='refreshed', of=['towers/large'], source='public', every=5),
        public=PUBLIC,
    )
    objective, optim, _ = recipes.parts(
        recipe(teachers, 'near/large/crop/cls', 24, towers=dict(image=VIT, large=LARGE))
    )
    state = jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))
    loaded = jax.tree.map(lambda x: np.asarray(x) + 1, state.aux['teachers']['public'])
    state = state._replace(aux={**state.aux, 'teachers': {**state.aux['teachers'], 'public': loaded}})
    teachers = copies_of_sources(objective, state).aux['teachers']
    assert same(teachers['near'], loaded) and same(teachers['public'], loaded)
