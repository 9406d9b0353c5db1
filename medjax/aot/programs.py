"""The programs of a recipe, lowered for devices that need not exist: its views, its step, its encoder.

recipe = prepare('rad_dino_vitb14', ['batch_size=40'], canvas=777)
compiled = lower(recipe, 'step', devices).compile()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medjax import config as configs
from medjax.models import passes
from medjax.objectives.compose import Objective
from medjax.parallel import sharding
from medjax.parallel.groups import check_rows
from medjax.training.flops import step_flops
from medjax.training.optimizer import Optimizer
from medjax.training.rehearsal import batch_shapes, without_data
from medjax.training.state import abstract_state, make_optimizer, state_shardings
from medjax.training.step import Step, make_step
from medjax.types import TrainState
from medjax.views import make

PROGRAMS = ('views', 'step', 'encoder')
STORED_CHANNELS = 1  # radiographs are grey
ENCODED = 32  # images that probes encode at once on a device


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """A config with everything that is built from it, without a mesh."""

    config: Mapping[str, Any]
    objective: Objective
    optimizer: Optimizer
    step: Step
    abstract: TrainState
    canvas: int  # side of the stored images in pixels


def prepare(spec: str, overrides: Sequence[str] = (), canvas: int = 256, without: str | None = None) -> Recipe:
    """A recipe by its file or name, with overrides 'key=value'. To be called before a mesh is in use.

    `without` names a kind of term that is left out.
    """
    read = configs.read(spec, overrides)
    read.terms = [term for term in read.terms if term['term'] != without]
    config, objective, make_views = without_data(configs.check(configs.resolve(read, {})))
    optimizer = make_optimizer(objective, config['optim'], config['total_steps'])
    step = make_step(objective, optimizer, make_views, config['micro_batches'])
    return Recipe(config, objective, optimizer, step, abstract_state(objective, optimizer), canvas)


def few_rows(spec: str, rows: int, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Further overrides, by which each part of the batch has `rows` rows in whole groups, or fewer if it has fewer."""
    read = configs.read(spec, overrides)
    config = configs.resolve(read, {})
    step = config['rows_per_group'] * config['micro_batches']
    few = {name: min(part['rows'], -(-rows // step) * step) for name, part in config['data'].items()}
    written = [name for name in few if read.data[name].get('rows') is not None]
    return (f'batch_size={sum(few.values())}', *(f'data.{name}.rows={few[name]}' for name in written))


def lower(recipe: Recipe, program: str, devices: Sequence[Any], sizes: Mapping[str, int] | None = None) -> Any:
    """A program of PROGRAMS, lowered for a mesh of these devices, which is in use afterwards.

    `sizes` are those of the mesh, data, fsdp and tensor; None: those of the config.
    """
    config = recipe.config
    mesh = sharding.make_mesh(**(sizes or config['mesh']), devices=devices)
    jax.set_mesh(mesh)
    rows = {name: part['rows'] for name, part in config['data'].items()}
    if program == 'encoder':
        return _encoder(recipe, mesh)
    check_rows(rows, config['rows_per_group'], config['micro_batches'], sharding.row_shards())
    shardings = state_shardings(recipe.objective, recipe.abstract, mesh)
    state = jax.tree.map(_placed, recipe.abstract, shardings)
    by_row = sharding.rows_sharding(mesh)
    shapes = batch_shapes(recipe.objective, config, rows, recipe.canvas, STORED_CHANNELS)
    batch = jax.tree.map(lambda x: _placed(x, by_row), shapes)
    if program == 'views':
        return jax.jit(recipe.step.make_views).lower(batch, state.key, state.step)
    out = (shardings, sharding.replicated(mesh))
    step = jax.jit(
        recipe.step.train_step,
        donate_argnums=0,
        out_shardings=out,
        compiler_options=sharding.compiler_options(),
    )
    return step.lower(state, batch)


def model_flops(recipe: Recipe) -> float:
    """The FLOPs of a step on all devices, without those of the views. To be called before a mesh is in use."""
    rows = {name: part['rows'] for name, part in recipe.config['data'].items()}
    batch = batch_shapes(recipe.objective, recipe.config, rows, recipe.canvas, STORED_CHANNELS)
    return step_flops(recipe.objective, recipe.step.make_views, recipe.abstract, batch)


def _encoder(recipe: Recipe, mesh: jax.sharding.Mesh) -> Any:
    """The CLS feature of whole images by the image tower of the export, ENCODED images for each device."""
    config, towers = recipe.config, recipe.objective.towers
    name = config['export']['encoder'] or 'image'
    size = max(kind.size[0] for kind in recipe.objective.views.values() if kind.size)
    names = {one.tower for one in passes.ordered([passes.image_pass(name, towers)])}
    params = jax.tree.map(
        lambda x: _placed(x, sharding.replicated(mesh)),
        {name: recipe.abstract.params['towers'][name] for name in names},
    )
    rows, by_row = ENCODED * mesh.size, sharding.rows_sharding(mesh)
    images = jax.ShapeDtypeStruct((rows, recipe.canvas, recipe.canvas, STORED_CHANNELS), jnp.uint8)
    extent = jax.ShapeDtypeStruct((rows, 2), jnp.int32)

    def encode(params: Any, images: Any, extent: Any) -> Any:
        x = make.evaluation_view(images, extent, size, dict(config['image']) | dict(fit=config['export']['fit']))
        return passes.encode_images(name, towers, params, x)['cls']

    return jax.jit(encode).lower(params, _placed(images, by_row), _placed(extent, by_row))


def _placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
