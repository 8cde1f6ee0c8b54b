"""What the machine can do at most, measured in a second: reading memory, and multiply-adds in registers."""

import mmap
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine import _native
from lltool.quant import isa

SECONDS = 0.12  # for each of the probes
_CACHES = 4  # times the largest cache, and at least
_LEAST = 256 << 20  # bytes, are read


@dataclass(frozen=True)
class Limits:
    """Of `threads` together, a second: bytes, in small pages and in large ones; multiply-adds.

    With `large_pages` the weights lie in those.
    """

    threads: int
    isa: str
    read: float
    read_large_pages: float
    int8: float
    int16: float
    float32: float
    large_pages: bool = False

    @property
    def bandwidth(self) -> float:
        """Bytes a second where the weights lie."""
        return self.read_large_pages if self.large_pages else self.read


def better_of(first: Limits, second: Limits) -> Limits:
    """The higher of each."""
    names = [field.name for field in fields(Limits) if field.type is float]
    return replace(first, **{name: max(getattr(first, name), getattr(second, name)) for name in names})


def measure_limits(threads: int, *, instruction_set: str | None = None) -> Limits:
    """The best of some passes each, as what disturbs them makes them slower only."""
    chosen = instruction_set or isa.chosen()
    int8, int16, float32 = (
        _native.probe_multiply(chosen, threads, kind, SECONDS) for kind in ("int8", "int16", "float32")
    )
    read, large = (_native.probe_read(chosen, threads, _memory(huge), SECONDS) for huge in (False, True))
    return Limits(threads, chosen, read, large, int8, int16, float32)


def _memory(huge: bool) -> NDArray[np.uint8]:
    """Memory that no cache holds. Its pages are large, or small, where the system lets us choose."""
    size = max(_LEAST, _CACHES * _largest_cache(Path("/")))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        memory.madvise(advice)
    data = np.frombuffer(memory, np.uint8)
    data[:: mmap.PAGESIZE] = 1  # a page that nobody wrote is the one page of zeros
    return data


def _largest_cache(root: Path) -> int:
    """Bytes; 0 where the system does not tell."""
    sizes = (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 1 << 10, "M": 1 << 20}
    texts = (path.read_text().strip() for path in sizes)
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units), default=0)
