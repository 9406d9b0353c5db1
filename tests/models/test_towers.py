"""Text towers and ResNets in a recipe: batch statistics, teachers, micro-batches, devices, frozen blocks, mistakes."""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from programs import run

from medjax.errors import UserError
from medjax.models import build
from medjax.models.heads import linear, mlp
from medjax.objectives.compose import compose
from medjax.parallel import sharding
from medjax.training.optimizer import optimizer, parameter_groups
from medjax.training.state import create, start_from
from medjax.training.step import gradients, make_step
from medjax.types import Input, View
from medjax.weights import export

TEXT = dict(tower='text', width=32, depth=2, heads=2, vocabulary=40, context=8)
RESNET = dict(tower='resnet', variant='18', stem=8, depths=(1, 2))


def texts(rows: int, count: int = 2, length: int = 8, first_row: int = 0) -> View:
    rng = np.random.default_rng(first_row)
    lengths = rng.integers(1, length + 1, (rows, count, 1))
    return View(
        jnp.asarray(rng.integers(0, 40, (rows, count, length)), jnp.int32),
        jnp.arange(first_row, first_row + rows, dtype=jnp.uint32),
        jnp.ones((rows, count), bool),
        jnp.asarray(np.arange(length) < lengths),
        {},
    )


def pictures(rows: int, count: int = 2, size: tuple[int, int] = (16, 24)) -> View:
    x = np.random.default_rng(0).normal(size=(rows, count, 1, *size, 1)).astype(np.float32)
    return View(jnp.asarray(x), jnp.arange(rows, dtype=jnp.uint32), jnp.ones((rows, count), bool), None, {})


def recipe(norm: str = 'batch', **changes: Any) -> dict[str, Any]:
    """A ResNet and its teacher on two views of a picture, and a BERT on a report."""
    return (
        dict(
            total_steps=10,
            rows_per_group=1,
            dtype='float32',
            image=dict(channels=1, mean=0.5, std=0.25),
            views={
                'global': dict(view='crop', part='cxr', count=2, size=(16, 24)),
                'local': dict(view='crop', part='cxr', count=2, size=16),
                'report': dict(view='text', part='cxr', length=8),
            },
            masks={},
            towers=dict(image=dict(RESNET, norm=norm), text=dict(TEXT, pool='max')),
            heads=dict(
                dino=dict(head='dino_head', prototypes=32, hidden=24, bottleneck=8), vt=dict(head='mlp', out=12)
            ),
            teachers=dict(teacher=dict(of=['towers/image', 'heads/dino'], rule='ema', momentum=0.9)),
            terms=[
                dict(
                    term='distill_cls',
                    student=['student/image/global/cls>dino', 'student/image/local/cls>dino'],
                    teacher='teacher/image/global/cls>dino',
                ),
                dict(term='koleo', of='student/text/report/cls>vt'),
            ],
            optim=dict(lr=1e-3),
        )
        | changes
    )


def views(rows: int) -> dict[str, View]:
    return {'global': pictures(rows), 'local': pictures(rows, size=(16, 16)), 'report': texts(rows)}


def started(cfg: dict[str, Any], micro_batches: int = 1) -> Any:
    objective = compose(cfg)
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    optim = optimizer(shapes, cfg['total_steps'], **cfg['optim'])
    step = make_step(objective, optim, lambda batch, key, step: (batch, {}), micro_batches)
    return objective, step, jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))


