"""Windows of tokens through one model, or through several in step: the logits that predict their second halves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.model import Logits, Model


@dataclass(frozen=True)
class Step:
    """Rows of logits, the same of each model. Row i predicts `targets[i]`, the scored token number `places[i]`."""

    logits: tuple[Logits, ...]
    targets: NDArray[np.int32]  # (R,)
    places: NDArray[np.int64]  # (R,)
    windows: int  # that have been begun
    ends: bool  # these windows are done with this step


def scored_tokens(context: int) -> int:
    """How many tokens of a window are scored: those of its second half but the first, which is only read."""
    return context - 1 - context // 2


def step_windows(models: Sequence[Model], windows: NDArray[np.int32]) -> Iterator[Step]:
    """Runs `windows` (windows, context) through all `models`, as many at once as each has room for.

    A step's logits are valid until the next one.
    """
    context = windows.shape[1]
    pages = -(-context // PAGE)  # of the cache that a window takes
    at_once = max(1, min(min(model.batch // context, model.setup.pages // pages) for model in models))
    for start in range(0, len(windows), at_once):
        yield from _step_together(models, windows[start : start + at_once], start)


def _step_together(models: Sequence[Model], windows: NDArray[np.int32], done: int) -> Iterator[Step]:
    count, context = windows.shape
    first, scored, length = context // 2, scored_tokens(context), context - 1  # the last token predicts nothing
    step = min(length, max(1, min(model.batch for model in models) // count))
    sequences = [[model.new_sequence() for _ in range(count)] for model in models]
    try:
        for start in range(0, length, step):
            stop = min(start + step, length)
            rows = np.arange(max(first, start), stop)
            logits = tuple(
                model.forward([(s, w[start:stop], rows - start) for s, w in zip(mine, windows, strict=True)])
                for model, mine in zip(models, sequences, strict=True)
            )
            if rows.size:
                places = (done + np.arange(count))[:, None] * scored + (rows - first)
                yield Step(logits, windows[:, rows + 1].ravel(), places.ravel(), done + count, stop == length)
    finally:
        for sequence in (sequence for mine in sequences for sequence in mine):
            sequence.free()
