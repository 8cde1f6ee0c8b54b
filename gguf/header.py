"""A parser for GGUF headers that treats the file as hostile: it checks every value before it uses it.

Layout (little-endian): magic, u32 version, u64 tensor count, u64 key count; per key: string, u32 type, value; per
tensor: string, u32 number of dimensions, u64 per dimension, u32 type, u64 offset. Source: ggml/docs/gguf.md.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType, row_bytes
from lltool.gguf.metadata import Value, ValueType
from lltool.gguf.string_array import StringArray

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # both have the same layout; version 1 had 32-bit counts, and no program writes it any more

# The caps are far above any real file; they keep a small hostile file from costing much memory or time.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16  # models with a thousand layers have some ten thousand
MAX_KEY_BYTES = (1 << 16) - 1  # the format's own limit
MAX_NAME_BYTES = 255  # ggml stops at 63; forks with longer names exist
MAX_STRING_BYTES = 1 << 28  # a whole tokenizer.json takes about 30 MB
MAX_ITEMS = 1 << 24  # 64 times the largest vocabulary
MAX_ARRAYS, MAX_DEPTH = 1 << 16, 4  # the number of arrays in an array, and how deeply they may be nested
MAX_DIMENSIONS = 4  # ggml's own limit
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 21  # the format's own limit; a huge page
DEFAULT_ALIGNMENT = 32

COUNTS_AT, HEAD_BYTES = 8, 24  # where the numbers of tensors and of keys are, and where the keys begin
# Keys of room.py, whose values mean nothing. With names of 16 bytes, the first one's length ends at byte 64.
ROOM_HEAD, ROOM_TAIL = "lltool.room.head", "lltool.room.tail"

# struct and numpy use the same letters and, with "<", the same sizes.
NUMBER_FORMAT: dict[ValueType, str] = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT32: "<f",
    ValueType.FLOAT64: "<d",
    ValueType.BOOL: "<?",
}

_REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
_OTHER_FILES = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"PK\x03\x04": "a zip archive (perhaps a PyTorch checkpoint); convert the checkpoint's folder instead",
    b"lmgg": "a GGML file from before GGUF; convert the original checkpoint again",
    b"fmgg": "a GGMF file from before GGUF; convert the original checkpoint again",
    b"tjgg": "a GGJT file from before GGUF; convert the original checkpoint again",
    b"<": "a web page or XML, not a model; download it again",
}


@dataclass(frozen=True)
class TensorEntry:
    """The location of a tensor: `offset` counts from the start of the file; `shape` is in numpy order."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """`places` are the first and the last byte + 1 of each key with its value, `entries` of all tensors' descriptions.

    The tensor data begin at `data_start`. The keys of the room for edits are in `places` only.
    """

    version: int
    alignment: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorEntry, ...]
    places: Mapping[str, tuple[int, int]]
    entries: tuple[int, int]
    data_start: int


def parse_header(path: Path, data: memoryview) -> Header:
    """Parses and checks the header of the file whose bytes are `data`. Raises InputError."""
    cursor = _Cursor(path, data)
    version = _read_version(cursor)
    tensor_count = cursor.count("the number of tensors", MAX_TENSORS, item_bytes=24)
    key_count = cursor.count("the number of keys", MAX_KEYS, item_bytes=13)

    metadata: dict[str, Value] = {}
    places: dict[str, tuple[int, int]] = {}
    for index in range(key_count):
        start = cursor.position
        key = cursor.name(f"key {index}", MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"key {key!r} appears twice")
        metadata[key] = _read_value(cursor, key)
        places[key] = start, cursor.position
    for key in (ROOM_HEAD, ROOM_TAIL):
        metadata.pop(key, None)
    alignment = _check_alignment(cursor, metadata)
    entries_start = cursor.position

    entries: dict[str, TensorEntry] = {}
    for index in range(tensor_count):
        entry = _read_tensor_entry(cursor, index, alignment)
        if entry.name in entries:
            cursor.fail(f"tensor {entry.name!r} appears twice")
        entries[entry.name] = entry
    data_start = align(cursor.position, alignment)
    tensors = tuple(TensorEntry(e.name, e.type, e.shape, data_start + e.offset, e.nbytes) for e in entries.values())
    _check_extents(cursor, tensors)
    return Header(version, alignment, metadata, tensors, places, (entries_start, cursor.position), data_start)


def align(position: int, alignment: int) -> int:
    """The first multiple of `alignment` at or after `position`."""
    return -(-position // alignment) * alignment


class _Cursor:
    """A position in the file. Every read is checked against the number of bytes left and may raise InputError."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def fail(self, message: str) -> NoReturn:
        raise InputError(f"{self.path}: {message}")

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            self.fail(
                f"{what} at byte {self.position} takes {size} bytes, but only {self.left} are left; "
                f"the file is cut off or damaged, get it again"
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, format: str, what: str) -> Any:
        return struct.unpack(format, self.take(struct.calcsize(format), what))[0]

    def count(self, what: str, cap: int, item_bytes: int) -> int:
        """Reads a u64: the number of items, of at least `item_bytes` bytes each, that follow."""
        count: int = self.number("<Q", what)
        if count > cap:
            self.fail(f"{what} is {count}, more than the {cap} allowed; the file is damaged, get it again")
        if count * item_bytes > self.left:
            self.fail(
                f"{what} is {count}, which takes at least {count * item_bytes} bytes, but only {self.left} are left; "
                f"the file is cut off or damaged, get it again"
            )
        return count

    def string(self, what: str, cap: int) -> bytes:
        return bytes(self.take(self.count(f"the length of {what}", cap, item_bytes=1), what))

    def name(self, what: str, cap: int) -> str:
        raw = self.string(f"the name of {what}", cap)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            self.fail(f"the name of {what} is not UTF-8: {raw[:40]!r}")
        return name or self.fail(f"the name of {what} is empty")


