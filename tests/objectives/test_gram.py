"""The term `gram` against float64 loops: values, gradients, absent crops, resized patches, several devices, mistakes.

The loops follow facebookresearch/dinov3, dinov3/loss/gram_loss.py:31-87 with normalized=True and remove_neg=False, and
the resizing of dinov3/train/ssl_meta_arch.py (get_gram_teacher_output), read and not copied.
"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from collectives import collectives
from programs import run

from medjax import config as configs
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.objectives.schedules import schedule
from medjax.objectives.terms import TermContext, TermInputs, gram
from medjax.parallel import sharding
from medjax.stages import stages
from medjax.types import View

STUDENT, TEACHER = 'student/image/global~block/patches', 'gram/image/anchor/patches'
GRID, LARGE, WIDTH = (2, 3), (4, 6), 3
TOWER = SimpleNamespace(grid=lambda size: (size[0] // 8, size[1] // 8), reads=(), sees='image')


def context(**changes):
    options = dict(crops={'global': 2, 'anchor': 2}, boxes={'anchor': 'global'}, parts={}, towers={'image': TOWER})
    return TermContext('terms[0] (gram)', 10, 1, width=lambda name: WIDTH, **{**options, **changes})


def value_of(student, teacher, present, grids=(GRID, LARGE)):
    """The output of the term for patches of crops on two grids."""
    term, rows = gram.build(context(), STUDENT, TEACHER), len(student)
    views = {
        name: View(jnp.zeros((rows, 2, 1, 8 * h, 8 * w, 1)), np.arange(rows, dtype=np.uint32), present, None, {})
        for name, (h, w) in zip(('global', 'anchor'), grids, strict=True)
    }
    features, presence = {STUDENT: student, TEACHER: teacher}, dict.fromkeys((STUDENT, TEACHER), present)
    x = TermInputs({}, {}, features, presence, views, {}, None, jnp.int32(0), None)
    return term.loss(dataclasses.replace(x, per_row=term.per_row(x)))


def cubic(d, a=-0.75):
    d = abs(d)
    if d < 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resized(patches, grid=GRID, large=LARGE):
    """torch.nn.functional.interpolate(mode='bicubic', align_corners=False, antialias=False), one patch at a time."""
    patches, out = patches.reshape(*large, -1), np.zeros((*grid, patches.shape[-1]))
    for i, j in np.ndindex(*grid):
        y, x = ((n + 0.5) * big / small - 0.5 for n, big, small in zip((i, j), large, grid, strict=True))
        for a in range(math.floor(y) - 1, math.floor(y) + 3):
            for b in range(math.floor(x) - 1, math.floor(x) + 3):
                inside = min(max(a, 0), large[0] - 1), min(max(b, 0), large[1] - 1)
                out[i, j] += cubic(y - a) * cubic(x - b) * patches[inside]
    return out.reshape(-1, patches.shape[-1])


def similarity(x, i, j):
    return x[i] @ x[j] / math.sqrt((x[i] @ x[i]) * (x[j] @ x[j]))


def loop(student, teacher, present, resize=resized):
    errors = []
    for row, crop in np.argwhere(present):
        x, y = student[row, crop], resize(teacher[row, crop])
        errors += [(similarity(x, i, j) - similarity(y, i, j)) ** 2 for i, j in np.ndindex(len(x), len(x))]
    return sum(errors) / len(errors)


@pytest.mark.parametrize('large', [LARGE, GRID], ids=['resized', 'same'])
def test_values_and_gradients_are_those_of_the_loop(large):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 6, WIDTH)), rng.normal(size=(2, 2, math.prod(large), WIDTH))
    present = np.array([[True, True], [False, True]])
    resize = resized if large == LARGE else lambda patches: patches

    def loss(student, teacher):
        out = value_of(student, teacher, present, (GRID, large))
        assert out.start is None, 'health would say that a run learns at its first step'
        return out.loss, (out.metrics['equal'], out.metrics['rows'])

    (value, (equal, rows)), (by_student, by_teacher) = run(
        jax.value_and_grad(loss, (0, 1), has_aux=True), jnp.float32(student), jnp.float32(teacher)
    )
    assert value == pytest.approx(loop(student, teacher, present, resize), rel=1e-5)
    assert equal == pytest.approx(loop(np.ones_like(student), teacher, present, resize), rel=1e-5)
    assert rows == 3
    expected = recipes.slopes(lambda x: loop(x, teacher, present, resize), student)
    np.testing.assert_allclose(by_student, expected, atol=2e-5 * np.abs(expected).max())
    assert not np.asarray(by_teacher).any(), 'a gradient reaches the teacher'


def test_eight_devices_give_what_one_gives_and_exchange_sums_alone():
    rng = np.random.default_rng(1)
    student, teacher = (jnp.float32(rng.normal(size=(16, 2, n, WIDTH))) for n in (6, 24))
    present = jnp.asarray(rng.random((16, 2)) < 0.8)
    gradient = jax.jit(jax.value_and_grad(lambda s, t, here: value_of(s, t, here).loss))
    jax.set_mesh(recipes.one_device())
    alone = jax.tree.map(np.asarray, gradient(student, teacher, present))
    mesh = sharding.make_mesh(8, 1, 1)
    jax.set_mesh(mesh)
    placed = jax.device_put((student, teacher, present), sharding.rows_sharding(mesh))
    program = gradient.lower(*placed).compile()
    assert recipes.worst(jax.tree.map(np.asarray, program(*placed)), alone) <= 1e-5
    moved = [math.prod(dims) for _, dims in collectives(program.as_text())]
    assert 0 < sum(moved) <= 64


def recipe(**term):
    views = {
        'global': dict(view='crop', part='cxr', size=32, count=2),
        'anchor': dict(view='crop', part='cxr', size=64, count=2, boxes='global', photometric=None),
        'other': dict(view='crop', part='cxr', size=64, count=2),
        'single': dict(view='crop', part='cxr', size=64, boxes='global'),
    }
    teachers = dict(
        teacher=dict(of=['towers/image'], rule='ema', momentum=0.9),
        gram=dict(of=['towers/image'], rule='refreshed', source='teacher', every=3),
    )
    terms = [dict(term='gram', student='student/image/global/patches', teacher=TEACHER) | term]
    return recipes.tiny(views=views, heads={}, teachers=teachers, terms=terms)


@pytest.mark.parametrize(
    ('term', 'told'),
    [
        (dict(teacher='gram/image/other/patches'), r"'global' and 'other' show other crops.* boxes='global'"),
        (dict(teacher='gram/image/single/patches'), "'global' has 2 crops and 'single' 1; give both one count"),
        (dict(student='student/image/global/cls'), r'\.student: .* must be all patches that a tower of images gives'),
        (dict(teacher='gram/image/global/patches@block'), r'\.teacher: .* must be all patches'),
        (dict(teacher='gram/image/anchor/patchs'), 'must be all patches'),
    ],
)
def test_mistakes_are_answered_by_a_sentence(term, told):
    with pytest.raises(UserError, match=told):
        compose(recipe(**term))


def test_the_recipe_refreshes_the_teacher_up_to_the_second_stage_and_three_times_in_it():
    config = configs.check(configs.resolve(configs.read('dinov3_vitb16'), {}))
    found = stages(config)
    first, second = found[0].end, found[1].end
    refreshed = [
        step + 1
        for stage in found
        for step in range(stage.begin, stage.end)
        if (step + 1) % stage.config['teachers']['gram']['every'] == 0
    ]
    assert refreshed[-4:] == [first, first + 2_000, first + 4_000, first + 6_000]
    weights = [schedule(stage.config['terms'][4]['weight'], config['total_steps'], '') for stage in found]
    steps = [first - 1, first, first + 100, first + 200, config['total_steps'] - 1]
    values = [float(weights[0 if step < first else 1 if step < second else 2](jnp.int32(step))) for step in steps]
    np.testing.assert_allclose(values, [0, 0, 1, 2, 2], atol=1e-5)


def test_dropped_patches_are_refused():
    with pytest.raises(UserError, match=r'has 4 patches, and a crop has 2 x 3; the term needs all of them'):
        value_of(jnp.ones((1, 2, 4, WIDTH)), jnp.ones((1, 2, 24, WIDTH)), np.ones((1, 2), bool))
