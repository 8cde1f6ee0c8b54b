"""How a model writes an answer: where it reasons, and how it calls tools. One description makes parser and grammar.

A call is written as a pattern: text with the slots `$name`, `$arguments`, `$id` (a text of the model's choice) and
`$index` (the number of the call). White space in a pattern is how the template writes it; a model may write other.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

_SLOT = re.compile(r"\$(name|arguments|id|index|key|type|is_string)")


@dataclass(frozen=True)
class Slot:
    name: str


Pattern: TypeAlias = tuple["str | Slot", ...]


@dataclass(frozen=True)
class Tags:
    open: str = ""
    close: str = ""


@dataclass(frozen=True)
class JsonArguments:
    """The arguments are a JSON object."""


@dataclass(frozen=True)
class TaggedArguments:
    """Each argument is between tags: texts as they are, other values as JSON.

    `open` has the slot `$key`, and maybe `$type` (the JSON type of the value) or `$is_string` ("true" or "false").
    """

    open: str
    close: str
    separator: str = ""


@dataclass(frozen=True)
class Dialect:
    """The arguments are written like JSON, with other marks around texts, names without quotes, and other words."""

    colon: str = ":"  # between the name of an argument and its value
    quotes: tuple[str, ...] = ('"',)
    has_escapes: bool = True  # whether a backslash in a text has a meaning
    has_bare_keys: bool = True  # whether the names within objects have no quotes either
    words: Mapping[str, str] = field(default_factory=dict)  # how true, false and null are written
    separator: str = ","
    is_sorted: bool = False  # whether the template writes the names in alphabetical order


ArgumentStyle: TypeAlias = JsonArguments | TaggedArguments | Dialect


@dataclass(frozen=True)
class AnswerFormat:
    """The format of a model's answers.

    `calls` are the patterns of a call, the usual one first. Calls stand between the tags of `section`, with `separator`
    between them. `ignored` are texts around the content that are no part of it. With `is_first`, a call can only be the
    beginning of the content, as nothing marks it. `name` says where the format comes from.
    """

    name: str = ""
    reasoning: Tags | None = None
    is_interleaved: bool = False  # whether reasoning can begin anywhere
    calls: tuple[str, ...] = ()
    arguments: ArgumentStyle = JsonArguments()
    section: Tags = Tags()
    separator: str = ""
    ignored: tuple[str, ...] = ()
    is_first: bool = False
    is_single: bool = False  # whether an answer has one call at most
    id: str = ""  # the pattern of a call's id, where the model's template expects one
    resume: str = ""  # what stands between reasoning and a call
    trigger: str = ""  # the text within the patterns that only calls have, if their beginning is not such a text

    def openings(self) -> Iterator[str]:
        """The texts with which calls begin, up to the first slot."""
        for call in self.calls:
            first = parts(call)[0]
            yield self.section.open + (first if isinstance(first, str) else "")


def parts(pattern: str) -> Pattern:
    """A pattern as texts and slots."""
    found: list[str | Slot] = []
    end = 0
    for match in _SLOT.finditer(pattern):
        if match.start() > end:
            found.append(pattern[end : match.start()])
        found.append(Slot(match[1]))
        end = match.end()
    if end < len(pattern):
        found.append(pattern[end:])
    return tuple(found)
