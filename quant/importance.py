"""Importance of columns: sums of the squared inputs of each weight matrix, as llama-imatrix stores them.

There are two file formats: GGUF (raw sums and counts) and the older .dat (means times chunks). Source: imatrix.cpp and
imatrix-loader.cpp of llama.cpp.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.header import MAGIC, MAX_NAME_BYTES
from lltool.gguf.metadata import INTEGERS, Value, ValueType, array, string, u32
from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.regular_file import open_regular, read_bytes
from lltool.gguf.source import Model, Tensor
from lltool.gguf.whole_file import whole_file
from lltool.gguf.writer import write_gguf

SUMS, COUNTS = ".in_sum2", ".counts"  # suffixes of a weight's name
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_MAX_DAT = 4 << 30  # the most bytes of a .dat file, which is read whole
_KEYS = ("general.type", DATASETS, CHUNK_COUNT, CHUNK_SIZE)


@dataclass(frozen=True)
class Importance:
    """Statistics of the inputs of weight matrices, by the weights' names.

    `sums[name]`, float32 of (experts, columns), is the sum over tokens of the square of each input column;
    `counts[name]`, float32 of (experts,), is the number of tokens. A matrix without experts has one row. A .dat file
    holds only means: if read from one, `counts` are chunks and `chunk_size` is 0. `notes` are the other keys of a GGUF
    file.
    """

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.float32]]
    chunk_count: int
    chunk_size: int  # tokens
    datasets: tuple[str, ...] = ()
    notes: Mapping[str, Value] = field(default_factory=dict)

    def means(self, name: str) -> NDArray[np.float32]:
        """The mean square of each column, (experts, columns); 1 if an expert saw no token, as in llama-quantize."""
        sums, counts = self.sums[name], self.counts[name][:, None]
        return np.where(counts > 0, sums / np.where(counts > 0, counts, np.float32(1)), np.float32(1))

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> "Importance":
        """Only the entries whose names contain one of `include` (all if empty) and none of `exclude`."""
        names = [
            name
            for name in self.sums
            if (not include or any(part in name for part in include)) and not any(part in name for part in exclude)
        ]
        return replace(self, sums={n: self.sums[n] for n in names}, counts={n: self.counts[n] for n in names})


def merge(parts: Sequence[Importance], chunk_size: int) -> Importance:
    """The combined importance of several data sets, without notes.

    Counts from a .dat file are taken as chunks of `chunk_size` tokens, as llama-imatrix does. Raises InputError if
    entries of the same name differ in size.
    """
    sums: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, NDArray[np.float32]] = {}
    for part in parts:
        tokens = np.float32(1 if part.chunk_size else chunk_size)
        for name, more in part.sums.items():
            have = sums.get(name, np.zeros_like(more))
            if have.size != more.size:
                raise InputError(f"{name}: importance of {more.size} columns cannot be added to that of {have.size}")
            shape = max(have.shape, more.shape)  # a .dat file does not know where an expert ends
            sums[name] = have.reshape(shape) + more.reshape(shape) * tokens
            counts[name] = counts.get(name, np.zeros(1, np.float32)) + part.counts[name] * tokens
    most = max((int(count.max()) for count in counts.values()), default=0)
    datasets = tuple(name for part in parts for name in part.datasets)
    return Importance(sums, counts, most // chunk_size, chunk_size, datasets)


def read_importance(path: str | Path) -> Importance:
    """Reads an importance file in either format. Raises InputError if it is damaged or not an importance file."""
    path = Path(path)
    with open_regular(path) as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
    importance = _read_gguf(path) if is_gguf else _read_dat(path)
    if not importance.sums:
        raise InputError(f"{path}: holds no importance of any tensor")
    for name, sums in importance.sums.items():
        if not (np.isfinite(sums).all() and np.isfinite(importance.counts[name]).all() and sums.min() >= 0):
            raise InputError(f"{path}: {name}: importance is negative, infinite or NaN; collect it again")
    return importance


def write_importance(path: str | Path, importance: Importance) -> None:
    """Writes an importance file in GGUF as llama-imatrix does."""
    metadata = {
        "general.type": string("imatrix"),
        DATASETS: array(ValueType.STRING, importance.datasets),
        CHUNK_COUNT: u32(importance.chunk_count),
        CHUNK_SIZE: u32(importance.chunk_size),
        **importance.notes,
    }
    tensors = []
    for name in sorted(importance.sums):
        sums, counts = importance.sums[name], importance.counts[name]
        tensors += [_tensor(name + SUMS, sums), _tensor(name + COUNTS, counts[:, None])]
    write_gguf(path, Model(metadata, tensors))


def write_dat(path: str | Path, importance: Importance) -> None:
    """Writes the older format: for each entry its means times the number of chunks, and the last data set's name."""
    chunk_size = max(1, importance.chunk_size)
    names = [name for name in sorted(importance.sums) if importance.counts[name].any()]
    parts = [struct.pack("<i", len(names))]
    for name in names:
        calls = -(-int(importance.counts[name].max()) // chunk_size)
        values = importance.means(name) * np.float32(calls)
        parts += [_packed(name), struct.pack("<ii", calls, values.size), values.astype("<f4").tobytes()]
    parts += [
        struct.pack("<i", importance.chunk_count),
        _packed(importance.datasets[-1] if importance.datasets else ""),
    ]
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(b"".join(parts))


def _tensor(name: str, values: NDArray[np.float32]) -> Tensor:
    """A tensor of values (experts, columns); as in ggml, a single expert is not a dimension."""
    data = np.ascontiguousarray(values, "<f4").view(np.uint8)
    shape = values.shape if values.shape[0] > 1 else values.shape[1:]
    return Tensor(name, GGMLType.F32, shape, lambda start, stop: data[start:stop])


def _packed(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<i", len(raw)) + raw


def _read_gguf(path: Path) -> Importance:
    with open_gguf(path) as file:
        for key in (DATASETS, CHUNK_COUNT, CHUNK_SIZE):
            if key not in file.metadata:
                raise InputError(f"{path}: not an importance file: has no key {key!r}; `lltool imatrix` makes one")
        sums, counts = {}, {}
        for tensor in file.tensors:
            if tensor.name.endswith(SUMS):
                name = tensor.name.removesuffix(SUMS)
                sums[name], counts[name] = _read_entry(file, name)
        datasets = file.metadata[DATASETS]
        return Importance(
            sums,
            counts,
            _number(path, CHUNK_COUNT, file.metadata[CHUNK_COUNT]),
            _number(path, CHUNK_SIZE, file.metadata[CHUNK_SIZE]),
            tuple(datasets.data) if datasets.item == ValueType.STRING else (),
            {key: value for key, value in file.metadata.items() if key not in _KEYS},
        )


def _read_entry(file: GGUFFile, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    arrays = []
    for suffix in (SUMS, COUNTS):
        tensor = file.tensor(name + suffix)
        if tensor.type != GGMLType.F32:
            raise InputError(f"{file.path}: {tensor.name} is {tensor.type.name}, wanted F32")
        arrays.append(tensor.data().view("<f4").ravel().copy())
    sums, counts = arrays
    if not counts.size or sums.size % counts.size:
        raise InputError(f"{file.path}: {name}: {sums.size} sums for {counts.size} counts, wanted a multiple")
    return sums.reshape(counts.size, -1), counts


def _number(path: Path, key: str, value: Value) -> int:
    if value.type not in INTEGERS or value.data < 0:
        raise InputError(f"{path}: {key} is {value.data!r}, wanted a whole number")
    return int(value.data)


def _read_dat(path: Path) -> Importance:
    data = memoryview(read_bytes(path, _MAX_DAT))
    position = 0

    def take(size: int, what: str) -> memoryview:
        nonlocal position
        if not 0 <= size <= len(data) - position:
            raise InputError(
                f"{path}: {what} at byte {position} takes {size} bytes, but only {len(data) - position} are left; "
                f"not an importance file, or a damaged one"
            )
        position += size
        return data[position - size : position]

    def number(what: str) -> int:
        return int(struct.unpack("<i", take(4, what))[0])

    sums, counts = {}, {}
    for index in range(number("the number of entries")):
        raw = bytes(take(number("a name's length"), f"the name of entry {index}"))
        if not 0 < len(raw) <= MAX_NAME_BYTES:
            raise InputError(f"{path}: the name of entry {index} has {len(raw)} bytes; not an importance file")
        name = raw.decode("utf-8", "surrogateescape")
        calls = number(f"{name}'s chunks")
        values = take(4 * number(f"{name}'s size"), f"the importance of {name}")
        sums[name] = np.frombuffer(values, "<f4").reshape(1, -1).astype(np.float32)
        counts[name] = np.full(1, max(1, calls), np.float32)
        if not sums[name].size:
            raise InputError(f"{path}: {name}: has no columns; not an importance file, or a damaged one")
    chunks = 0
    datasets: tuple[str, ...] = ()
    if position < len(data):  # the oldest files end here
        chunks = number("the number of chunks")
        text = bytes(take(number("the data set's length"), "the data set's name")).decode("utf-8", "surrogateescape")
        datasets = (text,) if text else ()
    return Importance(sums, counts, max(0, chunks), 0, datasets)
