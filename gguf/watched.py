"""Detection of changes to files that are being read, because data from a changed file cannot be used."""

import os
from typing import Any, BinaryIO
from weakref import finalize

from lltool.gguf import _native
from lltool.gguf.errors import FileChanged


class WatchedFile:
    """An open file with its size in bytes and modification time at opening, so that changes are detected."""

    def __init__(self, file: BinaryIO) -> None:
        self.name = file.name
        self._opened = _state(file.fileno())
        self._guards: list[int] = []
        self._descriptor = os.dup(file.fileno())
        self._close = finalize(self, os.close, self._descriptor)
        self._close.atexit = False

    @property
    def size(self) -> int:
        return self._opened[0]

    def guard(self, owner: Any, address: int, size: int) -> None:
        """Makes the mapped memory read as zeros where the file was truncated; otherwise the system kills the process.

        The guard ends when `owner`, which holds the mapping, is gone.
        """
        id = _native.watch(address, size)
        finalize(owner, _native.unwatch, id).atexit = False
        self._guards.append(id)

    def check_unchanged(self) -> None:
        """Raises FileChanged if the file was written to or truncated since it was opened. Takes microseconds.

        Replacing the file by another one of the same name is not a change: the open one stays intact.
        """
        if not self._close.alive:
            return
        now = _state(self._descriptor)
        if now != self._opened:
            sizes = f", from {self.size} bytes to {now[0]}" if now[0] != self.size else ""
            raise FileChanged(f"{self.name}: changed while it was read{sizes}; start again when nothing writes to it")
        if any(map(_native.has_faulted, self._guards)):
            raise FileChanged(f"{self.name}: cannot be read any more; its disk may be failing, take another copy")

    def close(self) -> None:
        """Closes the file; changes are no longer detected."""
        self._close()
        self._guards.clear()


def _state(descriptor: int) -> tuple[int, int]:
    """The size in bytes and the modification time in nanoseconds; a write changes one of them."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def keep_guard() -> None:
    """Takes the handler of missing pages up again after a library was loaded that may have installed its own."""
    _native.guard()
