"""What a text is constrained to: a grammar, a JSON schema or a regular expression, from its beginning or a trigger."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from lltool.engine.grammar.structural import read_structural_tag
from lltool.gguf.errors import InputError

Kind = Literal["gbnf", "json_schema", "regex", "lark", "structural_tag"]


@dataclass(frozen=True)
class Trigger:
    """What makes a lazy constraint begin. The constraint applies to the trigger too, unless `is_included` is False.

    "word" is a text; "pattern" a regular expression (Python's) that is searched in the text so far; "pattern_full" one
    that the whole text must match; "token" the id of a token. If a pattern has groups, the constraint begins with the
    first one that matched something. Control tokens have no text: only a "token" can be one.
    """

    kind: Literal["word", "pattern", "pattern_full", "token"]
    value: str | int
    is_included: bool = True

    def __post_init__(self) -> None:
        wanted = int if self.kind == "token" else str
        if not isinstance(self.value, wanted) or self.value == "":
            raise InputError(f"trigger {self.kind}: {self.value!r}, wanted {'an id' if wanted is int else 'a text'}")
        if self.kind.startswith("pattern"):
            try:
                re.compile(str(self.value))
            except (re.error, RecursionError, OverflowError) as error:
                raise InputError(f"trigger {self.kind} {self.value!r}: {error}") from None


@dataclass(frozen=True)
class Constraint:
    """A constraint in one of the notations; make one with the methods. With `triggers` it begins at the first of them.

    "gbnf" is llama.cpp's notation of grammars; "lark" is llguidance's variant of Lark; the text of "json_schema" is
    JSON. Whether it can be honoured is found when it is compiled (`GrammarCompiler`).
    """

    kind: Kind
    text: str
    triggers: tuple[Trigger, ...] = ()

    @classmethod
    def grammar(cls, text: str) -> Self:
        """GBNF, or Lark if it begins with `%llguidance`, as llama.cpp has it."""
        return cls("lark" if _text("grammar", text).lstrip().startswith("%llguidance") else "gbnf", text)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Self:
        """JSON that is valid under `schema`, an object or its JSON text. Raises InputError if it is not JSON."""
        if not isinstance(schema, str):
            try:
                schema = json.dumps(schema, ensure_ascii=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError(f"JSON schema: {error}; wanted an object of JSON") from None
        try:
            found = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InputError(f"JSON schema: is not JSON: {error}") from None
        if not isinstance(found, dict | bool):
            raise InputError(f"JSON schema: found {type(found).__name__}, wanted an object")
        # llguidance wants an object.
        return cls("json_schema", {True: "{}", False: '{"enum": []}'}[found] if isinstance(found, bool) else schema)

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """A text that `pattern` matches as a whole. The syntax is that of Rust's regex: no look-around."""
        return cls("regex", _text("regex", pattern))

    @classmethod
    def lark(cls, text: str) -> Self:
        return cls("lark", _text("Lark grammar", text))

    @classmethod
    def structural_tag(cls, tag: Mapping[str, Any] | str) -> Self:
        """Free text with parts that follow a JSON schema, in vLLM's form. Raises InputError for another form."""
        try:
            found = json.loads(tag) if isinstance(tag, str) else tag
        except (ValueError, RecursionError) as error:
            raise InputError(f"structural tag: is not JSON: {error}") from None
        if not isinstance(found, Mapping):
            raise InputError(f"structural tag: found {type(found).__name__}, wanted an object")
        return cls("structural_tag", read_structural_tag(found))

    @classmethod
    def choices(cls, choices: Sequence[str]) -> Self:
        """One of several texts."""
        if isinstance(choices, str) or not choices or not all(isinstance(each, str) for each in choices):
            raise InputError(f"choices: {choices!r}, wanted a list of texts")
        return cls("regex", "|".join(map(_literal, choices)))

    def after(self, *triggers: Trigger) -> Self:
        """The same constraint, which begins at the first of the triggers; what comes before is free."""
        return replace(self, triggers=(*self.triggers, *triggers))


def _text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise InputError(f"{name}: {text!r}, wanted a text")
    return text


def _literal(text: str) -> str:
    """A regular expression that matches just this text."""
    return "".join(char if char.isascii() and char.isalnum() else f"\\u{{{ord(char):X}}}" for char in text)
