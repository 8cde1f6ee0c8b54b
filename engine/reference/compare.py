"""The reference comparison of two models' logits for the same tokens, which native kernels follow."""

from collections.abc import Callable
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Compared(IntEnum):
    """The columns of a comparison, float64 (R, 7). P is the softmax of the base, Q of the other; logs are natural."""

    DIVERGENCE = 0  # sum of P ln(P / Q)
    BASE_LOG_PROB = 1  # ln P of the row's target token
    LOG_PROB = 2  # ln Q of the row's target token
    BASE_TOP = 3  # the token with the largest P; the first one of a tie
    TOP = 4  # the token with the largest Q; the first one of a tie
    BASE_TOP_LOG_PROB = 5  # ln P of BASE_TOP
    TOP_LOG_PROB = 6  # ln Q of TOP


def compare_rows(
    base: NDArray[np.floating], other: NDArray[np.floating], targets: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Compares logits (R, V) of `other` with those of `base`; targets (R,) are token ids. Returns (R, 7)."""
    rows = np.arange(len(base))
    out = np.empty((len(base), len(Compared)))
    out[:, Compared.DIVERGENCE] = divergences(base, other)
    for x, target, top, top_log_prob in (
        (base, Compared.BASE_LOG_PROB, Compared.BASE_TOP, Compared.BASE_TOP_LOG_PROB),
        (other, Compared.LOG_PROB, Compared.TOP, Compared.TOP_LOG_PROB),
    ):
        best = x.argmax(axis=1)
        centred = x - x[rows, best][:, None]
        log_sum = np.log(np.exp(centred).sum(axis=1, dtype=np.float64))
        out[:, target] = centred[rows, targets] - log_sum
        out[:, top] = best
        out[:, top_log_prob] = -log_sum
    return out


def divergences(base: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """The Kullback-Leibler divergence of softmax(other) from softmax(base), (R,), for logits (R, V)."""
    x = base - base.max(axis=1, keepdims=True)  # the largest becomes 0, which keeps the rest as exact as float32 allows
    y = other - other.max(axis=1, keepdims=True)
    p = np.exp(x)
    mass = p.sum(axis=1, dtype=np.float64)
    gap = np.einsum("rv,rv->r", p, x - y).astype(np.float64) / mass
    result: NDArray[np.float64] = gap + np.log(np.exp(y).sum(axis=1, dtype=np.float64) / mass)
    return result


def score_rows(
    logits: Callable[[int, int], NDArray[np.float32]], block: int, start: int, targets: NDArray[np.int32]
) -> NDArray[np.float64]:
    """What `Executor.score` gives, from logits of at most `block` rows at once."""
    scores = np.empty(len(targets), np.float64)
    for first in range(0, len(targets), block):
        wanted = targets[first : first + block]
        x = logits(start + first, start + first + len(wanted)).astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        scores[first : first + len(wanted)] = x[np.arange(len(wanted)), wanted] - np.log(np.exp(x).sum(axis=1))
    return scores
