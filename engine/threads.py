"""How many threads are worth starting."""

import os
from pathlib import Path


def default_threads() -> int:
    """Cores that this process may use; two hyperthreads of a core count once, as they share its arithmetic units."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(topology.read_text() if topology.exists() else str(cpu))
    return min(len(siblings), cpu_quota(Path("/sys/fs/cgroup")) or len(siblings))


def cpu_quota(groups: Path) -> int | None:
    """Processors' worth of time that a container grants (cgroup v2, then v1), rounded up; None when it sets no limit.

    More threads than that are stopped together for most of each period, and wait for each other for all of it.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        files = [groups / name for name in names]
        if all(file.exists() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            return None if quota in ("max", "-1") else max(1, -(-int(quota) // int(period)))
    return None
