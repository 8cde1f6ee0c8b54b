"""The values in the text of a bench option: numbers, ranges, words and switches, with commas between them."""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from lltool.gguf.errors import InputError

T = TypeVar("T")
Parser = Callable[[str], list[T]]

_RANGE = re.compile(r"(-?\d{1,12})(?:-(\d{1,12})(?:([+*])(\d{1,12}))?)?")
_MOST_VALUES = 10_000


def parse_numbers(text: str) -> list[int]:
    """`4`, `1-8`, `1-8+2` (1, 3, 5, 7), `1-64*2` (1, 2, 4, ... 64), and lists of these. Raises InputError."""
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            raise InputError(f"{part!r} is not a number, or a range like 1-8, 1-8+2 or 1-64*2")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        is_product = match[3] == "*"
        if last < first or step < 1 or (is_product and (step < 2 or first < 1)):
            raise InputError(f"{part!r} is not a rising range")
        if is_product:
            found += [first * step**i for i in range(64) if first * step**i <= last]
        else:
            found += range(first, min(last + 1, first + step * _MOST_VALUES + 1), step)
        if len(found) > _MOST_VALUES:
            raise InputError(f"{part!r} has more than {_MOST_VALUES} values")
    return found


def parse_counts(text: str) -> list[int]:
    """Numbers of at least 0."""
    found = parse_numbers(text)
    if min(found) < 0:
        raise InputError(f"{min(found)} is below 0")
    return found


def parse_words(text: str) -> list[str]:
    return text.split(",")


def one_of(known: Mapping[str, T]) -> Parser[T]:
    """A parser of words that stand for values."""

    def parse(text: str) -> list[T]:
        for part in text.split(","):
            if part not in known:
                raise InputError(f"{part!r} is not one of {', '.join(known)}")
        return [known[part] for part in text.split(",")]

    return parse


def parse_shares(text: str) -> list[str]:
    """Shares of devices such as `3/1`, as llama-bench writes them: with two digits, without trailing zero shares."""
    found = []
    for part in text.split(","):
        try:
            shares = [f"{float(share):.2f}" for share in re.split("[;/]+", part)]
        except ValueError:
            raise InputError(f"{part!r} is not a list of shares like 3/1") from None
        while len(shares) > 1 and float(shares[-1]) == 0:
            shares.pop()
        found.append("/".join(shares))
    return found


def parse_overrides(text: str) -> list[str]:
    for part in text.split(","):
        if part not in ("", "none") and not all("=" in rule for rule in part.split(";")):
            raise InputError(f"{part!r} is not a list of NAME=BUFFER with ; between")
    return [part or "none" for part in text.split(",")]
