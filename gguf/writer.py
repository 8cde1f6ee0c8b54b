"""Writes a source as one GGUF file or as shards: it computes the layout, then streams tensors in bounded memory."""

import hashlib
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lltool.gguf import shards
from lltool.gguf.background import background_thread
from lltool.gguf.encode import encode_key, encode_string
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import row_bytes
from lltool.gguf.header import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_DIMENSIONS,
    MIN_ALIGNMENT,
    align,
)
from lltool.gguf.metadata import Value, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.resume import Journal, Part, Resume, kept_bytes, kept_files
from lltool.gguf.room import lay_out_keys
from lltool.gguf.source import Bytes, Model, Source, Tensor
from lltool.gguf.whole_file import DISK_FULL, check_output, temporary_home, whole_files

VERSION = 3
MAX_NAME_BYTES = 63  # llama.cpp refuses longer tensor names

WINDOW_WEIGHTS = 4 << 20
"""Weights that are read, encoded and written at a time: 16 MiB as float32. Two such windows are in memory."""


@dataclass(frozen=True)
class Output:
    """A model to write.

    `shard_bytes` and `shard_tensors` limit each shard; `shard_sizes` instead fixes the number of tensors in each one.
    With `may_replace`, an existing file is replaced only if `may_replace` returns True for its metadata. With
    `has_room`, the file with the metadata has room in its header for edits (room.py).
    """

    path: Path
    source: Source
    alignment: int | None = None
    shard_bytes: int | None = None
    shard_tensors: int | None = None
    shard_sizes: Sequence[int] | None = None
    may_replace: Callable[[Mapping[str, Value]], bool] | None = None
    has_room: bool = False


def write_gguf(
    path: str | Path,
    source: Source,
    *,
    alignment: int | None = None,
    shard_bytes: int | None = None,
    shard_tensors: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    inputs: Iterable[Path] = (),
    may_replace: Callable[[Mapping[str, Value]], bool] | None = None,
    has_room: bool = False,
) -> list[Path]:
    """Writes `source` to `path` and returns the files written.

    If the limits per shard require more than one file, the files are named `NAME-00001-of-0000N.gguf`. `alignment`
    defaults to the metadata's, else 32. `progress` gets the bytes of tensor data written so far and their total. Until
    everything is written, only temporary files exist, beside the target; every exception removes them. `may_replace`
    and `has_room` are as in `Output`. Raises InputError if a name, shape or value does not fit in GGUF, if the target
    is one of `inputs` or of the source's own files or may not be replaced, and if the disk is full.
    """
    output = Output(Path(path), source, alignment, shard_bytes, shard_tensors, None, may_replace, has_room)
    return write_together([output], progress=progress, inputs=inputs)[0]


def file_bytes(source: Source, *, has_room: bool = False) -> int:
    """The size in bytes of the file that `write_gguf` makes from `source` without shards."""
    return sum(file.size for file in _lay_out(Output(Path("model.gguf"), source, has_room=has_room)))


def write_together(
    outputs: Sequence[Output],
    *,
    window_weights: int = WINDOW_WEIGHTS,
    progress: Callable[[int, int], None] | None = None,
    inputs: Iterable[Path] = (),
    seal: Callable[[], Mapping[str, Value]] | None = None,
    check: Callable[[], None] | None = None,
    resume: Resume | None = None,
) -> list[list[Path]]:
    """Writes outputs that have the same tensors, possibly in different types, window by window into all of them.

    `seal` is called after all tensors are written; it returns values that replace placeholders of the same size in the
    metadata of every output. `check` is called before the files are moved into place; an exception from it discards
    them. With `resume`, an exception or a kill leaves the finished tensors, and the next such call continues. Returns
    the files of each output. Everything else is as for `write_gguf`.
    """
    laid_out = [_lay_out(output) for output in outputs]
    files = [file for output in laid_out for file in output]
    sources = [*inputs, *(path for output in outputs for path in getattr(output.source, "paths", ()))]
    _check_targets(files, sources, kept_bytes(files[0].path) if resume else 0)
    for output, written in zip(outputs, laid_out, strict=True):
        if output.may_replace:
            check_replaced(written[0].path, output.may_replace)
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    with _places(files, resume) as (names, journal):
        temporaries = dict(zip((file.path for file in files), names, strict=True))
        try:
            kept = 0
            if resume and journal:
                tensors = _parts(laid_out, temporaries)
                kept = journal.begin(_key(files, resume), tensors)
                if kept:
                    resume.say(f"continuing after {kept} of {len(tensors)} tensors, which are kept")
            _write_files(laid_out, temporaries, window_weights, advance, kept, journal)
            if seal:
                values = seal()
                for output, written in zip(outputs, laid_out, strict=True):
                    sealed = replace(output, source=Model({**output.source.metadata, **values}, output.source.tensors))
                    _write_headers(written, temporaries, _lay_out(sealed))
            if check:
                check()
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            raise InputError(
                f"{files[0].path}: {DISK_FULL[error.errno]} after {done} of {sum(file.size for file in files)} bytes; "
                f"free some space or write to another folder"
            ) from error
    return [[file.path for file in output] for output in laid_out]