def _read_version(cursor: _Cursor) -> int:
    if not cursor.data:
        cursor.fail("the file is empty")
    if cursor.data[:4] != MAGIC:
        start = bytes(cursor.data[:32])
        for prefix, what in _OTHER_FILES.items():
            if start.startswith(prefix):
                cursor.fail(f"not a GGUF file but {what}")
        cursor.fail(f"not a GGUF file: it starts with {start[:4]!r}, wanted {MAGIC!r}")
    cursor.position = 4
    version: int = cursor.number("<I", "the version")
    if version and version & 0xFFFF == 0:
        cursor.fail("a big-endian GGUF file; only little-endian ones can be read, get or convert one")
    if version not in VERSIONS:
        cursor.fail(f"GGUF version {version}; only versions 2 and 3 can be read")
    return version


def _read_value_type(cursor: _Cursor, key: str, what: str) -> ValueType:
    number = cursor.number("<I", f"the {what} of key {key!r}")
    try:
        return ValueType(number)
    except ValueError:
        cursor.fail(f"key {key!r} has {what} {number}, wanted 0 to {max(ValueType)}")


def _read_value(cursor: _Cursor, key: str) -> Value:
    type = _read_value_type(cursor, key, "value type")
    what = f"the value of key {key!r}"
    if type == ValueType.STRING:
        return Value(type, cursor.string(what, MAX_STRING_BYTES).decode("utf-8", "surrogateescape"))
    if type != ValueType.ARRAY:
        if type == ValueType.BOOL and cursor.left and cursor.data[cursor.position] > 1:
            cursor.fail(f"{what} is the byte {cursor.data[cursor.position]}, wanted 0 or 1 for a bool")
        return Value(type, cursor.number(NUMBER_FORMAT[type], what))

    return _read_array(cursor, key, depth=1)


