"""Measures the machine's limits in about a second: memory reads, and multiply-adds in registers."""

import mmap
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lltool.engine.cpu import _native
from lltool.quant import isa

SECONDS = 0.12  # for each of the probes
_CACHES = 4  # the probe reads this many times the size of the largest cache,
_LEAST = 256 << 20  # but at least this many bytes
NOT_MEASURABLE = "not measurable"  # the limit: others used the machine meanwhile, or a cache holds what is read


@dataclass(frozen=True)
class Limits:
    """What `threads` threads together reach a second: bytes read in small and large pages, and multiply-adds by type.

    `large_pages` says whether the weights lie in large pages.
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
        """Bytes a second for the kind of page that holds the weights."""
        return self.read_large_pages if self.large_pages else self.read


def format_share(share: float) -> str:
    """The fraction of a limit in percent; nothing exceeds a limit, so a fraction above 1 was not measured well."""
    return f"{100 * share:.0f} %" if 0 <= share <= 1 else NOT_MEASURABLE


def better_of(first: Limits, second: Limits) -> Limits:
    """The higher value of each limit."""
    names = [field.name for field in fields(Limits) if field.type is float]
    return replace(first, **{name: max(getattr(first, name), getattr(second, name)) for name in names})


def measure_limits(threads: int, *, instruction_set: str | None = None) -> Limits:
    """Takes the best of several passes of each probe, because disturbances only make a pass slower."""
    chosen = instruction_set or isa.chosen()
    int8, int16, float32 = (
        _native.probe_multiply(chosen, threads, kind, SECONDS) for kind in ("int8", "int16", "float32")
    )
    read, large = (_native.probe_read(chosen, threads, _memory(huge), SECONDS) for huge in (False, True))
    return Limits(threads, chosen, read, large, int8, int16, float32)


def _memory(huge: bool) -> NDArray[np.uint8]:
    """Memory too large for any cache, in large or small pages if the system lets us choose."""
    size = max(_LEAST, _CACHES * _largest_cache(Path("/")))
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        memory.madvise(advice)
    data = np.frombuffer(memory, np.uint8)
    data[:: mmap.PAGESIZE] = 1  # pages that were never written all share one page of zeros
    return data


def _largest_cache(root: Path) -> int:
    """Bytes of the largest cache; 0 if the system does not report it."""
    sizes = (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    units = {"K": 1 << 10, "M": 1 << 20}
    texts = (path.read_text().strip() for path in sizes)
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units), default=0)
