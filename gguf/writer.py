"""Writes a source as a GGUF file or as shards of one: lays it out first, then streams the tensors in bounded memory."""

import errno
import os
import shutil
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lltool.gguf import shards
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import row_bytes
from lltool.gguf.header import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_DIMENSIONS,
    MIN_ALIGNMENT,
    NUMBER_FORMAT,
    align,
)
from lltool.gguf.metadata import Value, ValueType, u32
from lltool.gguf.source import Bytes, Model, Source, Tensor
from lltool.gguf.string_array import StringArray

VERSION = 3
MAX_NAME_BYTES = 63  # llama.cpp refuses longer tensor names

WINDOW_WEIGHTS = 4 << 20
"""Weights that are read, encoded and written at a time, 16 MiB as float32; two such windows are in memory."""

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Output:
    """A model to write. Shards take at most so many bytes or tensors each, or as many tensors as `shard_sizes` says."""

    path: Path
    source: Source
    alignment: int | None = None
    shard_bytes: int | None = None
    shard_tensors: int | None = None
    shard_sizes: Sequence[int] | None = None


def write_gguf(
    path: str | Path,
    source: Source,
    *,
    alignment: int | None = None,
    shard_bytes: int | None = None,
    shard_tensors: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    inputs: Iterable[Path] = (),
) -> list[Path]:
    """Writes `source` to `path` and returns the files written.

    With a limit of bytes or tensors a shard, and more than one shard needed, the files are `NAME-00001-of-0000N.gguf`.
    `alignment` is by default what the metadata says, else 32. `progress` is told the bytes of tensor data written and
    their sum. Until all is written only temporary files exist, beside the target; none is left behind on any exception.
    Raises InputError when a name, shape or value does not fit in GGUF, when the target is one of `inputs` or of the
    source's own files, and when the disk is full.
    """
    output = Output(Path(path), source, alignment, shard_bytes, shard_tensors)
    return write_together([output], progress=progress, inputs=inputs)[0]


def file_bytes(source: Source) -> int:
    """The size of the file that `write_gguf` makes of `source` without limits."""
    return sum(file.size for file in _lay_out(Output(Path("model.gguf"), source)))


def write_together(
    outputs: Sequence[Output],
    *,
    window_weights: int = WINDOW_WEIGHTS,
    progress: Callable[[int, int], None] | None = None,
    inputs: Iterable[Path] = (),
    seal: Callable[[], Mapping[str, Value]] | None = None,
) -> list[list[Path]]:
    """Writes outputs that have the same tensors, in other types perhaps: a window of rows goes to all before the next.

    `seal` is called when all tensors are written; it gives values for keys that every output has, of the same size as
    the ones they stand for. Returns the files of each output. The rest is as for `write_gguf`.
    """
    laid_out = [_lay_out(output) for output in outputs]
    files = [file for output in laid_out for file in output]
    _check_targets(files, [*inputs, *(path for output in outputs for path in getattr(output.source, "paths", ()))])
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    try:
        _write_files(laid_out, window_weights, advance)
        if seal:
            values = seal()
            for output, written in zip(outputs, laid_out, strict=True):
                sealed = replace(output, source=Model({**output.source.metadata, **values}, output.source.tensors))
                _write_headers(written, _lay_out(sealed))
        for file in files:
            file.temporary.replace(file.path)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        needed = sum(file.size for file in files)
        raise InputError(
            f"{files[0].path}: the disk is full after {done} of {needed} bytes; "
            f"free some space or write to another folder"
        ) from error
    finally:
        for file in files:
            file.temporary.unlink(missing_ok=True)
    return [[file.path for file in output] for output in laid_out]


@dataclass(frozen=True)
class _File:
    """One file to write: `header` is padded to the alignment where data follows, and so will each tensor be."""

    path: Path
    header: bytes
    tensors: Sequence[Tensor]
    alignment: int

    @property
    def size(self) -> int:
        return len(self.header) + sum(align(tensor.nbytes, self.alignment) for tensor in self.tensors)

    @property
    def temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")


def _lay_out(output: Output) -> list[_File]:
    path, source, alignment = output.path, output.source, output.alignment
    metadata = {key: value for key, value in source.metadata.items() if key not in shards.SPLIT_KEYS}
    stated = metadata.get("general.alignment")
    if alignment is None:
        alignment = int(stated.data) if stated else DEFAULT_ALIGNMENT
    if not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise InputError(
            f"{path}: alignment is {alignment}, wanted a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}"
        )
    if stated or alignment != DEFAULT_ALIGNMENT:
        metadata["general.alignment"] = u32(alignment)
    _check_tensors(path, source.tensors)

    groups = shards.plan_shards(source.tensors, output.shard_bytes, output.shard_tensors)
    if output.shard_sizes is not None:
        groups = shards.cut_shards(source.tensors, output.shard_sizes)
    if len(groups) == 1:
        return [_File(path, _encode_header(path, metadata, groups[0], alignment), groups[0], alignment)]
    if len(groups) > shards.MAX_SHARDS:
        raise InputError(f"{path}: {len(groups)} shards, wanted at most {shards.MAX_SHARDS}; raise the limit a shard")
    files = []
    for index, group in enumerate(groups):
        keys = shards.split_keys(index, len(groups), len(source.tensors))
        # Only the first shard has the metadata; the others need their alignment to be read at all.
        own = metadata if index == 0 else {k: v for k, v in metadata.items() if k == "general.alignment"}
        header = _encode_header(path, {**own, **keys}, group, alignment)
        files.append(_File(shards.shard_path(path, index, len(groups)), header, group, alignment))
    return files


