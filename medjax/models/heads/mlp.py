"""The projection with hidden layers of ConVIRT and CXR-BERT, of SimCLR and SwAV, and of MoCo v3."""

from __future__ import annotations

from medjax.errors import UserError, suggest
from medjax.models.layers import ACTIVATIONS
from medjax.models.perceptron import perceptron
from medjax.types import Head, is_whole


def build(
    width: int,
    out: int,
    hidden: int | None = None,
    activation: str = 'relu',
    norm: bool = False,
    bias: bool = True,
    batch_norm: bool = False,
    layers: int = 2,
    last_batch_norm: bool = False,
    dtype: str = 'float32',
) -> Head:
    """z = fc2(norm(activation(fc1 x))), float32 [...,out], for features of `width` numbers.

    hidden      width of the hidden layers; None: as wide as z, as in CXR-BERT
    activation  a name in layers.ACTIVATIONS: 'relu' in ConVIRT (arXiv 2010.00747), 'gelu' in CXR-BERT (2204.09817)
    norm        whether a LayerNorm with eps 1e-12 follows the activation, as in CXR-BERT
    batch_norm  whether a BatchNorm stands before the activation, as in SimCLR (2002.05709) and SwAV (2006.09882). In
                training its statistics are those of all present elements of the batch, and micro-batches are refused
    layers      number of linear layers: 2 with one hidden layer, 3 in MoCo v3 (2104.02057)
    last_batch_norm  whether a BatchNorm without scale and bias stands after the last layer, as in MoCo v3
    """
    if not is_whole(layers) or layers < 2:
        raise UserError(f"mlp: layers={layers!r}: must be a whole number of at least 2; one layer is head='linear'")
    if activation not in ACTIVATIONS:
        raise UserError(f'mlp: unknown activation {activation!r}{suggest(activation, ACTIVATIONS)}')
    widths = (width, *[out if hidden is None else hidden] * (layers - 1), out)
    return perceptron(widths, activation, norm, bias, dtype, batch_norm, last_batch_norm)
