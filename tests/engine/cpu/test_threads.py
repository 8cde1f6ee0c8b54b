"""How many threads are started, and which processors they are given."""

import os
from pathlib import Path

import pytest

from lltool.engine.cpu.threads import (
    Team,
    Threads,
    available_cpus,
    check_threads,
    count_threads,
    cpu_quota,
    default_threads,
    parse_mask,
    parse_range,
)
from lltool.gguf.errors import InputError

CPUS = "sys/devices/system/cpu"
SPEEDS = {"capacity": "cpu_capacity", "frequency": "cpufreq/cpuinfo_max_freq"}
V1 = "sys/fs/cgroup/cpu"


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def cores(*siblings: str, **speeds: list[int]) -> dict[str, str]:
    """Files of a machine whose processor i shares a core with siblings[i]; speeds by the name of their file."""
    files = {f"{CPUS}/cpu{i}/topology/thread_siblings_list": f"{text}\n" for i, text in enumerate(siblings)}
    for name, values in speeds.items():
        files |= {f"{CPUS}/cpu{i}/{SPEEDS[name]}": f"{value}\n" for i, value in enumerate(values)}
    return files


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ({f"{V1}/cpu.cfs_quota_us": "-1\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, None),
        ({f"{V1}/cpu.cfs_quota_us": "400000\n", f"{V1}/cpu.cfs_period_us": "100000\n"}, 4),
        # groups within groups: the least of them counts, and none beside them
        (
            {
                "proc/self/cgroup": "0::/user.slice/a.scope\n",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/user.slice/a.scope/cpu.max": "max 100000\n",
                "sys/fs/cgroup/user.slice/b.scope/cpu.max": "100000 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/job:1\n",
                f"{V1}/job:1/cpu.cfs_quota_us": "600000\n",
                f"{V1}/job:1/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/m/cpu.max": "100000 100000\n",
            },
            6,
        ),
        # a container's path is the host's, its limit at the top
        ({"proc/self/cgroup": "0::/docker/1\n", "sys/fs/cgroup/cpu.max": "500000 100000\n"}, 5),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], wanted: int | None) -> None:
    assert cpu_quota(write_tree(tmp_path, files)) == wanted


@pytest.mark.parametrize(
    ("files", "cpus", "wanted"),
    [
        ({}, range(8), 8),
        (cores("0-1", "0-1", "2-3", "2-3"), range(4), 2),
        (cores("0,2", "1,3", "0,2", "1,3"), range(4), 2),
        (cores("0,2", "1,3", "0,2", "1,3"), {1, 3}, 1),
        # performance cores with two threads each, and efficiency cores
        (
            cores("0-1", "0-1", "2-3", "2-3", "4", "5", frequency=[49] * 2 + [50] * 2 + [38] * 2),
            range(6),
            2,
        ),
        (cores("0", "1", "2", "3", capacity=[370, 370, 900, 1024]), range(4), 2),
        (cores("0", "1", "2", "3", capacity=[370, 370, 900, 1024]), {0, 1}, 2),  # small cores alone
        # capacity knows more than frequency
        (cores("0", "1", capacity=[1024, 446], frequency=[50, 50]), range(2), 1),
        (cores("0", "1", "2", "3") | {"sys/fs/cgroup/cpu.max": "300000 100000"}, range(4), 3),
        (cores("0-1", "0-1", "2-3", "2-3") | {"sys/fs/cgroup/cpu.max": "300000 100000"}, range(4), 2),
    ],
)
def test_threads_are_the_large_cores_within_the_quota(
    tmp_path: Path, files: dict[str, str], cpus: range | set[int], wanted: int
) -> None:
    assert count_threads(set(cpus), write_tree(tmp_path, files)) == wanted


def test_default_threads_are_those_of_this_machine() -> None:
    assert default_threads() == count_threads(available_cpus(), Path("/")) <= len(available_cpus())


def test_masks_and_ranges() -> None:
    assert parse_mask("0x0") == parse_mask("0") == frozenset()
    assert parse_mask("0xA1") == parse_mask("a1") == {0, 5, 7}
    assert parse_range("2-4") == {2, 3, 4}
    assert parse_range("-2") == {0, 1, 2}
    assert parse_range(f"{max(available_cpus())}-") == {max(available_cpus())}
    for mask in ("", "0x", "0xg", "-1", "1 ", "+3"):
        with pytest.raises(InputError, match="not a mask of processors"):
            parse_mask(mask)
    for text in ("", "3", "4-3", "a-b", "1-2-3"):
        with pytest.raises(InputError, match="not a range of processors"):
            parse_range(text)


def test_places_of_a_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lltool.engine.cpu.threads.available_cpus", lambda: {3, 5})
    assert Team(2).places() == [[], []]
    assert Team(2, (1, 4)).places() == [[1, 4], [1, 4]]
    assert Team(3, (1, 4), strict=True).places() == [[1], [4], [1]]
    assert Team(3, strict=True).places() == [[3], [5], [3]]


@pytest.mark.parametrize(
    ("threads", "message"),
    [
        (Threads.of(0), "threads 0, wanted 1 to 512"),
        (Threads(Team(1), Team(513)), "threads_batch 513, wanted 1 to 512"),
        (Threads(Team(1), Team(1, (100_000,))), "this process may not use processor 100000"),
        (Threads(Team(1), Team(1), poll=101), "poll 101, wanted 0 to 100"),
        (Threads(Team(1), Team(1), poll=-1), "poll -1, wanted 0 to 100"),
    ],
)
def test_threads_that_cannot_be_had_are_refused(threads: Threads, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_threads(threads)
    assert str(error.value) == message


def test_masks_need_a_system_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    check_threads(Threads.of(2))
    with pytest.raises(InputError, match="cannot bind threads to processors"):
        check_threads(Threads(Team(1), Team(1, strict=True)))
