"""The published losses in their plain form: functions of arrays that a notebook can call.

Each function is one formula of a paper, for one batch in which everything is present. The terms in
`medjax/objectives/terms/` equal these functions on that simple case. The terms add what training needs: absent rows,
several views and positives, queues, row chunks and devices that share a batch. Read the formula here first and the
term second:

    clip_loss     term pair_softmax
    siglip_loss   term pair_sigmoid
    koleo         term koleo
    sinkhorn      terms distill_cls and distill_patch with centring='sinkhorn'
    dino_loss     term distill_cls
    ibot_loss     term distill_patch

All functions compute in float32, under jit or without it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.objectives.numerics import unit


def clip_loss(image: Array, text: Array, scale: Array | float) -> Array:
    """CLIP: each image finds its text among all texts of the batch, and each text finds its image (arXiv 2103.00020).

    With the L2-normalised embeddings x_i and y_j, and s_ij = scale x_i . y_j:

        loss = 1/2 mean_i ( ln sum_j exp s_ij  -  s_ii )  +  1/2 mean_j ( ln sum_i exp s_ij  -  s_jj )

    Args:
        image: embeddings [B,D]. This function normalises them.
        text: embeddings [B,D]. Row i belongs to row i of `image`.
        scale: 1 / temperature, a scalar. CLIP learns ln scale and starts at ln(1 / 0.07).

    Returns:
        A scalar; ln B where all embeddings are equal.

    >>> images, texts = jnp.eye(4), jnp.eye(4)
    >>> print(f'{clip_loss(images, texts, scale=1 / 0.07):.4f}')  # every text is at its image
    0.0000
    >>> print(f'{clip_loss(images, texts[::-1], scale=1 / 0.07):.4f}')  # every text is at another image
    14.2857
    """
    s = scale * _dots(unit(image), unit(text))
    to_text = jnp.diagonal(jax.nn.log_softmax(s, axis=1))
    to_image = jnp.diagonal(jax.nn.log_softmax(s, axis=0))
    return -0.5 * (to_text.mean() + to_image.mean())


def siglip_loss(image: Array, text: Array, scale: Array | float, bias: Array | float) -> Array:
    """SigLIP: each pair of an image and a text is a decision of its own, "together" or "not" (arXiv 2303.15343).

    With the L2-normalised embeddings x_i and y_j, s_ij = scale x_i . y_j + bias, and z_ij = 1 for i = j, else -1:

        loss = 1/B  sum_ij  ln( 1 + exp(-z_ij s_ij) )

    Args:
        image: embeddings [B,D]. This function normalises them.
        text: embeddings [B,D]. Row i belongs to row i of `image`.
        scale: 1 / temperature, a scalar. SigLIP learns ln scale and starts at ln 10.
        bias: a scalar. SigLIP learns it and starts at -10, since most pairs do not belong together.

    Returns:
        A scalar.

    >>> images, texts = jnp.eye(4), jnp.eye(4)
    >>> print(f'{siglip_loss(images, texts, scale=10.0, bias=-10.0):.4f}')  # ln 2 + 3 ln(1 + exp(-10))
    0.6933
    >>> print(f'{siglip_loss(images, texts, scale=20.0, bias=-10.0):.4f}')
    0.0002
    """
    s = scale * _dots(unit(image), unit(text)) + bias
    together = 2.0 * jnp.eye(len(s)) - 1.0
    return jax.nn.softplus(-together * s).sum() / len(s)


def koleo(x: Array) -> Array:
    """KoLeo: spreads features apart by the distance of each one to its nearest neighbour (arXiv 1806.03198).

    As in DINOv2 (arXiv 2304.07193), with the L2-normalised features x_b:

        loss = - mean_b ln( || x_b - x_nn(b) + 1e-8 ||_2 + 1e-8 ),   nn(b) = argmax over j != b of x_b . x_j

    The offset 1e-8 is added to every element and to the norm. Without the first one, duplicates give NaN gradients.

    Args:
        x: features [B,D]. This function normalises them.

    Returns:
        A scalar, the lower the farther apart.

    >>> spread = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> print(f'{koleo(spread):.4f}')  # every distance is the square root of 2
    -0.3466
    >>> print(f'{koleo(spread + 10.0):.4f}')  # all in nearly one direction
    5.2983
    """
    x = unit(x, least=1e-8)
    dots = jnp.fill_diagonal(_dots(x, x), -2.0, inplace=False)  # below every cosine
    neighbour = x[jnp.argmax(dots, axis=1)]
    distance = jnp.linalg.norm(x - neighbour + 1e-8, axis=1)
    return -jnp.log(distance + 1e-8).mean()


def sinkhorn(logits: Array, temperature: Array | float, iterations: int = 3) -> Array:
    """Sinkhorn-Knopp: probabilities that use all prototypes equally (arXiv 1306.0895, as in SwAV, 2006.09882).

    Starts from exp(logits / temperature). Each iteration divides every column by its sum, so that the prototypes weigh
    the same, and then every row by its sum. The sums are taken as logarithms, so that no exponential overflows.

    Args:
        logits: of a teacher, [R,K]: R rows over K prototypes.
        temperature: a scalar. DINOv2 rises from 0.04 to 0.07.
        iterations: 3 in the papers.

    Returns:
        Probabilities [R,K] without gradient, targets for `dino_loss`. Each row sums to 1. Each column sums to nearly
        R/K; more iterations bring it nearer.

    >>> logits = jnp.array([[2.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.5, 0.0]])  # every row prefers prototype 0
    >>> print(f'{jax.nn.softmax(logits)[:, 0].sum():.2f} of 4 rows')
    3.19 of 4 rows
    >>> print(f'{sinkhorn(logits, temperature=1.0)[:, 0].sum():.2f} of 4 rows')
    1.99 of 4 rows
    """
    log_p = jnp.asarray(logits, jnp.float32) / temperature
    for _ in range(iterations):
        log_p -= jax.nn.logsumexp(log_p, axis=0, keepdims=True)
        log_p -= jax.nn.logsumexp(log_p, axis=1, keepdims=True)
    return jax.lax.stop_gradient(jnp.exp(log_p))


def centred_softmax(logits: Array, temperature: Array | float, centre: Array | float = 0.0) -> Array:
    """DINO's targets: softmax((logits - centre) / temperature), without gradient (arXiv 2104.14294).

    A low temperature makes the targets sharp. The centre keeps one prototype from winning everywhere.

    Args:
        logits: of the teacher, [...,K].
        temperature: a scalar. DINO rises from 0.04 to 0.07.
        centre: a running mean [K] of the teacher's logits over all rows and views.

    Returns:
        Probabilities [...,K], targets for `dino_loss` or `ibot_loss`.

    >>> logits = jnp.array([[2.0, 1.0], [1.0, 0.0]])
    >>> print(centred_softmax(logits, 0.5, centre=logits.mean(0)).round(2))
    [[0.5 0.5]
     [0.5 0.5]]
    """
    logits = jax.lax.stop_gradient(jnp.asarray(logits, jnp.float32))
    return jax.nn.softmax((logits - centre) / temperature, axis=-1)


def dino_loss(student: Array, targets: Array, temperature: float = 0.1, same_crops: bool = True) -> Array:
    """DINO: each crop that the student sees predicts the teacher's crops of the same image (arXiv 2104.14294).

    With p_bs = softmax(student_bs / temperature), the targets q_bt and CE(q,p) = - sum_k q_k ln p_k:

        loss = 1/P  sum_pairs (s,t)  mean_b  CE( q_bt, p_bs )

    over the P pairs of a student crop s and a teacher crop t.

    Args:
        student: logits [B,S,K] of S crops of each image. S and T are numbers of crops here.
        targets: probabilities [B,T,K] of the teacher's T crops, by `centred_softmax` or `sinkhorn`.
        temperature: of the student.
        same_crops: True if the first T crops of the student are the teacher's crops. A crop is not paired with itself,
            so 2 global and 8 local crops make 10 * 2 - 2 = 18 pairs. False pairs all crops, S T pairs.

    Returns:
        A scalar; ln K where the student is uniform.

    >>> teacher = jax.random.normal(jax.random.key(0), (8, 2, 16))  # 8 images, 2 crops, 16 prototypes
    >>> centred = centred_softmax(teacher, 0.07, centre=teacher.mean((0, 1)))
    >>> balanced = sinkhorn(teacher.reshape(-1, 16), 0.07).reshape(teacher.shape)
    >>> uniform = jnp.zeros((8, 4, 16))  # the student sees these two crops and two more
    >>> print(f'{dino_loss(uniform, centred):.4f} {dino_loss(uniform, balanced):.4f}')  # ln 16
    2.7726 2.7726
    """
    log_p = jax.nn.log_softmax(jnp.asarray(student, jnp.float32) / temperature, axis=-1)
    cross_entropy = -jnp.einsum('btk,bsk->bst', targets, log_p, precision='highest').mean(0)  # [S,T]
    counts = np.ones(cross_entropy.shape) - (np.eye(*cross_entropy.shape) if same_crops else 0)
    if not counts.any():
        raise ValueError('dino_loss: one crop alone has no other crop to predict; give more crops or same_crops=False')
    return (cross_entropy * counts).sum() / counts.sum()


def ibot_loss(student: Array, targets: Array, mask: Array, temperature: float = 0.1) -> Array:
    """iBOT: the student predicts the teacher's patch tokens where its own crop is masked (arXiv 2111.07832).

    With p_ci = softmax(student_ci / temperature), the targets q_ci, CE(q,p) = - sum_k q_k ln p_k, and the masked tokens
    M_c of crop c:

        loss = 1/C  sum_c  1/|M_c|  sum_{i in M_c}  CE( q_ci, p_ci )

    A crop without masked tokens adds nothing and counts in C, as in DINOv2 (arXiv 2304.07193).

    Args:
        student: logits [C,N,K] of N tokens of each of C crops. The student sees the crops with masks.
        targets: probabilities [C,N,K]. The teacher sees the crops without masks.
        mask: bool [C,N], True where a token is masked.
        temperature: of the student.

    Returns:
        A scalar; ln K times the share of masked crops where the student is uniform.

    >>> teacher = jax.random.normal(jax.random.key(0), (4, 9, 16))  # 4 crops, 9 tokens, 16 prototypes
    >>> targets = centred_softmax(teacher, 0.07, centre=teacher.mean((0, 1)))
    >>> mask = jnp.arange(9) < jnp.array([[3], [0], [4], [0]])  # two of the four crops are masked
    >>> print(f'{ibot_loss(jnp.zeros_like(teacher), targets, mask):.4f}')  # 1/2 ln 16
    1.3863
    """
    log_p = jax.nn.log_softmax(jnp.asarray(student, jnp.float32) / temperature, axis=-1)
    cross_entropy = -(targets * log_p).sum(-1)  # [C,N]
    weight = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return (weight * cross_entropy).sum() / len(mask)


def _dots(a: Array, b: Array) -> Array:
    """[i,d], [j,d] -> [i,j], in full float32 on every device."""
    return jnp.matmul(a, b.T, precision='highest')