@pytest.mark.slow
def test_running_statistics_follow_the_batches_and_the_teacher_follows_them():
    objective, step, state = started(recipe())
    assert objective.batch_statistics == ('towers.image',)
    assert 'stats' not in state.params['towers']['image'], 'neither gradient nor optimiser may see them'
    seen = views(4)
    after, metrics = jax.jit(lambda s: step.step_on_views(s, seen, {}))(state)
    assert np.isfinite(metrics['loss']) and 'rank/student/image/global/cls' in metrics
    # the passes run one after the other, global and then local, and each updates the statistics of the one before
    stats = state.aux['stats']['student']['towers']['image']
    tower = objective.towers['image']
    stats_after = jax.jit(lambda params, view: tower.apply(params, Input(view), train=True)['stats'])
    for name in ('global', 'local'):
        stats = stats_after(state.params['towers']['image'] | dict(stats=stats), seen[name])
    assert recipes.worst(after.aux['stats']['student']['towers']['image'], stats) <= 1e-5
    assert recipes.worst(stats, state.aux['stats']['student']['towers']['image']) > 0.01
    expected = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, state.aux['stats']['teacher']['towers']['image'], stats)
    assert recipes.worst(after.aux['stats']['teacher']['towers']['image'], expected) <= 1e-5
    # an export holds the statistics of its network
    for network in ('student', 'teacher'):
        tower = objective.export(after.params, after.aux, network, ('towers/image',))['towers']['image']
        jax.tree.map(np.testing.assert_array_equal, tower['stats'], after.aux['stats'][network]['towers']['image'])
        assert jax.tree.structure(tower) == jax.tree.structure(objective.towers['image'].init(jax.random.key(0)))
    assert jax.tree.structure(objective.axes[1], is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(
        state.aux
    )


def test_a_step_that_is_skipped_keeps_the_statistics():
    towers = dict(image=dict(RESNET, depths=(1,)), text=dict(TEXT, depth=1))
    _, step, state = started(recipe(towers=towers))
    seen = views(4)
    seen['report'] = seen['report']._replace(x=seen['report'].x + 1000)  # ids outside of the vocabulary: NaN
    after, _ = jax.jit(lambda s: step.step_on_views(s, seen, {}))(state)
    assert int(after.skipped['total']) == 1
    jax.tree.map(np.testing.assert_array_equal, after.aux, state.aux)


@pytest.mark.slow
def test_micro_batches_are_refused_unless_the_statistics_are_frozen():
    with pytest.raises(UserError, match=r"micro_batches=2: towers\.image normalises .* norm='frozen'"):
        started(recipe(), 2)
    objective, _, state = started(recipe('frozen'), 2)
    assert objective.batch_statistics == ()
    results = {
        n: jax.jit(lambda s, v, n=n: gradients(objective, s, (v, {}), lambda part: part, s.key, n))(state, views(4))
        for n in (1, 2)
    }
    (loss1, _, carry1, grads1), (loss2, _, carry2, grads2) = results[1], results[2]
    assert abs(loss1 - loss2) <= 1e-5 * abs(loss1)
    assert recipes.worst(grads2, grads1) <= 1e-5
    for _, stats in (carry1, carry2):
        jax.tree.map(np.testing.assert_array_equal, stats, state.aux['stats']['student'])


def test_absent_pictures_enter_no_statistics():
    tower = build.tower(RESNET, 1, 'towers.image')
    params = tower.init(jax.random.key(0))
    whole, few = pictures(4, 1), pictures(3, 1)
    few = few._replace(x=whole.x[:3])
    absent = whole._replace(present=jnp.arange(4)[:, None] < 3, x=whole.x.at[3].set(100.0))
    run = jax.jit(lambda p, v: tower.apply(p, Input(v), train=True))
    expected, got = run(params, few), run(params, absent)
    np.testing.assert_allclose(got['cls'][:3], expected['cls'], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got['stats'], expected['stats'])
    nobody = run(params, whole._replace(present=jnp.zeros((4, 1), bool)))
    jax.tree.map(np.testing.assert_array_equal, nobody['stats'], params['stats'])
    assert np.isfinite(nobody['cls']).all()


def test_weights_of_two_files_come_with_their_statistics(tmp_path):
    """A tower has another name in the file. The student and its teacher get it, with its statistics."""
    objective, _, state = started(recipe())
    params, aux = objective.init(jax.random.key(7))
    stats = jax.tree.map(lambda x: x + 3, aux['stats']['student'])
    tree = objective.export(params, {**aux, 'stats': {'student': stats}}, 'student', ('towers/image', 'towers/text'))
    export.save(tmp_path / '1', {'towers': {'cxr': jax.device_get(tree['towers']['image'])}}, dict(step=1))
    export.save(tmp_path / '2', {'towers': {'text': jax.device_get(tree['towers']['text'])}}, dict(step=1))
    state, _ = start_from(str(tmp_path / '1'), state, objective.towers, take=['towers/image=towers/cxr'])
    state, _ = start_from(str(tmp_path / '2'), state, objective.towers)
    for towers in (state.params['towers'], state.aux['teachers']['teacher']['towers']):
        jax.tree.map(np.testing.assert_array_equal, towers['image'], params['towers']['image'])
    jax.tree.map(np.testing.assert_array_equal, state.params['towers']['text'], params['towers']['text'])
    for network in ('student', 'teacher'):
        jax.tree.map(np.testing.assert_array_equal, state.aux['stats'][network], stats)
    with pytest.raises(UserError, match="has no 'towers/txt'; did you mean 'towers/text'"):
        start_from(str(tmp_path / '2'), state, objective.towers, take=['towers/text=towers/txt'])


@pytest.mark.slow
def test_neither_layers_nor_remat_change_the_outputs():
    """If a stage has fewer blocks than `layers`, the output of its first block fills the missing places."""
    tower, stored = (build.tower(dict(RESNET, remat=remat), 1, 'x') for remat in ('none', 'blocks'))
    params = tower.init(jax.random.key(0))
    out = tower.apply(params, Input(pictures(2)), want=('last4/cls',))
    assert out['last4/cls'].shape == (2, 2, 4, tower.width)
    np.testing.assert_array_equal(out['last4/cls'][:, :, -1], out['cls'])
    np.testing.assert_array_equal(out['last4/cls'][:, :, 0], out['last4/cls'][:, :, 2])
    assert not np.allclose(out['last4/cls'][:, :, 2], out['last4/cls'][:, :, 3])

    def loss(tower: Any) -> Any:
        view = Input(pictures(2))
        return lambda p: jnp.sum(jnp.sin(tower.apply(p | dict(stats=params['stats']), view, train=True)['cls']))

    weights = {k: v for k, v in params.items() if k != 'stats'}
    assert recipes.worst(jax.jit(jax.grad(loss(stored)))(weights), jax.jit(jax.grad(loss(tower)))(weights)) <= 1e-4


@pytest.mark.slow
def test_frozen_prefix_of_the_text_stack():
    """As in ConVIRT: embeddings and the first blocks stay as they are, later blocks are trained."""
    tower = build.tower(dict(TEXT, depth=3), 1, 'x')
    params = dict(towers=dict(text=tower.init(jax.random.key(0))))
    frozen = [
        *(f'towers/text/{name}' for name in ('words', 'positions', 'segments', 'embed_norm/*')),
        'towers/text/blocks[0:2]/*',
    ]
    optim = optimizer(
        params, 10, lr=0.1, weight_decay=0.1, groups=[dict(match=match, lr_scale=0.0, wd_scale=0.0) for match in frozen]
    )
    after, *_ = optim.update(jax.tree.map(jnp.ones_like, params), optim.init(params), params, jnp.int32(0))
    before, now = params['towers']['text'], after['towers']['text']
    for name in ('words', 'positions', 'segments', 'embed_norm'):
        jax.tree.map(np.testing.assert_array_equal, now[name], before[name])
    for old, new in zip(jax.tree.leaves(before['blocks']), jax.tree.leaves(now['blocks']), strict=True):
        np.testing.assert_array_equal(new[:2], old[:2])
        assert (np.asarray(new[2]) != np.asarray(old[2])).all()


def test_layerwise_rates_of_towers_with_a_pool():
    """The pooling comes after the last block, so it is trained at the full learning rate."""
    tower = build.tower(dict(tower='vit', variant='S/4', family='siglip', width=16, depth=2, heads=2), 1, 'x')
    params = dict(towers=dict(image=jax.eval_shape(tower.init, jax.random.key(0))))
    table = parameter_groups(params, [dict(match='towers/image/*', layerwise=0.5)])['towers']['image']
    assert table['pool']['probe'].lr_scale == table['norm']['scale'].lr_scale == 1.0
    assert table['pos_grid'].lr_scale == 0.5**3
    assert table['blocks']['attn']['qkv']['bias'].lr_scale.ravel().tolist() == [0.25, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['bert', 'clip', 'resnet'])
def test_eight_devices_give_what_one_gives_and_rows_stay(kind):
    """Gradients and statistics are equal; a device has an eighth of the FLOPs; exchanges have shapes of parameters."""
    if jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    cfg = dict(RESNET, stem=16) if kind == 'resnet' else dict(TEXT, family=kind, width=64)
    tower = build.tower(cfg, 1, 'x')
    params = tower.init(jax.random.key(0))
    inputs = pictures(16, 1) if kind == 'resnet' else texts(16)

    def step(params: Any, view: View) -> Any:
        def loss(params: Any) -> Any:
            out = tower.apply(params, Input(view), train=True)
            return jnp.sin(3 * out['cls']).sum(), out.get('stats')

        return jax.grad(loss, has_aux=True)(params)

    eighth = jax.tree.map(lambda x: x[:2], inputs)
    alone = jax.jit(step).lower(params, eighth).compile().cost_analysis()['flops']
    expected = jax.jit(step)(params, inputs)
    for shape in ((8, 1, 1), (1, 8, 1)):
        mesh = sharding.make_mesh(*shape)
        with jax.set_mesh(mesh):
            held = jax.device_put(params, sharding.param_shardings(tower.axes, params, mesh))
            rows = jax.device_put(inputs, sharding.rows_sharding(mesh))
            where = jax.tree.map(lambda x: x.sharding, held)
            out = where, (where['stats'] if kind == 'resnet' else None)
            many = jax.jit(step, out_shardings=out).lower(held, rows).compile()
            got = many(held, rows)
        scale = max(np.abs(x).max() for x in jax.tree.leaves(expected[0]))
        jax.tree.map(lambda a, b, s=scale: np.testing.assert_allclose(a, b, atol=2e-5 * s), got[0], expected[0])
        if kind == 'resnet':
            assert recipes.worst(got[1], expected[1]) <= 1e-5
        flops = many.cost_analysis()['flops']
        assert flops <= 1.1 * alone, f'{shape}: {flops:.4g} FLOPs a device, {alone:.4g} for its share alone'
        sizes = {1} | {math.prod(leaf.shape[n:]) for leaf in jax.tree.leaves(params) for n in (0, 1)}
        sizes |= {n // 8 for n in sizes if n % 8 == 0}
        for line in re.findall(r'= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(',
                               many.as_text()):  # fmt: skip
            for dims in re.findall(r'\w+\[([\d,]*)\]', line):
                assert math.prod(int(n) for n in dims.split(',') if n) in sizes, (shape, line)


def test_projection_heads_are_their_formulas():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 8)).astype(np.float32)
    head = mlp.build(8, 5, hidden=6, norm=True, activation='relu')
    p = jax.tree.map(lambda a: np.float32(a + rng.normal(size=a.shape)), run(head.init, jax.random.key(0)))
    assert jax.tree.structure(head.axes, is_leaf=lambda a: isinstance(a, tuple)) == jax.tree.structure(p)
    y = np.maximum(x.astype(np.float64) @ p['fc1']['kernel'] + p['fc1']['bias'], 0)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-12)
    y = (y * p['norm1']['scale'] + p['norm1']['bias']) @ p['fc2']['kernel'] + p['fc2']['bias']
    np.testing.assert_allclose(run(head.apply, p, x), y, atol=1e-4)
    plain = linear.build(8, 5)
    p = run(plain.init, jax.random.key(0))
    assert set(p['fc1']) == {'kernel'} and plain.prototype_count == 0
    np.testing.assert_allclose(run(plain.apply, p, x), x @ np.asarray(p['fc1']['kernel']), atol=1e-5)
    start = jax.eval_shape(mlp.build(8, 5).init, jax.random.key(0))
    half = jax.eval_shape(mlp.build(8, 5, dtype='bfloat16').apply, start, x)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(TEXT, family='brt'), "unknown family 'brt'; did you mean 'bert'"),
        (dict(TEXT, variant='Q'), "unknown variant 'Q'; sizes: Ti"),
        (dict(TEXT, pool='first'), "unknown pool 'first'"),
        (dict(TEXT, activation='glu'), "unknown activation 'glu'"),
        (dict(TEXT, context=0), 'context=0: must be'),
        (dict(TEXT, vocab=3), r"towers\.x: unknown key 'vocab'"),
        (dict(TEXT, heads=3), 'width 32 is not divisible by 3 heads'),
        (dict(RESNET, variant='51'), "unknown variant '51'; sizes: 18"),
        (dict(RESNET, norm='group'), "unknown norm 'group'"),
        (dict(RESNET, stem=0), 'stem=0'),
        (dict(tower='vit', family='clop'), "unknown family 'clop'; did you mean 'clip'"),
    ],
)
def test_mistakes_get_a_sentence(cfg, message):
    with pytest.raises(UserError, match=message):
        build.tower(cfg, 1, 'towers.x')


