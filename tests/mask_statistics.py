"""Block masks in numbers that can be compared with the frequencies of other code."""

import jax
import jax.numpy as jnp
import numpy as np

from medjax.views.masks import blocks


def generate(grid, count, draws, seed=0, min_patches=4, max_patches=None):
    """Masks before and after the fill, bool [draws,h,w]; `max_patches` None: as DINOv2."""
    max_patches = max_patches or grid[0] // 2 * grid[1]

    @jax.jit
    def run(key, count):
        u = jax.random.uniform(key, (draws, blocks.TRIES, 4))
        noise = jax.random.uniform(jax.random.fold_in(key, 1), (draws, *grid))
        drawn = jax.vmap(lambda u: blocks.rectangles(u, count, grid, min_patches, 0.3, max_patches))(u)
        return drawn, jax.vmap(lambda u, bits: blocks.fill(u, bits, count))(noise, drawn)

    return map(np.array, run(jax.random.key(seed), jnp.int32(count)))


def compare(ours, theirs, draws, reference_draws):
    """Largest distance of two maps of cell frequencies, in standard errors."""
    pooled = (ours * draws + theirs * reference_draws) / (draws + reference_draws)
    error = np.sqrt(pooled * (1 - pooled) * (1 / draws + 1 / reference_draws))
    return (np.abs(ours - theirs) / np.maximum(error, 1e-6)).max()
