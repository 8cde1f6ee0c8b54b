"""Files that are mapped for reading, in windows, so that little of a large file stays resident."""

import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import BinaryIO, Literal

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.source import Bytes
from lltool.gguf.watched import WatchedFile

# mmap maps the file and reads pages on first use; none reads it into memory; mlock maps, reads and locks it in memory.
LoadMode = Literal["mmap", "none", "mlock"]

_READ = 64 << 20  # bytes per read
_KEPT = 128 << 20  # bytes of the last windows that stay mapped: a writer uses two windows at a time
_CHECKED = 1 << 20  # bytes; for windows of at least this size, checking for changes is cheap compared with reading
_LARGE = ("AnonHugePages", "FilePmdMapped", "ShmemPmdMapped")  # Linux reports these per mapping, in KiB


class Windows:
    """The windows that were last given of one file, or of several that are read together, such as a model's shards.

    Their pages stay in memory, up to `_KEPT` bytes of all files together.
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[weakref.ref[MappedFile], int, int]] = deque()  # weak: a cycle would keep files mapped
        self._bytes = 0
        self._lock = Lock()

    def add(self, file: "MappedFile", start: int, stop: int) -> None:
        with self._lock:
            self._kept.append((weakref.ref(file), start, stop))
            self._bytes += stop - start
            while self._bytes - (self._kept[0][2] - self._kept[0][1]) > _KEPT:
                earlier, first, last = self._kept.popleft()
                self._bytes -= last - first
                if (owner := earlier()) is not None:
                    owner.drop(first, last)


class MappedFile:
    """An open file in memory. `data` is the whole file, uint8 of (bytes,); `window` gives a part that is read once.

    If another process truncates the file while it is mapped, the missing part reads as zeros, and `check_unchanged`
    raises. Files with the same `windows` drop each other's earlier pages. Raises InputError if the memory cannot be
    locked.
    """

    def __init__(self, file: BinaryIO, mode: LoadMode = "mmap", windows: Windows | None = None) -> None:
        self._name = file.name
        self._stays = mode != "mmap"
        self._watched = WatchedFile(file)
        memory = _read_whole(file, self._watched.size) if mode == "none" else _map(file, self._watched)
        _want_large_pages(memory)
        self._mapped: mmap.mmap | None = memory
        self.data: Bytes = np.frombuffer(memory, np.uint8)
        if mode == "none":  # the file is not read again
            self._watched.check_unchanged()
            self._watched.close()
        else:
            self._watched.guard(memory, self.data.ctypes.data, len(self.data))
        if mode == "mlock":
            _lock(self.data, file.name)
        self._windows = windows or Windows()

    @property
    def size(self) -> int:
        return len(self.data)

    def window(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of the file; the same number of bytes after them is prefetched.

        Drops the pages of much earlier windows from memory; a view of such a window stays valid and is read again on
        use. Raises InputError if the file is closed and, for large windows, FileChanged if the file has changed.
        """
        if self._mapped is None:
            raise InputError(f"{self._name}: the file is closed; open it again")
        if stop - start >= _CHECKED:
            self.check_unchanged()
        if self._stays:
            return self.data[start:stop]
        if start < stop:
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._advise("MADV_WILLNEED", page, min(2 * stop - start, len(self.data)))
        self._windows.add(self, start, stop)
        return self.data[start:stop]

    def drop(self, start: int, stop: int) -> None:
        """Takes the pages of bytes [start, stop) out of memory; they are read again on use."""
        self._advise("MADV_DONTNEED", start // mmap.PAGESIZE * mmap.PAGESIZE, stop)

    def check_unchanged(self) -> None:
        """Raises FileChanged if the file was written to or truncated since it was opened."""
        self._watched.check_unchanged()

    def close(self) -> None:
        """Closes the file. The mapping is released with its last view; no further windows can be read."""
        self.data, self._mapped = np.empty(0, np.uint8), None
        self._watched.close()

    def _advise(self, advice: str, start: int, stop: int) -> None:
        if self._mapped is not None and hasattr(mmap, advice):
            with suppress(OSError):  # the advice is only a hint
                self._mapped.madvise(getattr(mmap, advice), start, stop - start)


def _map(file: BinaryIO, watched: WatchedFile) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), watched.size, access=mmap.ACCESS_READ)
    except ValueError:  # the file has become shorter
        watched.check_unchanged()
        raise


def _want_large_pages(memory: mmap.mmap) -> None:
    """Asks for pages of 2 MiB, which halve the time that decoding waits for address translation."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def in_large_pages(data: Bytes, maps: Path = Path("/proc/self/smaps")) -> bool:
    """Whether most of the resident part of the mapping that holds `data` is in pages of 2 MiB.

    Returns False where the system does not report it.
    """
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return False
    address, inside, sizes = data.ctypes.data, False, dict.fromkeys(("Rss", *_LARGE), 0)
    for line in lines:
        name, _, value = line.partition(":")
        if name in sizes and inside:
            sizes[name] = int(value.split()[0])
        elif "-" in name:  # as in `7f17c0600000-7f17c9000000 r--s 00000000 fe:00 42 name`
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            inside = start <= address < end
    return sum(sizes[name] for name in _LARGE) * 2 > sizes["Rss"]


def _lock(data: Bytes, name: str) -> None:
    """Reads the mapped data and locks it in memory for as long as it is mapped. Raises InputError if that fails."""
    import ctypes
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)) == 0:
        return
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    raise InputError(
        f"{name}: {data.nbytes >> 20} MiB cannot be locked in memory ({os.strerror(ctypes.get_errno()).lower()}); "
        f"the limit, `ulimit -l`, is {limit >> 10} KiB: raise it or load without mlock"
    )


def _read_whole(file: BinaryIO, size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)  # private, because shared memory seldom gets large pages
    _want_large_pages(memory)
    view = memoryview(memory)
    done = 0
    while count := file.readinto(view[done : done + _READ]):  # type: ignore[attr-defined]
        done += count
    return memory  # if the file ended early, its size has changed, and check_unchanged reports it


def prefetch(paths: Sequence[Path]) -> Event:
    """Reads files into the page cache, in order, in the background: page faults read a cold file in small pieces.

    Returns an event; setting it stops the prefetch.
    """
    stop = Event()
    if hasattr(os, "posix_fadvise"):
        Thread(target=_prefetch, args=(paths, stop), name="prefetch", daemon=True).start()
    return stop


def _prefetch(paths: Sequence[Path], stop: Event) -> None:
    with suppress(OSError):  # errors are reported by the code that uses the file
        for path in paths:
            with path.open("rb") as file:
                for start in range(0, os.fstat(file.fileno()).st_size, _READ):
                    if stop.is_set():
                        return
                    os.posix_fadvise(file.fileno(), start, _READ, os.POSIX_FADV_WILLNEED)
