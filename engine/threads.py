"""Threads: how many are worth starting, where they run, how long they wait for work before they sleep."""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lltool.gguf.errors import InputError

MAX_THREADS = 512  # as in ggml
DEFAULT_POLL = 50  # as in llama.cpp, where the unit is another
_SLOW = 0.8  # of the fastest core's speed: phones' and laptops' small cores have 0.3 to 0.78, favoured cores 1.05


@dataclass(frozen=True)
class Team:
    """Threads that compute together on `cpus` (none: any); when `strict` each stays on one of them, in turns."""

    threads: int
    cpus: tuple[int, ...] = ()
    strict: bool = False

    def places(self) -> list[list[int]]:
        """The processors of each thread; none: any."""
        cpus = self.cpus or (tuple(sorted(available_cpus())) if self.strict else ())
        if self.strict:
            return [[cpus[thread % len(cpus)]] for thread in range(self.threads)]
        return [list(cpus)] * self.threads


@dataclass(frozen=True)
class Threads:
    """One pool of threads: those of a single token, those of a batch, and 0 to 100 for how long idle ones spin."""

    decode: Team
    batch: Team
    poll: int = DEFAULT_POLL

    @staticmethod
    def of(threads: "int | Threads | None") -> "Threads":
        """So many for everything; the default number for None."""
        if isinstance(threads, Threads):
            return threads
        team = Team(default_threads() if threads is None else threads)
        return Threads(team, team)


def check_threads(threads: Threads) -> None:
    """Raises InputError for what cannot be had."""
    for name, team in (("threads", threads.decode), ("threads_batch", threads.batch)):
        if not 1 <= team.threads <= MAX_THREADS:
            raise InputError(f"{name} {team.threads}, wanted 1 to {MAX_THREADS}")
        if team.cpus or team.strict:
            if not hasattr(os, "sched_setaffinity"):
                raise InputError("this system cannot bind threads to processors; leave the masks and strict out")
            if missing := set(team.cpus) - available_cpus():
                raise InputError(f"processor {min(missing)} is not this process's to use")
    if not 0 <= threads.poll <= 100:
        raise InputError(f"poll {threads.poll}, wanted 0 to 100")


def parse_mask(mask: str) -> frozenset[int]:
    """The processors of a mask in hexadecimal such as `0x3`. Raises InputError."""
    if not re.fullmatch("(0[xX])?[0-9a-fA-F]+", mask):
        raise InputError(f"{mask!r} is no mask of processors, wanted a number in hexadecimal such as 0x3")
    bits = int(mask, 16)
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)


def parse_range(text: str) -> frozenset[int]:
    """The processors of `2-5`, `-5` (from 0) or `2-` (to the last). Raises InputError."""
    match = re.fullmatch(r"(\d{0,6})-(\d{0,6})", text)
    first, last = (match[1] or "0", match[2] or str(max(available_cpus()))) if match else ("1", "0")
    if int(first) > int(last):
        raise InputError(f"{text!r} is no range of processors, wanted one like 0-3, -3 or 2-")
    return frozenset(range(int(first), int(last) + 1))


def available_cpus() -> set[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def default_threads() -> int:
    """One thread a core that this process may use."""
    return count_threads(available_cpus(), Path("/"))


def count_threads(cpus: Collection[int], root: Path) -> int:
    """Threads worth starting on `cpus`, by what the system under `root` tells of itself.

    Hyperthreads of a core count once, as they share its arithmetic units, and small cores beside large ones not at all:
    the others would wait for them. Nor is a container's share of processor time exceeded.
    """
    folder = root / "sys/devices/system/cpu"
    speeds = {cpu: _speed(folder / f"cpu{cpu}") for cpu in cpus}
    fast = {cpu for cpu, speed in speeds.items() if speed >= _SLOW * max(speeds.values())}
    cores = {_read(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in fast}
    return min(len(cores), cpu_quota(root) or len(cores))


def _speed(cpu: Path) -> int:
    """Of a core against others: its capacity where the system knows it, else its highest frequency, else 0."""
    known = (_read(cpu / name) for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"))
    return next((int(text) for text in known if text.isdigit()), 0)


def cpu_quota(root: Path) -> int | None:
    """Processors' worth of time that control groups grant, rounded up; None when they set no limit.

    More threads than that are stopped together for most of each period, and wait for each other for all of it.
    """
    limits = []
    for folder, names in _groups(root):
        quota, *period = " ".join(_read(folder / name) for name in names).split() or ["max"]
        if quota not in ("max", "-1"):
            limits.append(max(1, -(-int(quota) // int(*period or (100_000,)))))
    return min(limits, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """This process's groups and those above them, version 2 and version 1, each with the files that tell its limit.

    In a container the path is often one of the host's, which is not there, and the limit lies at the top.
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
    """A file of the system's, empty where there is none."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
