"""What a command says on stderr, one line each: notes and errors, with one prefix for each kind."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lltool.tools.terminal import coloured, printable

_LONGEST = 2000  # characters of a line
_COLOURS = {"note": "36", "error": "1;31"}


def note(text: str) -> None:
    """Says what a user should know about the result; -q leaves it out."""
    _print_line("note", text)


def error(text: str) -> None:
    """Says why a command could not do what it was asked for, whatever a hostile file has put into the message."""
    _print_line("error", text)


def silence() -> None:
    """Drops all that is printed on stderr from now on, until the command line puts `sys.stderr` back (-q)."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


@contextmanager
def logged_notes() -> Iterator[None]:
    """Within this context, what the library logs as a warning is said as a note."""
    import logging  # importing it takes longer than `lltool --help` should

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.getMessage())

    handler, logger = Handler(logging.WARNING), logging.getLogger("lltool")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _print_line(kind: str, text: str) -> None:
    line = printable(" ".join(text.split()))
    shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
    print("lltool:", coloured(f"{kind}:", _COLOURS[kind], sys.stderr), shown, file=sys.stderr)
