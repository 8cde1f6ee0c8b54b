"""GGUF metadata values: each keeps the type it has (or shall have) in the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from numpy.typing import NDArray


class ValueType(IntEnum):
    """Value types as GGUF numbers them."""

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

    `data` is int, float, bool or str; for an array a numpy array (numbers, bools) or a sequence of str, and `item` is
    the type of its elements. A string that is not valid UTF-8 is kept with surrogate escapes, so that it is written
    back byte for byte.
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
