"""Atomic output: a file or folder appears at its path complete or not at all.

All temporary data lies beside the target in a scratch folder, named `.lltool-` and 16 hex digits. Its owner holds a
lock on a file in it, so the next run that writes to the same place recognizes and removes leftovers of a killed run.
"""

import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import describe_kind

if sys.platform != "win32":
    import fcntl

DISK_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a limit on the size of files is reached",
}
"""The reason why no more can be written, by error number."""

_SCRATCH = re.compile(r"\.lltool-[0-9a-f]{16}")
_LOCK = ".lltool-lock"


def check_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises InputError if no file can be written to `path`, or if it is one of `inputs`."""
    target = _resolve(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    if status is None or stat.S_ISREG(status.st_mode):
        check_folder(target.parent if path.is_symlink() else path.parent)
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: a folder, wanted the name of a file to write")
    if any(other.exists() and os.path.samestat(status, other.stat()) for other in inputs):
        raise InputError(f"{path}: would overwrite its own source; write to another file")
    if stat.S_ISREG(status.st_mode):
        if any(os.path.samestat(status, stream) for stream in _own_streams()):
            raise InputError(f"{path}: standard output or standard error goes there too; name another file")
    elif not is_stream(path):
        raise InputError(f"{path}: {describe_kind(status.st_mode)}, wanted the name of a file to write")
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: is protected from writing; remove it, or write to another file")


def check_folder(folder: Path) -> None:
    """Raises InputError unless files can be created in `folder`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        is_read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        reason = "this file system is read-only" if is_read_only else "no permission to write in this folder"
        raise InputError(f"{folder.absolute()}: {reason}; write to another folder")


def make_folder(folder: Path) -> None:
    """Creates `folder`, but not its parents, unless it exists. Raises InputError if it cannot be created."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder, wanted the name of a folder to write to")
    if not folder.is_dir():
        check_folder(folder.absolute().parent)
        folder.mkdir(exist_ok=True)


def is_stream(path: Path) -> bool:
    """Whether `path` is a pipe or a character device: output is copied into it instead of replacing it."""
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)


def temporary_home(path: Path) -> Path | None:
    """The folder whose disk holds the temporary data of `path`; None if none is needed, as for /dev/null."""
    if not is_stream(path):
        return _resolve(path).parent
    import tempfile  # importing it takes longer than `lltool --help` should

    null = Path(os.devnull)
    return None if null.exists() and path.stat().st_rdev == null.stat().st_rdev else Path(tempfile.gettempdir())


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; on exit that file replaces `path`, after an error it is removed.

    A symbolic link stays, and the file that it points to is replaced. The new file gets the mode of the file that it
    replaces and, where the system allows it, its owner. The finished file is copied into a pipe or device. Raises
    InputError for what `check_output` refuses and for a full disk.
    """
    with whole_files([path]) as (temporary,):
        yield temporary


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Like `whole_file`, for files that belong together: all are written before the first is moved into place."""
    for path in paths:
        check_output(path)
    with ExitStack() as stack:
        scratch: dict[Path, Path] = {}
        places: list[tuple[Path, Path]] = []
        taken: set[Path] = set()
        for path in paths:
            home = temporary_home(path)
            if home is None:
                places.append((path, path))
                continue
            if home not in scratch:
                scratch[home] = stack.enter_context(scratch_folder(home, path))
            temporary = scratch[home] / _resolve(path).name  # so that messages show the final name
            if temporary in taken:
                raise InputError(f"{path}: is the name of two outputs; write to two files")
            taken.add(temporary)
            places.append((temporary, path))
        yield [temporary for temporary, _ in places]
        for temporary, path in places:
            if temporary != path:
                move_into_place(temporary, path)


@contextmanager
def scratch_folder(home: Path, output: Path | None = None) -> Iterator[Path]:
    """A temporary folder in `home`, removed on exit. Also removes those that killed runs have left there.

    An OSError about this folder names `output` (by default `home`) instead. Raises InputError for a full disk.
    """
    output = output or home
    folder, lock = None, None
    try:
        _remove_stale(home)
        folder, lock = _make_scratch(home)
        yield folder
    except OSError as error:
        if error.errno in DISK_FULL:
            raise InputError(
                f"{output}: {DISK_FULL[error.errno]}; free some space or write to another folder"
            ) from error
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        if _SCRATCH.search(name):
            raise OSError(error.errno, error.strerror, str(output)) from error
        raise
    except InputError as error:  # name the final path in the message
        if folder is not None and str(folder) in str(error):
            raise InputError(str(error).replace(str(folder), str(home))) from error
        raise
    finally:
        if folder is not None and lock is not None:
            with suppress(OSError):
                _remove(folder)
            os.close(lock)


def move_into_place(made: Path, path: Path) -> None:
    """Replaces `path` by the file or folder `made`, on the same disk, as `whole_file` does on exit."""
    if is_stream(path):
        import shutil

        with made.open("rb") as source, path.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        return
    target = _resolve(path)
    with suppress(FileNotFoundError):
        before = target.stat()
        if hasattr(os, "chown"):
            with suppress(OSError):  # only root may give files away
                os.chown(made, before.st_uid, before.st_gid)
        made.chmod(stat.S_IMODE(before.st_mode))
    made.replace(target)


def _resolve(path: Path) -> Path:
    """The path with all symbolic links resolved; the target of the last one need not exist."""
    return Path(os.path.realpath(path))


def _own_streams() -> Iterator[os.stat_result]:
    for descriptor in (1, 2):
        with suppress(OSError):
            yield os.fstat(descriptor)


def _make_scratch(home: Path) -> tuple[Path, int]:
    """A new scratch folder and the descriptor of its lock file."""
    while True:
        folder = home / f".lltool-{os.urandom(8).hex()}"
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:  # another process removed the folder as stale before the lock file existed
            continue
        try:
            _acquire(lock)
        except BlockingIOError:  # another process is removing the folder as stale
            os.close(lock)
            continue
        except OSError:  # the file system has no locks; leftovers of killed runs are not recognized there
            return folder, lock
        if (folder / _LOCK).exists():
            return folder, lock
        os.close(lock)


def _remove_stale(home: Path) -> None:
    """Removes the scratch folders in `home` whose owner is gone, except those that we have no permission to open."""
    with suppress(PermissionError):
        for folder in [home / name for name in os.listdir(home) if _SCRATCH.fullmatch(name)]:
            _remove_if_stale(folder)


def _remove_if_stale(folder: Path) -> None:
    with suppress(OSError):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            folder.rmdir()  # fails unless the folder is empty
            return
        try:
            _acquire(lock)
            _remove(folder)
        finally:
            os.close(lock)


def _acquire(lock: int) -> None:
    """Raises BlockingIOError if another process holds the lock, and OSError if the file system has no locks."""
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove(folder: Path) -> None:
    """Removes the folder. The lock file goes last, so that the rest of an interrupted removal is still recognized."""
    import shutil

    for child in folder.iterdir():
        if child.name == _LOCK:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    (folder / _LOCK).unlink()
    folder.rmdir()
