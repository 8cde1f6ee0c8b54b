"""Changes the metadata of a GGUF file: in place where that is safe, else by a new file that replaces it."""

import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lltool.gguf import shards
from lltool.gguf.encode import encode_key
from lltool.gguf.errors import InputError
from lltool.gguf.header import COUNTS_AT, ROOM_HEAD, ROOM_TAIL, align
from lltool.gguf.metadata import Value, near
from lltool.gguf.reader import Shard, open_shard
from lltool.gguf.room import keys_in, lay_out_keys, plan_writes
from lltool.gguf.whole_file import check_output, whole_files

if sys.platform != "win32":
    import fcntl

Changes = Mapping[str, Value | None]
"""New values by key; None removes a key."""

_CHUNK = 8 << 20  # bytes that are copied at a time
_FIXED = {
    "general.alignment": "it says where the tensors are",
    ROOM_HEAD: "lltool needs it for edits",
    ROOM_TAIL: "lltool needs it for edits",
    **dict.fromkeys(shards.SPLIT_KEYS, "`lltool split` and `lltool merge` change it"),
}


@dataclass(frozen=True)
class Edited:
    """What an edit did, or would do: the file with the metadata, the old value of each changed key, and the way.

    `bytes` are those written. With `in_place` the file stays the same one; otherwise a new one replaces it.
    """

    path: Path
    before: Changes
    in_place: bool
    bytes: int


def edit_gguf(
    path: str | Path,
    change: Callable[[Mapping[str, Value]], Changes],
    *,
    output: Path | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Edited:
    """Changes metadata; tensors, and values that are not changed, keep their bytes.

    `change` gets the metadata and returns what to change. The file is changed in place if that cannot leave it broken
    (see room.py) and it has no other hard links; otherwise a new one, with room for further edits, replaces it. With
    `output`, the file stays as it is and a new one is written there. Of a split model, `path` may be any shard: the
    first one is changed, and `output` names new shards of them all. A program that has the file open keeps valid
    tensors; lltool's own stop with FileChanged. `progress` gets the bytes copied so far and their total. Raises
    InputError for a key that cannot be removed or changed, for a value that its type cannot hold, and for a file that
    cannot be written or that another process edits at the same time.
    """
    paths = _shard_paths(Path(path))
    is_replaced = output is None and not dry_run
    if is_replaced:
        _check_writable(paths[0])
    with _lock(paths[0]) if is_replaced else nullcontext(), _opened(paths if output else paths[:1]) as files:
        first = files[0]
        metadata, data = first.header.metadata, first.mapped.data.data
        keys = keys_in(first.header, data)
        before: dict[str, Value | None] = {}
        for key, value in change(metadata).items():
            if key in _FIXED:
                raise InputError(f"{path}: key {key!r} cannot be set or removed, as {_FIXED[key]}")
            encoded = None if value is None else encode_key(first.path, key, value)
            if encoded == keys.get(key):
                continue
            before[key] = metadata.get(key)
            if encoded is None:
                del keys[key]
            else:
                keys[key] = encoded
        # A file with several names (hard links) keeps its content under the others.
        stays = output is None and first.path.stat().st_nlink == 1
        writes = plan_writes(first.header, data, keys) if stays else None
        if writes is not None:
            if not dry_run:
                write_in_order(first.path, writes)
            return Edited(first.path, before, True, sum(len(new) for _, new in writes))
        header = _new_header(first, keys)
        total = len(header) + len(_tensor_data(first)) + sum(len(file.mapped.data) for file in files[1:])
        targets = _targets(first.path, output, len(files))
        if not dry_run:
            if output:
                for target in targets:
                    check_output(target, paths)
            _write_copies(targets, header, files, total, progress)
        return Edited(targets[0], before, False, total)


def write_in_order(path: Path, writes: Sequence[tuple[int, bytes]]) -> None:
    """Makes writes, offset and bytes, in a file; each one is on the disk before the next one starts."""
    with path.open("r+b", buffering=0) as file:
        for offset, data in writes:
            file.seek(offset)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())


def _shard_paths(path: Path) -> list[Path]:
    """The files of a model, of which the first has the metadata."""
    with _opened([path]) as (file,):
        count = shards.shard_count(path, file.header.metadata)
    return [path] if count == 1 else shards.find_shards(path, count)


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[Shard]]:
    files = [open_shard(path) for path in paths]
    try:
        yield files
    finally:
        for file in files:
            file.mapped.close()


def _check_writable(path: Path) -> None:
    real = Path(os.path.realpath(path))
    if any(part.startswith("models--") for part in real.parts):
        raise InputError(f"{path}: is in the Hub's cache, where other programs expect it as it is; write to -o FILE")
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: is protected from writing; allow it, or write to -o FILE")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Raises InputError if another process edits the file."""
    if sys.platform == "win32":
        yield
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another process is editing it; try again when it is done") from None
        except OSError:  # the file system has no locks
            pass
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise InputError(f"{path}: another process has just replaced it; try again")
        yield


def removal(path: Path, metadata: Mapping[str, Value], key: str) -> tuple[str, None]:
    """The change that removes a key. Raises InputError, with a near name, if there is none."""
    if key not in metadata:
        raise InputError(f"{path}: has no key {key!r}{near(key, metadata)}")
    return key, None


def _new_header(file: Shard, keys: Mapping[str, bytes]) -> bytes:
    data, header = file.mapped.data.data, file.header
    count, encoded = lay_out_keys(keys)
    counts = bytes(data[:COUNTS_AT]) + struct.pack("<QQ", len(header.tensors), count)
    new = counts + encoded + bytes(data[slice(*header.entries)])
    return new.ljust(align(len(new), header.alignment) if header.tensors else 0, b"\0")


def _tensor_data(file: Shard) -> memoryview:
    return file.mapped.data.data[file.header.data_start :]


def _targets(path: Path, output: Path | None, count: int) -> list[Path]:
    if output is None or count == 1:
        return [output or path]
    return [shards.shard_path(output, index, count) for index in range(count)]


def _write_copies(
    paths: Sequence[Path],
    header: bytes,
    sources: Sequence[Shard],
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Writes the first shard with another header, and copies of the others."""
    done = 0
    with whole_files(paths) as temporaries:
        for index, (temporary, source) in enumerate(zip(temporaries, sources, strict=True)):
            parts = [memoryview(header), _tensor_data(source)] if index == 0 else [source.mapped.data.data]
            with temporary.open("wb") as file:
                for part in parts:
                    for start in range(0, len(part), _CHUNK):
                        done += file.write(part[start : start + _CHUNK])
                        if progress:
                            progress(done, total)
            source.mapped.check_unchanged()
