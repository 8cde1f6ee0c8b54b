"""Messages of a conversation as requests have them, and as a chat template wants them."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from lltool.engine.server.errors import bad_request
from lltool.engine.server.fields import Fields
from lltool.engine.server.settings import RequestLimits
from lltool.engine.text.chat import Message


class FunctionFields(Fields):
    name: Annotated[str, Field(min_length=1)]
    arguments: str | dict[str, Any] | None = None


class CallFields(Fields):
    """A call of a tool in an earlier answer; Ollama's have no id."""

    id: str | None = None
    function: FunctionFields


class ChatMessage(Fields):
    """A message; `content` can be a list of parts, which are joined by line ends."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: list[CallFields] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None  # Ollama's name of the tool that a result is of


def plain_messages(messages: Sequence[ChatMessage], limits: RequestLimits) -> list[Message]:
    """Messages for a template, at least one. Raises ApiError for too many, and for parts that are no text."""
    if not messages:
        raise bad_request("messages: an empty list, wanted at least one message", "messages")
    if len(messages) > limits.messages:
        raise bad_request(f"messages: {len(messages)}, wanted at most {limits.messages}", "messages")
    found: list[Message] = []
    for place, message in enumerate(messages):
        plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
        plain["content"] = plain_text(message.content, f"messages.{place}.content")
        if message.reasoning_content is not None:
            plain["reasoning_content"] = message.reasoning_content
        if (name := message.name or message.tool_name) is not None:
            plain["name"] = name
        if message.tool_calls:
            plain["tool_calls"] = [
                {"id": call.id or f"call{number:05}", "type": "function", "function": call.function.model_dump()}
                for number, call in enumerate(message.tool_calls)
            ]
        if message.tool_call_id is not None:
            plain["tool_call_id"] = message.tool_call_id
        found.append(plain)
    return found


def plain_text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    """The text of a message's content. Raises ApiError for parts that are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for place, part in enumerate(content):
        if part.get("type") not in ("text", "input_text", "output_text"):
            kind = str(part.get("type"))[:40]
            raise bad_request(f"{where}.{place}: a part of type {kind!r}, but this server reads text only", "messages")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"{where}.{place}: wanted a text", "messages")
        texts.append(part["text"])
    return "\n".join(texts)
