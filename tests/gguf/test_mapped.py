"""The pages of mapped files."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from lltool.gguf.mapped import in_large_pages

MAPS = """{start:x}-{end:x} r--s 00000000 fe:00 42                       /models/a-b: c.gguf
Size:               8192 kB
Rss:                6144 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:      {large} kB
THPeligible:           1
VmFlags: rd mr me ms
1000-2000 rw-p 00000000 00:00 0
Rss:             {other} kB
AnonHugePages:         0 kB
"""


@pytest.mark.parametrize(("large", "expected"), [(0, False), (2048, False), (4096, True), (6144, True)])
@pytest.mark.parametrize("other", [0, 100000])
def test_the_pages_of_a_mapping(tmp_path: Path, large: int, other: int, expected: bool) -> None:
    data = np.zeros(4096, np.uint8)
    start, maps = data.ctypes.data - 64, tmp_path / "smaps"
    maps.write_text(MAPS.format(start=start, end=start + 8192, large=large, other=other))
    assert in_large_pages(data, maps) is expected
    maps.write_text(MAPS.format(start=start + 128, end=start + 8192, large=large, other=other))
    assert not in_large_pages(data, maps)


def test_pages_count_as_small_if_the_system_does_not_tell(tmp_path: Path) -> None:
    assert not in_large_pages(np.zeros(8, np.uint8), tmp_path / "smaps")


@pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="no choice of pages")
def test_memory_advised_to_use_small_pages_has_them() -> None:
    memory = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    data = np.frombuffer(memory, np.uint8)
    data[:: mmap.PAGESIZE] = 1
    assert not in_large_pages(data)
