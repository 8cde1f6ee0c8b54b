"""A request as the server runs it: its tokens go to the event loop, with their log-probabilities if wanted."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lltool.engine.request import Request, Token

NO_TOKEN = -1
"""In place of a token's id, where a piece is only the text that was held back."""


@dataclass(frozen=True)
class Score:
    """The log-probability of a token, and the likeliest ones in its place: (id, log-probability), best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """A generated token with the text that it completes, and its score if scores were asked for."""

    token: Token
    score: Score | None


class Job(Request):
    """A request to continue a text, which runs in the engine's thread and is read in the event loop.

    Its pieces go to `inbox`, and None when it is over. `top` is the number of likeliest tokens to report with each
    token, None for no scores; with `reads_prompt`, those of the prompt are in `prompt_scores`, from its second token
    on. It ends with the reason "length" at `deadline`. `slot` is the number under which its text can be saved; -1
    stands for any.
    """

    def __init__(
        self,
        *arguments: Any,
        inbox: "Inbox",
        top: int | None = None,
        deadline: float = float("inf"),
        slot: int = -1,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.slot = slot
        self.inbox, self.deadline = inbox, deadline
        self.submitted = self.started = self.ended = perf_counter()
        self.label = ""  # the id of the request that it belongs to
        self.template_seconds = 0.0  # from the request to its tokens: template, tokenizer and settings
        self.prompt_scores: list[Score] = []
        self._top = top
        self.wants_rows = top is not None
        self._score: Score | None = None

    @property
    def cache_reason(self) -> str:
        """Why not more of the prompt was in the cache; "" if all was, but the last token."""
        if self.shared >= self._prompt_tokens - 1:
            return ""
        if not self.first and self._prompt_tokens > 1:
            return "the log-probabilities of the prompt are wanted"
        if self.shared < self.common:
            return f"of {self.common} equal tokens, the recurrent state is kept only after {self.shared}"
        if not self.shared:
            return "no text in the cache begins with the first token"
        return f"the texts in the cache differ from token {self.shared} on"

    @property
    def queue_seconds(self) -> float:
        """How long it waited for room."""
        return self.started - self.submitted

    def resume(self) -> None:
        """Its time begins with the step in which it can begin."""
        if self.sequence is None:
            self.started = self._mark = self._clock()
        else:
            super().resume()

    def read_prompt(self, start: int, logits: NDArray[np.float32]) -> None:
        # A copy, as the prompt's last row can be read again after an interrupt.
        del self.prompt_scores[start:]
        self.prompt_scores += _scores(logits, self.ids[start + 1 : start + 1 + len(logits)], self._top or 0)

    def take_choice(self, choice: int | None, logits: NDArray[np.float32]) -> Token:
        token = super().take_choice(choice, logits)
        if self._top is not None:
            (self._score,) = _scores(logits[None], np.array([token.id]), self._top)
        return token

    def piece(self, token: Token) -> Piece:
        return Piece(token, self._score)

    @property
    def has_stops(self) -> bool:
        """Whether generated text may be held back, as it could begin a stop string."""
        return any(self._limits.stop)

    @property
    def stopping_word(self) -> str:
        """The stop string at which it ended, "" for none."""
        return self._held.found or ""

    @property
    def most(self) -> int | None:
        """How many tokens were asked for, None for as many as fit."""
        return self._limits.max_tokens

    def is_end(self, id: int) -> bool:
        """Whether this token ends the text."""
        return id in self._ends

    @property
    def ended_by_token(self) -> bool:
        """Whether the model ended the text by a token."""
        return self.reason == "stop" and self._held.found is None


Inbox: TypeAlias = "asyncio.Queue[tuple[Job, Piece | None]]"


async def read_pieces(jobs: Sequence[Job]) -> AsyncIterator[tuple[Job, Piece | None]]:
    """What jobs of one inbox generate, and None for each that is over; its `reason` and `timings` then say how."""
    left = len(jobs)
    while left:
        job, piece = await jobs[0].inbox.get()
        left -= piece is None
        yield job, piece


def _scores(logits: NDArray[np.float32], ids: NDArray[np.integer], count: int) -> list[Score]:
    """The scores of tokens `ids` (n,) by logits (n, V), before any sampler: the logarithm of the softmax."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    count = min(count, logits.shape[1])
    likeliest = np.argpartition(-shifted, max(count - 1, 0), axis=1)[:, :count]
    found = []
    for row, id, best in zip(shifted, ids.tolist(), likeliest, strict=True):
        ordered = best[np.argsort(-row[best], kind="stable")].tolist()
        found.append(Score(id, float(row[id]), tuple((other, float(row[other])) for other in ordered)))
    return found
