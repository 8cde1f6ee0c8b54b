"""Metadata as the bytes of a GGUF file."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.header import NUMBER_FORMAT
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.string_array import StringArray


def encode_key(path: Path, key: str, value: Value) -> bytes:
    """A key with its value as files have them. Raises InputError naming `path` if its type cannot hold the value."""
    try:
        return encode_string(key) + struct.pack("<I", value.type) + _encode_value(value)
    except (struct.error, OverflowError, TypeError, UnicodeEncodeError) as error:
        raise InputError(f"{path}: key {key!r} of type {value.type.name}: value does not fit: {error}") from error


def encode_string(text: str) -> bytes:
    """The length in bytes, u64, and the text in UTF-8."""
    raw = text.encode("utf-8", "surrogateescape")
    return len(raw).to_bytes(8, "little") + raw


def _encode_value(value: Value) -> bytes:
    if value.type == ValueType.STRING:
        return encode_string(value.data)
    if value.type != ValueType.ARRAY:
        return struct.pack(NUMBER_FORMAT[value.type], value.data)
    if value.item is None:
        raise TypeError("an array without an item type")
    return struct.pack("<IQ", value.item, len(value.data)) + _encode_items(value.item, value.data)


def _encode_items(item: ValueType, data: Any) -> bytes:
    if isinstance(data, StringArray):
        return bytes(data.encoded)
    if item in (ValueType.STRING, ValueType.ARRAY):
        return b"".join(map(encode_string if item == ValueType.STRING else _encode_value, data))
    format = NUMBER_FORMAT[item]
    if isinstance(data, np.ndarray) and data.dtype == np.dtype(format):
        return data.tobytes()
    items = data.tolist() if isinstance(data, np.ndarray) else data
    return struct.pack(f"<{len(items)}{format[1]}", *items)
