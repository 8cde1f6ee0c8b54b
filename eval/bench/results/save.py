"""Saves results of the bench: as CSV, as JSON and as a picture."""

from collections.abc import Callable, Iterator
from pathlib import Path

from lltool.gguf.whole_file import whole_file


def save_results(stem: Path, show: Callable[[str], str], draw: Callable[[Path], Path]) -> Iterator[Path]:
    """Writes STEM.csv, STEM.json and STEM.png, and yields their paths; show("csv") is the text of the first."""
    for form in ("csv", "json"):
        target = stem.with_name(f"{stem.name}.{form}")
        with whole_file(target) as temporary:
            temporary.write_text(show(form) + "\n", encoding="utf-8")
        yield target
    yield draw(stem.with_name(f"{stem.name}.png"))
