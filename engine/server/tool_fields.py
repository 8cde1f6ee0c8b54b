"""Tools as requests have them: those of OpenAI, its responses, Anthropic and Ollama differ in shape only."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from lltool.engine.calls.chat_format import NO_TOOLS, ToolUse
from lltool.engine.calls.tool import Tool
from lltool.engine.server.errors import bad_request
from lltool.engine.server.fields import Fields

_NAME = re.compile(r"[A-Za-z0-9_.:/\-]{1,128}")
_MOST = 512
_MODES: Mapping[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "any": "required",
    "required": "required",
}


class ToolFields(Fields):
    """What a request says of tools."""

    tools: Annotated[list[dict[str, Any]], Field(description="functions that the model may call")] | None = None
    tool_choice: (
        Annotated[str | dict[str, Any], Field(description='"none", "auto", "required", or a function by name')] | None
    ) = None
    parallel_tool_calls: Annotated[bool, Field(description="whether an answer may have several calls")] | None = None


def read_tool_use(fields: ToolFields) -> ToolUse:
    """What a request allows and demands. Raises ApiError for a tool or a choice that is malformed."""
    if not fields.tools:
        if fields.tool_choice in (None, "none", "auto"):
            return NO_TOOLS
        raise bad_request("tool_choice: there are no tools", "tool_choice")
    if len(fields.tools) > _MOST:
        raise bad_request(f"tools: {len(fields.tools)}, wanted at most {_MOST}", "tools")
    tools = tuple(_tool(value, f"tools.{place}") for place, value in enumerate(fields.tools))
    names = [tool.name for tool in tools]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise bad_request(f"tools: two have the name {double!r}", "tools")
    is_parallel = fields.parallel_tool_calls is not False
    choice = fields.tool_choice
    if isinstance(choice, Mapping) and choice.get("disable_parallel_tool_use") is True:
        is_parallel = False
    mode, called = _choice(choice)
    for name in called or ():
        if name not in names:
            raise bad_request(f"tool_choice: {name!r} is none of the tools", "tool_choice")
    if called and mode == "required" and len(called) == 1:
        is_parallel = False
    return ToolUse(tools, mode, is_parallel, frozenset(called) if called else None)


def _choice(
    choice: str | Mapping[str, Any] | None,
) -> tuple[Literal["none", "auto", "required"], Sequence[str] | None]:
    """The mode of a choice, and the names that it is limited to."""
    if choice is None:
        return "auto", None
    kind: Any = choice if isinstance(choice, str) else choice.get("type")
    if isinstance(kind, str) and kind in _MODES:
        return _MODES[kind], None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
        if kind in ("function", "tool") and isinstance(name, str):
            return "required", [name]
        allowed = choice.get("allowed_tools", choice)
        if kind == "allowed_tools" and isinstance(allowed, Mapping):
            listed = allowed.get("tools")
            names = [_name_of(each) for each in listed] if isinstance(listed, list) else []
            mode = allowed.get("mode", "auto")
            if names and all(names) and mode in ("auto", "required"):
                return mode, [name for name in names if name]
    raise bad_request('tool_choice: wanted "none", "auto", "required" or the name of a tool', "tool_choice")


def _name_of(value: Any) -> str | None:
    if not isinstance(value, Mapping):
        return None
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def _tool(value: Mapping[str, Any], where: str) -> Tool:
    kind = value.get("type") or "function"
    if kind not in ("function", "custom"):
        raise bad_request(f"{where}: a tool of type {str(kind)[:40]!r}, but this server has none of its own", "tools")
    function = value.get("function", value)
    if not isinstance(function, Mapping):
        raise bad_request(f"{where}.function: wanted an object", "tools")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(f"{where}: name {str(name)[:40]!r}, wanted letters, digits, _ . : / or -", "tools")
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise bad_request(f"{where}.description: wanted a text", "tools")
    parameters = function.get("parameters", function.get("input_schema"))
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or not isinstance(parameters.get("properties", {}), Mapping):
        raise bad_request(f"{where}.parameters: wanted the JSON schema of an object", "tools")
    return Tool(name, description, {"type": "object", **parameters}, function.get("strict") is True)
