"""Arguments of `lltool run` and `lltool chat` about tools that the model may call."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lltool.gguf.errors import InputError
from lltool.gguf.text_file import read_text

if TYPE_CHECKING:
    from lltool.engine.calls.chat_format import ToolUse
    from lltool.engine.calls.tool import Call


def add_tool_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tools", "Functions that the model may call; you run them:")
    add = group.add_argument
    add("--tools", type=Path, metavar="FILE", help="a JSON list of functions, as OpenAI's API has them")
    add(
        "--tool-choice",
        metavar="CHOICE",
        help="auto (default): the model chooses; required: it calls; none; or the name of the function that it calls",
    )


def read_tool_use(arguments: argparse.Namespace) -> "ToolUse | None":
    """The tools of the command line, None if there are none. Raises InputError for a file that has no such list."""
    path: Path | None = arguments.tools
    if path is None:
        if arguments.tool_choice is not None:
            raise InputError("--tool-choice is about tools; give a file of them with --tools")
        return None
    from lltool.engine.calls.chat_format import choose_tools
    from lltool.engine.calls.read_tools import read_tools

    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}; wanted a list of functions") from None
    values = values.get("tools") if isinstance(values, dict) and "tools" in values else values
    if not isinstance(values, list) or not values:
        raise InputError(f"{path}: wanted a JSON list of at least one function")
    return choose_tools(read_tools(values, f"{path}: tools"), arguments.tool_choice or "auto")


def call_line(call: "Call") -> str:
    """A call as a line of JSON."""
    return json.dumps({"name": call.name, "arguments": call.parsed}, ensure_ascii=False)


def call_report(call: "Call") -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "arguments": call.parsed}
