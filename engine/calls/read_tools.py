"""Tools from what programs have: OpenAI's objects and those of others, and Python functions with type hints."""

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lltool.engine.calls.tool import Tool, json_type
from lltool.gguf.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9_.:/\-]{1,128}")
_MOST = 512
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null", dict: "object"}
_ARGUMENTS = re.compile(r"^\s*(?:Args|Arguments|Parameters):\s*$", re.MULTILINE)
_SECTION = re.compile(r"^\s*(?:Returns?|Raises|Yields|Examples?|Notes?):", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\s*)\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_CHOICES = re.compile(r"\(\s*choices:\s*(\[.*?\])\s*\)\s*$", re.DOTALL)


def read_tools(values: Sequence[Any], where: str = "tools") -> tuple[Tool, ...]:
    """The tools of a list of objects and functions. Raises InputError, which names the one that is malformed."""
    if len(values) > _MOST:
        raise InputError(f"{where}: {len(values)}, wanted at most {_MOST}")
    tools = tuple(
        read_function(value) if callable(value) else _read_object(value, f"{where}.{place}")
        for place, value in enumerate(values)
    )
    names = [tool.name for tool in tools]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{where}: two have the name {double!r}")
    return tools


def _read_object(value: Any, where: str) -> Tool:
    """A tool of OpenAI (with its fields in "function" or not), of Anthropic (`input_schema`), or of Ollama."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: wanted an object or a function")
    kind = value.get("type") or "function"
    if kind not in ("function", "custom"):
        raise InputError(f"{where}: a tool of type {str(kind)[:40]!r}, wanted a function")
    function = value.get("function", value)
    if not isinstance(function, Mapping):
        raise InputError(f"{where}.function: wanted an object")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{where}: name {str(name)[:40]!r}, wanted letters, digits, _ . : / or -")
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise InputError(f"{where}.description: wanted a text")
    parameters = function.get("parameters", function.get("input_schema"))
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or not isinstance(parameters.get("properties", {}), Mapping):
        raise InputError(f"{where}.parameters: wanted the JSON schema of an object")
    return Tool(name, description, {"type": "object", **parameters}, function.get("strict") is True)


def read_function(function: Callable[..., Any]) -> Tool:
    """A tool of a Python function: its type hints become the schema, its docstring the descriptions.

    The docstring is in Google's style, as transformers' `get_json_schema` wants it; descriptions may be missing. Raises
    InputError for an argument without a type hint, and for a type that JSON has not.
    """
    name = getattr(function, "__name__", type(function).__name__)
    hints = get_type_hints(function)
    described, text = _read_docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in hints:
            raise InputError(f"tool {name}: argument {parameter.name} has no type hint")
        schema = _schema(hints[parameter.name], f"tool {name}: argument {parameter.name}")
        if about := described.get(parameter.name):
            if found := _CHOICES.search(about):
                schema["enum"], about = _choices(found[1]), about[: found.start()].rstrip()
            schema["description"] = about
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties}
    return Tool(name, text, parameters | ({"required": required} if required else {}))


def _schema(hint: Any, where: str) -> dict[str, Any]:
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    if hint is Any:
        return {}
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (list, tuple) or origin in (list, tuple, Sequence):
        kinds = [each for each in arguments if each is not Ellipsis]
        return {"type": "array", **({"items": _schema(kinds[0], where)} if kinds else {})}
    if origin in (dict, Mapping):
        return {"type": "object", **({"additionalProperties": _schema(arguments[1], where)} if arguments else {})}
    if origin is Literal:
        kinds = sorted({json_type(each) for each in arguments})
        return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(arguments)}
    if origin in (Union, types.UnionType):
        others = [_schema(each, where) for each in arguments if each is not type(None)]
        is_optional = len(others) < len(arguments)
        if len(others) == 1:
            return {**others[0], **({"nullable": True} if is_optional else {})}
        if all(set(each) == {"type"} for each in others):
            merged: dict[str, Any] = {"type": sorted(each["type"] for each in others)}
        else:
            merged = {"anyOf": others}
        return {**merged, **({"nullable": True} if is_optional else {})}
    if hasattr(hint, "model_json_schema"):  # pydantic's
        found: dict[str, Any] = hint.model_json_schema()
        return found
    raise InputError(f"{where} has the type {hint!r}, which JSON has not")


def _read_docstring(text: str) -> tuple[dict[str, str], str]:
    """The descriptions of arguments, and that of the function."""
    begun = _ARGUMENTS.search(text)
    end = _SECTION.search(text, begun.end() if begun else 0)
    about = text[: begun.start() if begun else end.start() if end else len(text)].strip()
    found: dict[str, str] = {}
    indent, last = None, ""
    for line in text[begun.end() : end.start() if end else len(text)].splitlines() if begun else []:
        match = _ARGUMENT.match(line)
        if match and (indent is None or len(match[1]) <= indent):
            indent, last = len(match[1]), match[2]
            found[last] = match[3].strip()
        elif last and line.strip():
            found[last] = f"{found[last]} {line.strip()}".strip()
    return found, about


def _choices(text: str) -> list[Any]:
    try:
        found = json.loads(text.replace("'", '"'))
    except ValueError:
        raise InputError(f"choices {text}: wanted a JSON list") from None
    return list(found)
