"""The programs of probes, lowered for devices that need not exist: their encoders, and their fits on features.

lower('linear', devices).compile()
lower('texts', devices, programs.prepare('chexzero')).compile()
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medjax.aot.programs import STORED_CHANNELS, Recipe
from medjax.models import passes
from medjax.parallel import sharding
from medjax.probes import batches, encode, image_text, logistic, vectors
from medjax.probes.methods import knn

FITS = ('linear', 'nearest')
ENCODERS = ('images', 'texts')
RECORDS, LABELS = 100_000, 14  # NIH ChestX-ray14
WIDTH = 4 * 768 + 768  # the largest feature set of a ViT-B: CLS of the last four blocks, and the mean patch
LENGTH = 77  # tokens of a text


def lower(program: str, devices: Sequence[Any], recipe: Recipe | None = None, records: int = RECORDS) -> Any:
    """A program of FITS, with `records` records to learn from, or of ENCODERS, with the towers of a recipe.

    The mesh of the devices is in use afterwards. Fits run on one device.
    """
    mesh = sharding.make_mesh(devices=devices if program in ENCODERS else devices[:1])
    if program not in ENCODERS:
        jax.set_mesh(mesh)
        return _fit(program, records, sharding.replicated(mesh))
    assert recipe is not None, 'encoders have the towers of a recipe'
    return _images(recipe, mesh) if program == 'images' else _texts(recipe, mesh)


def _fit(program: str, records: int, where: jax.sharding.Sharding) -> Any:
    """Lowers a fit in the precision that the probes ask for. As many records are scored as a tenth of those learnt."""

    def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    queries = max(records // 10, 1)
    with jax.default_matmul_precision('highest'):
        if program == 'linear':
            rows, regressions = logistic.rows_of_block(records, WIDTH), logistic.AT_ONCE * LABELS
            labels, label = array(rows, LABELS, dtype=jnp.int8), array(regressions, dtype=jnp.int32)
            weights, bias = array(regressions, WIDTH), array(regressions)
            return logistic.sums_of_block.lower(array(rows, WIDTH), labels, label, weights, bias)
        block, k = vectors.block_rows(queries, records), min(max(knn.ALL_K), records)
        return vectors.nearest_of_block.lower(array(block, WIDTH), array(WIDTH, records), k)


def _images(recipe: Recipe, mesh: jax.sharding.Mesh) -> Any:
    """CLS of the last blocks and the mean patch of whole images."""
    config, towers = recipe.config, recipe.objective.towers
    name = config['export']['encoder'] or 'image'
    size = max(kind.size[0] for kind in recipe.objective.views.values() if kind.size)
    meta = dict(encoder=name, towers=config['towers'], image=config['image'], size=size)
    encoder = encode.compiled_encoder(meta)  # builds towers, which computes: before the mesh is in use
    jax.set_mesh(mesh)
    params = _params(recipe, [one.tower for one in passes.ordered([passes.image_pass(name, towers)])], mesh)
    rows, by_row = batches.ROWS_PER_DEVICE * mesh.size, sharding.rows_sharding(mesh)
    shape = (rows, recipe.canvas, recipe.canvas, STORED_CHANNELS)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=by_row)
    extent = jax.ShapeDtypeStruct((rows, 2), jnp.int32, sharding=by_row)
    return encoder.lower(params, images, extent)


def _texts(recipe: Recipe, mesh: jax.sharding.Mesh) -> Any:
    """The cls of texts."""
    name = next(name for name, tower in recipe.objective.towers.items() if tower.sees == 'text')
    jax.set_mesh(mesh)
    rows, by_row = image_text.TEXTS_PER_DEVICE * mesh.size, sharding.rows_sharding(mesh)
    ids = jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32, sharding=by_row)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=by_row)
    params = _params(recipe, [name], mesh)[name]
    return image_text.compiled_tower(name, json.dumps(recipe.config['towers'])).lower(params, ids, lengths)


def _params(recipe: Recipe, names: Sequence[str], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The shapes of the parameters of some towers, which lie on every device."""
    whole = sharding.replicated(mesh)
    return {
        name: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), recipe.abstract.params['towers'][name]
        )
        for name in names
    }
