"""Kullback-Leibler divergence of a model from the one it was made of, as llama-perplexity --kl-divergence measures it.

Both models read the same windows; in the second half of each, the distribution that the changed model gives the next
token is held against the base model's. Unlike a difference of perplexities, it cannot be good by luck.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from lltool.engine.model import Logits, Model
from lltool.eval.perplexity import bos_of, cut_windows

# Called after each window with windows done, windows in all and the mean divergence so far.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class DivergenceResult:
    """Over all scored tokens, in nats: `mean` with its standard `error`; `same_top` is the share of equal best tokens.

    `tokens[i]` is the divergence at scored token i, so that two results on the same text can be compared in pairs.
    """

    mean: float
    error: float
    same_top: float
    tokens: NDArray[np.float64]


def divergence(
    base: Model,
    model: Model,
    text: str | Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> DivergenceResult:
    """The divergence of `model` from `base` on `text` (or token ids), over its first `chunks` windows or all of them.

    Raises InputError when the text is shorter than two windows.
    """
    ids = base.tokenizer.encode(text) if isinstance(text, str) else text
    windows = cut_windows(ids, context, bos_of(base))[:chunks]
    parts: list[NDArray[np.float64]] = []
    agreed = 0
    for window in windows:
        for first, second in zip(_logits(base, window), _logits(model, window), strict=True):
            parts.append(divergences(first, second))
            agreed += int((first.argmax(axis=1) == second.argmax(axis=1)).sum())
        if progress:
            done = np.concatenate(parts)
            progress(done.size // (context - 1 - context // 2), len(windows), float(done.mean()))
    tokens = np.concatenate(parts)
    error = tokens.std() / sqrt(max(1, tokens.size - 1))
    return DivergenceResult(float(tokens.mean()), float(error), agreed / tokens.size, tokens)


def divergences(base: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Divergence of softmax(other) from softmax(base), both logits (R, V), row by row."""
    x = base - base.max(axis=1, keepdims=True)  # the largest is 0: what follows is as exact as float32 allows
    y = other - other.max(axis=1, keepdims=True)
    p = np.exp(x)
    mass = p.sum(axis=1, dtype=np.float64)
    gap = np.einsum("rv,rv->r", p, x - y).astype(np.float64) / mass
    result: NDArray[np.float64] = gap + np.log(np.exp(y).sum(axis=1, dtype=np.float64) / mass)
    return result


def _logits(model: Model, window: NDArray[np.int32]) -> list[NDArray[np.float32]]:
    """Logits behind each token of the window's second half but the last, in blocks."""
    length, first = len(window) - 1, len(window) // 2  # the last token predicts nothing
    sequence = model.new_sequence()
    blocks: list[NDArray[np.float32]] = []
    try:
        for start in range(0, length, model.batch):
            stop = min(start + model.batch, length)
            rows = np.arange(max(first, start), stop) - start
            logits: Logits = model.forward([(sequence, window[start:stop], rows)])
            blocks += [block.copy() for _, block in logits.blocks()]
    finally:
        sequence.free()
    return blocks
