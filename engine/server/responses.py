"""POST /v1/responses, as OpenAI has it, without what it would have to remember or run itself."""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, ClassVar
from uuid import uuid4

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from lltool.engine.calls.tool import Call
from lltool.engine.server.answer import Answer, read_answers
from lltool.engine.server.chats import begin_chat
from lltool.engine.server.constraints import format_constraint
from lltool.engine.server.errors import bad_request
from lltool.engine.server.exchange import Exchange, event, read_fields
from lltool.engine.server.fields import Fields, GenerationFields
from lltool.engine.server.messages import CallFields, ChatMessage, plain_messages
from lltool.engine.server.served import Served
from lltool.engine.server.tool_fields import ToolFields, read_tool_use

_NO_MEMORY = "this server keeps no responses; send the whole conversation as input"


class InputItem(Fields):
    type: str = "message"
    role: str | None = None
    content: str | list[dict[str, Any]] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[dict[str, Any]] | None = None


class TextSettings(Fields):
    format: dict[str, Any] | None = None


class Reasoning(Fields):
    effort: str | None = None


class ResponsesFields(GenerationFields, ToolFields):
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "previous_response_id": _NO_MEMORY,
        "conversation": _NO_MEMORY,
        "background": _NO_MEMORY,
        "prompt": "this server keeps no prompts",
    }

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=(1 << 63) - 1)] | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    n: None = Field(None, exclude=True)


async def responses(request: Request) -> Response:
    fields = await read_fields(request, ResponsesFields)
    constraint = format_constraint("text.format", fields.text.format if fields.text else None)
    with await Exchange.begin(request, fields.model) as exchange:
        plain = plain_messages(_messages(fields), exchange.served.settings.limits)
        effort = fields.reasoning.effort if fields.reasoning else None
        variables = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        (answer,) = await begin_chat(
            exchange,
            plain,
            variables,
            fields,
            fields.max_output_tokens,
            use=read_tool_use(fields),
            constraint=constraint,
        )
        reply = _Reply(exchange.served, fields, answer)
        if fields.stream:
            return exchange.stream(reply.events())
        return await exchange.answer(reply.collect())


def _messages(fields: ResponsesFields) -> list[ChatMessage]:
    items = [InputItem(role="user", content=fields.input)] if isinstance(fields.input, str) else fields.input
    found = [ChatMessage(role="system", content=fields.instructions)] if fields.instructions else []
    for place, item in enumerate(items):
        if item.type == "reasoning":
            continue
        if item.type == "function_call" and item.name:
            _add_call(found, item)
            continue
        if item.type == "function_call_output" and item.call_id:
            found.append(ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id))
            continue
        if item.type != "message" or not item.role:
            raise bad_request(
                f"input.{place}: an item of type {item.type[:40]!r}, wanted a message, a function_call or its output",
                "input",
            )
        found.append(ChatMessage(role=item.role, content=item.content))
    return found


def _add_call(messages: list[ChatMessage], item: InputItem) -> None:
    """Adds a call to the message of the assistant that it belongs to."""
    if not messages or messages[-1].role != "assistant":
        messages.append(ChatMessage(role="assistant", content=""))
    call = CallFields.model_validate(
        {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments or "{}"}}
    )
    messages[-1] = messages[-1].model_copy(update={"tool_calls": [*(messages[-1].tool_calls or []), call]})


