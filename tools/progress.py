"""Progress of long work on stderr, on a terminal only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(unit: str, title: str | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left; call what it gives with units done and units in all."""
    from tqdm import tqdm

    in_bytes = unit == "B"  # shown as KiB, MiB, ...
    with tqdm(unit=unit, desc=title, unit_scale=in_bytes, unit_divisor=1024, disable=None, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
