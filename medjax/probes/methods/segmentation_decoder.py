"""Segmentation by a light decoder: how well can structures be drawn from frozen patches, if neighbours help?

A small convolutional network reads the grid of the last block. It projects the features to 64 channels, mixes them by
two residual convolutions of 3 x 3 patches, and draws each patch as several cells, at least 48 along the image
(sub-pixel convolution, arXiv 1609.05158). Papers use a U-Net decoder (2312.02366) or UPerNet (RAD-DINO, 2401.10815) on
several blocks; this one is smaller and reads one.

`segmentation` has the same data, choice and metrics with a linear layer, so the difference shows what the decoder adds.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.models.towers.patch_decoder import convolved
from medjax.probes import segment, structures
from medjax.probes.evaluate import ProbeInputs, Result

name = 'segmentation_decoder'
CHANNELS, LAYERS, STEPS = 64, 2, 500


class Convolutional:
    """Log-odds on T x T cells."""

    def init(self, rng: np.random.Generator, width: int, bias: np.ndarray, factor: int) -> dict[str, Any]:
        def normal(*shape: int) -> np.ndarray:
            return rng.normal(scale=math.sqrt(2 / math.prod(shape[:-1])), size=shape).astype(np.float32)

        return dict(
            project=normal(width, CHANNELS),
            layers=[
                dict(kernel=normal(3, 3, CHANNELS, CHANNELS), bias=np.zeros(CHANNELS, np.float32))
                for _ in range(LAYERS)
            ],
            kernel=np.zeros((CHANNELS, factor, factor, len(bias)), np.float32),
            bias=bias,
        )

    def apply(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
        x = x @ params['project']
        for layer in params['layers']:
            x = x + convolved(jax.nn.gelu(x), layer['kernel']) + layer['bias']
        cells = jnp.einsum('bhwc,cijk->bhiwjk', jax.nn.gelu(x), params['kernel']) + params['bias']
        b, h, i, w, j, k = cells.shape
        return cells.reshape(b, h * i, w * j, k)


CONVOLUTIONAL = Convolutional()


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    return structures.requirements(inputs)


def run(inputs: ProbeInputs) -> Result:
    return segment.run(inputs, CONVOLUTIONAL, STEPS)
