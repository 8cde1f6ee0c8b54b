"""Lists of short texts: a line each, or a JSON value each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.gguf import text_file
from lltool.gguf.errors import InputError


@dataclass(frozen=True)
class ListedText:
    """A text and where it stands, for messages."""

    where: str
    text: str


def read_list(path: Path, field: str = "text") -> list[ListedText]:
    """The texts of a file: its lines, or if it ends in .jsonl, the JSON strings or the `field` of the objects in them.

    Raises InputError for a file without texts, and for a line that is not JSON, or has no such field.
    """
    return list_texts(text_file.read_prompt(path), str(path), is_json=path.suffix == ".jsonl", field=field)


def list_texts(content: str, name: str, *, is_json: bool = False, field: str = "text") -> list[ListedText]:
    """The texts of the file `name`, of which `content` is the text."""
    lines = text_file.split_lines(content)
    if not lines:
        raise InputError(f"{name}: no texts, wanted one a line")
    numbered = [(f"{name}: line {number}", line) for number, line in enumerate(lines, 1)]
    return [ListedText(where, _read_json(where, line, field) if is_json else line) for where, line in numbered]


def _read_json(where: str, line: str, field: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot be read as JSON: {error}") from None
    found = value.get(field) if isinstance(value, dict) else value
    if not isinstance(found, str):
        raise InputError(f"{where}: wanted a JSON string, or an object with the string {field!r}")
    return found
