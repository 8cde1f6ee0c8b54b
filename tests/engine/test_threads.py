"""The default number of threads."""

from pathlib import Path

import pytest

from lltool.engine.threads import cpu_quota, default_threads


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
    ],
)
def test_cpu_quota(tmp_path: Path, files: dict[str, str], wanted: int | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == wanted


def test_default_threads_stay_within_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(1 << 16, (1 << 16) + 8))  # eight unknown cores
    monkeypatch.setattr("lltool.engine.threads.cpu_quota", lambda _: None)
    assert default_threads() == 8
    monkeypatch.setattr("lltool.engine.threads.cpu_quota", lambda _: 3)
    assert default_threads() == 3
