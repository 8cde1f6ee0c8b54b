"""Runs windows of tokens through one model, or several in lockstep, and gives the logits of their scored tokens."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.logits import Logits
from lltool.engine.model import Model


@dataclass(frozen=True)
class Window:
    """Token ids, scored from index `first` on, each with `weight`; the first is at index `start` of the text."""

    ids: NDArray[np.int32]
    first: int
    start: int = 0
    weight: float = 1.0

    @property
    def read(self) -> int:
        """The number of tokens that a model reads: all but the last, which is only predicted."""
        return len(self.ids) - 1

    @property
    def scored(self) -> int:
        return len(self.ids) - self.first


@dataclass(frozen=True)
class WindowStep:
    """The same rows of logits from each model; row i predicts `targets[i]`, which is scored token `places[i]`."""

    logits: tuple[Logits, ...]
    targets: NDArray[np.int32]  # (R,)
    places: NDArray[np.int64]  # (R,)
    windows: int  # begun so far
    ends: bool  # whether this step completes them


def scored_tokens(context: int) -> int:
    """The number of tokens that `score_second_halves` scores in a window."""
    return context - 1 - context // 2


def score_second_halves(rows: NDArray[np.int32]) -> list[Window]:
    """Windows (windows, context) of which the second half is scored, without its first token, which is only read."""
    return [Window(row, rows.shape[1] // 2 + 1) for row in rows]


def step_windows(models: Sequence[Model], windows: Sequence[Window]) -> Iterator[WindowStep]:
    """Runs `windows` through all `models`, as many at once as every model has room for.

    A window that is longer than a batch takes several steps. Scored tokens are numbered through all windows, and steps
    have them in this order. The logits of a step are valid until the next step. When a step `ends`, the cache is free
    again, so the caller may run other windows; a step that does not end has at least one row.
    """
    begun = place = 0
    while begun < len(windows):
        together = _choose_windows(models, windows, begun)
        begun += len(together)
        yield from _step_together(models, together, place, begun)
        place += sum(window.scored for window in together)


def _choose_windows(models: Sequence[Model], windows: Sequence[Window], begin: int) -> Sequence[Window]:
    """The windows from `begin` on that fit one batch and the free pages of every model, or the first of them."""
    tokens = min(model.batch for model in models)
    pages = min(model.free_pages for model in models)
    stop = begin
    for window in windows[begin:]:
        tokens -= window.read
        pages -= -(-window.read // PAGE)
        if stop > begin and min(tokens, pages) < 0 and window.read:
            break
        stop += 1
    return windows[begin:stop]


def _step_together(models: Sequence[Model], windows: Sequence[Window], place: int, begun: int) -> Iterator[WindowStep]:
    """Steps through windows whose scored tokens are numbered from `place` on."""
    longest, size = max(window.read for window in windows), min(model.batch for model in models)
    with ExitStack() as held:
        sequences = [[model.new_sequence() for _ in windows] for model in models]
        for sequence in (sequence for mine in sequences for sequence in mine):
            held.callback(sequence.free)
        for start in range(0, longest, size):
            tokens, rows, targets = [], [], []
            for window in windows:
                stop = min(start + size, window.read)
                wanted = np.arange(max(window.first - 1, start), max(window.first - 1, start, stop))
                tokens.append(window.ids[start:stop])
                rows.append(wanted - start)
                targets.append(window.ids[wanted + 1])
            logits = tuple(
                model.forward([piece for piece in zip(mine, tokens, rows, strict=True) if len(piece[1])])
                for model, mine in zip(models, sequences, strict=True)
            )
            ends = start + size >= longest
            if ends:
                held.close()
            if ends or any(map(len, targets)):
                found = np.concatenate(targets)
                yield WindowStep(logits, found, np.arange(place, place + len(found)), begun, ends)
                place += len(found)
