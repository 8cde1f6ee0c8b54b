"""How many threads are worth starting."""

import os
from pathlib import Path


def default_threads() -> int:
    """Cores that this process may run on; two hyperthreads of a core count once, as they share its arithmetic units."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(topology.read_text() if topology.exists() else str(cpu))
    return len(siblings)
