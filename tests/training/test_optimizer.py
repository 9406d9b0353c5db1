"""Parameter groups, clipping, schedules, model FLOPs and checkpoints: each against a plain computation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from medjax.errors import UserError
from medjax.models import build
from medjax.objectives.schedules import FINITE, NOT_NEGATIVE, POSITIVE, SHARE, schedule
from medjax.training.checkpoint import Checkpoints, abstract
from medjax.training.flops import model_flops
from medjax.training.optimizer import Group, optimizer, parameter_groups
from medjax.types import TrainState


def params():
    rng = np.random.default_rng(0)
    shapes = {
        'towers': {
            'image': {'patch_embed': {'kernel': (4, 3)}, 'blocks': {'fc': {'kernel': (4, 3, 3), 'bias': (4, 3)}}},
        },
        'heads': {'dino': {'prototypes': {'gain': (5,)}}},
    }
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=is_shape)


def test_factors_multiply_and_the_last_rule_decides():
    table = parameter_groups(
        params(),
        [
            dict(match='towers/image/*', layerwise=0.5, clip_group='tower'),
            dict(match='towers/image/patch_embed/*', lr_scale=0.2),
            dict(match='towers/image/blocks[0:2]/*', lr_scale=0.1),
            dict(match='*/bias', wd_scale=0.0),
            dict(match='heads/*', clip_group='a', frozen_until=3),
            dict(match='heads/dino/*', clip_group='b'),
        ],
    )
    image = table['towers']['image']
    # four blocks, so layer 0 has .5 ** 5 and block i has .5 ** (4 - i)
    assert image['patch_embed']['kernel'].lr_scale == pytest.approx(0.2 * 0.5**5)
    rates = np.array([0.1 * 0.5**4, 0.1 * 0.5**3, 0.5**2, 0.5])
    np.testing.assert_allclose(image['blocks']['fc']['kernel'].lr_scale, rates.reshape(4, 1, 1), rtol=1e-6)
    np.testing.assert_allclose(image['blocks']['fc']['bias'].lr_scale, rates.reshape(4, 1), rtol=1e-6)
    assert image['blocks']['fc']['bias'].wd_scale == 0 and image['blocks']['fc']['kernel'].wd_scale == 1
    gain = table['heads']['dino']['prototypes']['gain']
    assert (gain.clip_group, gain.frozen_until) == ('b', 3) and image['patch_embed']['kernel'].clip_group == 'tower'


def test_biases_norms_and_layerscale_do_not_decay_unless_asked_for():
    names = {name: jnp.zeros(2) for name in ('bias', 'scale', 'gamma1', 'gamma', 'kernel', 'gain')}
    table = parameter_groups({'towers': {'image': {'x': names}}})['towers']['image']['x']
    assert {name for name, group in table.items() if group.wd_scale == 0} == {'bias', 'scale', 'gamma1'}
    assert all(group == Group() for group in parameter_groups({'x': names}, no_decay=())['x'].values())
    scaled = parameter_groups({'x': names}, [dict(match='*/kernel', wd_scale=0.5)])['x']
    assert scaled['kernel'].wd_scale == 0.5 and scaled['bias'].wd_scale == 0


def test_a_rule_that_matches_nothing_or_is_misspelt():
    with pytest.raises(UserError, match=r'optim.groups\[0\].match: no parameter matches'):
        parameter_groups(params(), [dict(match='towers/txet/*', lr_scale=0.1)])
    with pytest.raises(UserError, match="unknown key 'lr_scal'; did you mean 'lr_scale'"):
        parameter_groups(params(), [dict(match='*', lr_scal=0.1)])


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (dict(no_decay='*/bias'), r"optim\.no_decay='\*/bias': must be a list of texts, such as"),
        (dict(no_decay=['*/bias', 3]), r'optim\.no_decay=.*must be a list of texts'),
        (dict(groups=dict(match='*')), r'optim\.groups=.*must be a list of rules'),
        (dict(groups=['*/bias']), r"optim\.groups\[0\]='\*/bias': must be a dict"),
        (dict(groups=[dict(match=['*/bias'])]), r'optim\.groups\[0\]=.*must be a dict with a pattern'),
    ],
)
def test_lists_and_rules_of_another_kind(given, words):
    with pytest.raises(UserError, match=words):
        optimizer(params(), 10, lr=0.1, **given)


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (dict(lr=-0.1), r'optim\.lr=-0\.1: must be a number of at least 0'),
        (dict(lr=float('nan')), r'optim\.lr=nan'),
        (dict(lr=0.1, clip=0), r'optim\.clip=0: must be a number above 0, or None'),
        (dict(lr=0.1, clip=-3.0), r'optim\.clip=-3'),
    ],
)
def test_rates_and_bounds_that_are_none(given, words):
    with pytest.raises(UserError, match=words):
        optimizer(params(), 10, **given)


@pytest.mark.parametrize(
    ('spec', 'within', 'words'),
    [
        (0.0, POSITIVE, r'x=0\.0: must be a number above 0'),
        ([0.1, -0.1], POSITIVE, r'x\[1\]=-0\.1: must be a number above 0'),
        (dict(rule='linear', start=0.04, end=0.0), POSITIVE, r'x\.end=0\.0: must be a number above 0'),
        (
            dict(rule='cosine', start=0.1, end=0.1, warmup=5),
            POSITIVE,
            r'x\.warmup_start=0\.0: must be a number above 0',
        ),
        (dict(rule='cosine', start=0.1, end=0.1, frozen=5), POSITIVE, r'x\.frozen: its value is 0 in these steps'),
        (dict(rule='cosine', start=0.9, end=1.1), SHARE, r'x\.end=1\.1: must be a number from 0 to 1'),
        (-1.0, NOT_NEGATIVE, r'x=-1\.0: must be a number of at least 0'),
        (float('nan'), FINITE, r'x=nan: must be a number that is finite'),
    ],
)
def test_the_values_of_a_schedule_stay_within_their_range(spec, within, words):
    with pytest.raises(UserError, match=words):
        schedule(spec, 10, 'x', within)


def falling(count):
    return 0.1 * 0.5**count


@pytest.mark.parametrize(
    ('rule', 'theirs'),
    [
        ('adamw', optax.adamw(falling, weight_decay=0.03)),
        ('sgd', optax.chain(optax.add_decayed_weights(0.03), optax.sgd(falling, momentum=0.9))),
    ],
)
def test_updates_are_those_of_optax(rule, theirs):
    """Without groups and clipping; the schedule is of the step that is given, not of the number of updates."""
    start = params()
    ours = optimizer(start, 10, no_decay=(), lr=0.1, schedule=[1.0, 0.5, 0.25, 0.125], weight_decay=0.03, rule=rule)
    a, b, opt, state = start, start, ours.init(start), theirs.init(start)
    for i in range(3):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(p + i), a)
        a, opt, metrics = ours.update(grads, opt, a, jnp.int32(i))
        updates, state = theirs.update(grads, state, b)
        b = optax.apply_updates(b, updates)
        assert float(metrics['lr']) == pytest.approx(0.1 * 0.5**i)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def plain_lars(p, g, m, rate, decay):
    """LARC around SGD in float64 (NVIDIA/apex, apex/parallel/LARC.py:72-107, without clipping)."""
    p, g = np.float64(p), np.float64(g)
    of_p, of_g = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
    if of_p and of_g:
        g = (g + decay * p) * 0.001 * of_p / (of_g + decay * of_p + 1e-8)
    m = 0.9 * m + g
    return p - rate * m, m


def test_updates_of_lars_are_those_of_the_formula():
    """Every layer of a stack has its own norms. What is 0, has no gradient or no decay takes the plain gradient."""
    rng = np.random.default_rng(0)
    start = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), params())
    gain = start['heads']['dino']['prototypes']['gain']
    start['heads']['dino']['prototypes']['gain'] = jnp.zeros_like(gain)
    start['towers']['free'] = {'bias': jnp.float32([1.0, 2.0])}
    ours = optimizer(start, 10, lr=0.5, schedule=[1.0, 0.5, 0.25], weight_decay=0.3, rule='lars', no_decay=['*/free/*'])
    opt, now = ours.init(start), start
    expected = [
        [np.float64(layer), 0.0]
        for leaf, stack in zip(jax.tree.leaves(start), stacks(ours))
        for layer in split(leaf, stack)
    ]
    free = [np.size(x) == 2 and np.array_equal(x, [1.0, 2.0]) for x, _ in expected]
    assert sum(free) == 1
    for i in range(3):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(3 * p + i) * (p.ndim != 1 or i < 2), now)
        layers = [g for leaf, stack in zip(jax.tree.leaves(grads), stacks(ours)) for g in split(leaf, stack)]
        now, opt, _ = ours.update(grads, opt, now, jnp.int32(i))
        for state, g, plain in zip(expected, layers, free, strict=True):
            if plain:
                m = 0.9 * state[1] + np.float64(g)
                state[:] = state[0] - 0.5 ** (i + 1) * m, m
            else:
                state[:] = plain_lars(state[0], g, state[1], 0.5 ** (i + 1), 0.3)
    found = [x for leaf, stack in zip(jax.tree.leaves(now), stacks(ours)) for x in split(leaf, stack)]
    for x, (p, _) in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'cfg', [dict(tower='vit', variant='Ti/8', depth=5), dict(tower='resnet', variant='50', depths=[2, 6])]
)
def test_the_layers_of_a_stack_are_known_by_its_path(cfg):
    """Blocks of a transformer, and the blocks of a ResNet's stage after the first."""
    params = jax.eval_shape(build.tower(cfg, 1, 'x').init, jax.random.key(0))
    params.pop('stats', None)
    shapes = jax.tree_util.tree_flatten_with_path({'towers': {'image': params}})[0]
    groups = jax.tree.leaves(parameter_groups({'towers': {'image': params}}), is_leaf=lambda x: isinstance(x, Group))
    found = [(leaf.shape[0], jax.tree_util.keystr(path)) for (path, leaf), g in zip(shapes, groups) if g.is_stack]
    depths = {5} if cfg['tower'] == 'vit' else {1, 5}
    assert {size for size, _ in found} == depths
    one = dict(cfg, depth=4) if cfg['tower'] == 'vit' else dict(cfg, depths=[3, 5])
    other = jax.eval_shape(build.tower(one, 1, 'x').init, jax.random.key(0))
    other.pop('stats', None)
    changed = [a.shape != b.shape for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)]
    assert changed == [g.is_stack for g in groups]