def _check_tensors(path: Path, tensors: Sequence[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise InputError(f"{path}: tensor {tensor.name!r} appears twice")
        seen.add(tensor.name)
        if not 0 < len(tensor.name.encode()) <= MAX_NAME_BYTES:
            raise InputError(f"{path}: tensor name {tensor.name!r} has not 1 to {MAX_NAME_BYTES} bytes")
        if len(tensor.shape) > MAX_DIMENSIONS or 0 in tensor.shape:
            raise InputError(
                f"{path}: tensor {tensor.name!r} has shape {tensor.shape}, "
                f"wanted at most {MAX_DIMENSIONS} dimensions and none of 0"
            )
        try:
            row_bytes(tensor.type, tensor.columns)
        except ValueError as error:
            raise InputError(f"{path}: tensor {tensor.name!r}: {error}") from error


def _check_targets(files: Sequence[_File], inputs: Sequence[Path]) -> None:
    for file in files:
        if not file.path.parent.is_dir():
            raise InputError(f"{file.path.parent}: no such folder; make it first")
        if file.path.is_dir():
            raise InputError(f"{file.path}: a folder, wanted the name of a file to write")
        if file.path.exists() and any(other.exists() and file.path.samefile(other) for other in inputs):
            raise InputError(f"{file.path}: would overwrite its own source; write to another file")
    needed, free = sum(file.size for file in files), shutil.disk_usage(files[0].path.parent).free
    if needed > free:
        raise InputError(
            f"{files[0].path}: needs {needed} bytes, the disk has {free}; free some space or write to another folder"
        )


def _write_files(outputs: Sequence[Sequence[_File]], window_weights: int, advance: Callable[[int], None]) -> None:
    """Writes the temporary files."""
    for file in (file for output in outputs for file in output):
        file.temporary.write_bytes(file.header)
    opened: dict[Path, BinaryIO] = {}
    try:
        spans = list(_spans(outputs, window_weights))
        with closing(_read_ahead((tensor, start, stop) for _, tensor, start, stop in spans)) as windows:
            for (file, tensor, start, stop), data in zip(spans, windows, strict=True):
                assert data.dtype == np.uint8, tensor.name
                assert data.shape == (stop - start, tensor.row_bytes), (tensor.name, data.shape)
                if file.path not in opened:
                    opened[file.path] = file.temporary.open("ab")
                opened[file.path].write(np.ascontiguousarray(data).data)
                if stop == tensor.rows:
                    opened[file.path].write(bytes(align(tensor.nbytes, file.alignment) - tensor.nbytes))
                    if tensor is file.tensors[-1]:
                        opened.pop(file.path).close()
                advance(data.nbytes)
    finally:
        for handle in opened.values():
            handle.close()


def _spans(outputs: Sequence[Sequence[_File]], window_weights: int) -> Iterator[tuple[_File, Tensor, int, int]]:
    """Row ranges of at most the window's size each, or one row where a row is larger, in the order of writing."""
    for same in zip(*([(file, tensor) for file in files for tensor in file.tensors] for files in outputs), strict=True):
        tensor = same[0][1]
        rows = max(1, window_weights // tensor.columns)
        for start in range(0, tensor.rows, rows):
            for file, tensor in same:
                yield file, tensor, start, min(start + rows, tensor.rows)


def _write_headers(written: Sequence[_File], sealed: Sequence[_File]) -> None:
    for old, new in zip(written, sealed, strict=True):
        assert len(old.header) == len(new.header), "a sealed value has another size"
        with old.temporary.open("r+b") as file:
            file.write(new.header)


def _read_ahead(spans: Iterable[tuple[Tensor, int, int]]) -> Generator[Bytes]:
    """Reads the spans in order; the next one is read and encoded by a thread while the caller writes the last."""
    pool = ThreadPoolExecutor(1)
    try:
        following = None
        for tensor, start, stop in spans:
            current, following = following, pool.submit(tensor.read, start, stop)
            if current:
                yield current.result()
                current = None  # frees the written window before the one after the next is read
        if following:
            yield following.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_header(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor], alignment: int) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        try:
            parts += [_encode_string(key), struct.pack("<I", value.type), _encode_value(value)]
        except (struct.error, OverflowError, TypeError, UnicodeEncodeError) as error:
            raise InputError(f"{path}: key {key!r} of type {value.type.name}: value does not fit: {error}") from error
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))
        parts.append(_encode_string(tensor.name))
        parts.append(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.type, offset))
        offset += align(tensor.nbytes, alignment)
    header = b"".join(parts)
    return header.ljust(align(len(header), alignment) if tensors else 0, b"\0")


def _encode_string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return len(raw).to_bytes(8, "little") + raw


def _encode_value(value: Value) -> bytes:
    if value.type == ValueType.STRING:
        return _encode_string(value.data)
    if value.type != ValueType.ARRAY:
        return struct.pack(NUMBER_FORMAT[value.type], value.data)
    if value.item is None or value.item == ValueType.ARRAY:
        raise TypeError(f"an array of {value.item}")
    return struct.pack("<IQ", value.item, len(value.data)) + _encode_items(value.item, value.data)


def _encode_items(item: ValueType, data: Any) -> bytes:
    if isinstance(data, StringArray):
        return bytes(data.encoded)
    if item == ValueType.STRING:
        return b"".join(map(_encode_string, data))
    format = NUMBER_FORMAT[item]
    if isinstance(data, np.ndarray) and data.dtype == np.dtype(format):
        return data.tobytes()
    items = data.tolist() if isinstance(data, np.ndarray) else data
    return struct.pack(f"<{len(items)}{format[1]}", *items)
