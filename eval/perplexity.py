"""Perplexity of a model on a text, by llama-perplexity's method, so that figures compare.

The tokens are cut into windows of `context`. In the second half of each window every token is predicted from all tokens
before it in the window; the first half is context only. With a vocabulary that wants BOS, a window's first token is
replaced by it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.model import Model
from lltool.gguf.errors import InputError

METHOD = "windows of `context` tokens, second half scored, BOS first in each window where the vocabulary adds it"

LARGEST_LOSS = log(sys.float_info.max)

# Called after each batch with windows done, windows in all, and the running perplexity after each window so far.
Progress = Callable[[int, int, Sequence[float]], None]


@dataclass(frozen=True)
class PerplexityResult:
    """`error` is one standard error, `running[i]` the perplexity of windows 0 to i; `scored` tokens were predicted."""

    perplexity: float
    error: float
    running: tuple[float, ...]
    context: int
    scored: int


def perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    context: int = 512,
    chunks: int | None = None,
    name: str = "text",
    progress: Progress | None = None,
) -> PerplexityResult:
    """Perplexity of `model` on `text` (or token ids), over its first `chunks` windows or all of them.

    Raises InputError when the text, called `name`, is shorter than two windows, and for a model that gives no numbers.
    """
    ids = model.tokenizer.encode(text) if isinstance(text, str) else text
    windows = cut_windows(ids, context, bos_of(model), name)[:chunks]
    pages = -(-context // PAGE)  # of the cache that a window takes
    at_once = max(1, min(model.batch // context, model.setup.pages // pages))
    losses: list[NDArray[np.float64]] = []
    running: list[float] = []
    total = 0.0
    for start in range(0, len(windows), at_once):
        for window in -score_windows(model, windows[start : start + at_once]):
            losses.append(window)
            total += window.sum()
            mean = total / (len(losses) * window.size)
            if not mean < LARGEST_LOSS:  # which NaN is not either
                raise InputError(f"{model.file.path}: the loss is {mean} in chunk {len(losses)}; is the file damaged?")
            running.append(exp(mean))
        if progress:
            progress(len(running), len(windows), running)
    nll = np.concatenate(losses)
    error = running[-1] * sqrt(nll.var() / (nll.size - 1))
    return PerplexityResult(running[-1], error, tuple(running), context, nll.size)


def bos_of(model: Model) -> int | None:
    """The token that windows begin with, where the vocabulary wants it."""
    return model.tokenizer.bos if model.tokenizer.add_bos else None


def cut_windows(ids: Sequence[int], context: int, bos: int | None, name: str = "text") -> NDArray[np.int32]:
    """Whole windows of `context` tokens, (windows, context), each starting with `bos` if there is one."""
    if context < 4:
        raise InputError(f"context of {context} tokens: wanted at least 4")
    if len(ids) < 2 * context:
        raise InputError(
            f"{name}: {len(ids)} tokens, wanted at least {2 * context} (two windows of {context}); "
            "give a longer text or a smaller context"
        )
    count = len(ids) // context
    windows = np.array(ids[: count * context], dtype=np.int32).reshape(count, context)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def score_windows(model: Model, windows: NDArray[np.int32]) -> NDArray[np.float64]:
    """Log-probability of each token of the second halves given the window before it, (windows, scored tokens)."""
    count, context = windows.shape
    first = context // 2
    scores = np.empty((count, context - 1 - first))
    sequences = [model.new_sequence() for _ in range(count)]
    step = min(context - 1, max(1, model.batch // count))
    try:
        for start in range(0, context - 1, step):  # the last token predicts nothing
            stop = min(start + step, context - 1)
            rows = np.arange(max(first, start), stop)
            pieces = zip(sequences, windows[:, start:stop], strict=True)
            logits = model.forward([(sequence, piece.tolist(), rows - start) for sequence, piece in pieces])
            targets = windows[:, rows + 1]
            scores[:, rows - first] = logits.score(targets.ravel()).reshape(targets.shape)
    finally:
        for sequence in sequences:
            sequence.free()
    return scores
