"""Calls of tools as a model would write them, for templates that cannot."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lltool.engine.calls.answer_format import AnswerFormat, Dialect, Slot, TaggedArguments, parts
from lltool.engine.calls.tool import json_type


def write_calls(format: AnswerFormat, calls: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
    """The text of calls, each a name, arguments and an id, in a model's format."""
    if not calls:
        return ""
    written = (_write_call(format, number, *call) for number, call in enumerate(calls))
    return format.section.open + format.separator.join(written) + format.section.close


def _write_call(format: AnswerFormat, number: int, name: str, arguments: Mapping[str, Any], id: str) -> str:
    values = {"name": name, "id": id, "index": str(number), "arguments": _arguments(format, arguments)}
    return "".join(values[part.name] if isinstance(part, Slot) else part for part in parts(format.calls[0]))


def _arguments(format: AnswerFormat, arguments: Mapping[str, Any]) -> str:
    match format.arguments:
        case TaggedArguments() as style:
            return style.separator.join(_tagged(style, key, value) for key, value in arguments.items())
        case Dialect() as style:
            items = sorted(arguments.items()) if style.is_sorted else arguments.items()
            return style.separator.join(f"{key}{style.colon}{write_value(style, value)}" for key, value in items)
    return json.dumps(arguments, ensure_ascii=False)


def _tagged(style: TaggedArguments, key: str, value: Any) -> str:
    is_text = isinstance(value, str)
    kind = json_type(value)
    values = {
        "key": key,
        "type": "number" if kind == "integer" else kind,
        "is_string": "true" if is_text else "false",
    }
    opening = "".join(values[part.name] if isinstance(part, Slot) else part for part in parts(style.open))
    return opening + (value if is_text else json.dumps(value, ensure_ascii=False)) + style.close


def write_value(style: Dialect, value: Any) -> str:
    match value:
        case None | bool():
            word = json.dumps(value)
            return style.words.get(word, word)
        case str():
            quote = style.quotes[0]
            if style.has_escapes:
                value = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace(quote, f"\\{quote}")
            return f"{quote}{value}{quote}"
        case list():
            return f"[{style.separator.join(write_value(style, item) for item in value)}]"
        case dict():
            keys = ((key if style.has_bare_keys else write_value(style, key), item) for key, item in value.items())
            return "{" + style.separator.join(f"{key}:{write_value(style, item)}" for key, item in keys) + "}"
    return json.dumps(value)


def describe_tools(format: AnswerFormat, tools: Sequence[Mapping[str, Any]]) -> str:
    """What a system message says to a model whose template says nothing about tools."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    first = parts(format.calls[0])
    example = write_calls(format, [("NAME", {"ARGUMENT": "VALUE"}, "ID")])
    assert first
    return (
        "You can call functions. These are the functions, each with the JSON schema of its parameters:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call a function, write its name and its arguments in this form, and nothing after it:\n"
        f"{example}\n"
        "Call a function only if it helps; otherwise answer as usual."
    )