def plain_lamb(p, g, m, v, i, rate, decay):
    """LAMB in float64 (timm 0.9.16, timm/optim/lamb.py:103-190, without clipping)."""
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
    d = (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v) / np.sqrt(1 - 0.95 ** (i + 1)) + 1e-6)
    if decay:
        d = d + decay * p
        of_p, of_d = np.sqrt((p**2).sum()), np.sqrt((d**2).sum())
        d = d * (of_p / of_d if of_p and of_d else 1.0)
    return p - rate * d, m, v


def test_updates_of_lamb_are_those_of_the_formula():
    """Every layer of a stack has its own norms, also in ResNets. Without decay there is no trust ratio."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.float32(rng.normal(size=shape))  # noqa: E731
    start = {'stage1': {'rest': {'kernel': draw(3, 2, 4)}}, 'zero': {'kernel': jnp.zeros(3)}, 'a': {'bias': draw(4)}}
    ours = optimizer(start, 10, lr=0.5, schedule=[1.0, 0.5, 0.25], weight_decay=0.3, rule='lamb', b2=0.95, eps=1e-6)
    opt, now = ours.init(start), start
    expected = [
        [np.float64(p), 0.0, 0.0]
        for leaf, stack in zip(jax.tree.leaves(start), stacks(ours))
        for p in split(leaf, stack)
    ]
    decays = [0.0, 0.3, 0.3, 0.3, 0.3]  # a/bias, three layers, zero/kernel
    for i in range(3):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(3 * p + i), now)
        layers = [g for leaf, stack in zip(jax.tree.leaves(grads), stacks(ours)) for g in split(leaf, stack)]
        now, opt, _ = ours.update(grads, opt, now, jnp.int32(i))
        for state, g, decay in zip(expected, layers, decays, strict=True):
            state[:] = plain_lamb(state[0], np.float64(g), state[1], state[2], i, 0.5 ** (i + 1), decay)
    found = [x for leaf, stack in zip(jax.tree.leaves(now), stacks(ours)) for x in split(leaf, stack)]
    for x, (p, _, _) in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, p, rtol=1e-5, atol=5e-6)


def stacks(ours):
    """Whether each parameter is a stack of layers."""
    return [group.is_stack for group in jax.tree.leaves(ours.groups, is_leaf=lambda x: hasattr(x, 'wd_scale'))]


def split(leaf, stack):
    return list(leaf) if stack else [leaf]


def test_a_rule_of_no_optimizer():
    with pytest.raises(UserError, match=r"optim.rule: there is no optimizer 'lard'; did you mean 'lars'"):
        optimizer(params(), 10, lr=0.1, rule='lard')


def test_frozen_parameters_stand_still_while_their_moments_move():
    start = params()
    ours = optimizer(start, 10, lr=0.1, weight_decay=0.1, groups=[dict(match='heads/*', frozen_until=2)])
    opt, now = ours.init(start), start
    for i in range(3):
        before = now
        now, opt, _ = ours.update(jax.tree.map(jnp.ones_like, now), opt, now, jnp.int32(i))
        still = bool(
            (now['heads']['dino']['prototypes']['gain'] == before['heads']['dino']['prototypes']['gain']).all()
        )
        assert still == (i < 2)
    assert float(opt.mu['heads']['dino']['prototypes']['gain'][0]) == pytest.approx(1 - 0.9**3, rel=1e-5)


def resnet():
    shapes = dict(stem=(2,), stage1=(2,), stage2=(3, 2))
    image = {name: {'conv': {'kernel': jnp.zeros(shape)}} for name, shape in shapes.items()}
    return {'towers': {'image': image}, 'heads': {'classifier': {'kernel': jnp.zeros(2)}}}


def test_the_layers_of_a_resnet_are_its_stages():
    rules = [dict(match='towers/image/*', layerwise=0.5, unfreeze=(4, 10))]
    image = parameter_groups(resnet(), rules)['towers']['image']
    found = {name: (x['conv']['kernel'].lr_scale, int(x['conv']['kernel'].frozen_until)) for name, x in image.items()}
    assert found == dict(stem=(0.25, 10), stage1=(0.5, 7), stage2=(1.0, 4))


def test_blocks_begin_to_change_from_the_last_to_the_first():
    groups = [dict(match='towers/image/*', unfreeze=(2, 12)), dict(match='towers/image/blocks[0:1]/*', frozen_until=3)]
    ours = optimizer(params(), 20, lr=0.1, groups=groups)
    blocks = ours.groups['towers']['image']['blocks']['fc']
    # five layers below the last one, two steps each; block 3 is the layer below the last
    assert blocks['kernel'].frozen_until.reshape(-1).tolist() == [3, 8, 6, 4]
    assert int(ours.groups['towers']['image']['patch_embed']['kernel'].frozen_until) == 12
    assert ours.groups['heads']['dino']['prototypes']['gain'] == Group()
    now = params()
    moved = ours.update(jax.tree.map(jnp.ones_like, now), ours.init(now), now, jnp.int32(6))[0]
    changed = (moved['towers']['image']['blocks']['fc']['bias'] != now['towers']['image']['blocks']['fc']['bias']).any(
        1
    )
    assert changed.tolist() == [True, False, True, True]


def test_what_is_frozen_to_the_end_has_no_gradient_and_never_changes():
    start = params()
    groups = [dict(match='towers/*', frozen_until='end'), dict(match='*/bias', frozen_until=0)]
    ours = optimizer(start, 10, lr=0.1, weight_decay=0.1, groups=groups)
    grads = jax.grad(lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(ours.trained(p))))(start)
    now, _, metrics = ours.update(grads, ours.init(start), start, jnp.int32(10**9))
    fc, was = now['towers']['image']['blocks']['fc'], start['towers']['image']['blocks']['fc']
    assert (fc['kernel'] == was['kernel']).all() and (fc['bias'] != was['bias']).all()
    trained = [was['bias'], start['heads']['dino']['prototypes']['gain']]
    expected = float(sum(np.sum(4 * np.asarray(x, np.float64) ** 2) for x in trained)) ** 0.5
    assert float(metrics['grad_norm/all']) == pytest.approx(expected, rel=1e-6), 'frozen parameters do not count'


@pytest.mark.parametrize(
    ('rule', 'words'),
    [
        (dict(frozen_until=-1), "a step of at least 0, or 'end' for never"),
        (dict(frozen_until='never'), "frozen_until='never': must be a step"),
        (dict(unfreeze=5), 'unfreeze=5: must be two steps in rising order'),
        (dict(unfreeze=(5, 2)), 'two steps in rising order'),
        (dict(unfreeze=(1, 2), frozen_until=3), 'both say when'),
    ],
)
def test_steps_that_are_none(rule, words):
    with pytest.raises(UserError, match=words):
        parameter_groups(params(), [dict(match='*', **rule)])


def test_groups_are_clipped_apart():
    start = params()
    groups = [dict(match='towers/*', clip_group='towers'), dict(match='heads/*', clip_group='heads')]
    ours = optimizer(start, 10, lr=1.0, clip=1.0, groups=groups)
    grads = {'towers': jax.tree.map(lambda p: 100 * jnp.ones_like(p), start['towers']), 'heads': start['heads']}
    grads['heads'] = jax.tree.map(lambda p: 0.01 * p, start['heads'])
    _, opt, metrics = ours.update(grads, ours.init(start), start, jnp.int32(0))
    size = sum(p.size for p in jax.tree.leaves(start['towers']))
    assert float(metrics['grad_norm/towers']) == pytest.approx(100 * size**0.5, rel=1e-5)
    norm = sum(float(jnp.sum(m**2)) for m in jax.tree.leaves(opt.mu['towers'])) ** 0.5
    assert norm == pytest.approx(0.1, rel=1e-4)  # (1 - b1) of what was clipped to 1
    ours, given = (tree['heads']['dino']['prototypes']['gain'] for tree in (opt.mu, grads))
    np.testing.assert_allclose(10 * ours, given, rtol=1e-5)


@pytest.mark.parametrize(
    ('spec', 'words'),
    [
        (dict(rule='cosne', start=1), "did you mean 'cosine'"),
        (dict(rule='cosine', strt=1, end=0), "unknown key 'strt'; did you mean 'start'"),
        (dict(rule='cosine', start=1, end=0, warmup=-1), 'optim.schedule.warmup=-1: must be a number of at least 0'),
        (dict(rule='linear', start='x', end=0), "optim.schedule.start='x': must be a number"),
        ('fast', 'a schedule is a number'),
        ([], 'at least one value'),
    ],
)
def test_schedules_that_are_none(spec, words):
    with pytest.raises(UserError) as error:
        schedule(spec, 10, 'optim.schedule')
    assert words in str(error.value) and 'optim.schedule' in str(error.value)


def test_model_flops_of_a_scanned_and_rematerialised_network():
    depth, rows, width = 3, 8, 16

    def loss(w, x):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(layer, x, w)[0].sum()

    forward = depth * 2 * rows * width**2
    counted = model_flops(loss, jnp.ones((depth, width, width)), jnp.ones((rows, width)))
    # backward: one product for each layer's weights and one for what it passes down; the first passes nothing down,
    # but a scan computes it like the others
    assert counted == 3 * forward


def test_a_checkpoint_of_other_shapes_or_dtypes_is_refused(tmp_path):
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, {'w': jnp.ones((2, 3))}, {'m': jnp.ones(3)}, {}, jax.random.key(0), {'total': zero})
    shardings = jax.tree.map(lambda x: x.sharding, state)
    checkpoints = Checkpoints(tmp_path / 'checkpoints', every=1, keep=2)
    checkpoints.save(1, state)
    checkpoints.manager.wait_until_finished()
    back = checkpoints.restore(1, abstract(state, shardings))
    np.testing.assert_array_equal(back.params['w'], state.params['w'])
    assert bool((jax.random.key_data(back.key) == jax.random.key_data(state.key)).all())
    for other, words in (
        ({'w': jnp.ones((2, 3), jnp.bfloat16)}, 'is float32'),
        ({'w': jnp.ones((2, 4))}, r'\[2, 3\] in the checkpoint'),
        ({'v': jnp.ones((2, 3))}, 'lacks|holds, unlike the config'),
    ):
        changed = state._replace(params=other)
        with pytest.raises(UserError, match=words):
            checkpoints.restore(1, abstract(changed, jax.tree.map(lambda x: x.sharding, changed)))
    checkpoints.close()


def test_jax_is_asked_to_stop_at_the_loops_own_steps_alone(tmp_path, monkeypatch):
    """Asked for an older step at the end of a save, it would agree on a step that is over, and the run never stop."""
    asked = []
    monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', lambda step: bool(asked.append(step)))
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, {'w': jnp.ones((2, 3))}, {}, {}, jax.random.key(0), {'total': zero})
    checkpoints = Checkpoints(tmp_path / 'checkpoints', every=1, keep=2)
    for step in range(1, 5):
        assert not checkpoints.stopping(step)
        assert checkpoints.due(step)
        checkpoints.save(step, state)
    checkpoints.close()
    assert asked == [1, 2, 3, 4]
