"""Files mapped for reading. Read in windows, in any order, little of a large one stays resident."""

import mmap
import os
from collections import deque
from contextlib import suppress
from threading import Lock
from typing import BinaryIO

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.source import Bytes

_READ = 64 << 20  # bytes at once
_KEPT = 128 << 20  # bytes of the last windows that stay mapped: a writer has two at a time


class MappedFile:
    """`data` is the whole file, (bytes,); `window` a part of it that is read once.

    With `copy` the file is read into memory at once instead of when its pages are touched.
    """

    def __init__(self, file: BinaryIO, *, copy: bool = False) -> None:
        # Views hold on to the map, so it is closed by the last of them and not by hand.
        self._copied = copy
        self._mapped = _read_whole(file) if copy else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _want_large_pages(self._mapped)
        self.data: Bytes = np.frombuffer(self._mapped, np.uint8)
        self._windows: deque[tuple[int, int]] = deque()
        self._bytes = 0  # of these windows
        self._lock = Lock()

    def window(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop); as many after them are fetched ahead.

        Unmaps the pages of long past windows; a view of one still works, it is mapped again.
        """
        if self._copied:
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
