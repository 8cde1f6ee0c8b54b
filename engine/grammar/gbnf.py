"""Reads GBNF, llama.cpp's notation of grammars: rules of characters and tokens.

Everything that llama.cpp's own reader takes is read, except for what can only be a mistake: an empty or reversed range
of characters, a surrogate or a number beyond Unicode, bounds of a repetition in the wrong order, and a token that ends
the text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from lltool.gguf.errors import InputError

ROOT = "root"
_MOST_NESTED = 100  # groups in groups
_MOST_ITEMS = 20_000  # characters, tokens and names of rules; llguidance has numbers for 65535 symbols
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_DIGITS = frozenset("0123456789")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"} | {char: char for char in '\\"[]-'}
_HEX = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True)
class Characters:
    """One character of `ranges` of code points, both ends included, or with `is_negated` one outside of them."""

    ranges: tuple[tuple[int, int], ...]
    is_negated: bool = False


ANY = Characters((), is_negated=True)


@dataclass(frozen=True)
class TokenLiteral:
    """The token `id` itself, whatever its text is, or with `is_negated` any other token."""

    id: int
    is_negated: bool = False


@dataclass(frozen=True)
class Reference:
    """A rule by its name. Names with `_` stand for groups, as no name of a user's rule can have it."""

    name: str


@dataclass(frozen=True)
class Repeated:
    """A sequence, at least `least` and at most `most` times (None: without end). A repetition in it is a group."""

    items: "tuple[Characters | TokenLiteral | Reference, ...]"
    least: int
    most: int | None


Item: TypeAlias = "Characters | TokenLiteral | Reference | Repeated"
Items: TypeAlias = tuple[Item, ...]
Rules: TypeAlias = dict[str, tuple[Items, ...]]
"""The alternatives of each rule."""


def read_gbnf(text: str, find_token: Callable[[str], int]) -> Rules:
    """The rules that `root` leads to. `find_token` gives the id of `<text>`, and raises InputError if there is none.

    Raises InputError for a mistake in the grammar, an unknown rule, and left recursion: a rule that can begin with
    itself.
    """
    rules = _Reader(text, find_token).rules()
    if ROOT not in rules:
        raise InputError(f"grammar: no rule {ROOT!r}, with which a text begins")
    for name, alternatives in rules.items():
        for reference in _references(alternatives):
            if reference not in rules:
                raise InputError(f"grammar: rule {_shown(name)!r}: no rule {reference!r}")
    _check_left_recursion(rules)
    return _reachable(rules)


