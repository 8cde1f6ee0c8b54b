"""Reads files of conversations: JSON lines, each with a list of messages or an object that has such a list."""

import json
from collections.abc import Iterator
from typing import Any

from lltool.gguf.errors import InputError
from lltool.gguf.text_file import split_lines


def read_records(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the JSON value of each line that is not blank, with its place, such as `chats.jsonl, line 3`.

    Raises InputError for a line of the text, called `name`, that is not JSON.
    """
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            place = f"{name}, line {number}"
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not JSON: {error}") from None


def messages_of(record: Any) -> list[dict[str, Any]] | None:
    """The messages of a record, which is their list or an object with such a list "messages"; None if it has none."""
    found = record.get("messages") if isinstance(record, dict) else record
    if isinstance(found, list) and found and all(isinstance(message, dict) and "role" in message for message in found):
        return found
    return None
