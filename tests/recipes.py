"""A tiny self-distillation recipe and batches for it, for tests of the objective, the step and sharding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.objectives.compose import Objective, compose
from medjax.objectives.trees import pick
from medjax.parallel import sharding
from medjax.plugins import call
from medjax.training.optimizer import Optimizer, optimizer
from medjax.training.state import create
from medjax.training.step import Step, make_step
from medjax.types import MakeViews, TrainState
from medjax.views import make


def tiny(rows_per_group: int = 1, drop_path: float = 0.0, prototypes: int = 32, **changes: Any) -> dict[str, Any]:
    """Two global and two local crops, ViT of width 32 and depth 2, one shared head of prototypes."""
    targets = dict(teacher_temperature=0.05)
    recipe = dict(
        total_steps=10,
        rows_per_group=rows_per_group,
        dtype='float32',
        image=dict(channels=1, mean=0.5, std=0.25),
        views={
            'global': dict(view='crop', part='cxr', count=2, size=32, area=(0.4, 1.0)),
            'local': dict(view='crop', part='cxr', count=2, size=16, area=(0.1, 0.4)),
        },
        masks={'global~block': dict(mask='blocks', share=0.5, ratio=(0.1, 0.5))},
        towers=dict(
            image=dict(
                tower='vit',
                variant='S/8',
                width=32,
                depth=2,
                heads=2,
                native_size=32,
                drop_path=drop_path,
                layerscale=0.1,
            )
        ),
        heads=dict(dino=dict(head='dino_head', prototypes=prototypes, hidden=48, bottleneck=16)),
        teachers=dict(teacher=dict(of=['towers/image', 'heads/dino'], rule='ema', momentum=0.9)),
        terms=[
            dict(
                term='distill_cls',
                student=['student/image/global~block/cls>dino', 'student/image/local/cls>dino'],
                teacher='teacher/image/global/cls>dino',
                **targets,
            ),
            dict(
                term='distill_patch',
                student='student/image/global~block/patches@block>dino',
                teacher='teacher/image/global/patches@block>dino',
                **targets,
            ),
            dict(term='koleo', of='student/image/global~block/cls', weight=0.1),
        ],
        optim=dict(lr=1e-3, weight_decay=0.04, clip=3.0),
    )
    return {**recipe, **changes}


def batch(rows: int, size: int = 40, seed: int = 0) -> dict[str, Any]:
    """Random pictures, of several extents, with all fields that a stream gives."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 255, (rows, 1, size // 4, size // 4, 1)).repeat(4, 2).repeat(4, 3)
    image = np.clip(low + rng.normal(0, 20, (rows, 1, size, size, 1)), 0, 255).astype(np.uint8)
    extent = rng.integers(size * 3 // 4, size + 1, (rows, 1, 2)).astype(np.int32)
    return dict(
        cxr={
            'row': np.arange(rows, dtype=np.uint32),
            'image': image,
            'image/present': np.ones((rows, 1), bool),
            'image/extent': extent,
            'label': np.zeros((rows, 1), np.int8),
            'key/patient': np.zeros((rows, 2), np.uint32),
            'key/study': np.zeros((rows, 2), np.uint32),
            'index': np.arange(rows, dtype=np.uint32),
        }
    )


def views(recipe: dict[str, Any], objective: Objective) -> MakeViews:
    """The recipe's make_views."""
    tokens = recipe.get('tokenizer', {}).get('tokens')
    return make.build(
        objective.views, recipe['masks'], recipe['image'], objective.grids(), recipe['rows_per_group'], tokens
    )


def parts(recipe: dict[str, Any], micro_batches: int = 1) -> tuple[Objective, Optimizer, Step]:
    """Objective, optimiser and step of a recipe, as the train command makes them."""
    objective = compose(recipe)
    shapes, _ = jax.eval_shape(objective.init, jax.random.key(0))
    optim = call(optimizer, recipe['optim'], 'optim', params=shapes, total_steps=recipe['total_steps'])
    return objective, optim, make_step(objective, optim, views(recipe, objective), micro_batches)


def start(objective: Objective, optim: Optimizer, shardings: Any = None) -> TrainState:
    """A state in mid-training: the first parameters plus noise of 0.1, the same for the student and its teachers.

    Tests compare gradients at this state, so it must not amplify rounding. Measured: the largest difference between
    gradients in one and in 2 or 4 micro-batches of 8 rows, and on one device and on eight with 16 rows, relative to the
    largest value of each array. With noise of 0.1 it is 6e-7 and 8e-7, with 0.2 2e-6 and 5e-6, with 0.3 5e-6 and 5e-6
    (up to 1e-5 with other keys, with and without KoLeo).

    The key matters, too: KoLeo's gradient jumps where two rows are equally near. With key 0, drop path hides the image
    from several of the 16 rows, whose CLS tokens are then equal. With key 1 the cosines of each row to its nearest two
    rows are at least 5e-4 apart.

    Version 1 had key 0 and noise of 0.3. Measured with these: micro-batches differ by 1.03e-5, over the bound of 1e-5;
    one device and eight agree within 1e-5 with the compiler options of conftest.py, and differ by 9e-3 with XLA's own.
    With key 0 and noise of 0.1, micro-batches agree, and one device and eight differ by 3e-3 with both.
    """

    def moved(key: Any) -> TrainState:
        state = create(objective, optim, key)
        leaves, structure = jax.tree.flatten(state.params)
        keys = jax.random.split(key, len(leaves))
        noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        params = jax.tree.unflatten(structure, noisy)
        teachers = {}
        for name, tree in state.aux['teachers'].items():
            same = pick(params, objective.teachers[name].of)  # a frozen teacher may have towers of its own
            teachers[name] = {kind: named | same.get(kind, {}) for kind, named in tree.items()}
        return state._replace(params=params, aux={**state.aux, 'teachers': teachers})

    return jax.jit(moved, out_shardings=shardings)(jax.random.key(1))


def slopes(loss: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """The gradient of a loop over numbers, by central differences."""
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        out[i] = (loss(x + step) - loss(x - step)) / (2 * h)
    return out


def worst(a: Any, b: Any, least: float = 1e-6) -> float:
    """The largest difference of two trees, relative to the largest value of each array (keys compared as bits).

    An array whose values are all below `least` is compared relative to `least`.
    """

    def one(x: Any, y: Any) -> float:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return float(np.abs(x - y).max(initial=0) / max(np.abs(y).max(initial=0), least))

    return max(jax.tree.leaves(jax.tree.map(one, a, b)))


def parameter_shapes(params: Any, devices: int) -> set[tuple[int, ...]]:
    """Shapes that a parameter may have on its way: itself, a layer of a scanned one, a matrix made of its leading and
    its trailing axes (the patch embedding is multiplied as one), and a device's share of these."""
    shapes = set()
    for leaf in jax.tree.leaves(params):
        for shape in (leaf.shape, leaf.shape[1:]):
            matrices = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
            for form in (shape, *matrices):
                shares = [(*form[:i], n // devices, *form[i + 1 :]) for i, n in enumerate(form) if n % devices == 0]
                shapes |= {plain(s) for s in (form, *shares)}
    return shapes


def plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without axes of one and in ascending order: XLA adds, drops and swaps axes."""
    return tuple(sorted(n for n in shape if n > 1))


def one_device() -> jax.sharding.Mesh:
    """A mesh of the first device."""
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