@dataclass(frozen=True)
class _File:
    """One file to write. If tensors follow, `header` is padded to the alignment, and so is each tensor."""

    path: Path
    header: bytes
    tensors: Sequence[Tensor]
    alignment: int

    @property
    def size(self) -> int:
        return len(self.header) + sum(align(tensor.nbytes, self.alignment) for tensor in self.tensors)


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
        header = _encode_header(path, metadata, groups[0], alignment, has_room=output.has_room)
        return [_File(path, header, groups[0], alignment)]
    if len(groups) > shards.MAX_SHARDS:
        raise InputError(f"{path}: {len(groups)} shards, wanted at most {shards.MAX_SHARDS}; raise the limit per shard")
    files = []
    for index, group in enumerate(groups):
        keys = shards.split_keys(index, len(groups), len(source.tensors))
        # Only the first shard has the metadata; the others need just the alignment to be readable.
        own = metadata if index == 0 else {k: v for k, v in metadata.items() if k == "general.alignment"}
        has_room = output.has_room and index == 0
        header = _encode_header(path, {**own, **keys}, group, alignment, has_room=has_room)
        files.append(_File(shards.shard_path(path, index, len(groups)), header, group, alignment))
    return files


def _check_tensors(path: Path, tensors: Sequence[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise InputError(f"{path}: tensor {tensor.name!r} appears twice")
        seen.add(tensor.name)
        if not 0 < len(tensor.name.encode()) <= MAX_NAME_BYTES:
            raise InputError(f"{path}: tensor name {tensor.name!r} does not have 1 to {MAX_NAME_BYTES} bytes")
        if len(tensor.shape) > MAX_DIMENSIONS or 0 in tensor.shape:
            raise InputError(
                f"{path}: tensor {tensor.name!r} has shape {tensor.shape}, "
                f"wanted at most {MAX_DIMENSIONS} dimensions and none of 0"
            )
        try:
            row_bytes(tensor.type, tensor.columns)
        except ValueError as error:
            raise InputError(f"{path}: tensor {tensor.name!r}: {error}") from error


@contextmanager
def _places(files: Sequence[_File], resume: Resume | None) -> Iterator[tuple[list[Path], Journal | None]]:
    """The temporary path of each file and, if the work can be resumed, the journal."""
    paths = [file.path for file in files]
    if resume:
        with kept_files(paths) as (names, journal):
            yield names, journal
        return
    with whole_files(paths) as names:
        yield names, None


def _key(files: Sequence[_File], resume: Resume) -> str:
    digest = hashlib.sha256(resume.identity.encode())
    for file in files:
        digest.update(file.header)
    return digest.hexdigest()


def _parts(outputs: Sequence[Sequence[_File]], temporaries: Mapping[Path, Path]) -> list[tuple[Part, ...]]:
    """Where the bytes of each tensor are in each output."""
    found: list[list[Part]] = [[] for _ in outputs]
    for parts, files in zip(found, outputs, strict=True):
        for file in files:
            start = len(file.header)
            for tensor in file.tensors:
                end = start + align(tensor.nbytes, file.alignment)
                parts.append(Part(temporaries[file.path], start, tensor.nbytes, end))
                start = end
    return list(zip(*found, strict=True))


def _check_targets(files: Sequence[_File], inputs: Sequence[Path], kept: int) -> None:
    """`kept` bytes are on the disk already."""
    needed: Counter[Path] = Counter()
    for file in files:
        check_output(file.path, inputs)
        if (home := temporary_home(file.path)) is not None:
            needed[home] += file.size
    for home, size in needed.items():
        if size - kept > (free := shutil.disk_usage(home).free):
            raise InputError(
                f"{files[0].path}: needs {size - kept} bytes, but the disk has {free} free; "
                f"free some space or write to another folder"
            )


def check_replaced(path: Path, may_replace: Callable[[Mapping[str, Value]], bool]) -> None:
    """Raises InputError if `path` exists, unless `may_replace` returns True for its metadata."""
    if not path.is_file():
        return
    try:
        with open_gguf(path) as file:
            if may_replace(file.metadata):
                return
    except InputError:  # not a GGUF file, or a damaged one
        pass
    raise InputError(
        f"{path}: exists, and lltool did not make it from this source; name another file, or replace it with --force"
    )


def _write_files(
    outputs: Sequence[Sequence[_File]],
    temporaries: Mapping[Path, Path],
    window_weights: int,
    advance: Callable[[int], None],
    kept: int,
    journal: Journal | None,
) -> None:
    """Writes headers and tensors to the temporary files; `temporaries` maps final paths to temporary ones.

    The first `kept` tensors are there. The `journal` gets each further one.
    """
    for output in outputs:
        done = kept
        for file in output:
            if done <= 0:
                temporaries[file.path].write_bytes(file.header)
            done -= len(file.tensors)
    opened: dict[Path, BinaryIO] = {}
    digests = [hashlib.sha256() for _ in outputs]
    try:
        spans: list[tuple[int, _File, Tensor, int, int]] = []
        for number, same in enumerate(_together(outputs)):
            if number >= kept:
                spans += _spans(same, window_weights)
            else:
                advance(sum(tensor.nbytes for _, tensor in same))
        with closing(_read_ahead((tensor, start, stop) for _, _, tensor, start, stop in spans)) as windows:
            for (index, file, tensor, start, stop), data in zip(spans, windows, strict=True):
                assert data.dtype == np.uint8, tensor.name
                assert data.shape == (stop - start, tensor.row_bytes), (tensor.name, data.shape)
                if file.path not in opened:
                    opened[file.path] = temporaries[file.path].open("ab")
                whole = np.ascontiguousarray(data)
                opened[file.path].write(whole.data)
                if journal:
                    digests[index].update(whole.data)
                if stop == tensor.rows:
                    opened[file.path].write(bytes(align(tensor.nbytes, file.alignment) - tensor.nbytes))
                    opened[file.path].flush()  # before the journal says that it is there
                    if tensor is file.tensors[-1]:
                        opened.pop(file.path).close()
                    if journal and index == len(outputs) - 1:
                        journal.add([digest.hexdigest() for digest in digests])
                        digests = [hashlib.sha256() for _ in outputs]
                advance(data.nbytes)
    finally:
        for handle in opened.values():
            handle.close()


def _together(outputs: Sequence[Sequence[_File]]) -> Iterator[tuple[tuple[_File, Tensor], ...]]:
    """Each tensor as it is in each output, with its file."""
    return zip(*([(file, tensor) for file in files for tensor in file.tensors] for files in outputs), strict=True)


def _spans(same: Sequence[tuple[_File, Tensor]], window_weights: int) -> Iterator[tuple[int, _File, Tensor, int, int]]:
    """The output and ranges of rows in the order of writing, of at most `window_weights` weights but at least a row."""
    tensor = same[0][1]
    rows = max(1, window_weights // tensor.columns)
    for start in range(0, tensor.rows, rows):
        for index, (file, tensor) in enumerate(same):
            yield index, file, tensor, start, min(start + rows, tensor.rows)


def _write_headers(written: Sequence[_File], temporaries: Mapping[Path, Path], sealed: Sequence[_File]) -> None:
    for old, new in zip(written, sealed, strict=True):
        assert len(old.header) == len(new.header), "a sealed value has another size"
        with temporaries[old.path].open("r+b") as file:
            file.write(new.header)


def _read_ahead(spans: Iterable[tuple[Tensor, int, int]]) -> Generator[Bytes]:
    """Reads the spans in order; a thread reads and encodes the next one while the caller writes the current one."""
    with background_thread() as thread:
        following = None
        for tensor, start, stop in spans:
            current, following = following, thread.submit(tensor.read, start, stop)
            if current:
                yield current.result()
                current = None  # frees the written window before another one is read
        if following:
            yield following.result()


def _encode_header(
    path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor], alignment: int, *, has_room: bool
) -> bytes:
    keys = {key: encode_key(path, key, value) for key, value in metadata.items()}
    count, encoded = lay_out_keys(keys) if has_room else (len(keys), b"".join(keys.values()))
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), count), encoded]
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))
        parts.append(encode_string(tensor.name))
        parts.append(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.type, offset))
        offset += align(tensor.nbytes, alignment)
    header = b"".join(parts)
    return header.ljust(align(len(header), alignment) if tensors else 0, b"\0")
