"""What `Watch` notices on a machine that is busy, robbed of time, hot, or getting slower, from made-up Linux files."""

import os
import time
from pathlib import Path

import pytest

from lltool.eval.bench.machine import watch
from lltool.eval.bench.machine.watch import Conditions, Watch, describe_conditions, find_trend

TICK = os.sysconf("SC_CLK_TCK")


class Machine:
    """A root folder with the counters of two cores and one process of two threads."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 10.0
        self.set()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def set(
        self, *, busy: float = 0, stolen: float = 0, own: float = 0, waited: float = 0, hot: int = 0, held: float = 0
    ) -> None:
        """Seconds of each; `hot` is a count."""
        ticks = [0, round(busy * TICK), 0, 77, 5, 0, 0, round(stolen * TICK), round(busy * TICK), 0]
        self.write("proc/stat", "cpu  " + " ".join(map(str, ticks)) + "\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
        self.write("proc/7/stat", f"7 (a ) b c) R {'0 ' * 10}{round(own * TICK)} 0 0 0\n")
        for thread in (7, 8):
            self.write(f"proc/7/task/{thread}/schedstat", f"123 {round(waited * 5e8)} 9\n")
        self.write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", f"{hot}\n")
        self.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3100000\n")
        self.write("sys/fs/cgroup/cpu.stat", f"usage_usec 1\nthrottled_usec {round(held * 1e6)}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(watch, "_cores", lambda: 2)
    return Machine(tmp_path)


def look(machine: Machine, seconds: float, **counters: float) -> Conditions:
    watched = Watch(2, pids=[7], root=machine.root, clock=lambda: machine.now)
    watched.start()
    machine.now += seconds
    machine.set(**counters)  # type: ignore[arg-type]
    return watched.stop()


def test_an_idle_machine_is_quiet(machine: Machine) -> None:
    found = look(machine, 2, busy=4, own=4)
    assert found == Conditions(frequency=3.1e9, threads=2)
    assert found.disturbance == 0


def test_counters_become_fractions(machine: Machine) -> None:
    found = look(machine, 2, busy=3, own=1, waited=1, stolen=0.4, hot=3, held=0.2)
    assert found.waited == pytest.approx(1 / (2 * 2) + 0.2 / 2)  # two threads, and the container's limit
    assert found.stolen == pytest.approx(0.1)
    assert found.others == pytest.approx(1.0)
    assert found.throttled == 3
    assert found.is_disturbed


def test_threads_lose_what_any_of_them_loses() -> None:
    assert Conditions(waited=0.2, stolen=0.1).disturbance == pytest.approx(0.3)
    assert Conditions(waited=0.2, stolen=0.1, threads=2).disturbance == pytest.approx(1 - 0.7**2)
    assert Conditions(waited=0.01, threads=16).disturbance == pytest.approx(0.1485, abs=1e-4)
    assert not Conditions(waited=0.01, threads=16).is_disturbed  # every machine has a little of that
    assert Conditions(waited=0.9, stolen=0.2, threads=2).disturbance == 0.99


def test_counters_that_fall_are_not_negative(machine: Machine) -> None:
    machine.set(waited=5, busy=9, own=1)
    assert look(machine, 1) == Conditions(frequency=3.1e9, threads=2)  # a thread ended


def test_a_system_without_these_files_reports_nothing(tmp_path: Path) -> None:
    watched = Watch(2, root=tmp_path / "nothing")
    watched.start()
    assert watched.stop() == Conditions(threads=2)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's scheduler statistics")
def test_a_thread_that_shares_its_core_is_noticed() -> None:
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    rival = os.fork()
    if rival == 0:
        os.sched_setaffinity(0, {core})
        end = time.perf_counter() + 20
        while time.perf_counter() < end:
            pass
        os._exit(0)
    try:
        os.sched_setaffinity(0, {core})
        watched = Watch(1)
        watched.start()
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        assert watched.stop().waited > 0.2
    finally:
        os.kill(rival, 9)
        os.waitpid(rival, 0)
        os.sched_setaffinity(0, before)


def test_notes_are_short_and_say_who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_cores", lambda: 2)
    even = [1000] * 3
    assert describe_conditions([Conditions(frequency=3e9)] * 3, even) == []
    assert describe_conditions([Conditions(waited=0.31, others=1)] * 3, even) == [
        "busy machine: threads waited for a core 31% of the time"
    ]
    assert describe_conditions([Conditions(others=0.5)] * 3, even) == ["busy machine: other processes used 0.5 cores"]
    hot = [Conditions(throttled=2, frequency=3.1e9), Conditions(frequency=2.4e9), Conditions(stolen=0.9)]
    assert describe_conditions(hot, even) == [
        "throttling: the processor slowed down 2 times for heat or power",
        "throttling: the clock went from 3.1 to 2.4 GHz",
    ]
    assert describe_conditions([Conditions(stolen=0.05)] * 3, even) == [
        "busy host: the hypervisor ran other guests 5% of the time"
    ]
    assert describe_conditions([Conditions()] * 6, [100, 103, 106, 109, 112, 115]) == [
        "drift: 14% slower from the first run to the last"
    ]


def test_drift_is_a_trend_beyond_chance() -> None:
    assert find_trend([100, 98, 96, 94, 92]) == pytest.approx(-8 / 96)
    assert find_trend([100, 101, 100, 102, 99, 100, 150]) == 0  # one outlier is not a trend
    assert find_trend([100, 120, 90, 130, 110, 140]) == 0  # chance gives this one time in four
    assert find_trend([1000, 1001, 1002, 1003, 1004, 1005]) == 0  # a trend that does not matter
    assert find_trend([100, 200, 300, 400]) == 0  # too few to tell
