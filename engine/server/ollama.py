"""Ollama's endpoints, for the clients that know only those."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.calls.chat_format import NO_TOOLS, ToolUse
from lltool.engine.calls.tool import Call
from lltool.engine.grammar.constraint import Constraint
from lltool.engine.memory import MemoryModel
from lltool.engine.server.answer import Answer, Delta, read_answers
from lltool.engine.server.chats import Tokens, begin_chat, most_tokens
from lltool.engine.server.constraints import Schema, checked
from lltool.engine.server.exchange import Exchange, read_fields
from lltool.engine.server.fields import Fields, GenerationFields
from lltool.engine.server.json_body import JsonResponse, dump_json
from lltool.engine.server.messages import ChatMessage, plain_messages
from lltool.engine.server.registry import Registry, Source
from lltool.engine.server.tool_fields import ToolFields, read_tool_use
from lltool.engine.text.chat import TEMPLATE_KEY
from lltool.gguf.describe import describe_file
from lltool.gguf.errors import InputError
from lltool.gguf.reader import GGUFFile, open_gguf

_UNSUPPORTED = {"images": "this server reads text only"}
LINES = "application/x-ndjson"


class OllamaOptions(GenerationFields):
    num_predict: Tokens | None = Field(None, validation_alias=AliasChoices("num_predict"))
    n: None = Field(None, exclude=True)


class _Base(Fields):
    model: str
    stream: bool = True
    options: OllamaOptions = Field(default_factory=lambda: OllamaOptions.model_validate({}))
    think: bool | str | None = None
    format: Annotated[Schema | str, Field(description='"json", or a JSON schema')] | None = None

    def constraint(self) -> Constraint | None:
        if self.format in (None, ""):
            return None
        if self.format == "json":
            return Constraint.json_object()
        return checked("format", Constraint.json_schema, self.format)


class OllamaChatFields(_Base, ToolFields):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = _UNSUPPORTED

    messages: list[ChatMessage] = Field(default_factory=list)


class OllamaGenerateFields(_Base):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        **_UNSUPPORTED,
        "template": "a request cannot bring a template",
        "suffix": "this endpoint continues texts; /infill fills them in",
        "context": "send the conversation to /api/chat",
    }

    prompt: str = ""
    system: str = ""
    raw: bool = False


class ShowFields(Fields):
    model: str


async def chat(request: Request) -> Response:
    fields = await read_fields(request, OllamaChatFields)
    return await _converse(request, fields, fields.messages, is_chat=True, use=read_tool_use(fields))


async def generate(request: Request) -> Response:
    fields = await read_fields(request, OllamaGenerateFields)
    if not fields.raw:
        messages = [ChatMessage(role="system", content=fields.system)] if fields.system else []
        messages += [ChatMessage(role="user", content=fields.prompt)] if fields.prompt else []
        return await _converse(request, fields, messages, is_chat=False)
    with await Exchange.begin(request, fields.model) as exchange:
        served = exchange.served
        ids = await served.encode_text(fields.prompt)
        matcher = await served.matcher(fields.constraint())
        (job,) = served.make_jobs([ids], fields.options, most_tokens(fields.options.num_predict), matcher=matcher)
        exchange.submit([job])
        return await _send(exchange, fields, Answer(job), is_chat=False)


async def _converse(
    request: Request, fields: _Base, messages: list[ChatMessage], *, is_chat: bool, use: ToolUse = NO_TOOLS
) -> Response:
    with await Exchange.begin(request, fields.model) as exchange:
        served = exchange.served
        if not messages:  # how a client asks to load the model
            exchange.close()
            empty: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}
            return JsonResponse({**_head(fields.model), **empty, "done": True, "done_reason": "load"})
        plain = plain_messages(messages, served.settings.limits)
        variables = {} if fields.think is None else {"enable_thinking": bool(fields.think)}
        most = most_tokens(fields.options.num_predict)
        constraint = fields.constraint()
        (answer,) = await begin_chat(exchange, plain, variables, fields.options, most, use=use, constraint=constraint)
        return await _send(exchange, fields, answer, is_chat=is_chat)


async def _send(exchange: Exchange, fields: _Base, answer: Answer, *, is_chat: bool) -> Response:
    if fields.stream:
        return exchange.stream(_lines(fields.model, answer, is_chat), LINES)
    return await exchange.answer(_collect(fields.model, answer, is_chat))


async def _collect(model: str, answer: Answer, is_chat: bool) -> dict[str, Any]:
    async for _ in read_answers([answer]):
        pass
    whole = _text(Delta(answer.content, answer.reasoning, []), is_chat)
    if answer.calls:
        whole["message"]["tool_calls"] = [_call(call, number) for number, call in enumerate(answer.calls)]
    return {**_head(model), **whole, **_end(answer)}


async def _lines(model: str, answer: Answer, is_chat: bool) -> AsyncIterator[bytes]:
    sent = 0
    async for _, delta in read_answers([answer]):
        if delta.content or delta.reasoning:
            yield dump_json({**_head(model), **_text(delta, is_chat), "done": False}) + b"\n"
        # A call is sent whole, when the next one begins or the answer is over.
        whole = len(answer.calls) - (0 if delta.is_last else 1)
        for number in range(sent, whole):
            message = {"role": "assistant", "content": "", "tool_calls": [_call(answer.calls[number], number)]}
            yield dump_json({**_head(model), "message": message, "done": False}) + b"\n"
        sent = max(sent, whole)
    yield dump_json({**_head(model), **_text(Delta("", "", []), is_chat), **_end(answer)}) + b"\n"


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat()}


def _text(delta: Delta, is_chat: bool) -> dict[str, Any]:
    thinking = {"thinking": delta.reasoning} if delta.reasoning else {}
    if is_chat:
        return {"message": {"role": "assistant", "content": delta.content, **thinking}}
    return {"response": delta.content, **thinking}


def _call(call: Call, number: int) -> dict[str, Any]:
    """Ollama's form of a call: its arguments are an object. Those that are cut off are a text."""
    return {"id": call.id, "function": {"index": number, "name": call.name, "arguments": call.parsed}}


