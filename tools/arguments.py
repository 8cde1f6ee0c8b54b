"""What all commands share: their parsers, JSON reports, and text from files made fit for a terminal."""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from lltool.gguf.errors import InputError


def command_parser(
    command: str, description: str, examples: str, *, json_flag: bool = False
) -> argparse.ArgumentParser:
    """A parser for `lltool COMMAND` that raises InputError; its help ends with `examples`, one command a line."""
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    parser = _Parser(
        prog=f"lltool {command}",
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if json_flag:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse without its lines of usage before an error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """The type of an argument that is a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def byte_size(text: str) -> int:
    """The type of an argument like `500M`: bytes, or thousands (K), millions (M), thousand millions (G) of them."""
    digits, factor = text, 1
    if text[-1:].upper() in ("K", "M", "G"):
        digits, factor = text[:-1], 1000 ** ("KMG".index(text[-1].upper()) + 1)
    return positive(digits) * factor


def paths(text: str) -> list[Path]:
    """The type of an argument that names files, comma-separated; with action `extend` it can also be given again."""
    if not all(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} lacks the name of a file")
    return [Path(part) for part in text.split(",")]


def output_file(text: str) -> Path:
    """The type of an argument that names a file to write, where it can be written, as is better known early."""
    path = Path(text)
    if not text or path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file that can be written")
    return path


def image_file(text: str) -> Path:
    """The type of an argument that names a picture to write: .png or .svg."""
    if Path(text).suffix.lower() not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a .png or .svg file")
    return output_file(text)


def print_json(report: Any) -> None:
    """Prints a report as JSON, in ASCII so that any terminal and any string will do; NaN and infinity are null."""
    try:
        text = json.dumps(report, indent=2, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(report), indent=2)
    print(text)


def _without_nan(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_nan(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_nan(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
    return value


def printable(text: str) -> str:
    """`text` with what a terminal would act on, or could not show, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
