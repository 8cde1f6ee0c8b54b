"""Texts from files, pipes, standard input and arguments. All are UTF-8; a leading byte order mark is dropped."""

import os
import re
from pathlib import Path

from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import read_bytes

MAX_TEXT = 512 << 20
"""The limit, in bytes, for a text that is read whole; processing it takes several times as much memory."""

_MARK = b"\xef\xbb\xbf"


def decode_text(data: bytes, name: str) -> str:
    """The text of UTF-8 bytes, line ends unchanged. Raises InputError that names the first byte that is not UTF-8."""
    try:
        return data.removeprefix(_MARK).decode()
    except UnicodeDecodeError as error:
        place = error.start + (len(_MARK) if data.startswith(_MARK) else 0)
        raise InputError(f"{name}: byte {place} is not UTF-8 (0x{data[place]:02x}); convert the text first") from None


def decode_argument(text: str, name: str, *, escapes: bool = False) -> str:
    """The text of a command's argument, treated as `read_prompt` treats a file.

    `escapes` replaces llama.cpp's escapes: \\n \\r \\t \\' \\" \\\\ and \\xHH for a byte; any other backslash is kept.
    Raises InputError for bytes, given or escaped, that are not UTF-8.
    """
    try:
        data = os.fsencode(text)  # Python decodes bytes of an argument that are not UTF-8 as surrogates
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: character {error.start} is not Unicode; convert the text first") from None
    plain = plain_line_ends(decode_text(data, name))
    if not escapes or "\\" not in plain:
        return plain
    return decode_text(_ESCAPE.sub(_replace_escape, plain.encode()), f"{name} with its escapes replaced")


def read_text(path: Path) -> str:
    """The text of a file, with its line ends unchanged.

    Raises InputError for a path that is not a file or pipe and for a text that is too large or not UTF-8.
    """
    return decode_text(read_bytes(path, MAX_TEXT, or_pipe=True), str(path))


def read_prompt(path: Path) -> str:
    """The text of a file, with \\r\\n replaced by \\n. Raises InputError as `read_text` does."""
    return plain_line_ends(read_text(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; the last one may lack a line end. Only \\r\\n and \\n end a line."""
    return split_lines(read_prompt(path))


_ESCAPE = re.compile(rb"""\\(?:x([0-9A-Fa-f]{2})|([nrt'"\\]))""")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def _replace_escape(found: re.Match[bytes]) -> bytes:
    code, letter = found.groups()
    return bytes.fromhex(code.decode()) if code else _ESCAPED.get(letter, letter)


def plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n")


def split_lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []
