"""How commands print: reports as JSON on stdout, and text from files without its control characters."""

import json
import sys
from typing import Any


def print_json(report: Any) -> None:
    """Prints a report as JSON, in ASCII so that any terminal and any string of a file will do."""
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


def printable(text: str) -> str:
    """`text` with what a terminal would act on, or could not show, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
