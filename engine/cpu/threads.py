"""The number of threads, their processors, and how long idle ones wait for work before they sleep."""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lltool.engine.inputs import whole_number
from lltool.gguf.errors import InputError

MAX_THREADS = 512  # as in ggml
DEFAULT_POLL = 50  # as in llama.cpp, which uses another unit
_SLOW = 0.8  # of the fastest core's speed: small cores of phones and laptops have 0.3 to 0.78, favoured cores 1.05


@dataclass(frozen=True)
class Team:
    """Threads that compute together on `cpus` (empty: any). If `strict`, each stays on one of them, round-robin."""

    threads: int
    cpus: tuple[int, ...] = ()
    strict: bool = False

    def places(self) -> list[list[int]]:
        """The processors that each thread may run on; an empty list means any."""
        cpus = self.cpus or (tuple(sorted(available_cpus())) if self.strict else ())
        if self.strict:
            return [[cpus[thread % len(cpus)]] for thread in range(self.threads)]
        return [list(cpus)] * self.threads


@dataclass(frozen=True)
class Threads:
    """A pool of threads: the team for one token, the team for a batch, and how long idle threads spin (0 to 100)."""

    decode: Team
    batch: Team
    poll: int = DEFAULT_POLL

    @staticmethod
    def of(threads: "int | Threads | None") -> "Threads":
        """The same number of threads for everything; None means the default number."""
        if isinstance(threads, Threads):
            return threads
        team = Team(default_threads() if threads is None else threads)
        return Threads(team, team)


def check_threads(threads: Threads) -> None:
    """Raises InputError if the threads or their processors are not available."""
    for name, team in (("threads", threads.decode), ("threads_batch", threads.batch)):
        whole_number(name, team.threads)
        if not 1 <= team.threads <= MAX_THREADS:
            raise InputError(f"{name} {team.threads}, wanted 1 to {MAX_THREADS}")
        if team.cpus or team.strict:
            if not hasattr(os, "sched_setaffinity"):
                raise InputError("this system cannot bind threads to processors; leave out the masks and strict")
            if missing := set(team.cpus) - available_cpus():
                raise InputError(f"this process may not use processor {min(missing)}")
    if not 0 <= threads.poll <= 100:
        raise InputError(f"poll {threads.poll}, wanted 0 to 100")


def parse_mask(mask: str) -> frozenset[int]:
    """The processors of a hexadecimal mask such as `0x3`. Raises InputError."""
    if not re.fullmatch("(0[xX])?[0-9a-fA-F]+", mask):
        raise InputError(f"{mask!r} is not a mask of processors, wanted a hexadecimal number such as 0x3")
    bits = int(mask, 16)
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


def parse_range(text: str) -> frozenset[int]:
    """The processors of `2-5`, `-5` (from 0) or `2-` (to the last). Raises InputError."""
    match = re.fullmatch(r"(\d{0,6})-(\d{0,6})", text)
    first, last = (match[1] or "0", match[2] or str(max(available_cpus()))) if match else ("1", "0")
    if int(first) > int(last):
        raise InputError(f"{text!r} is not a range of processors, wanted one like 0-3, -3 or 2-")
    return frozenset(range(int(first), int(last) + 1))


def available_cpus() -> set[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def default_threads() -> int:
    """One thread for each core that this process may use."""
    return count_threads(available_cpus(), Path("/"))


def count_threads(cpus: Collection[int], root: Path) -> int:
    """The number of threads worth starting on `cpus`, from the system files under `root`.

    Hyperthreads of a core count once, because they share its arithmetic units. Small cores beside large ones do not
    count, because the large ones would wait for them. The number does not exceed a container's processor time quota.
    """
    folder = root / "sys/devices/system/cpu"
    speeds = {cpu: _speed(folder / f"cpu{cpu}") for cpu in cpus}
    fast = {cpu for cpu, speed in speeds.items() if speed >= _SLOW * max(speeds.values())}
    cores = {_read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in fast}
    return min(len(cores), cpu_quota(root) or len(cores))


def _speed(cpu: Path) -> int:
    """The relative speed of a core: its capacity if the system knows it, else its highest frequency, else 0."""
    known = (_read(cpu / name) for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"))
    return next((int(text) for text in known if text.isdigit()), 0)


def cpu_quota(root: Path) -> int | None:
    """The processor time quota of the control groups, in processors, rounded up; None if there is no limit.

    The system stops more threads than that together for most of each period, and they wait for each other during all
    of it.
    """
    limits = []
    for folder, names in _control_groups(root):
        quota, *period = " ".join(_read(folder / name) for name in names).split() or ["max"]
        if quota not in ("max", "-1"):
            limits.append(max(1, -(-int(quota) // int(*period or (100_000,)))))
    return min(limits, default=None)


def _control_groups(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """This process's control groups and their parents, versions 2 and 1, each with the files that state its limit.

    In a container the path is often that of the host and does not exist; the limit is then in the topmost group.
    """
    names: tuple[str, ...]
    for line in ("0::/", "1:cpu:/", *_read(root / "proc/self/cgroup").splitlines()):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("cpu.max",)
        elif "cpu" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        group = top / path.strip("/")
        yield from ((folder, names) for folder in (group, *group.parents) if folder.is_relative_to(top))


def _read(file: Path) -> str:
    """The text of a system file; empty if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
