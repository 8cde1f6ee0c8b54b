"""An array of strings that stays in the mapped file; each string is decoded on access."""

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

_LENGTH = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """The strings of a GGUF array value; each is a little-endian u64 length and that many bytes of UTF-8.

    Bytes that are not UTF-8 are decoded as surrogate escapes.
    """

    def __init__(self, encoded: memoryview, ends: "array[int]") -> None:
        self.encoded = encoded  # the items as stored in the file, with their lengths
        self._ends = ends  # the end of each string in `encoded`

    @classmethod
    def scan(cls, data: memoryview, start: int, count: int) -> "StringArray":
        """Finds `count` strings from byte `start` of `data`. Raises ValueError if they extend past its end."""
        length_at, position = _LENGTH.unpack_from, start
        ends = array("Q")
        add = ends.append
        try:
            for _ in range(count):
                (length,) = length_at(data, position)
                position += 8 + length
                add(position - start)
        except (struct.error, OverflowError):
            raise ValueError(f"string {len(ends)} of {count} starts past the end") from None
        if position > len(data):
            raise ValueError(f"string {count - 1} of {count} ends past the end")
        return cls(data[start:position], ends)

    def copy(self) -> "StringArray":
        """A copy in separate memory, which does not keep the file mapped."""
        return StringArray(memoryview(bytes(self.encoded)), self._ends)

    def raw(self, index: int) -> bytes:
        """The bytes of one string."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        index %= len(self)
        return bytes(self.encoded[(self._ends[index - 1] if index else 0) + 8 : self._ends[index]])

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        text = self.joined(b"\0").decode("utf-8", "surrogateescape") if len(self) else ""
        strings = text.split("\0")
        if len(strings) == len(self) and _joins_cleanly(text):
            return iter(strings)
        return self._one_by_one()

    def _one_by_one(self) -> Iterator[str]:
        start, encoded = 0, bytes(self.encoded)
        for end in self._ends:
            yield encoded[start + 8 : end].decode("utf-8", "surrogateescape")
            start = end

    def joined(self, separator: bytes) -> bytes:
        """All strings joined with a one-byte separator, several times as fast as joining them one by one."""
        data = np.frombuffer(self.encoded, np.uint8).copy()
        starts = np.frombuffer(self._ends, np.uint64)[:-1].astype(np.int64)
        data[starts + 7] = ord(separator)
        keep = np.ones(len(data), bool)
        keep[:8] = False
        keep[(starts[:, None] + np.arange(7)).ravel()] = False
        return data[keep].tobytes()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StringArray):
            return self.encoded == other.encoded and len(self) == len(other)
        return isinstance(other, list | tuple) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"StringArray({self[:3]}{', ...' if len(self) > 3 else ''}: {len(self)} strings)"


def _joins_cleanly(text: str) -> bool:
    """Whether decoding the joined bytes equals decoding each string: it does if all of them are valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
