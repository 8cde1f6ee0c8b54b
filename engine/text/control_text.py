"""Tells text in messages that looks like a control token from the control tokens that a chat template writes.

Before the template sees the messages, one letter of each such text is replaced by a character that occurs nowhere else,
its stand-in. The tokenizer then finds only the control tokens of the template; afterwards the letters are restored in
the text between them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lltool.gguf.errors import InputError

_STAND_INS = range(0xF0000, 0x10FFFE)  # private-use characters, which hardly any text contains


@dataclass(frozen=True)
class ControlTexts:
    """The texts of a vocabulary's control tokens."""

    texts: tuple[str, ...]

    def find(self, text: str) -> set[int]:
        """The places to change so that no control token lies in `text`, or begins in it and ends after it."""
        letters = set(text)
        places = set()
        for token in self.texts:
            if not letters.issuperset(token):
                continue
            offset = next((i for i, letter in enumerate(token) if letter.isascii() and letter.isalpha()), 0)
            start = text.find(token)
            while start >= 0:
                places.add(start + offset)
                start = text.find(token, start + 1)
        lengths = range(min(self._longest_beginning, len(text)), 0, -1)
        if begun := next((length for length in lengths if text[-length:] in self._beginnings), 0):
            places.add(len(text) - begun)
        return places

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        """Proper prefixes of control tokens: a message can end with one, and the next message can complete it."""
        return frozenset(token[:length] for token in self.texts for length in range(1, len(token)))

    @cached_property
    def _longest_beginning(self) -> int:
        return max(map(len, self._beginnings), default=0)


class StandIns:
    """The characters that stand for letters in one conversation."""

    def __init__(self, controls: ControlTexts, values: Any, source: str) -> None:
        """Stand-ins will occur neither in `values`, the arguments of the template, nor in `source`, the template."""
        self._controls = controls
        self._letters: dict[str, str] = {}  # by stand-in
        self._texts = [*_texts_in(values), source]
        self._candidates = iter(_STAND_INS)

    def mark(self, value: Any) -> Any:
        """`value` with letters in control texts replaced by stand-ins; the names of fields stay unchanged."""
        match value:
            case str():
                return self._mark_text(value)
            case dict():
                return {name: self.mark(item) for name, item in value.items()}
            case list():
                return [self.mark(item) for item in value]
        return value

    def restore(self, text: str) -> str:
        """`text` with the letters restored, including text that a template has written as ASCII JSON."""
        for stand_in, letter in self._letters.items():
            text = text.replace(stand_in, letter).replace(_in_ascii(stand_in), _in_ascii(letter))
        return text

    def _mark_text(self, text: str) -> str:
        places = self._controls.find(text)
        if not places:
            return text
        return "".join(self._stand_in(letter) if i in places else letter for i, letter in enumerate(text))

    def _stand_in(self, letter: str) -> str:
        for stand_in, known in self._letters.items():
            if known == letter:
                return stand_in
        for candidate in map(chr, self._candidates):
            if not any(candidate in text or _in_ascii(candidate) in text for text in self._texts):
                self._letters[candidate] = letter
                return candidate
        raise InputError("the messages use every private-use character; at least one must be unused")


def _in_ascii(letter: str) -> str:
    return json.dumps(letter)[1:-1]


def _texts_in(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for name, item in value.items():
                yield name
                yield from _texts_in(item)
        case list():
            for item in value:
                yield from _texts_in(item)


def plain_value(value: Any, where: str) -> Any:
    """Converts `value` to plain JSON types, so that a template gets no objects. Raises InputError naming the place."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(name): plain_value(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [plain_value(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InputError(f"{where}: found {type(value).__name__}, wanted text, a number, a list or a mapping")
