"""Progress bars for long work, on stderr and only if it is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    """Takes the number of units done, the total, and a note on the current work."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@contextmanager
def progress_bar(unit: str, title: str | None = None) -> Iterator[Show]:
    """A bar with the rate and the time left."""
    from tqdm import tqdm

    in_bytes = unit == "B"  # shown as KiB, MiB, ...
    with tqdm(unit=unit, desc=title, unit_scale=in_bytes, unit_divisor=1024, disable=None, file=sys.stderr) as bar:

        def show(done: int, total: int, note: str = "", /) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if note:
                bar.set_postfix_str(note)  # redraws the bar

        yield show
