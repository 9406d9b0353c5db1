"""The projection with one hidden layer of ConVIRT and CXR-BERT, and of SimCLR and SwAV."""

from __future__ import annotations

from medjax.errors import UserError, suggest
from medjax.models.layers import ACTIVATIONS
from medjax.models.perceptron import perceptron
from medjax.types import Head


def build(
    width: int,
    out: int,
    hidden: int | None = None,
    activation: str = 'relu',
    norm: bool = False,
    bias: bool = True,
    batch_norm: bool = False,
    dtype: str = 'float32',
) -> Head:
    """z = fc2(norm(activation(fc1 x))), float32 [...,out], for features of `width` numbers.

    hidden      width of the hidden layer; None: as wide as z, as in CXR-BERT
    activation  a name in layers.ACTIVATIONS: 'relu' in ConVIRT (arXiv 2010.00747), 'gelu' in CXR-BERT (2204.09817)
    norm        whether a LayerNorm with eps 1e-12 follows the activation, as in CXR-BERT
    batch_norm  whether a BatchNorm stands before the activation, as in SimCLR (2002.05709) and SwAV (2006.09882). In
                training its statistics are those of all present elements of the batch, and micro-batches are refused
    """
    if activation not in ACTIVATIONS:
        raise UserError(f'mlp: unknown activation {activation!r}{suggest(activation, ACTIVATIONS)}')
    return perceptron((width, out if hidden is None else hidden, out), activation, norm, bias, dtype, batch_norm)
