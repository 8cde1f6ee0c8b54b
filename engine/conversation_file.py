"""Conversations as files: a JSON object of the shape of a request to OpenAI's chat completions.

It has the messages, with the system message first, and the settings, so that a server can be asked with it. A file
that is only the list of messages is read too.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.engine.conversation import Conversation
from lltool.engine.inputs import whole_number
from lltool.engine.sampling_settings import SETTINGS
from lltool.gguf.errors import InputError
from lltool.gguf.text_file import read_text
from lltool.gguf.whole_file import whole_file

if TYPE_CHECKING:
    from lltool.engine.text.chat import Message

_KEYS = ("model", "messages", *SETTINGS, "max_tokens", "stop")
_ROLES = ("system", "user", "assistant", "tool")
_MORE = {"assistant": {"tool_calls"}, "tool": {"tool_call_id", "name"}}  # what messages can have besides


def save_conversation(conversation: Conversation, path: Path) -> None:
    """Writes the messages and settings to a file, which appears whole or not at all."""
    system: list[Message] = [{"role": "system", "content": conversation.system}] if conversation.system else []
    saved: dict[str, Any] = {
        "model": conversation.model.file.path.name,
        "messages": [*system, *conversation.messages],
        **{name: getattr(conversation.sampler, name) for name in SETTINGS},
        "max_tokens": conversation.max_tokens,
        "stop": list(conversation.stop) or None,
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(saved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_conversation(conversation: Conversation, path: Path) -> None:
    """Replaces the messages and the settings that the file has; the model stays the same.

    `conversation.system` becomes the system message that is first, or empty. Raises InputError naming the file, and
    changes nothing, if it is not such a file.
    """
    try:
        saved = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}; wanted a saved conversation") from None
    if isinstance(saved, list):
        saved = {"messages": saved}
    if not isinstance(saved, dict) or not isinstance(saved.get("messages"), list):
        raise InputError(f'{path}: found no list of "messages"; wanted a saved conversation')
    if unknown := [key for key in saved if key not in _KEYS]:
        raise InputError(f"{path}: the setting {unknown[0]!r} is not supported; remove it (known: {', '.join(_KEYS)})")
    messages = [_message(value, f"{path}: message {number}") for number, value in enumerate(saved["messages"], 1)]
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    max_tokens = saved.get("max_tokens", conversation.max_tokens)
    stop = saved.get("stop", conversation.stop) or ()
    stop = [stop] if isinstance(stop, str) else stop
    if not (isinstance(stop, list | tuple) and all(isinstance(text, str) for text in stop)):
        raise InputError(f"{path}: stop {stop!r}, wanted a text or a list of texts")
    try:
        if max_tokens is not None:
            whole_number("max_tokens", max_tokens, 0)
        changes = {name: saved[name] for name in SETTINGS if saved.get(name) is not None}
        sampler = replace(conversation.sampler, **changes)
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: {error}") from None
    conversation.replace(messages)
    conversation.sampler, conversation.system = sampler, system
    conversation.max_tokens, conversation.stop = max_tokens, stop


def _message(value: Any, name: str) -> "Message":
    more = _MORE.get(str(value.get("role")), set()) if isinstance(value, dict) else set()
    if not isinstance(value, dict) or set(value) - more != {"role", "content"}:
        found = ", ".join(map(repr, value)) if isinstance(value, dict) else f"a JSON {type(value).__name__}"
        raise InputError(f'{name}: found {found or "nothing"}, wanted an object with "role" and "content"')
    if value["role"] not in _ROLES:
        raise InputError(f"{name}: the role is {value['role']!r}, wanted {', '.join(_ROLES[:-1])} or {_ROLES[-1]}")
    if not isinstance(value["content"], str):
        raise InputError(f"{name}: the content is a JSON {type(value['content']).__name__}, wanted a text")
    calls = value.get("tool_calls", [])
    if not (isinstance(calls, list) and all(map(_is_call, calls))):
        raise InputError(f"{name}: the tool_calls are not those of a saved conversation")
    return dict(value)


def _is_call(value: Any) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(value.get("id"), str):
        return False
    return all(isinstance(function.get(key), str) for key in ("name", "arguments"))
