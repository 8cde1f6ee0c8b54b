"""Texts of a pattern, found in a text that is still growing."""

import re
from dataclasses import dataclass
from typing import Literal as Only

PARTIAL, NO = -1, -2
_SPACES = " \t\r\n"
_JSON = re.compile(r'([{}\[\]:,]|"[^"]*"|")')


@dataclass(frozen=True)
class Item:
    text: str
    kind: Only["text", "space", "exact"]  # "space": any white space; "exact": this white space, or none


@dataclass(frozen=True)
class Literal:
    """A text to find. White space within it stands for any, also none; that at its ends can be `exact`."""

    items: tuple[Item, ...]

    @classmethod
    def make(cls, text: str, *, exact_start: bool = False, exact_end: bool = False) -> "Literal":
        """With `exact_start` and `exact_end`, white space there is this one or none: a raw value stands beside it."""
        core = text.strip(_SPACES)
        start, end = text[: len(text) - len(text.lstrip(_SPACES))], text[len(text.rstrip(_SPACES)) :] if core else ""
        items: list[Item] = []
        if start:
            items.append(Item(start, "exact" if exact_start else "space"))
        is_json = bool(re.search(r'[{\[]\s*[{"]|"\s*:|[}\]]\s*[}\]]', core)) or core in ("{", "}", "[", "]", ",")
        words = [word for word in re.split(r"([ \t\r\n]+)", core) if word]
        for word in words:
            if word[0] in _SPACES:
                items.append(Item("", "space"))
                continue
            pieces = [piece for piece in _JSON.split(word) if piece] if is_json else [word]
            for number, piece in enumerate(pieces):
                if number:
                    items.append(Item("", "space"))
                items.append(Item(piece, "text"))
        if end and exact_end:
            items.append(Item(end, "exact"))
        return cls(tuple(items))

    @property
    def first(self) -> str:
        """The first character that is no white space, "" if there is none."""
        return next((item.text[0] for item in self.items if item.kind == "text"), "")

    def without_start(self) -> "Literal":
        """The same without white space before it."""
        start = next((place for place, item in enumerate(self.items) if item.kind == "text"), len(self.items))
        return Literal(self.items[start:])

    def match(self, text: str, start: int, *, is_whole: bool = False) -> int:
        """Where it ends if it is in `text` at `start`, else NO; PARTIAL if more text must come to know."""
        place, size = start, len(text)
        for number, item in enumerate(self.items):
            if item.kind == "space":
                while place < size and text[place] in _SPACES:
                    place += 1
                if place == size and number + 1 < len(self.items):
                    return NO if is_whole else PARTIAL
            elif text.startswith(item.text, place):
                place += len(item.text)
            elif not is_whole and item.text.startswith(text[place:]):
                return PARTIAL
            elif item.kind == "text":
                return NO
        return place

    def find(self, text: str, start: int, *, is_whole: bool = False) -> tuple[int, int]:
        """The first place where it is or may be, and what `match` says there; the text's end and NO if nowhere."""
        head = {item.text[0] for item in self.items[:2] if item.text}
        for place in range(start, len(text)):
            if text[place] in head and (end := self.match(text, place, is_whole=is_whole)) != NO:
                return place, end
        return len(text), NO
