"""Log-likelihoods of given tokens: what perplexity, tasks and evaluation harnesses are made of."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE
from lltool.engine.cache import Sequence
from lltool.engine.model import Model, Tokens
from lltool.gguf.errors import InputError


def score_tokens(
    model: Model, contexts: Iterable[Tokens], continuations: Iterable[Tokens]
) -> Iterator[NDArray[np.float64]]:
    """Natural logarithms of the probabilities of each continuation's tokens after its context, pair by pair in order.

    Token i of a continuation is predicted from its context, of one token or more, and the tokens before i. Pairs share
    batches as far as batch and cache have room; a longer one takes several. Logits live for a block of rows only.
    """
    source = (_Text.of(model, *pair) for pair in zip(contexts, continuations, strict=True))
    waiting: deque[_Text] = deque(islice(source, 1))
    try:
        while waiting:
            _advance(model, waiting, source)
            while waiting and not waiting[0].left:
                done = waiting.popleft()
                done.sequence.free()
                yield np.concatenate([np.empty(0), *done.scores])
            waiting.extend(islice(source, not waiting))
    finally:
        for text in waiting:
            text.sequence.free()


@dataclass(eq=False)
class _Text:
    """A context and its continuation, which begins at `first`; `sequence` holds what has been computed."""

    ids: NDArray[np.int32]
    first: int
    sequence: Sequence
    scores: list[NDArray[np.float64]] = field(default_factory=list)

    @staticmethod
    def of(model: Model, context: Tokens, continuation: Tokens) -> "_Text":
        if not len(context):
            raise InputError("an empty context: wanted at least one token, such as BOS, to predict from")
        ids = np.concatenate([np.asarray(part, np.int32) for part in (context, continuation)])
        return _Text(ids, len(context) if len(continuation) else 0, model.new_sequence())

    @property
    def left(self) -> int:
        """Tokens to compute: the last one predicts nothing."""
        return len(self.ids) - 1 - self.sequence.length if self.first else 0

    @property
    def pages(self) -> int:
        return -(-(len(self.ids) - 1) // PAGE)


def _advance(model: Model, waiting: deque[_Text], source: Iterator[_Text]) -> None:
    """Computes one batch: as many texts from the front as fit whole, or what fits of the first."""
    taken: list[_Text] = []
    pieces, targets, sizes = [], [], []
    room, pages = model.batch, model.setup.pages
    for text in _all(waiting, source):
        if taken and (text.left > room or text.pages > pages):
            break
        if not text.left:
            continue
        start = text.sequence.length
        stop = start + min(text.left, room)
        rows = np.arange(max(text.first - 1, start), max(text.first - 1, stop)) - start
        taken.append(text)
        pieces.append((text.sequence, text.ids[start:stop], rows))
        targets.append(text.ids[start + 1 + rows])
        sizes.append(len(rows))
        room -= stop - start
        pages -= text.pages
    if taken:
        scores = model.forward(pieces).score(np.concatenate(targets))
        for text, part in zip(taken, np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
            text.scores.append(part)


def _all(waiting: deque[_Text], source: Iterator[_Text]) -> Iterator[_Text]:
    """Those waiting, then those of `source`, who wait from then on."""
    yield from waiting
    for text in source:
        waiting.append(text)
        yield text
