"""Files mapped for reading. Read in windows, in any order, little of a large one stays resident."""

import mmap
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import BinaryIO, Literal

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.source import Bytes

# How a file is used: mapped, and read when its pages are touched; read at once; mapped, read, and kept in memory.
LoadMode = Literal["mmap", "none", "mlock"]

_READ = 64 << 20  # bytes at once
_KEPT = 128 << 20  # bytes of the last windows that stay mapped: a writer has two at a time
_LARGE = ("AnonHugePages", "FilePmdMapped", "ShmemPmdMapped")  # KiB of a mapping, as Linux tells


class MappedFile:
    """`data` is the whole file, (bytes,); `window` a part of it that is read once.

    Raises InputError for memory that is not to be locked.
    """

    def __init__(self, file: BinaryIO, mode: LoadMode = "mmap") -> None:
        # Views hold on to the map, so it is closed by the last of them and not by hand.
        self._stays = mode != "mmap"
        self._mapped = _read_whole(file) if mode == "none" else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _want_large_pages(self._mapped)
        self.data: Bytes = np.frombuffer(self._mapped, np.uint8)
        if mode == "mlock":
            _lock(self.data, file.name)
        self._windows: deque[tuple[int, int]] = deque()
        self._bytes = 0  # of these windows
        self._lock = Lock()

    def window(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop); as many after them are fetched ahead.

        Unmaps the pages of long past windows; a view of one still works, it is mapped again.
        """
        if self._stays:
            return self.data[start:stop]
        if start < stop:
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped.madvise(mmap.MADV_WILLNEED, page, min(2 * stop - start, len(self.data)) - page)
        with self._lock:
            self._windows.append((start, stop))
            self._bytes += stop - start
            while self._bytes - (self._windows[0][1] - self._windows[0][0]) > _KEPT:
                first, last = self._windows.popleft()
                self._bytes -= last - first
                page = first // mmap.PAGESIZE * mmap.PAGESIZE
                self._mapped.madvise(mmap.MADV_DONTNEED, page, last - page)
        return self.data[start:stop]


def _want_large_pages(memory: mmap.mmap) -> None:
    """Pages of 2 MiB, where the system has them, save decoding half its waits for address translation."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def in_large_pages(data: Bytes, maps: Path = Path("/proc/self/smaps")) -> bool:
    """Whether most of what is in memory of the mapping where `data` lies is in pages of 2 MiB. False where the system
    does not tell."""
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
    """Reads what is mapped and keeps it in memory for as long as it is."""
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


def _read_whole(file: BinaryIO) -> mmap.mmap:
    size = os.fstat(file.fileno()).st_size
    memory = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)  # private: shared memory is seldom given large pages
    _want_large_pages(memory)
    view = memoryview(memory)
    done = 0
    while count := file.readinto(view[done : done + _READ]):  # type: ignore[attr-defined]
        done += count
    if done != size:
        raise InputError(f"{file.name}: has {done} bytes of the {size} that it had when it was opened")
    return memory


def prefetch(paths: Sequence[Path]) -> None:
    """Has the system read files, in order, while others work: faults alone read a cold file in small pieces."""
    if hasattr(os, "posix_fadvise"):
        Thread(target=_prefetch, args=(paths,), name="prefetch", daemon=True).start()


def _prefetch(paths: Sequence[Path]) -> None:
    with suppress(OSError):  # what is wrong with a file is told by who uses it
        for path in paths:
            with path.open("rb") as file:
                for start in range(0, os.fstat(file.fileno()).st_size, _READ):
                    os.posix_fadvise(file.fileno(), start, _READ, os.POSIX_FADV_WILLNEED)
