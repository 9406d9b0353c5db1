"""A rehearsal of a recipe on shapes alone: the mistakes that only show when towers run, before anything is allocated.

An output that a tower lacks, a mask that does not fit a tower, or predictions of another shape than their targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from medjax.errors import UserError
from medjax.objectives.compose import Objective, compose
from medjax.types import MakeViews
from medjax.views import make

# Where a config leaves these to the data.
IMAGE = dict(channels=3, mean=0.5, std=0.25)
TOKENS = dict(vocabulary=8, pad=0, first=None, last=None, mask=1, unknown=None)


def without_data(config: Mapping[str, Any]) -> tuple[dict[str, Any], Objective, MakeViews]:
    """The config with stand-ins for what depends on the data, its objective and its views. Nothing is allocated."""
    image = {key: IMAGE[key] if value is None else value for key, value in config['image'].items()}
    config = {**config, 'image': image}
    objective = compose(config)
    tokens = config['tokenizer'].get('tokens') or dict(TOKENS)
    make_views = make.build(
        objective.views, config['masks'], image, objective.grids(), config['rows_per_group'], tokens
    )
    return config, objective, make_views


def rehearse(objective: Objective, make_views: MakeViews, config: Mapping[str, Any]) -> None:
    """Traces views, features and the loss of one group of rows. UserError by feature, or by term."""
    groups = 2 if config['rows_per_group'] == 1 else 1  # terms that compare rows refuse a batch of one
    rows = groups * config['rows_per_group']
    params, aux = jax.eval_shape(objective.init, jax.random.key(0))
    key, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))

    def features(params: Any, aux: Any, batch: Any, key: Any, step: Any) -> Any:
        views, masks = make_views(batch, key, step)
        return objective.features(params, aux, views, masks, key, step)[0], views, masks

    state = (params, aux)
    computed, views, masks = jax.eval_shape(features, *state, some_rows(objective, config, rows), key, step)
    for term, arrays in computed.per_row.items():
        for name, x in arrays.items():
            if not x.shape or x.shape[0] not in (groups, rows) or x.dtype != jnp.float32:
                raise UserError(
                    f'term {term!r}: per_row gives {name!r} as {x.dtype}{list(x.shape)}; it must be float32, with rows '
                    'or groups as its first axis'
                )
    jax.eval_shape(objective.loss, *state, computed, views, masks, key, step)


def some_rows(objective: Objective, config: Mapping[str, Any], rows: int) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes of a batch with as many rows in each part."""
    parts = {kind.part for kind in objective.views.values()}
    return batch_shapes(objective, config, dict.fromkeys(parts, rows), 32, config['image']['channels'])


def batch_shapes(
    objective: Objective, config: Mapping[str, Any], rows: Mapping[str, int], canvas: int, channels: int
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes of a batch, see `medjax.types.Batch`: `rows` of each part, 8-bit images on a square canvas.

    `channels` are those of the stored images: 1 for radiographs, also where towers get three.
    """
    batch: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for name, kind in objective.views.items():

        def array(dtype: Any, *shape: int, count: int = rows[kind.part]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *shape), dtype)

        part = batch.setdefault(
            kind.part,
            {
                'row': array(jnp.uint32),
                'image': array(jnp.uint8, 1, canvas, canvas, channels),
                'image/present': array(bool, 1),
                'image/extent': array(jnp.int32, 1, 2),
                'label': array(jnp.int8, max(len(config.get('labels') or ()), 1)),
                'column': array(jnp.float32, len(config.get('columns') or ())),
                **{f'key/{key}': array(jnp.uint32, 2) for key in ('patient', 'study', 'text')},
                'index': array(jnp.uint32),
            },
        )
        if kind.part in objective.structures:
            part |= {'mask': array(jnp.uint8, 1, canvas, canvas), 'mask/known': array(jnp.uint8, 1)}
        if kind.sees == 'text':
            part[f'text/{name}'] = array(jnp.int32, kind.count, kind.length)
            part[f'text/{name}/length'] = array(jnp.int32, kind.count)
    return batch
