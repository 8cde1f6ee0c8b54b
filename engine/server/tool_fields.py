"""Tools as requests have them: those of OpenAI, its responses, Anthropic and Ollama differ in shape only."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from lltool.engine.calls.chat_format import NO_TOOLS, ToolUse
from lltool.engine.calls.read_tools import read_tools
from lltool.engine.server.errors import bad_request
from lltool.engine.server.fields import Fields
from lltool.gguf.errors import InputError

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
    try:
        tools = read_tools(fields.tools)
    except InputError as error:
        raise bad_request(str(error), "tools") from None
    names = [tool.name for tool in tools]
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
