"""Reading the texts that models are evaluated on."""

import logging
from pathlib import Path

from lltool.gguf import text_file

_log = logging.getLogger(__name__)

# The demo's text: the 1911 Britannica on Shakespeare (public domain, from the scans on Wikimedia Commons).
SAMPLE_TEXT = Path(__file__).resolve().parent.parent / "data" / "britannica_1911.txt"


def read_evaluation_text(path: Path) -> str:
    """Reads a text with its line ends unchanged and warns if some are \\r\\n. Raises InputError as `text_file` does."""
    text = text_file.read_text(path)
    if count := text.count("\r\n"):
        _log.warning(
            "%s: %d lines end in \\r\\n, which is kept; figures are not comparable with those of the text without \\r",
            path,
            count,
        )
    return text
