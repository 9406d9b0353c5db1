"""Dense float64 formulas of the pair losses with their gradients, in numpy; one combination of views."""

from __future__ import annotations

import numpy as np


def normal(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(s):
    s = s - s.max(-1, keepdims=True)
    return s - np.log(np.exp(s).sum(-1, keepdims=True))


def softmax(s):
    return np.exp(log_softmax(s))


def targets(h, similar, known, alpha):
    """P whose rows add up to one: (1 - alpha) h / sum h + alpha softmax(similar), the softmax where it is known; rows
    without a known similarity follow h alone. h or similar may be None."""
    if similar is None:
        return h / h.sum(-1, keepdims=True)
    out = []
    for i in range(len(similar)):
        soft, some = np.zeros(similar.shape[1]), known[i].any()
        if some:
            soft[known[i]] = softmax(similar[i, known[i]])
        share = (1.0 if h is None else alpha) * some
        out.append(share * soft + ((1 - share) * h[i] / h[i].sum() if h is not None else 0))
    return np.array(out)


def pair_softmax(x, y, p_rows, p_columns, scale, weight):
    """Loss and its gradients by x, y, ln scale. p_rows [N,M], p_columns [m,N]: the first m of y choose among x too."""
    x, y = np.float64(x), np.float64(y)
    s = scale * normal(x) @ normal(y).T
    m = len(p_columns)
    value_rows = -(p_rows * log_softmax(s)).sum(-1).mean()
    value_columns = -(p_columns * log_softmax(s[:, :m].T)).sum(-1).mean()
    g = weight * (softmax(s) - p_rows) / len(x)
    g[:, :m] += (1 - weight) * (softmax(s[:, :m].T) - p_columns).T / m
    return weight * value_rows + (1 - weight) * value_columns, *to_inputs(g, x, y, scale)


def pair_sigmoid(x, y, z, scale, bias):
    """Loss and its gradients by x, y, ln scale, bias; z [N,M] in [0,1]."""
    x, y = np.float64(x), np.float64(y)
    s = scale * normal(x) @ normal(y).T + bias
    value = (z * np.logaddexp(0, -s) + (1 - z) * np.logaddexp(0, s)).sum() / len(x)
    g = (1 / (1 + np.exp(-s)) - z) / len(x)
    return value, *to_inputs(g, x, y, scale), g.sum()


def to_inputs(g, x, y, scale):
    """d loss / d s -> d loss / d x, y, ln scale, through the normalisation."""
    u, v = normal(x), normal(y)

    def through(d, u, x):
        return (d - u * (d * u).sum(-1, keepdims=True)) / np.linalg.norm(x, axis=-1, keepdims=True)

    return through(scale * g @ v, u, x), through(scale * g.T @ u, v, y), (g * scale * (u @ v.T)).sum()
