"""Writes GBNF as llguidance's Lark, with the same texts and the same masks.

Each character is a lexeme of its own, so that no lexer chooses the longest of two matches; and no text is forced into
one division into tokens, as GBNF allows them all.
"""

from collections.abc import Collection

from lltool.engine.grammar.gbnf import ROOT, Characters, Item, Items, Reference, Repeated, Rules, TokenLiteral

HEADER = '%llguidance {"no_forcing": true}'


def write_lark(rules: Rules, never: Collection[int]) -> str:
    """`never` are the tokens that `!<...>` does not match either: those that end a text, and those without a text."""
    numbers = {name: number for number, name in enumerate(rules)}
    lines = [HEADER, f"start: r{numbers[ROOT]}"]
    writer = _Writer(numbers, never)
    for name, alternatives in rules.items():
        written = " | ".join(writer.sequence(items) for items in alternatives)
        lines.append(f"r{numbers[name]}: {written}")
    return "\n".join(lines) + "\n"


class _Writer:
    def __init__(self, numbers: dict[str, int], never: Collection[int]) -> None:
        self._numbers, self._never = numbers, never

    def sequence(self, items: Items) -> str:
        return " ".join(map(self._item, items)) or '""'

    def _item(self, item: Item) -> str:
        if isinstance(item, Characters):
            return f"/{_class(item)}/"
        if isinstance(item, TokenLiteral):
            if not item.is_negated:
                return f"<[{item.id}]>"
            return f"<[^{','.join(_ranges(sorted({item.id, *self._never})))}]>"
        if isinstance(item, Reference):
            return f"r{self._numbers[item.name]}"
        return self._repeated(item)

    def _repeated(self, item: Repeated) -> str:
        if item.most == 0:
            return '""'
        inner = self.sequence(item.items)
        if len(item.items) > 1:
            inner = f"({inner})"
        most = "" if item.most is None else item.most
        return f"{inner}{{{item.least},{most}}}"


def _class(item: Characters) -> str:
    """The regular expression of one character."""
    ranges = item.ranges
    if item.is_negated:
        ranges = _complement(sorted(ranges))
    return f"[{''.join(_escape(first) + '-' + _escape(last) for first, last in ranges)}]"


def _complement(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """All characters but these; surrogates, which are none, can stand within a range, but not at its ends."""
    found, start = [], 0
    for first, last in [*ranges, (0x110000, 0x110000)]:
        end = 0xD7FF if 0xD800 <= first - 1 < 0xE000 else first - 1
        if start <= end:
            found.append((start, end))
        start = max(start, 0xE000 if 0xD800 <= last + 1 < 0xE000 else last + 1)
    return tuple(found)


def _escape(code: int) -> str:
    return f"\\u{{{code:X}}}"


def _ranges(ids: list[int]) -> list[str]:
    """Sorted ids as `7` and `7-9`."""
    found: list[tuple[int, int]] = []
    for id in ids:
        if found and id == found[-1][1] + 1:
            found[-1] = (found[-1][0], id)
        else:
            found.append((id, id))
    return [str(first) if first == last else f"{first}-{last}" for first, last in found]
