"""medjax: pretraining of medical image encoders in JAX; every method is a configuration.

encoder = medjax.load('RUN')                        # or an export, a public folder, a file of weights
features = encoder.encode(['a.png', 'b.dcm'])
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medjax.probes.encode import Encoder

__version__ = '0.2.0'


def load(path: str | os.PathLike, fit: str | None = None) -> Encoder:
    """Loads an image encoder: a run (its newest export), an export, a public folder or a file of weights.

    `fit` says what the encoder sees of an image: 'crop' the centre square, 'pad' the whole image with black beside it,
    'stretch' the whole image, resized to a square. None: as in its training.
    """
    from medjax.probes import encode  # imports jax

    return encode.load(path, fit)
