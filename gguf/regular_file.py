"""Access to input files: they must be regular files, and those read whole have a size limit."""

import errno
import io
import os
import stat
from pathlib import Path

from lltool.gguf.errors import InputError

MAX_SMALL_FILE = 256 << 20
"""The default limit, in bytes, for a file that is read whole; the largest tokenizer.json has 35 MB."""


def open_regular(path: Path, *, or_pipe: bool = False) -> io.BufferedReader:
    """Opens a file for reading. Raises InputError for a folder, device, socket or pipe, and OSError as `open` does.

    With `or_pipe`, pipes and terminals are accepted too, for texts from a shell's `<(...)` or from /dev/stdin.
    """
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise InputError(f"{path}: a folder, wanted a file")
    is_stream = stat.S_ISFIFO(kind) or (stat.S_ISCHR(kind) and _is_terminal(path))
    if not stat.S_ISREG(kind) and not (or_pipe and is_stream):
        raise InputError(f"{path}: {describe_kind(kind)}, wanted a regular file")
    return path.open("rb")


def read_bytes(path: Path, limit: int = MAX_SMALL_FILE, *, or_pipe: bool = False) -> bytes:
    """The whole content of a file. Raises InputError for one that is not regular or has more than `limit` bytes."""
    with open_regular(path, or_pipe=or_pipe) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path}: has more than {limit >> 20} MiB, the limit for a file of this kind")
    return data


def _is_terminal(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EIO):
            return False
        raise
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


def describe_kind(mode: int) -> str:
    """Names the kind of a file that is not regular, for messages; `mode` is its `st_mode`."""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "not a regular file")