class _Reader:
    """Reads a text from its beginning to its end. `_at` is the place in it."""

    def __init__(self, text: str, find_token: Callable[[str], int]) -> None:
        self._text, self._find_token = text, find_token
        self._at = self._groups = self._depth = self._items = 0
        self._rules: Rules = {}

    def rules(self) -> Rules:
        self._skip_space()
        while self._at < len(self._text):
            name = self._name("the name of a rule")
            self._skip_space(lines=False)
            self._expect("::=")
            self._skip_space()
            self._rules[name] = self._alternatives(name, is_group=False)
            if self._at < len(self._text) and self._char not in "\r\n":
                self._fail("the end of the line")
            self._skip_space()
        return self._rules

    def _alternatives(self, rule: str, *, is_group: bool) -> tuple[Items, ...]:
        found = [self._sequence(rule, is_group=is_group)]
        while self._char == "|":
            self._at += 1
            self._skip_space()
            found.append(self._sequence(rule, is_group=is_group))
        return tuple(found)

    def _sequence(self, rule: str, *, is_group: bool) -> Items:
        items: list[Item] = []
        last: Items = ()  # what a repetition would repeat
        while True:
            char = self._char
            if char and char in "*+?{":
                if not last:
                    self._fail("something to repeat before it")
                least, most = self._bounds(lines=is_group)
                del items[len(items) - len(last) :]
                simple = tuple(item for item in last if not isinstance(item, Repeated))
                last = (Repeated(simple or (self._named(rule, (last,)),), least, most),)
            elif char == '"':
                last = self._literal()
            elif char == "[":
                last = (self._class(),)
            elif char and char in "<!":
                last = (self._token(),)
            elif char == "(":
                last = (self._group(rule),)
            elif char == ".":
                self._at += 1
                last = (ANY,)
            elif char in _NAME:
                last = (Reference(self._name("a name")),)
            else:
                return tuple(items)
            items += last
            self._items += len(last)
            if self._items > _MOST_ITEMS:
                self._fail(f"at most {_MOST_ITEMS} characters, tokens and names of rules")
            self._skip_space(lines=is_group)

    def _group(self, rule: str) -> Reference:
        self._at += 1
        self._depth += 1
        if self._depth > _MOST_NESTED:
            self._fail(f"at most {_MOST_NESTED} groups in groups")
        self._skip_space()
        group = self._named(rule, self._alternatives(rule, is_group=True))
        self._depth -= 1
        self._expect(")")
        return group

    def _named(self, rule: str, alternatives: tuple[Items, ...]) -> Reference:
        self._groups += 1
        name = f"{rule}_{self._groups}"
        self._rules[name] = alternatives
        return Reference(name)

    def _literal(self) -> Items:
        self._at += 1
        found: list[Item] = []
        while self._char != '"':
            code = self._code_point()
            found.append(Characters(((code, code),)))
        self._at += 1
        return tuple(found)

    def _class(self) -> Characters:
        self._at += 1
        is_negated = self._take("^")
        ranges = []
        while self._char != "]":
            first = last = self._code_point()
            if self._char == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                start, last = self._at, self._code_point()
                if last < first:
                    self._at = start
                    self._fail(f"a character that is not before {chr(first)!r}")
            ranges.append((first, last))
        if not ranges:
            self._fail("a character in the brackets")
        self._at += 1
        return Characters(tuple(ranges), is_negated)

    def _token(self) -> TokenLiteral:
        is_negated, start = self._take("!"), self._at
        self._expect("<")
        if self._take("["):
            id = self._number("the id of a token")
            self._expect("]>")
            text = f"<[{id}]>"
        else:
            end = self._text.find(">", start)
            if end < 0:
                self._fail("'>' after the text of a token")
            self._at = end + 1
            text = self._text[start : self._at]
        try:
            return TokenLiteral(self._find_token(text), is_negated)
        except InputError as error:
            self._at = start
            raise InputError(f"grammar, {self._place}: {error}") from None

    def _bounds(self, *, lines: bool) -> tuple[int, int | None]:
        char = self._char
        self._at += 1
        if char != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        self._skip_space(lines=lines)
        least = self._number("a number")
        most: int | None = least
        self._skip_space(lines=lines)
        if self._take(","):
            self._skip_space(lines=lines)
            most = self._number("a number") if self._char in _DIGITS else None
            self._skip_space(lines=lines)
        if most is not None and most < least:
            self._fail(f"at least {least} as the upper bound, found {most}")
        self._expect("}")
        return least, most

    def _code_point(self) -> int:
        char = self._char
        if not char:
            self._fail("the end of the text in quotes or brackets")
        self._at += 1
        if char != "\\":
            return self._checked(ord(char), 1)
        kind = self._char
        self._at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        if kind not in _HEX:
            self._at -= 2
            self._fail('an escape: \\x, \\u, \\U, \\t, \\r, \\n, \\\\, \\", \\[, \\] or \\-')
        digits = self._text[self._at : self._at + _HEX[kind]]
        if len(digits) < _HEX[kind] or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
            self._fail(f"{_HEX[kind]} hexadecimal digits")
        self._at += len(digits)
        return self._checked(int(digits, 16), len(digits) + 2)

    def _checked(self, code: int, length: int) -> int:
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            self._at -= length
            self._fail(f"a character, and U+{code:04X} is none")
        return code

    def _name(self, wanted: str) -> str:
        start = self._at
        while self._char in _NAME:
            self._at += 1
        if start == self._at:
            self._fail(wanted)
        return self._text[start : self._at]

    def _number(self, wanted: str) -> int:
        start = self._at
        while self._char in _DIGITS:
            self._at += 1
        if not 0 < self._at - start <= 9:
            self._fail(f"{wanted} below 1000000000")
        return int(self._text[start : self._at])

    def _skip_space(self, *, lines: bool = True) -> None:
        while (char := self._char) and (char in " \t#" or (lines and char in "\r\n")):
            if char == "#":
                while self._char not in ("", "\r", "\n"):
                    self._at += 1
            else:
                self._at += 1

    @property
    def _char(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, char: str) -> bool:
        is_there = self._char == char
        self._at += is_there
        return is_there

    def _expect(self, wanted: str) -> None:
        if not self._text.startswith(wanted, self._at):
            self._fail(repr(wanted))
        self._at += len(wanted)

    @property
    def _place(self) -> str:
        line = self._text.count("\n", 0, self._at) + 1
        return f"line {line}, column {self._at - self._text.rfind(chr(10), 0, self._at)}"

    def _fail(self, wanted: str) -> NoReturn:
        found = self._text[self._at : self._at + 12].partition("\n")[0]
        raise InputError(f"grammar, {self._place}: wanted {wanted}, found {found!r}")


