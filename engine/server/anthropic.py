"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.server.answer import Answer, read_answers
from lltool.engine.server.chats import NO_TOOLS, begin_chat
from lltool.engine.server.constraints import format_constraint
from lltool.engine.server.exchange import Exchange, event, read_fields
from lltool.engine.server.fields import Fields, GenerationFields
from lltool.engine.server.json_body import JsonResponse
from lltool.engine.server.messages import ChatMessage, plain_messages, plain_text
from lltool.engine.server.served import Served
from lltool.engine.text.chat import Message

_UNSUPPORTED = {"tools": NO_TOOLS, "mcp_servers": NO_TOOLS, "container": NO_TOOLS}


class Thinking(Fields):
    type: str


class OutputConfig(Fields):
    format: dict[str, Any] | None = None


class CountFields(Fields):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = _UNSUPPORTED

    model: str | None = None
    messages: list[ChatMessage]
    system: str | list[dict[str, Any]] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesFields(GenerationFields, CountFields):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = _UNSUPPORTED

    max_tokens: Annotated[int, Field(ge=1, le=(1 << 63) - 1)]
    stop: list[str] | None = Field(None, validation_alias=AliasChoices("stop_sequences"))
    n: None = Field(None, exclude=True)


async def messages(request: Request) -> Response:
    fields = await read_fields(request, MessagesFields)
    output = fields.output_config or OutputConfig()
    constraint = format_constraint("output_config.format", output.format)
    with await Exchange.begin(request, fields.model) as exchange:
        plain, variables = _template_arguments(fields, exchange.served)
        (answer,) = await begin_chat(exchange, plain, variables, fields, fields.max_tokens, constraint=constraint)
        if fields.stream:
            return exchange.stream(_events(exchange.served, answer))
        return await exchange.answer(_collect(exchange.served, answer))


async def count_tokens(request: Request) -> Response:
    fields = await read_fields(request, CountFields)
    with await Exchange.begin(request, fields.model) as exchange:
        ids = await exchange.served.encode_chat(*_template_arguments(fields, exchange.served))
        exchange.close()
        return JsonResponse({"input_tokens": len(ids)})


def _template_arguments(fields: CountFields, served: Served) -> tuple[list[Message], dict[str, Any]]:
    plain = plain_messages(_without_thinking(fields.messages), served.settings.limits)
    if system := plain_text(fields.system, "system"):
        plain.insert(0, {"role": "system", "content": system})
    return plain, {} if fields.thinking is None else {"enable_thinking": fields.thinking.type != "disabled"}


def _without_thinking(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Messages without the parts in which earlier answers reasoned."""
    found = []
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = [part for part in content if part.get("type") not in ("thinking", "redacted_thinking")]
        found.append(message.model_copy(update={"content": content}))
    return found


def _head(served: Served) -> dict[str, Any]:
    return {"id": f"msg_{uuid4().hex}", "type": "message", "role": "assistant", "model": served.name}


def _usage(answer: Answer) -> dict[str, int]:
    """Tokens that were in the cache do not count as input."""
    times = answer.job.timings
    return {
        "input_tokens": answer.job.prompt_tokens - times.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": times.cached,
        "output_tokens": times.tokens,
    }


def _end(answer: Answer) -> dict[str, Any]:
    job = answer.job
    word = job.stopping_word
    reason = "max_tokens" if job.reason == "length" else "stop_sequence" if word else "end_turn"
    return {"stop_reason": reason, "stop_sequence": word or None}


async def _collect(served: Served, answer: Answer) -> dict[str, Any]:
    async for _ in read_answers([answer]):
        pass
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    content.append({"type": "text", "text": answer.content})
    return {**_head(served), "content": content, **_end(answer), "usage": _usage(answer)}


async def _events(served: Served, answer: Answer) -> AsyncIterator[bytes]:
    def named(name: str, **fields: Any) -> bytes:
        return event({"type": name, **fields}, name)

    usage = {**_usage(answer), "input_tokens": answer.job.prompt_tokens}
    start = {**_head(served), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield named("message_start", message=start)
    blocks = {
        "thinking": {"type": "thinking", "thinking": "", "signature": ""},
        "text": {"type": "text", "text": ""},
    }
    index, kind = -1, ""
    async for _, delta in read_answers([answer]):
        for wanted, text in (("thinking", delta.reasoning), ("text", delta.content)):
            if not text and not (wanted == "text" and delta.is_last and kind != "text"):
                continue
            if kind != wanted:
                if kind:
                    yield named("content_block_stop", index=index)
                index, kind = index + 1, wanted
                yield named("content_block_start", index=index, content_block=blocks[kind])
            if text:
                yield named("content_block_delta", index=index, delta={"type": f"{kind}_delta", kind: text})
    yield named("content_block_stop", index=index)
    yield named("message_delta", delta=_end(answer), usage=_usage(answer))
    yield named("message_stop")