def _read_array(cursor: _Cursor, key: str, depth: int) -> Value:
    type, item = ValueType.ARRAY, _read_value_type(cursor, key, "item type")
    what, length = f"the value of key {key!r}", f"the length of the array of key {key!r}"
    if item == ValueType.ARRAY:
        if depth == MAX_DEPTH:
            cursor.fail(f"{what} nests arrays more than {MAX_DEPTH} deep; the file is damaged, get it again")
        count = cursor.count(length, MAX_ARRAYS, item_bytes=12)
        return Value(type, tuple(_read_array(cursor, key, depth + 1) for _ in range(count)), item)
    if item == ValueType.STRING:
        count = cursor.count(length, MAX_ITEMS, item_bytes=8)
        try:
            strings = StringArray.scan(cursor.data, cursor.position, count)
        except ValueError as error:
            cursor.fail(f"{what}: {error} of the file; it is cut off or damaged, get it again")
        cursor.position += len(strings.encoded)
        return Value(type, strings, item)
    dtype = np.dtype(NUMBER_FORMAT[item])
    count = cursor.count(length, MAX_ITEMS, item_bytes=dtype.itemsize)
    numbers = np.frombuffer(cursor.take(count * dtype.itemsize, what), np.uint8)
    if item == ValueType.BOOL and numbers.max(initial=0) > 1:
        cursor.fail(f"{what} holds the byte {numbers.max()}, wanted 0 or 1 for a bool")
    return Value(type, numbers.view(dtype), item)


def _check_alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    found = value.data
    if value.type != ValueType.UINT32:
        cursor.fail(f"general.alignment is of type {value.type.name}, wanted UINT32")
    if not MIN_ALIGNMENT <= found <= MAX_ALIGNMENT or found & (found - 1):
        cursor.fail(f"general.alignment is {found}, wanted a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}")
    return int(found)


def _read_tensor_entry(cursor: _Cursor, index: int, alignment: int) -> TensorEntry:
    """Reads one tensor's description. Its offset still counts from the start of the tensor data."""
    name = cursor.name(f"tensor {index}", MAX_NAME_BYTES)
    dimensions: int = cursor.number("<I", f"the number of dimensions of {name!r}")
    if dimensions > MAX_DIMENSIONS:
        cursor.fail(f"tensor {name!r} has {dimensions} dimensions, wanted at most {MAX_DIMENSIONS}")
    sizes = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, f"the shape of {name!r}"))
    shape = tuple(reversed(sizes))
    if 0 in shape:
        cursor.fail(f"tensor {name!r} has shape {shape}, wanted no dimension of 0")
    number = cursor.number("<I", f"the type of {name!r}")
    if number not in LAYOUT:
        old = _REMOVED_TYPES.get(number)
        cursor.fail(
            f"tensor {name!r} is of type {old}, which was removed from GGUF; get a file of another type"
            if old
            else f"tensor {name!r} is of type {number}, which this version does not know; update lltool"
        )
    type = GGMLType(number)
    try:
        nbytes = prod(shape[:-1]) * row_bytes(type, shape[-1] if shape else 1)
    except ValueError as error:
        cursor.fail(f"tensor {name!r}: {error}")
    offset: int = cursor.number("<Q", f"the offset of {name!r}")
    if offset % alignment:
        cursor.fail(f"tensor {name!r} has offset {offset}, wanted a multiple of the alignment {alignment}")
    return TensorEntry(name, type, shape, offset, nbytes)


def _check_extents(cursor: _Cursor, tensors: tuple[TensorEntry, ...]) -> None:
    """Raises InputError unless every tensor lies inside the file and no two tensors overlap."""
    size = len(cursor.data)
    end, before = 0, ""
    for entry in sorted(tensors, key=lambda entry: entry.offset):
        if entry.offset + entry.nbytes > size:
            cursor.fail(
                f"tensor {entry.name!r} of {entry.nbytes} bytes ends at byte {entry.offset + entry.nbytes}, "
                f"but the file has {size} bytes; it is cut off or damaged, get it again"
            )
        if entry.offset < end:
            cursor.fail(f"tensors {before!r} and {entry.name!r} overlap at byte {entry.offset}")
        end, before = entry.offset + entry.nbytes, entry.name