def _shown(name: str) -> str:
    """The user's rule in which a group stands."""
    return name.partition("_")[0]


def _references(alternatives: tuple[Items, ...]) -> Iterator[str]:
    for items in alternatives:
        for item in items:
            inner = item.items if isinstance(item, Repeated) else (item,)
            yield from (part.name for part in inner if isinstance(part, Reference))


def _reachable(rules: Rules) -> Rules:
    found, left = {ROOT: rules[ROOT]}, [ROOT]
    while left:
        for name in _references(rules[left.pop()]):
            if name not in found:
                found[name] = rules[name]
                left.append(name)
    return found


def _check_left_recursion(rules: Rules) -> None:
    """Raises InputError for a rule whose text can begin with itself."""
    empty = _find_empty(rules)
    first = {
        name: list(dict.fromkeys(first for items in alternatives for first in _firsts(items, empty)))
        for name, alternatives in rules.items()
    }
    done: set[str] = set()
    for start in rules:
        path = {} if start in done else {start: iter(first[start])}
        while path:  # depth first, without recursion, as a chain of rules can be long
            name = next(reversed(path))
            following = next(path[name], None)
            if following is None:
                del path[name]
                done.add(name)
            elif following in path:
                raise InputError(
                    f"grammar: rule {_shown(following)!r} can begin with itself (left recursion); "
                    "write it as a repetition"
                )
            elif following not in done:
                path[following] = iter(first[following])


def _find_empty(rules: Rules) -> frozenset[str]:
    """The rules that match the empty text."""
    users: dict[str, set[str]] = {}
    for name, alternatives in rules.items():
        for reference in _references(alternatives):
            users.setdefault(reference, set()).add(name)
    empty: set[str] = set()
    left = list(rules)
    while left:
        name = left.pop()
        if name not in empty and any(all(_may_be_empty(item, empty) for item in items) for items in rules[name]):
            empty.add(name)
            left += users.get(name, ())
    return frozenset(empty)


def _may_be_empty(item: Item, empty: "set[str] | frozenset[str]") -> bool:
    if isinstance(item, Repeated):
        return item.least == 0 or all(isinstance(part, Reference) and part.name in empty for part in item.items)
    return isinstance(item, Reference) and item.name in empty


def _firsts(items: Items, empty: frozenset[str]) -> Iterator[str]:
    """The rules with which a sequence can begin."""
    for item in items:
        if isinstance(item, Reference):
            yield item.name
        elif isinstance(item, Repeated) and item.most != 0:
            yield from _firsts(item.items, empty)
        if not _may_be_empty(item, empty):
            return