def test_texts_that_do_not_fit_the_tower_get_a_sentence():
    bert, siglip = (build.tower(dict(TEXT, family=family), 1, 'x') for family in ('bert', 'siglip'))
    params = jax.eval_shape(bert.init, jax.random.key(0))
    with pytest.raises(UserError, match='texts of 9 tokens, but this tower reads at most 8'):
        jax.eval_shape(lambda p: bert.apply(p, Input(texts(2, length=9))), params)
    with pytest.raises(UserError, match='texts of 7 tokens, but this tower reads exactly 8'):
        jax.eval_shape(
            lambda p: siglip.apply(p, Input(texts(2, length=7))), jax.eval_shape(siglip.init, jax.random.key(0))
        )
    assert (bert.vocabulary, bert.context, bert.sees) == (40, 8, 'text')


def test_an_output_that_a_tower_lacks_is_a_sentence():
    cfg = recipe(terms=[dict(term='koleo', of='student/text/report/patches')], heads={}, teachers={})
    objective = compose(cfg)
    params, aux = jax.eval_shape(objective.init, jax.random.key(0))
    with pytest.raises(UserError, match="there is no output 'patches'.*known: cls"):
        jax.eval_shape(
            lambda p, a: objective.features(p, a, views(2), {}, jax.random.key(0), jnp.int32(0)), params, aux
        )
