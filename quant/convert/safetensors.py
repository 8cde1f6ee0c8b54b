"""A reader, which maps files, and a streaming writer for safetensors.

A file consists of the length of a JSON header (u64), the header (name → dtype, shape, byte range) and the tensors'
bytes, which the ranges cover without gap or overlap. Source: the format page of the safetensors project.
"""

import json
import os
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from reprlib import repr as short
from typing import Any, Protocol

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.mapped import MappedFile, Windows
from lltool.gguf.names import describe_os_error
from lltool.gguf.regular_file import open_regular
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.raw import PLAIN_TYPES, RawTensor
from lltool.quant.convert.wrong_content import explain_content

_ITEM_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_MAX_HEADER = 100_000_000  # bytes; the safetensors library has the same limit
# The library sorts by type, then by name, so that values of every type are aligned.
_ORDER = (GGMLType.F64, GGMLType.F32, GGMLType.BF16, GGMLType.F16)
_WINDOW = 64 << 20  # bytes of a tensor in memory while writing


@dataclass(frozen=True)
class HeaderEntry:
    """A tensor's entry in the header. The byte offsets `start` and `stop` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Windowed(Protocol):
    """A file that is read in windows: mapped, or on a server."""

    @property
    def size(self) -> int: ...

    def window(self, start: int, stop: int) -> Bytes: ...

    def check_unchanged(self) -> None: ...


@dataclass(frozen=True)
class SafetensorsFile:
    """An open file. A mapping lives as long as any tensor that reads from it.

    `aliases` maps further names of tensors to the names under which they are stored, as safetensors' `save_model` does.
    """

    path: Path
    entries: Mapping[str, HeaderEntry]
    content: Windowed
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> Collection[str]:
        """The names of tensors and aliases."""
        return [*self.entries, *self.aliases]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def is_plain(self, name: str) -> bool:
        """Whether the tensor's type is a plain float."""
        return self._entry(name).dtype in PLAIN_TYPES

    def is_same(self, name: str, other: str) -> bool:
        """Whether both names refer to the same stored tensor."""
        return self._entry(name) is self._entry(other)

    def _entry(self, name: str) -> HeaderEntry:
        return self.entries[self.aliases.get(name, name)]

    def check_unchanged(self) -> None:
        """Raises FileChanged if the file was written to or truncated since it was opened."""
        self.content.check_unchanged()

    def raw(self, name: str) -> RawTensor:
        """The tensor of that name, as it is stored."""
        entry = self._entry(name)
        width = (entry.stop - entry.start) // prod(entry.shape[:-1])

        def read(start: int, stop: int) -> Bytes:
            return self.content.window(entry.start + start * width, entry.start + stop * width).reshape(-1, width)

        return RawTensor(self.path, name, entry.dtype, entry.shape, read)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name. Raises InputError for a type that is not a plain float."""
        raw = self.raw(name)
        if raw.dtype not in PLAIN_TYPES:
            wanted = ", ".join(PLAIN_TYPES)
            raise InputError(f"{self.path}: {name}: type {raw.dtype} is not supported; wanted {wanted}")
        return Tensor(name, PLAIN_TYPES[raw.dtype], raw.shape, raw.read)


def open_safetensors(path: Path, windows: Windows | None = None) -> SafetensorsFile:
    """Maps a file, whose shards share `windows`, and checks its header.

    Raises InputError for a file that cannot be read or has an invalid header.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(64)
            if size < 8:
                reason = explain_content(head) or f"{size} bytes, too short for a safetensors file; download it again"
                raise InputError(f"{path}: {reason}")
            mapped = MappedFile(file, windows=windows)
    except OSError as error:
        raise InputError(describe_os_error(error, path)) from None
    return read_safetensors(path, mapped)


def read_safetensors(path: Path, content: Windowed) -> SafetensorsFile:
    """The file with this content, whose header is checked. Raises InputError for an invalid header."""
    try:
        return SafetensorsFile(path, *_read_header(path, content))
    finally:
        content.check_unchanged()  # a change of the file takes precedence over errors in its header


def _read_header(path: Path, content: Windowed) -> tuple[dict[str, HeaderEntry], Windowed, dict[str, str]]:
    """The entries by name, the content, and the aliases."""
    size = content.size
    head = content.window(0, min(64, size)).tobytes()
    if size < 8:
        raise InputError(f"{path}: {size} bytes, too short for a safetensors file; download it again")
    (length,) = struct.unpack("<Q", head[:8])
    if length > min(_MAX_HEADER, size - 8):
        limit = f"the file has {size - 8} after the length, and the limit is {_MAX_HEADER}"
        reason = explain_content(head) or f"header of {length} bytes, but {limit}; not a safetensors file, or cut off"
        raise InputError(f"{path}: {reason}")
    try:
        header = json.loads(content.window(8, 8 + length).tobytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: header is a JSON {type(header).__name__}, wanted an object")
    metadata = header.pop("__metadata__", None)
    entries = {name: _parse_entry(path, name, fields, 8 + length) for name, fields in header.items()}
    _check_coverage(path, entries, 8 + length, size)
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    aliases = {name: kept for name, kept in pairs if isinstance(kept, str) and kept in entries and name not in entries}
    return entries, content, aliases


def _parse_entry(path: Path, name: str, fields: Any, base: int) -> HeaderEntry:
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
            pass
        case _:
            raise InputError(f"{path}: {name}: wanted dtype, shape and data_offsets, found {short(fields)}")
    if dtype not in _ITEM_BITS:
        raise InputError(f"{path}: {name}: unknown dtype {dtype!r}")
    if not all(type(n) is int and 0 < n < 2**48 for n in shape):
        raise InputError(f"{path}: {name}: shape {short(shape)}, wanted positive integers")
    bits = prod(shape) * _ITEM_BITS[dtype]
    if (stop - start) * 8 != bits or start < 0:
        raise InputError(f"{path}: {name}: bytes {start} to {stop}, but {dtype} of shape {shape} has {bits // 8}")
    return HeaderEntry(dtype, tuple(shape), base + start, base + stop)


def _check_coverage(path: Path, entries: Mapping[str, HeaderEntry], start: int, size: int) -> None:
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != position:
            raise InputError(f"{path}: {name}: starts at byte {entry.start}, but the one before ends at {position}")
        position = entry.stop
    if position != size:
        raise InputError(f"{path}: tensors end at byte {position}, but the file has {size}; cut off or damaged")


def write_safetensors(path: Path, tensors: Sequence[Tensor], advance: Callable[[int], None]) -> None:
    """Writes the bytes that the safetensors library writes for these float tensors, without holding them in memory.

    `advance` gets the number of bytes after each write.
    """
    tensors = sorted(tensors, key=lambda tensor: (_ORDER.index(tensor.type), tensor.name))
    names = {type: dtype for dtype, type in PLAIN_TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.nbytes]
        header[tensor.name] = {"dtype": names[tensor.type], "shape": tensor.shape, "data_offsets": offsets}
        position += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            step = max(1, _WINDOW // tensor.row_bytes)
            for start in range(0, tensor.rows, step):
                data = np.ascontiguousarray(tensor.read(start, min(start + step, tensor.rows)))
                file.write(data.data)
                advance(data.nbytes)