def _end(answer: Answer) -> dict[str, Any]:
    """The counts, and times in nanoseconds."""
    job, times = answer.job, answer.job.timings
    seconds = {
        "total_duration": job.ended - job.submitted,
        "load_duration": 0.0,
        "prompt_eval_duration": times.prompt_seconds,
        "eval_duration": times.decode_seconds,
    }
    return {
        "done": True,
        "done_reason": job.reason,
        "prompt_eval_count": job.prompt_tokens,
        "eval_count": times.tokens,
        **{name: round(value * 1e9) for name, value in seconds.items()},
    }


async def version(request: Request) -> Response:
    return JsonResponse({"version": request.app.state.version})


async def tags(request: Request) -> Response:
    registry: Registry = request.app.state.registry
    return JsonResponse({"models": [_about(source) for source in registry.sources if source.path.exists()]})


async def running(request: Request) -> Response:
    registry: Registry = request.app.state.registry
    loaded = {served.name: served for served in registry.loaded}
    sources = [source for source in registry.sources if source.name in loaded and source.path.exists()]
    return JsonResponse(
        {"models": [{**_about(each), "context_length": loaded[each.name].model.context} for each in sources]}
    )


async def show(request: Request) -> Response:
    fields = await read_fields(request, ShowFields)
    registry: Registry = request.app.state.registry
    with open_gguf(registry.find(fields.model).path) as file:
        plain = {
            key: value.data for key, value in file.metadata.items() if isinstance(value.data, str | int | float | bool)
        }
        capabilities = _capabilities(file)
    template = plain.pop(TEMPLATE_KEY, "")
    about = _about(registry.find(fields.model))
    info = {key: value for key, value in plain.items() if not (isinstance(value, float) and value != value)}
    can = [*capabilities, *(["tools"] if "completion" in capabilities and "tools" in str(template) else [])]
    return JsonResponse({"details": about["details"], "template": template, "model_info": info, "capabilities": can})


def _capabilities(file: GGUFFile) -> list[str]:
    """What the model can do, in Ollama's words, which has none for a reranker."""
    try:
        config = MemoryModel(file, file.size).config
    except InputError:  # of an architecture that cannot run
        return []
    makes_text = config.is_causal and not config.pooling.is_stated and not config.pooling.ranks
    return ["completion"] if makes_text else [] if config.pooling.ranks else ["embedding"]


def _about(source: Source) -> dict[str, Any]:
    with open_gguf(source.path) as file:
        about = describe_file(file)
    size, count, family = about.file_bytes, about.parameters, about.architecture or ""
    modified = datetime.fromtimestamp(source.path.stat().st_mtime, UTC)
    return {
        "name": source.name,
        "model": source.name,
        "modified_at": modified.isoformat(),
        "size": size,
        "digest": hashlib.sha256(f"{source.path.name} {size} {modified}".encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family] if family else [],
            "parameter_size": f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.0f}M",
            "quantization_level": about.file_type or "",
        },
    }
