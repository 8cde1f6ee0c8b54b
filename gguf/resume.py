"""Output that survives an interruption: finished tensors are kept, with their hashes, and the next run continues.

The files under way lie beside the first output in a folder `.lltool-kept-NAME`, with a journal: a line of JSON with a
key that identifies the work, then a line for each finished tensor with the SHA-256 of its bytes in each output. Only a
tensor whose bytes still have that hash counts as finished.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lltool.gguf.errors import InputError
from lltool.gguf.whole_file import check_output, is_stream, move_into_place

if sys.platform != "win32":
    import fcntl

_JOURNAL = "journal"
_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Resume:
    """The wish that an interrupted run can be continued.

    `identity` says what the work depends on besides the headers of its files: runs with the same identity and headers
    write the same bytes. `say` gets what is continued.
    """

    identity: str
    say: Callable[[str], None] = lambda text: None


class Part(NamedTuple):
    """The bytes of a tensor in one of the files; `end` is where the next tensor begins."""

    path: Path
    start: int
    size: int
    end: int


class Journal:
    """The finished tensors of a run. `file` is open for reading and writing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def begin(self, key: str, tensors: Sequence[Sequence[Part]]) -> int:
        """How many of the first `tensors` are finished and whole; all that follows them is cut off.

        Nothing is finished if the journal has another key. `tensors` are the parts of each tensor, one in each output.
        """
        self._file.seek(0)
        lines = self._file.readlines()
        first = json.dumps({"key": key}).encode() + b"\n"
        kept = 0
        if lines[:1] == [first]:
            for line, parts in zip(lines[1:], tensors, strict=False):
                if line != _line([_sha256(part) for part in parts]):
                    break
                kept += 1
        self._file.seek(0)
        self._file.truncate()
        self._file.writelines([first, *lines[1 : kept + 1]])
        self._file.flush()
        for path, end in {part.path: part.end for parts in tensors[:kept] for part in parts}.items():
            os.truncate(path, end)  # of each file, the end of its last part
        return kept

    def add(self, digests: Sequence[str]) -> None:
        """Records the next tensor, whose bytes are in the files, by their SHA-256 in each output."""
        self._file.write(_line(digests))
        self._file.flush()


def _line(digests: Sequence[str]) -> bytes:
    return json.dumps(list(digests)).encode() + b"\n"


def _sha256(part: Part) -> str:
    """The SHA-256 of a part; that of less if the file is shorter or missing."""
    digest, left = hashlib.sha256(), part.size
    with suppress(FileNotFoundError), part.path.open("rb") as file:
        file.seek(part.start)
        while left and (data := file.read(min(_CHUNK, left))):
            digest.update(data)
            left -= len(data)
    return digest.hexdigest() if not left else ""


def kept_folder(path: Path) -> Path:
    """The folder for what is kept of an interrupted run whose first output is `path`."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".lltool-kept-{target.name}")


def kept_bytes(path: Path) -> int:
    """The bytes that an interrupted run has left on the disk."""
    folder = kept_folder(path)
    return sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0


def forget(path: Path) -> None:
    """Removes what is kept of an interrupted run whose first output is `path`, unless a run is at work there."""
    folder = kept_folder(path)
    with suppress(OSError, InputError), (folder / _JOURNAL).open("r+b") as file:
        _lock(file, path)
        shutil.rmtree(folder)


@contextmanager
def kept_files(paths: Sequence[Path]) -> Iterator[tuple[list[Path], Journal]]:
    """Paths to write to, and their journal; on exit the files replace `paths`, after an error they stay.

    Raises InputError for what `check_output` refuses, for outputs in several folders, and if another run is at work.
    """
    for path in paths:
        check_output(path)
        if is_stream(path):
            raise InputError(f"{path}: not a file, so nothing can be kept of it; leave out --resume")
    folder = kept_folder(paths[0])
    if any(kept_folder(path).parent != folder.parent for path in paths):
        raise InputError(f"{paths[0]}: the outputs are in several folders, and --resume wants one")
    folder.mkdir(mode=0o700, exist_ok=True)
    names = [folder / Path(os.path.realpath(path)).name for path in paths]
    if len({*names}) < len(names):
        raise InputError(f"{paths[0]}: is the name of two outputs; write to two files")
    with (folder / _JOURNAL).open("a+b") as file:
        _lock(file, paths[0])
        yield names, Journal(file)
        for name, path in zip(names, paths, strict=True):
            move_into_place(name, path)
        shutil.rmtree(folder)


def _lock(file: BinaryIO, path: Path) -> None:
    """Raises InputError if another process holds the lock. Without locks in the file system, nothing is checked."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{path}: another process is writing it; wait until it is done") from None
    except OSError:
        pass
