"""What a job generates, as clients read it: reasoning, content and calls of tools, and the scores of what was sent."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lltool.engine.calls.parser import AnswerParser, Parsed
from lltool.engine.calls.tool import Call, CallDelta
from lltool.engine.server.errors import ApiError
from lltool.engine.server.job import NO_TOKEN, Job, Piece, Score, read_pieces


@dataclass(frozen=True)
class Delta:
    """What a piece adds."""

    content: str
    reasoning: str
    scores: list[Score]
    ids: tuple[int, ...] = ()
    is_last: bool = False
    calls: tuple[CallDelta, ...] = ()


@dataclass
class Answer:
    """The answer of a job as it grows. Without `parser`, all of it is content."""

    job: Job
    index: int = 0
    parser: AnswerParser | None = None
    keeps_end: bool = False  # whether the token that ends the text has a score too
    content: str = ""
    reasoning: str = ""
    reasoning_tokens: int = 0  # the tokens of the tags included
    scores: list[Score] = field(default_factory=list)
    _held: list[tuple[Score, int]] = field(default_factory=list)  # scores, and where in the bytes their tokens begin
    _sent: int = 0
    _generated: int = 0

    @property
    def calls(self) -> list[Call]:
        """The calls of tools so far."""
        return self.parser.calls if self.parser else []

    @property
    def reason(self) -> str:
        """Why it ended, as OpenAI says it: for a call, unless it was cut off, "tool_calls"."""
        return "tool_calls" if self.calls and self.job.reason == "stop" else self.job.reason

    def add(self, piece: Piece | None) -> Delta:
        """Adds a piece, or None when the job is over. Raises ApiError if it failed."""
        scores, parser = self._release(piece), self.parser
        text = "" if piece is None else piece.token.text
        if parser is None:
            found = Parsed(content=text)
        elif piece is None:
            found = parser.flush()
        else:
            was_reasoning = parser.is_reasoning
            found = parser.push(text)
            self.reasoning_tokens += was_reasoning or parser.is_reasoning
        self.content += found.content
        self.reasoning += found.reasoning
        self.scores += scores
        if piece is None and self.job.reason == "error":
            raise ApiError(500, self.job.detail, code="generation_failed")
        if piece is None and self.job.reason == "cancelled":
            raise ApiError(503, self.job.detail, code="stopping")
        return Delta(
            found.content,
            found.reasoning,
            scores,
            () if piece is None or piece.token.id == NO_TOKEN else (piece.token.id,),
            piece is None,
            tuple(found.calls),
        )

    def _release(self, piece: Piece | None) -> list[Score]:
        """The scores of the tokens whose text has been sent; those of a stop string are dropped."""
        job = self.job
        if piece is not None and piece.score is not None:
            is_end = job.is_end(piece.token.id)
            if not is_end or self.keeps_end:
                self._held.append((piece.score, self._generated))
            self._generated += 0 if is_end else len(job.tokenizer.piece(piece.token.id))
            self._sent += len(piece.token.text.encode("utf-8", "replace"))
        if piece is None and job.reason == "stop" and not job.ended_by_token:
            self._held.clear()
        is_certain = piece is None or not job.has_stops
        count = len(self._held) if is_certain else sum(start < self._sent for _, start in self._held)
        released = [score for score, _ in self._held[:count]]
        del self._held[:count]
        return released


async def read_answers(answers: Sequence[Answer]) -> AsyncIterator[tuple[Answer, Delta]]:
    """What comes of answers whose jobs have one inbox, as it comes, to the end of each."""
    by_job = {answer.job: answer for answer in answers}
    async for job, piece in read_pieces(list(by_job)):
        yield by_job[job], by_job[job].add(piece)


def timings(job: Job) -> dict[str, Any]:
    """llama-server's timings of a job: counts, milliseconds and rates."""
    times = job.timings
    prompt, predicted = 1000 * times.prompt_seconds, 1000 * times.decode_seconds
    steps = max(times.tokens - 1, 0)  # the first token comes with the prompt
    return {
        "cache_n": times.cached,
        "cache_reason": job.cache_reason,
        "prompt_n": times.prompt_tokens,
        "prompt_ms": prompt,
        "prompt_per_token_ms": prompt / times.prompt_tokens if times.prompt_tokens else 0.0,
        "prompt_per_second": times.prompt_rate,
        "predicted_n": times.tokens,
        "predicted_ms": predicted,
        "predicted_per_token_ms": predicted / steps if steps else 0.0,
        "predicted_per_second": times.decode_rate,
        "queue_ms": 1000 * job.queue_seconds,
        "template_ms": 1000 * job.template_seconds,
    }


def usage(jobs: list[Job], prompts: list[Job]) -> dict[str, Any]:
    """OpenAI's counts of tokens; a prompt counts once for all its answers, `prompts` has one job of each."""
    prompt = sum(job.prompt_tokens for job in prompts)
    completion = sum(job.timings.tokens for job in jobs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(job.timings.cached for job in prompts)},
    }
