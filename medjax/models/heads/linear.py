"""The linear projection of CLIP and SigLIP."""

from __future__ import annotations

from medjax.models.perceptron import perceptron
from medjax.types import Head


def build(width: int, out: int, bias: bool = False, dtype: str = 'float32') -> Head:
    """z = x W (+ b), float32 [...,out], for features of `width` numbers.

    CLIP (arXiv 2103.00020) projects images and texts without a bias, SigLIP (arXiv 2303.15343) texts with a bias.
    """
    return perceptron((width, out), bias=bias, dtype=dtype)
