"""Text for a terminal: colours, and nothing that it would act on."""

import os
import sys
from typing import TextIO

BOLD, DIM = "1", "2"


def has_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours and NO_COLOR is not set or empty (no-color.org)."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def coloured(text: str, colour: str, stream: TextIO) -> str:
    """`text` in an ANSI colour, such as BOLD, where the stream shows it."""
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colours(stream) else text


def printable(text: str) -> str:
    """`text` with escapes in place of characters that a terminal would act on or could not show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str, colour: str | None = None) -> None:
    """Prints lines on stderr, with escapes in place of what a terminal would act on or could not show."""
    for line in text.splitlines():
        print(coloured(printable(line), colour, sys.stderr) if colour else printable(line), file=sys.stderr)


def without_controls(text: str) -> str:
    """`text` with escapes in place of the characters that a terminal acts on, except for line ends and tabs."""
    return "".join(ascii(c)[1:-1] if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0" else c for c in text)
