"""GGUF metadata values, each with the type that it has in the file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum
from typing import Any

from numpy.typing import NDArray


class ValueType(IntEnum):
    """Value types, with the numbers that GGUF uses."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


INTEGERS = frozenset(type for type in ValueType if "INT" in type.name)


@dataclass(frozen=True)
class Value:
    """One metadata value.

    `data` is an int, float, bool or str. For an array it is a numpy array (of numbers or bools), a sequence of str or a
    tuple of array values, and `item` is the type of its elements. A string that is not valid UTF-8 is kept with
    surrogate escapes, so that it is written back byte for byte.
    """

    type: ValueType
    data: Any
    item: ValueType | None = None


def u32(value: int) -> Value:
    return Value(ValueType.UINT32, value)


def f32(value: float) -> Value:
    return Value(ValueType.FLOAT32, value)


def boolean(value: bool) -> Value:
    return Value(ValueType.BOOL, value)


def string(value: str) -> Value:
    return Value(ValueType.STRING, value)


def array(item: ValueType, values: Sequence[Any] | NDArray[Any]) -> Value:
    return Value(ValueType.ARRAY, values, item)


def near(key: str, keys: Iterable[str]) -> str:
    """`; did you mean KEY?`, if there is a key of a near name."""
    close = get_close_matches(key, list(keys), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
