"""Arguments of a call, read from a text that is still growing and given as JSON.

Each reader is a generator that yields when it needs more text, and returns whether the arguments were complete.
"""

import ast
import json
import re
from collections.abc import Generator, Mapping
from typing import Any

from lltool.engine.calls.answer_format import Dialect, TaggedArguments, parts
from lltool.engine.calls.literal import NO, PARTIAL, Item, Literal
from lltool.engine.calls.tool import json_type, schema_types

Reading = Generator[None, None, bool]
_SPACE = re.compile(r"\s*")
_PLAIN = re.compile(r'[^"{}\[\]\ud800-\udfff]+')
_IN_STRING = re.compile(r'[^"\\\ud800-\udfff]+')
_WORD = re.compile(r"[^\s,:=\[\]{}()'\"\ud800-\udfff]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_LONGEST_KEY = 256
_LONGEST_LITERAL = 100_000  # characters of a list in Python's notation
_DEEPEST = 64
_CDATA = Literal.make("<![CDATA[")


class Source:
    """A text that grows, the place up to which it was read, and what was made of it."""

    def __init__(self) -> None:
        self.text, self.at, self.is_over = "", 0, False
        self.is_kept = False  # whether what was read may be read again
        self.out: list[str] = []

    def push(self, text: str) -> None:
        """Adds text, and forgets what was read."""
        if self.is_kept:
            self.text += text
        else:
            self.text, self.at = self.text[self.at :] + text, 0

    def emit(self, text: str) -> None:
        if text:
            self.out.append(text)

    def take(self) -> str:
        out = "".join(self.out)
        self.out.clear()
        return out

    def peek(self) -> Generator[None, None, str]:
        """The next character, "" at the end of the text."""
        while self.at >= len(self.text):
            if self.is_over:
                return ""
            yield
        return self.text[self.at]

    def skip_space(self) -> Generator[None, None, str]:
        """Skips white space; the next character, "" at the end of the text."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match
            self.at = match.end()
            if self.at < len(self.text) or self.is_over:
                return self.text[self.at : self.at + 1]
            yield

    def match(self, literal: Literal) -> Reading:
        """Whether the text goes on with `literal`, which is then read."""
        while (end := literal.match(self.text, self.at, is_whole=self.is_over)) == PARTIAL:
            yield
        if end == NO:
            return False
        self.at = end
        return True

    def span(self, pattern: "re.Pattern[str]") -> Generator[None, None, str]:
        """The longest text that a pattern matches here."""
        while True:
            match = pattern.match(self.text, self.at)
            end = match.end() if match else self.at
            if end < len(self.text) or self.is_over:
                found, self.at = self.text[self.at : end], end
                return found
            yield


def read_json(source: Source) -> Reading:
    """A JSON object, as it is. Only its brackets and texts are checked."""
    first = yield from source.skip_space()
    if first != "{":
        return False
    closers: list[str] = []
    in_string = False
    while True:
        letter = yield from source.peek()
        start = source.at
        pattern = _IN_STRING if in_string else _PLAIN
        if letter == "" or "\ud800" <= letter <= "\udfff":
            return False
        if match := pattern.match(source.text, start):
            source.at = match.end()
        elif letter == "\\":
            source.at += 1
            escaped = yield from source.peek()
            if not escaped or "\ud800" <= escaped <= "\udfff":
                return False
            source.at += 1
            source.emit(letter + escaped)
            continue
        elif letter == '"':
            in_string = not in_string
            source.at += 1
        elif letter in "{[":
            closers.append("}" if letter == "{" else "]")
            source.at += 1
        else:
            if closers.pop() != letter:
                return False
            source.at += 1
        source.emit(source.text[start : source.at])
        if not closers:
            return True


def read_tagged(source: Source, style: TaggedArguments, schema: Mapping[str, Any]) -> Reading:
    """Arguments between tags; `schema` is that of their object, whose types say which values are texts."""
    pieces = list(parts(style.open))
    heads = [Literal.make(each, exact_end=True) if isinstance(each, str) else each for each in pieces]
    close = Literal.make(style.close, exact_start=True)
    source.emit("{")
    count = 0
    head = heads[0]
    assert isinstance(head, Literal)
    while True:
        yield from source.skip_space()
        if not (yield from source.match(head)):
            source.emit("}")
            return True
        found: dict[str, str] = {}
        for number, each in enumerate(heads[1:], 1):
            if isinstance(each, Literal):
                if not (yield from source.match(each)):
                    return False
                continue
            ending = heads[number + 1]
            assert isinstance(ending, Literal)
            key = yield from _read_until(source, ending, _LONGEST_KEY)
            if key is None:
                return False
            found[each.name] = key
        key = found.get("key", "")
        source.emit(f"{', ' if count else ''}{_quoted(key)}: ")
        count += 1
        properties = schema.get("properties")
        about = properties.get(key) if isinstance(properties, Mapping) else None
        types = schema_types(about, schema)
        if "is_string" in found:
            types = frozenset(["string"]) if found["is_string"] == "true" else types - {"string"}
        elif found.get("type"):
            types = frozenset([found["type"]])
        if not (yield from _read_value(source, close, types)):
            return False


def _read_value(source: Source, close: Literal, types: frozenset[str]) -> Reading:
    is_text = types == {"string"}
    if is_text:
        source.emit('"')
    held = ""
    if (yield from source.match(_CDATA)):
        close = Literal((Item("]]>", "text"), *close.without_start().items))
    while True:
        place, end = close.find(source.text, source.at, is_whole=source.is_over)
        piece, source.at = source.text[source.at : place], place
        if is_text:
            source.emit(_quoted(piece)[1:-1])
        else:
            held += piece
        if end >= 0:
            source.at = end
            source.emit('"' if is_text else _written(held, types))
            return True
        if source.is_over:
            return False
        yield


def _written(text: str, types: frozenset[str]) -> str:
    """The JSON of a text between tags."""
    try:
        return json.dumps(convert(text, types), ensure_ascii=False, allow_nan=False)
    except ValueError:  # JSON with a number that is too large to be one of Python's
        return text.strip()


def _read_until(source: Source, literal: Literal, most: int) -> Generator[None, None, str | None]:
    """The text before `literal`, at which it stops; None if that is not found within `most` characters."""
    while True:
        place, end = literal.find(source.text, source.at, is_whole=source.is_over)
        if place - source.at > most or (source.is_over and end < 0):
            return None
        if end >= 0:
            found, source.at = source.text[source.at : place], place
            return found
        yield


def convert(text: str, types: frozenset[str]) -> Any:
    """The value that a text between tags stands for: of one of the types if possible, else the text itself."""
    stripped = text.strip()
    value: Any = text
    try:
        value = json.loads(stripped, parse_constant=_refuse)
    except (ValueError, RecursionError):
        if stripped in ("True", "False", "None"):
            value = {"True": True, "False": False, "None": None}[stripped]
        elif stripped[:1] in ("[", "{") and len(stripped) <= _LONGEST_LITERAL:
            value = _python_literal(stripped, text)
    if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
        value = int(value)
    kind = json_type(value)
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return value if fits or "string" not in types else text


def _python_literal(text: str, otherwise: str) -> Any:
    try:
        value = ast.literal_eval(text)
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return otherwise
    return value if isinstance(value, list | dict) else otherwise


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _quoted(text: str) -> str:
    return json.dumps(_visible(text), ensure_ascii=False)


def _visible(text: str) -> str:
    """Without the signs of control tokens, which are no text."""
    return re.sub("[\ud800-\udfff]", "", text)


def read_dialect(source: Source, style: Dialect, is_end: str) -> Reading:
    """Arguments in a dialect, up to the character `is_end`, which is not read."""
    source.emit("{")
    try:
        yield from _read_items(source, style, is_end, is_object=True, depth=0)
    except ValueError:
        return False
    source.emit("}")
    return True


def _read_items(
    source: Source, style: Dialect, end: str, *, is_object: bool, depth: int
) -> Generator[None, None, None]:
    """The items of an object or a list, up to the character that ends it."""
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    count = 0
    while (yield from source.skip_space()) != end:
        if count:
            yield from _expect(source, ",")
        source.emit(", " if count else "")
        if is_object:
            yield from _read_key(source, style, depth)
        yield from _read_any(source, style, depth)
        count += 1


def _read_key(source: Source, style: Dialect, depth: int) -> Generator[None, None, None]:
    yield from source.skip_space()
    quote = yield from _quote(source, style)
    if quote is None:
        key = yield from source.span(_WORD)
        if not key or len(key) > _LONGEST_KEY:
            raise ValueError("no name")
    else:
        key = ""
        yield from _read_text(source, style, quote)
    yield from source.skip_space()
    yield from _expect(source, ":" if depth else style.colon)
    source.emit(f"{_quoted(key) if quote is None else ''}: ")


def _read_any(source: Source, style: Dialect, depth: int) -> Generator[None, None, None]:
    letter = yield from source.skip_space()
    quote = yield from _quote(source, style)
    if quote is not None:
        yield from _read_text(source, style, quote)
    elif letter in ("{", "["):
        source.at += 1
        end = "}" if letter == "{" else "]"
        source.emit(letter)
        yield from _read_items(source, style, end, is_object=letter == "{", depth=depth + 1)
        source.at += 1
        source.emit(end)
    else:
        word = yield from source.span(_WORD)
        words = {written: meant for meant, written in style.words.items()}
        if word in ("true", "false", "null"):
            source.emit(word)
        elif word in words:
            source.emit(words[word])
        elif _NUMBER.fullmatch(word):
            source.emit(word)
        else:
            raise ValueError("no value")


def _quote(source: Source, style: Dialect) -> Generator[None, None, str | None]:
    for quote in style.quotes:
        if (yield from source.match(Literal.make(quote))):
            return quote
    return None


def _read_text(source: Source, style: Dialect, quote: str) -> Generator[None, None, None]:
    close = Literal.make(quote)
    source.emit('"')
    while True:
        letter = yield from source.peek()
        if not letter:
            raise ValueError("the text does not end")
        if style.has_escapes and letter == "\\":
            source.at += 1
            escaped = yield from source.peek()
            if not escaped:
                raise ValueError("the text does not end")
            source.at += 1
            # As in Python: what is no escape keeps its backslash.
            known = (
                f"\\{escaped}" if escaped in '"\\bfnrtu' else "'" if escaped == "'" else _quoted("\\" + escaped)[1:-1]
            )
            source.emit(known)
        elif (yield from source.match(close)):
            source.emit('"')
            return
        else:
            source.at += 1
            source.emit(_quoted(letter)[1:-1])


def _expect(source: Source, text: str) -> Generator[None, None, None]:
    if not (yield from source.match(Literal.make(text))):
        raise ValueError(f"no {text!r}")