class _Reply:
    """The answer in the form of a response: items for the reasoning, the message and the calls, if there are some."""

    def __init__(self, served: Served, fields: ResponsesFields, answer: Answer) -> None:
        self.fields, self.answer = fields, answer
        self.head = {"id": f"resp_{uuid4().hex}", "object": "response", "created_at": int(time.time())}
        self.model = served.name
        self._ids = {"reasoning": f"rs_{uuid4().hex}", "message": f"msg_{uuid4().hex}"}
        self._number = -1

    async def collect(self) -> dict[str, Any]:
        async for _ in read_answers([self.answer]):
            pass
        return self._response(self._status())

    def _status(self) -> str:
        return "incomplete" if self.answer.job.reason == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        is_over = status in ("completed", "incomplete")
        sampler, job = self.answer.job.sampler, self.answer.job
        usage = {
            "input_tokens": job.prompt_tokens,
            "input_tokens_details": {"cached_tokens": job.timings.cached, "cache_write_tokens": 0},
            "output_tokens": job.timings.tokens,
            "output_tokens_details": {"reasoning_tokens": self.answer.reasoning_tokens},
            "total_tokens": job.prompt_tokens + job.timings.tokens,
        }
        return {
            **self.head,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.fields.instructions,
            "max_output_tokens": self.fields.max_output_tokens,
            "model": self.model,
            "output": self._output(status) if is_over else [],
            "parallel_tool_calls": self.fields.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampler.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": self.fields.tool_choice or ("auto" if self.fields.tools else "none"),
            "tools": self.fields.tools or [],
            "top_p": sampler.top_p,
            "metadata": {},
            "usage": usage if is_over else None,
        }

    def _output(self, status: str) -> list[dict[str, Any]]:
        answer = self.answer
        kinds = ["reasoning"] if answer.reasoning else []
        kinds += ["message"] if answer.content or not answer.calls else []
        return [self._item(kind, status) for kind in kinds] + [self._call(call, status) for call in answer.calls]

    def _call(self, call: Call, status: str) -> dict[str, Any]:
        arguments = "" if status == "in_progress" else call.arguments
        about = {"call_id": call.id, "name": call.name, "arguments": arguments, "status": status}
        return {"id": f"fc_{call.id}", "type": "function_call", **about}

    def _item(self, kind: str, status: str) -> dict[str, Any]:
        is_begun = status == "in_progress"
        if kind == "reasoning":
            content = [] if is_begun else [self._part(kind, self.answer.reasoning)]
            return {"id": self._ids[kind], "type": kind, "summary": [], "content": content, "status": status}
        content = [] if is_begun else [self._part(kind, self.answer.content)]
        return {"id": self._ids[kind], "type": kind, "role": "assistant", "status": status, "content": content}

    def _part(self, kind: str, text: str) -> dict[str, Any]:
        if kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    async def events(self) -> AsyncIterator[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        index, kind = -1, ""
        async for _, delta in read_answers([self.answer]):
            for wanted, text in (("reasoning", delta.reasoning), ("message", delta.content)):
                is_empty = wanted == "message" and delta.is_last and not (kind == "message" or self.answer.calls)
                if not text and not is_empty:
                    continue
                if kind != wanted:
                    if kind:
                        for each in self._close(kind, index, "completed"):
                            yield each
                    index, kind = index + 1, wanted
                    yield self._event(
                        "response.output_item.added", output_index=index, item=self._item(kind, "in_progress")
                    )
                    yield self._part_event("response.content_part.added", kind, index, part=self._part(kind, ""))
                if text:
                    yield self._part_event(f"{_text(kind)}.delta", kind, index, delta=text, logprobs=[])
            for piece in delta.calls:
                wanted = f"call {piece.index}"
                if kind != wanted:
                    if kind:
                        for each in self._close(kind, index, "completed"):
                            yield each
                    index, kind = index + 1, wanted
                    item = self._call(self.answer.calls[piece.index], "in_progress")
                    yield self._event("response.output_item.added", output_index=index, item=item)
                if piece.arguments:
                    id = f"fc_{self.answer.calls[piece.index].id}"
                    name = "response.function_call_arguments.delta"
                    yield self._event(name, item_id=id, output_index=index, delta=piece.arguments)
        for each in self._close(kind, index, self._status()):
            yield each
        yield self._event(f"response.{self._status()}", response=self._response(self._status()))

    def _close(self, kind: str, index: int, status: str) -> list[bytes]:
        if kind.startswith("call "):
            call = self.answer.calls[int(kind.removeprefix("call "))]
            done = {"item_id": f"fc_{call.id}", "output_index": index}
            name = "response.function_call_arguments.done"
            return [
                self._event(name, **done, name=call.name, arguments=call.arguments),
                self._event("response.output_item.done", output_index=index, item=self._call(call, status)),
            ]
        text = self.answer.reasoning if kind == "reasoning" else self.answer.content
        return [
            self._part_event(f"{_text(kind)}.done", kind, index, text=text, logprobs=[]),
            self._part_event("response.content_part.done", kind, index, part=self._part(kind, text)),
            self._event("response.output_item.done", output_index=index, item=self._item(kind, status)),
        ]

    def _part_event(self, name: str, kind: str, index: int, **fields: Any) -> bytes:
        return self._event(name, item_id=self._ids[kind], output_index=index, content_index=0, **fields)

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number, **fields}, kind)


def _text(kind: str) -> str:
    return "response.reasoning_text" if kind == "reasoning" else "response.output_text"
