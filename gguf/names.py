"""Names in messages: those that are near to a wrong one, and what to say of a path where nothing is."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

_LONGEST_LIST = 20  # names in a message


def describe_os_error(error: OSError, path: Path | None = None) -> str:
    """Why a file could not be read or written, in one line; `path` is the file where the error names none."""
    if isinstance(error.filename, str | bytes | os.PathLike):
        path = Path(os.fsdecode(error.filename))
    if path is None:
        return error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        return describe_missing(path)
    return f"{path}: {error.strerror or error}"


def describe_missing(path: Path, wanted: str = "the name of an existing file") -> str:
    """The message for a path that does not exist: with the names that may have been meant, or with what was wanted."""
    missing, folder = path, path.parent
    while not folder.is_dir() and folder != folder.parent:
        missing, folder = folder, folder.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        names = []
    suffix = missing.suffix
    kind = "file" if suffix else "file or folder"
    known = [name for name in names if name.endswith(suffix)]
    others = [name for name in names if name not in known]  # for a wrong ending, as in model.ggfu
    if close := near_names(missing.name, known, 3) or get_close_matches(missing.name, others, cutoff=0.75):
        shown = enumerate_names([str(missing.with_name(name)) for name in close])
        return f"{missing}: no such {kind}; did you mean {shown}?"
    if suffix and known:
        where = "this folder" if folder == Path() else folder
        return f"{missing}: no such file; {where} has {enumerate_names(known)}"
    return f"{missing}: no such {kind}; wanted {wanted}"


def near_names(wrong: str, known: Sequence[str], most: int) -> list[str]:
    """The names like a wrong one, the nearest first. Case and the ending that all have do not count."""
    by_stem = {name.lower().removesuffix(".gguf"): name for name in known}
    return [
        by_stem[stem] for stem in get_close_matches(wrong.lower().removesuffix(".gguf"), by_stem, n=most, cutoff=0.7)
    ]


def enumerate_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    return ", ".join(names[:_LONGEST_LIST]) + more or "none"
