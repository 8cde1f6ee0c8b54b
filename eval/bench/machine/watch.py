"""Watches what else the machine does during a measurement: other processes, the hypervisor, throttling and drift.

All but the drift is read from Linux's files; on other systems only drift is noticed.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

BUSY = "busy "  # the prefix of notes about other users of the processor
DISTURBED = 0.05  # a run is disturbed if others held its cores for more than this fraction of its time
_NOTABLE_DRIFT = 0.05
_NOTABLE_OTHERS = 0.1  # of all cores
_NOTABLE_FREQUENCY = 0.1


@dataclass(frozen=True)
class Conditions:
    """The conditions of one run: fractions of its time, cores in use by `others`, and `frequency` in Hz."""

    waited: float = 0.0  # a thread of ours, on average, was ready without a core or stopped by a container's limit
    stolen: float = 0.0  # the hypervisor ran other guests
    others: float = 0.0
    throttled: int = 0  # times that the processor slowed down for heat or power
    frequency: float | None = None
    threads: int = 1

    @property
    def is_disturbed(self) -> bool:
        return self.waited + self.stolen > DISTURBED

    @property
    def disturbance(self) -> float:
        """An upper bound of the fraction of the time that was lost, always below 1.

        Threads synchronize many times a token, so all may wait for one that has no core: they lose what any of them
        loses.
        """
        taken = min(self.waited + self.stolen, 1.0)
        return min(1 - (1 - taken) ** self.threads, 0.99)


@dataclass(frozen=True)
class _Counters:
    """The machine's counters in seconds since some start, summed over cores; `throttled` counts events."""

    clock: float
    waited: float
    held: float
    stolen: float
    busy: float
    own: float
    throttled: int


class Watch:
    """Reads the machine's counters before and after a run that uses `threads` threads of the processes `pids`."""

    def __init__(
        self,
        threads: int,
        *,
        pids: Sequence[int] = (),
        root: Path = Path("/"),
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._threads = threads
        self._processes = [root / "proc" / str(pid) for pid in pids or (os.getpid(),)]
        self._root = root
        self._clock = clock
        self._tick = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01
        self._before = self._read()

    def start(self) -> None:
        """Marks the start of a run."""
        self._before = self._read()

    def stop(self) -> Conditions:
        """Marks the end of a run and returns its conditions."""
        before, after = self._before, self._read()
        seconds = max(after.clock - before.clock, 1e-9)

        waited = (after.waited - before.waited) / self._threads + after.held - before.held
        others = (after.busy - before.busy) - (after.own - before.own)
        return Conditions(
            waited=max(waited / seconds, 0.0),
            stolen=max((after.stolen - before.stolen) / (seconds * _cores()), 0.0),
            others=max(others / seconds, 0.0),
            throttled=max(after.throttled - before.throttled, 0),
            frequency=self._frequency(),
            threads=self._threads,
        )

    def _read(self) -> _Counters:
        busy, stolen = self._processor()
        return _Counters(
            clock=self._clock(),
            waited=sum(self._waited(process) for process in self._processes),
            held=self._held(),
            stolen=stolen,
            busy=busy,
            own=sum(self._own(process) for process in self._processes),
            throttled=sum(
                int(_text(path) or 0)
                for path in (self._root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")
            ),
        )

    def _processor(self) -> tuple[float, float]:
        """Seconds busy and stolen; the fields are user nice system idle iowait irq softirq steal, user has guests."""
        first = (_text(self._root / "proc/stat") or "").partition("\n")[0].split()[1:9]
        if len(first) < 8:
            return 0.0, 0.0
        user, nice, system, _, _, interrupts, soft, stolen = (int(ticks) * self._tick for ticks in first)
        return user + nice + system + interrupts + soft, stolen

    def _waited(self, process: Path) -> float:
        """Seconds that a process's threads were ready without a core; schedstat has nanoseconds run, then waited."""
        fields = [(_text(path) or "").split() for path in process.glob("task/*/schedstat")]
        return sum(int(field[1]) for field in fields if len(field) == 3) / 1e9

    def _own(self, process: Path) -> float:
        """Seconds of processor time; the fields follow the name, which is in brackets and can hold any character."""
        fields = (_text(process / "stat") or "").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * self._tick if len(fields) > 12 else 0.0

    def _held(self) -> float:
        """Seconds for which a container's limit stopped us."""
        for line in (_text(self._root / "sys/fs/cgroup/cpu.stat") or "").splitlines():
            if line.startswith("throttled_usec "):
                return int(line.split()[1]) / 1e6
        return 0.0

    def _frequency(self) -> float | None:
        found = (_text(p) for p in (self._root / "sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_cur_freq"))
        values = [int(text) * 1e3 for text in found if text and text.strip().isdigit()]
        return fmean(values) if values else None


def describe_conditions(conditions: Sequence[Conditions], nanoseconds: Sequence[int]) -> list[str]:
    """Short notes on what slowed these runs down; the runs stand in the order in which they were made."""
    found = []
    waited, stolen = median(c.waited for c in conditions), median(c.stolen for c in conditions)
    others, frequencies = median(c.others for c in conditions), [c.frequency for c in conditions if c.frequency]
    if waited > DISTURBED:
        found.append(f"{BUSY}machine: threads waited for a core {waited:.0%} of the time")
    elif others > _NOTABLE_OTHERS * _cores():
        found.append(f"{BUSY}machine: other processes used {others:.1f} cores")
    if stolen > DISTURBED / 2:
        found.append(f"{BUSY}host: the hypervisor ran other guests {stolen:.0%} of the time")
    if throttled := sum(c.throttled for c in conditions):
        found.append(f"throttling: the processor slowed down {throttled} times for heat or power")
    if frequencies and min(frequencies) < (1 - _NOTABLE_FREQUENCY) * max(frequencies):
        found.append(
            f"throttling: the clock went from {max(frequencies) / 1e9:.1f} to {min(frequencies) / 1e9:.1f} GHz"
        )
    if change := find_trend(nanoseconds):
        found.append(f"drift: {abs(change):.0%} {'slower' if change > 0 else 'faster'} from the first run to the last")
    return found


def find_trend(nanoseconds: Sequence[int]) -> float:
    """How much longer the last run took than the first according to their trend, as a fraction; 0 without a trend.

    A trend counts if the Mann-Kendall test finds it significant (2 %, two-sided) and it changes the time by at least
    _NOTABLE_DRIFT. Its slope is the median of the slopes between all pairs (Theil-Sen).
    """
    count = len(nanoseconds)
    pairs = list(combinations(range(count), 2))
    if count < 5:
        return 0.0
    rises = sum((nanoseconds[b] > nanoseconds[a]) - (nanoseconds[b] < nanoseconds[a]) for a, b in pairs)
    if (abs(rises) - 1) / sqrt(count * (count - 1) * (2 * count + 5) / 18) < 2.2:
        return 0.0
    slope = median((nanoseconds[b] - nanoseconds[a]) / (b - a) for a, b in pairs)
    change = slope * (count - 1) / median(nanoseconds)
    return change if abs(change) >= _NOTABLE_DRIFT else 0.0


def _cores() -> int:
    return os.cpu_count() or 1


def _text(path: Path) -> str | None:
    """The text of a system file; None if it does not exist, we may not read it, or its thread has ended."""
    try:
        return path.read_text()
    except OSError:
        return None
