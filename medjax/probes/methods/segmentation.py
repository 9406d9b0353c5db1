"""Segmentation by a linear classifier of patches: do the features of a patch tell which structures it shows?

The protocol is that of DINOv2 (arXiv 2304.07193), as RAD-DINO uses it on radiographs (2401.10815): one linear layer
from the features of a patch to the log-odds of each structure, on the grid of the last block, and linear interpolation
to the pixels. Three things differ. Structures have a sigmoid each, as masks may overlap. The records are encoded once,
without augmentation. Targets are the shares of cells, see `medjax.probes.decoders`.

Rate and thresholds are chosen on validation. `medjax.probes.overlaps` defines Dice, IoU and false area.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from medjax.probes import segment, structures
from medjax.probes.evaluate import ProbeInputs, Result

name = 'segmentation'
STEPS = 2500  # the loss is then about 1 % above its minimum


class Linear:
    """Log-odds on the grid itself."""

    def init(self, rng: np.random.Generator, width: int, bias: np.ndarray, factor: int) -> dict[str, np.ndarray]:
        return dict(kernel=np.zeros((width, len(bias)), np.float32), bias=bias)

    def apply(self, params: dict[str, Any], x: jax.Array) -> jax.Array:
        return x @ params['kernel'] + params['bias']


LINEAR = Linear()


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    return structures.requirements(inputs)


def run(inputs: ProbeInputs) -> Result:
    return segment.run(inputs, LINEAR, STEPS)
