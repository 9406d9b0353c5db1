"""Unit vectors: the cosine of two features is the product of their unit vectors."""

from __future__ import annotations

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """L2-normalises along the last axis, in float32. A vector of zeros stays zero."""
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
