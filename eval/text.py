"""Texts to evaluate on."""

from pathlib import Path

from lltool.gguf.errors import InputError

# Britannica of 1911 on Shakespeare (public domain, from Wikimedia Commons' scans): the text of the demo.
SAMPLE_TEXT = Path(__file__).resolve().parent / "data" / "britannica_1911.txt"


def read_text(path: Path) -> str:
    """A UTF-8 file's text with its line ends as they are. Raises InputError when it is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; convert the text first") from error
