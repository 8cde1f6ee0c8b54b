"""POST /v1/chat/completions, as OpenAI has it, with llama-server's settings and timings."""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.calls.tool import CallDelta
from lltool.engine.server.answer import Answer, Delta, read_answers, timings, usage
from lltool.engine.server.chats import (
    UNSUPPORTED,
    TemplateFields,
    Tokens,
    begin_chat,
    most_tokens,
    template_arguments,
)
from lltool.engine.server.constraints import ResponseFormatFields
from lltool.engine.server.errors import bad_request
from lltool.engine.server.exchange import Exchange, event, read_fields
from lltool.engine.server.fields import Fields, GenerationFields
from lltool.engine.server.job import Score
from lltool.engine.server.served import Scores, Served
from lltool.engine.server.tool_fields import ToolFields, read_tool_use
from lltool.engine.text.tokenizer import Tokenizer


class StreamOptions(Fields):
    include_usage: bool | None = None


class ChatFields(GenerationFields, ResponseFormatFields, TemplateFields, ToolFields):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = UNSUPPORTED

    max_tokens: Tokens | None = Field(
        None, validation_alias=AliasChoices("max_completion_tokens", "max_tokens", "n_predict")
    )
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    reasoning_format: Literal["auto", "none", "deepseek"] | None = None
    reasoning_effort: str | None = None


async def chat_completions(request: Request) -> Response:
    fields = await read_fields(request, ChatFields)
    constraint = fields.constraint()
    if fields.top_logprobs is not None and not fields.logprobs:
        raise bad_request("top_logprobs: wants logprobs to be true", "top_logprobs")
    with await Exchange.begin(request, fields.model) as exchange:
        served = exchange.served
        scores = Scores(fields.top_logprobs or 0) if fields.logprobs else None
        messages, variables = template_arguments(fields, served)
        use = read_tool_use(fields)
        most = most_tokens(fields.max_tokens)
        answers = await begin_chat(
            exchange,
            messages,
            variables,
            fields,
            most,
            use=use,
            scores=scores,
            reasoning=fields.reasoning_format,
            constraint=constraint,
        )
        chat = _Chat(served, fields, answers)
        if fields.stream:
            return exchange.stream(chat.events())
        return await exchange.answer(chat.collect())


class _Chat:
    """The answers to one request."""

    def __init__(self, served: Served, fields: ChatFields, answers: list[Answer]) -> None:
        self.served, self.fields, self.answers = served, fields, answers
        self.jobs = [answer.job for answer in answers]
        self.head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": served.name}

    async def collect(self) -> dict[str, Any]:
        async for _ in read_answers(self.answers):
            pass
        choices = []
        for answer in self.answers:
            content = answer.content or (None if answer.calls else "")
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if answer.reasoning:
                message["reasoning_content"] = answer.reasoning
            if answer.calls:
                message["tool_calls"] = [call.as_json() for call in answer.calls]
            choices.append(self._choice(answer, message, answer.scores, answer.reason, "message"))
        return {
            **self.head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._usage(),
            "timings": timings(self.jobs[0]),
        }

    async def events(self) -> AsyncIterator[bytes]:
        for answer in self.answers:
            yield self._chunk([self._choice(answer, {"role": "assistant", "content": ""}, [], None)])
        async for answer, delta in read_answers(self.answers):
            if fields := _delta(delta):
                yield self._chunk([self._choice(answer, fields, delta.scores, None)])
            if delta.is_last:
                yield self._chunk([self._choice(answer, {}, [], answer.reason)], timings=timings(answer.job))
        if self.fields.stream_options and self.fields.stream_options.include_usage:
            yield self._chunk([], usage=self._usage())
        yield b"data: [DONE]\n\n"

    def _usage(self) -> dict[str, Any]:
        reasoning = sum(answer.reasoning_tokens for answer in self.answers)
        details = {"completion_tokens_details": {"reasoning_tokens": reasoning}} if reasoning else {}
        return {**usage(self.jobs, self.jobs[:1]), **details}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**self.head, "object": "chat.completion.chunk", "choices": choices, **more})

    def _choice(
        self, answer: Answer, text: Mapping[str, Any], scores: list[Score], reason: str | None, kind: str = "delta"
    ) -> dict[str, Any]:
        tokenizer = self.served.tokenizer
        content = [token_score(tokenizer, score) for score in scores]
        logprobs = {"content": content} if self.fields.logprobs and (content or kind == "message") else None
        return {"index": answer.index, kind: text, "logprobs": logprobs, "finish_reason": reason}


def _delta(delta: Delta) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if delta.reasoning:
        found["reasoning_content"] = delta.reasoning
    if delta.content or (delta.scores and not delta.calls):
        found["content"] = delta.content
    if delta.calls:
        found["tool_calls"] = [_call_delta(call) for call in delta.calls]
    return found


def _call_delta(call: CallDelta) -> dict[str, Any]:
    """OpenAI's form of a piece of a call: the first has its id and name."""
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def token_score(tokenizer: Tokenizer, score: Score) -> dict[str, Any]:
    """OpenAI's form of a token's log-probability and of those of the likeliest tokens in its place."""
    top = [_named(tokenizer, id, logprob) for id, logprob in score.top]
    return {**_named(tokenizer, score.id, score.logprob), "top_logprobs": top}


def _named(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    piece = tokenizer.piece(id)
    return {"id": id, "token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}
