"""The pair losses and their gradients from the definition, in float64 and numpy, for one view a side."""

from __future__ import annotations

import numpy as np


def normal(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def log_softmax(s):
    s = s - s.max(-1, keepdims=True)
    return s - np.log(np.exp(s).sum(-1, keepdims=True))


def softmax(s):
    return np.exp(log_softmax(s))


def targets(h, t, alpha):
    """P [N,M], row by row: P_ij = (1 - alpha) h_ij / sum_j h_ij + alpha exp(t_ij) / sum_j exp(t_ij).

    h [N,M] is 1 for positives. t [N,M] is the soft similarity, NaN where there is none. A row without any soft
    similarity follows h alone.
    """
    p = np.zeros(h.shape)
    for i in range(len(h)):
        soft = [j for j in range(h.shape[1]) if not np.isnan(t[i, j])]
        share = alpha if soft else 0.0
        for j in range(h.shape[1]):
            if share < 1:
                p[i, j] += (1 - share) * h[i, j] / h[i].sum()
            if j in soft:
                p[i, j] += share * np.exp(t[i, j]) / np.exp(t[i, soft]).sum()
    return p


def decisions(h, q, alpha):
    """z [N,M]: z_ij = (1 - alpha) h_ij + alpha q_ij, and z_ij = h_ij where q is NaN."""
    z = np.zeros(h.shape)
    for i in range(len(h)):
        for j in range(h.shape[1]):
            z[i, j] = h[i, j] if np.isnan(q[i, j]) else (1 - alpha) * h[i, j] + alpha * q[i, j]
    return z


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
    """The gradient by s [N,M] -> the gradients by x, y and ln scale, through the normalisation."""
    u, v = normal(x), normal(y)

    def through(d, u, x):
        return (d - u * (d * u).sum(-1, keepdims=True)) / np.linalg.norm(x, axis=-1, keepdims=True)

    return through(scale * g @ v, u, x), through(scale * g.T @ u, v, y), (g * scale * (u @ v.T)).sum()
