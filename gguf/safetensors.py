"""safetensors files: read where they are mapped, written as a stream.

A file is the length of a JSON header (u64), the header (name → dtype, shape, byte range) and the tensors' bytes, which
the ranges cover without gap or overlap. Source: the format page of the safetensors project.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.mapped import MappedFile
from lltool.gguf.source import Bytes, Tensor

DTYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
_ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_MAX_HEADER = 100_000_000  # bytes; the cap that the safetensors library has
_WINDOW = 64 << 20  # bytes of a tensor in memory while writing


@dataclass(frozen=True)
class Entry:
    """A tensor as the header tells: `start` and `stop` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A mapped file. The map lives as long as a tensor that reads from it."""

    path: Path
    entries: Mapping[str, Entry]
    mapped: MappedFile

    def tensor(self, name: str) -> Tensor:
        """Raises InputError for a type that is not a plain float."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            wanted = ", ".join(DTYPES)
            raise InputError(f"{self.path}: {name}: type {entry.dtype} is not supported; wanted {wanted}")
        width = (entry.stop - entry.start) // prod(entry.shape[:-1])

        def read(start: int, stop: int) -> Bytes:
            return self.mapped.window(entry.start + start * width, entry.start + stop * width).reshape(-1, width)

        return Tensor(name, DTYPES[entry.dtype], entry.shape, read)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Maps a file and checks its header. Raises InputError for anything in it that cannot be true."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise InputError(f"{path}: {size} bytes, too short for a safetensors file; download it again")
            mapped = MappedFile(file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    data = mapped.data
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    if length > min(_MAX_HEADER, size - 8):
        limit = f"the file has {size - 8} after it, the cap is {_MAX_HEADER}"
        raise InputError(f"{path}: header of {length} bytes, but {limit}; not a safetensors file, or cut off")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: header is a JSON {type(header).__name__}, wanted an object")
    header.pop("__metadata__", None)
    entries = {name: _parse_entry(path, name, fields, 8 + length) for name, fields in header.items()}
    _check_coverage(path, entries, 8 + length, size)
    return SafetensorsFile(path, entries, mapped)


def _parse_entry(path: Path, name: str, fields: Any, base: int) -> Entry:
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise InputError(f"{path}: {name}: wanted dtype, shape and data_offsets, found {str(fields)[:80]}")
    if dtype not in _ITEM_BITS:
        raise InputError(f"{path}: {name}: unknown dtype {dtype!r}")
    if not all(type(n) is int and 0 < n < 2**48 for n in shape):
        raise InputError(f"{path}: {name}: shape {shape}, wanted positive integers")
    bits = prod(shape) * _ITEM_BITS[dtype]
    if (stop - start) * 8 != bits or start < 0:
        raise InputError(f"{path}: {name}: bytes {start} to {stop}, but {dtype} of shape {shape} has {bits // 8}")
    return Entry(dtype, tuple(shape), base + start, base + stop)


def _check_coverage(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != position:
            raise InputError(f"{path}: {name}: starts at byte {entry.start}, but the one before ends at {position}")
        position = entry.stop
    if position != size:
        raise InputError(f"{path}: tensors end at byte {position}, but the file has {size}; cut off or damaged")


def write_safetensors(path: Path, tensors: Sequence[Tensor], advance: Callable[[int], None]) -> None:
    """Writes float tensors in order; `advance` hears of bytes as they are written."""
    names = {type: dtype for dtype, type in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        header[tensor.name] = {"dtype": names[tensor.type], "shape": tensor.shape, "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            step = max(1, _WINDOW // tensor.row_bytes)
            for start in range(0, tensor.rows, step):
                data = np.ascontiguousarray(tensor.read(start, min(start + step, tensor.rows)))
                file.write(data.data)
                advance(data.nbytes)
