"""POST /v1/completions: OpenAI's older endpoint, with log-probabilities of prompts for lm-evaluation-harness."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.server.answer import Answer, read_answers, timings, usage
from lltool.engine.server.chats import GUIDED, Tokens, most_tokens
from lltool.engine.server.constraints import ResponseFormatFields
from lltool.engine.server.errors import bad_request
from lltool.engine.server.exchange import Exchange, event, read_fields
from lltool.engine.server.fields import GenerationFields, TokenIds
from lltool.engine.server.job import Job, Score
from lltool.engine.server.openai_chat import StreamOptions
from lltool.engine.server.served import Scores, Served

_DEFAULT_TOKENS = 16  # OpenAI's


class CompletionFields(GenerationFields, ResponseFormatFields):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "suffix": "this endpoint continues texts; /infill fills them in",
        **GUIDED,
    }

    prompt: str | TokenIds | list[str] | list[TokenIds] = Field(description="texts or token ids to continue")
    max_tokens: Tokens | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "max_completion_tokens", "n_predict")
    )
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None


async def completions(request: Request) -> Response:
    fields = await read_fields(request, CompletionFields)
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise bad_request("best_of: this server returns all answers; wanted the same as n", "best_of", "unsupported")
    constraint = fields.constraint()
    with await Exchange.begin(request, fields.model) as exchange:
        served = exchange.served
        prompts = await encode_prompts(served, fields.prompt)
        scores = None if fields.logprobs is None else Scores(fields.logprobs, prompt=bool(fields.echo))
        most = _DEFAULT_TOKENS if fields.max_tokens is None else most_tokens(fields.max_tokens)
        jobs = served.make_jobs(prompts, fields, most, scores, matcher=await served.matcher(constraint))
        exchange.submit(jobs)
        texts = _Completions(served, jobs, fields)
        if fields.stream:
            return exchange.stream(texts.events())
        return await exchange.answer(texts.collect())


async def encode_prompts(served: Served, prompt: str | TokenIds | list[str] | list[TokenIds]) -> list[list[int]]:
    """The token ids of one or several prompts; ids are taken as they are. Raises ApiError for none."""
    if isinstance(prompt, str):
        return [await served.encode_text(prompt)]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    if not prompt:
        raise bad_request("prompt: an empty list, wanted a text, token ids, or several of them", "prompt")
    if len(prompt) > (most := served.settings.limits.choices):
        raise bad_request(f"prompt: {len(prompt)} prompts, wanted at most {most}", "prompt")
    return [await served.encode_text(each) if isinstance(each, str) else each for each in prompt]  # type: ignore[misc]


class _Completions:
    """The continuations of one request."""

    def __init__(self, served: Served, jobs: list[Job], fields: CompletionFields) -> None:
        self.served, self.jobs, self.fields = served, jobs, fields
        self.answers = {job: Answer(job, index, keeps_end=True) for index, job in enumerate(jobs)}
        self.head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        self._offsets = dict.fromkeys(jobs, 0)  # characters of the tokens before

    async def collect(self) -> dict[str, Any]:
        async for _ in read_answers(list(self.answers.values())):
            pass
        choices = []
        for job, answer in self.answers.items():
            scores: list[Score | int] = [*self._prompt_scores(job), *answer.scores]
            choices.append(self._choice(job, self._echo(job) + answer.content, scores, job.reason))
        return {**self.head, "choices": choices, "usage": self._usage(), "timings": timings(self.jobs[0])}

    async def events(self) -> AsyncIterator[bytes]:
        echoed: set[Job] = set()
        async for answer, delta in read_answers(list(self.answers.values())):
            job = answer.job
            text, scores = delta.content, list[Score | int](delta.scores)
            if job not in echoed and self.fields.echo:
                text, scores = self._echo(job) + text, [*self._prompt_scores(job), *scores]
            echoed.add(job)
            if text or scores:
                yield event({**self.head, "choices": [self._choice(job, text, scores, None)]})
            if delta.is_last:
                yield event({**self.head, "choices": [self._choice(job, "", [], job.reason)], "timings": timings(job)})
        if self.fields.stream_options and self.fields.stream_options.include_usage:
            yield event({**self.head, "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _usage(self) -> dict[str, Any]:
        return usage(self.jobs, self.jobs[:: self.fields.n or 1])

    def _echo(self, job: Job) -> str:
        if not self.fields.echo:
            return ""
        return self.served.tokenizer.decode(job.ids[: job.prompt_tokens].tolist())

    def _prompt_scores(self, job: Job) -> list[Score | int]:
        """The scores of the prompt's tokens, and in place of the first one's, its id."""
        if not self.fields.echo or self.fields.logprobs is None:
            return []
        return [int(job.ids[0]), *job.prompt_scores[: job.prompt_tokens - 1]]

    def _choice(self, job: Job, text: str, scores: Sequence[Score | int], reason: str | None) -> dict[str, Any]:
        logprobs = None if self.fields.logprobs is None else self._logprobs(job, scores)
        return {"index": self.answers[job].index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, job: Job, scores: Sequence[Score | int]) -> dict[str, Any]:
        """OpenAI's four lists; the first token of a prompt has no probability."""
        tokens = [self._text(score if isinstance(score, int) else score.id) for score in scores]
        offsets = []
        for text in tokens:
            offsets.append(self._offsets[job])
            self._offsets[job] += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [None if isinstance(score, int) else score.logprob for score in scores],
            "top_logprobs": [None if isinstance(score, int) else self._top(score) for score in scores],
            "text_offset": offsets,
        }

    def _top(self, score: Score) -> dict[str, float]:
        """The likeliest tokens by their texts; of several with the same text, the likeliest."""
        found: dict[str, float] = {}
        for id, logprob in [*score.top, (score.id, score.logprob)] if score.top else []:
            found.setdefault(self._text(id), logprob)
        return found

    def _text(self, id: int) -> str:
        return self.served.tokenizer.piece(id).decode("utf-8", "replace")
