"""Progress of long work on stderr, on a terminal only."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    """Takes units done, units in all, and what is being done."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None: ...


@contextmanager
def progress_bar(unit: str, title: str | None = None) -> Iterator[Show]:
    """A bar with rate and time left."""
    from tqdm import tqdm

    in_bytes = unit == "B"  # shown as KiB, MiB, ...
    with tqdm(unit=unit, desc=title, unit_scale=in_bytes, unit_divisor=1024, disable=None, file=sys.stderr) as bar:

        def show(done: int, total: int, note: str = "", /) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if note:
                bar.set_postfix_str(note)  # draws the bar anew

        yield show
