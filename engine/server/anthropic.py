"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.calls.tool import Call
from lltool.engine.server.answer import Answer, Delta, read_answers
from lltool.engine.server.chats import begin_chat
from lltool.engine.server.constraints import format_constraint
from lltool.engine.server.errors import bad_request
from lltool.engine.server.exchange import Exchange, event, read_fields
from lltool.engine.server.fields import Fields, GenerationFields
from lltool.engine.server.json_body import JsonResponse
from lltool.engine.server.messages import CallFields, ChatMessage, plain_messages, plain_text
from lltool.engine.server.served import Served
from lltool.engine.server.tool_fields import ToolFields, read_tool_use
from lltool.engine.text.chat import Message

_NO_SERVERS = "this server runs no tools of its own"
_UNSUPPORTED = {"mcp_servers": _NO_SERVERS, "container": _NO_SERVERS}


class Thinking(Fields):
    type: str


class OutputConfig(Fields):
    format: dict[str, Any] | None = None


class CountFields(ToolFields):
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
        use = read_tool_use(fields)
        (answer,) = await begin_chat(
            exchange, plain, variables, fields, fields.max_tokens, use=use, constraint=constraint
        )
        if fields.stream:
            return exchange.stream(_events(exchange.served, answer))
        return await exchange.answer(_collect(exchange.served, answer))


async def count_tokens(request: Request) -> Response:
    fields = await read_fields(request, CountFields)
    with await Exchange.begin(request, fields.model) as exchange:
        ids = await exchange.served.encode_chat(*_template_arguments(fields, exchange.served), read_tool_use(fields))
        exchange.close()
        return JsonResponse({"input_tokens": len(ids)})


def _template_arguments(fields: CountFields, served: Served) -> tuple[list[Message], dict[str, Any]]:
    plain = plain_messages(_as_openai(fields.messages), served.settings.limits)
    if system := plain_text(fields.system, "system"):
        plain.insert(0, {"role": "system", "content": system})
    return plain, {} if fields.thinking is None else {"enable_thinking": fields.thinking.type != "disabled"}


def _as_openai(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Messages without the parts in which earlier answers reasoned, calls and results of tools as OpenAI has them."""
    found = []
    for place, message in enumerate(messages):
        if not isinstance(message.content, list):
            found.append(message)
            continue
        content, calls = [], []
        for number, part in enumerate(message.content):
            where = f"messages.{place}.content.{number}"
            match part.get("type"):
                case "thinking" | "redacted_thinking":
                    continue
                case "tool_use":
                    calls.append(_call(part, where))
                case "tool_result":
                    found.append(_result(part, where))
                case _:
                    content.append(part)
        if content or calls or not message.content:
            found.append(message.model_copy(update={"content": content, "tool_calls": calls or None}))
    return found


def _call(part: Mapping[str, Any], where: str) -> CallFields:
    name, arguments, id = part.get("name"), part.get("input", {}), part.get("id")
    if not isinstance(name, str) or not isinstance(arguments, dict) or not isinstance(id, str | None):
        raise bad_request(f"{where}: wanted a tool_use with id, name and input", "messages")
    return CallFields.model_validate({"id": id, "function": {"name": name, "arguments": arguments}})


def _result(part: Mapping[str, Any], where: str) -> ChatMessage:
    id, content = part.get("tool_use_id"), part.get("content")
    if not isinstance(id, str) or not isinstance(content, str | list | None):
        raise bad_request(f"{where}: wanted a tool_result with tool_use_id and content", "messages")
    text = plain_text(content, f"{where}.content")
    return ChatMessage(role="tool", content=f"Error: {text}" if part.get("is_error") else text, tool_call_id=id)


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
    if answer.reason == "tool_calls":
        reason, word = "tool_use", ""
    return {"stop_reason": reason, "stop_sequence": word or None}


async def _collect(served: Served, answer: Answer) -> dict[str, Any]:
    async for _ in read_answers([answer]):
        pass
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.content or not answer.calls:
        content.append({"type": "text", "text": answer.content})
    content += [{"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call)} for call in answer.calls]
    return {**_head(served), "content": content, **_end(answer), "usage": _usage(answer)}


async def _events(served: Served, answer: Answer) -> AsyncIterator[bytes]:
    def named(name: str, **fields: Any) -> bytes:
        return event({"type": name, **fields}, name)

    usage = {**_usage(answer), "input_tokens": answer.job.prompt_tokens}
    start = {**_head(served), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield named("message_start", message=start)
    index, kind = -1, ""
    async for _, delta in read_answers([answer]):
        for wanted, block, piece in _blocks(delta, kind):
            if kind != wanted:
                if kind:
                    yield named("content_block_stop", index=index)
                index, kind = index + 1, wanted
                yield named("content_block_start", index=index, content_block=block)
            if piece:
                yield named("content_block_delta", index=index, delta=piece)
    yield named("content_block_stop", index=index)
    yield named("message_delta", delta=_end(answer), usage=_usage(answer))
    yield named("message_stop")


def _blocks(delta: Delta, kind: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What a delta adds after a block of `kind`: the kind of each block, how it begins, and what it gets."""
    if delta.reasoning:
        block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
        yield "thinking", block, {"type": "thinking_delta", "thinking": delta.reasoning}
    if delta.content or (delta.is_last and not delta.calls and kind in ("", "thinking")):
        piece = {"type": "text_delta", "text": delta.content} if delta.content else {}
        yield "text", {"type": "text", "text": ""}, piece
    for call in delta.calls:
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        piece = {"type": "input_json_delta", "partial_json": call.arguments} if call.arguments else {}
        yield f"call {call.index}", block, piece


def _input(call: Call) -> Any:
    """The arguments of a call; of those that are cut off, none."""
    return call.parsed if isinstance(call.parsed, dict) else {}
