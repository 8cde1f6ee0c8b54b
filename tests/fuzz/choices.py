"""Values drawn from the bytes of a fuzzer's input, so that an input can be structured and still be mutated as bytes."""

import struct
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Draws from the front of `data`; what is missing at its end counts as zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def is_spent(self) -> bool:
        return self._place >= len(self._data)

    def bytes(self, count: int) -> bytes:
        found = self._data[self._place : self._place + count]
        self._place += count
        return found.ljust(count, b"\0")

    def rest(self) -> bytes:
        found, self._place = self._data[self._place :], len(self._data)
        return found

    def number(self, low: int, high: int) -> int:
        return low + int.from_bytes(self.bytes(4), "little") % (high - low + 1)

    def one_of(self, items: Sequence[T]) -> T:
        return items[self.number(0, len(items) - 1)]

    def integer(self) -> int:
        """A small number, an end of a range of integers, or any number of 64 bits."""
        kind = self.number(0, 3)
        if kind == 0:
            return self.number(0, 130)
        if kind == 1:
            return self.one_of((-1, 0, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)))
        found: int = struct.unpack("<q", self.bytes(8))[0]
        return found

    def floating(self) -> float:
        if self.number(0, 1):
            return self.one_of((0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1.7e308, 1e38))
        found: float = struct.unpack("<d", self.bytes(8))[0]
        return found

    def text(self, longest: int) -> str:
        """Of any characters, surrogates too."""
        raw = self.bytes(self.number(0, longest))
        return raw.decode("utf-8", "surrogateescape")
