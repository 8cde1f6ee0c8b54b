"""Peers: the order of our runs and theirs, and the rows and the table that result."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lltool import __version__
from lltool.eval.bench.machine.limits import Limits
from lltool.eval.bench.peers import pairing
from lltool.eval.bench.peers.pairing import Interrupted, measure_beside
from lltool.eval.bench.peers.peer import runs_in_one
from lltool.eval.bench.peers.ratio_tables import format_ratios
from lltool.eval.bench.results.history import recall
from lltool.eval.bench.run.plan import TimedRun, grid
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.run.schedule import Effort
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.errors import InputError
from lltool.tools.bench import main
from tests.eval.bench.fake_bench import fake_bench

LIMITS = Limits(2, "scalar", read=1e15, read_large_pages=2e15, int8=8e15, int16=4e15, float32=2e15)


@dataclass
class FakePeer:
    """Takes twice as long as we do in one mode, three times in the other; `calls` is shared with our own engine."""

    calls: list[str]
    closed: list[str] = field(default_factory=list)

    def find_missing(self) -> str | None:
        return None

    def load(self, settings: Settings, runs: Sequence[Workload]) -> list[Any]:
        return [FakeEngine(self, mode, factor) for mode, factor in (("slow", 3), ("fast", 2))]


@dataclass
class FakeEngine:
    peer: FakePeer
    mode: str
    factor: int

    @property
    def name(self) -> str:
        return f"other 1.0 {self.mode}"

    @property
    def columns(self) -> dict[str, Any]:
        return {"build_commit": "other-1.0", "flash_attn": -1}

    def time(self, workload: Workload, tokens: Sequence[int]) -> int:
        assert len(tokens) == workload.context
        self.peer.calls.append(f"{self.mode} {workload}")
        return self.factor * 1000

    def close(self) -> None:
        self.peer.closed.append(self.mode)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs in order; our own engine takes 1000 ns."""
    found: list[str] = []

    def run(self: Runner, workload: Workload) -> TimedRun:
        found.append(f"ours {workload}")
        return TimedRun(1000, 1000 if workload.prompt else 0, (1000,) * workload.generation)

    monkeypatch.setattr(pairing.Runner, "run", run)
    monkeypatch.setattr(pairing, "measure_limits", lambda threads: LIMITS)
    monkeypatch.setattr(pairing, "limits_for", lambda limits, program: replace(limits, large_pages=True))
    return found


def test_engines_run_in_turns_and_back(real_model: Callable[[str], Path], calls: list[str]) -> None:
    peer = FakePeer(calls)
    points = grid([real_model("smollm2-q4_1")], [Workload(512, 0), Workload(0, 64)], threads=[2])
    seen: list[tuple[int, int, str]] = []
    rows = measure_beside(points, [peer], Effort(2), progress=lambda *told: seen.append(told))
    assert calls[:5] == [
        "slow pp128",
        "fast pp128",
        "fast pp128",
        "slow pp128",
        "ours pp512",
    ]  # the trial of modes, and our warm-up
    assert calls[5:10] == ["slow tg16", "fast tg16", "fast tg16", "slow tg16", "ours tg64"]
    assert calls[10:] == [
        *("ours pp512", "fast pp512", "ours tg64", "fast tg64"),
        *("fast pp512", "ours pp512"),
        *("fast tg64", "ours tg64"),
    ]
    assert seen[0] == (0, 6, f"{points[0].settings.model.name}, pp512: modes")
    assert seen[2] == (2, 6, f"{points[0].settings.model.name}, pp512")
    assert seen[-1][:2] == (6, 6)
    assert peer.closed == ["fast", "slow"]
    assert [row.engine.split()[-1] for row in rows] == [__version__, "fast"] * 2
    assert [row.ratio for row in rows] == [None, 2] * 2
    ours, fast = rows[:2]
    assert (fast.samples_ns, fast.avg_ns, fast.median_ts) == ([2000, 2000], 2000, pytest.approx(512e9 / 2000))
    assert (fast.build_commit, fast.ran["flash_attn"], fast.ran["n_threads"]) == ("other-1.0", -1, 2)
    assert (ours.ttft_ms, fast.ttft_ms) == (pytest.approx(0.001), None)
    assert fast.settings["modes_ns"] == {"other 1.0 slow": 3000, "other 1.0 fast": 2000}
    assert len({row.settings["session"] for row in rows}) == 1
    assert ours.read_bytes_per_s == pytest.approx(2 * fast.read_bytes_per_s)
    assert ours.read_share == pytest.approx(ours.read_bytes_per_s / LIMITS.read_large_pages)
    assert ours.multiply_share > 2 * fast.multiply_share * 0.999
    lines = format_ratios(rows).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:4]] == [ours.engine, "other 1.0 fast"]
    assert [cell.strip() for cell in lines[3].split("|")[-3:-1]] == ["2.00 (2.00 – 2.00)", "2.00 – 2.00"]
    named = "llama 135M Q4_1, pp512: other 1.0 fast is the fastest of its modes in a trial"
    assert f"- {named} (1.50 × as long: other 1.0 slow)" in lines


def test_a_few_tokens_run_several_times_and_the_median_counts(
    real_model: Callable[[str], Path], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [runs_in_one(Workload(n, 0)) for n in (1, 2, 8, 30, 64, 512)] == [15, 15, 8, 2, 1, 1]
    times = iter([5000, 9000, 1000, 7000])
    monkeypatch.setattr(pairing.Runner, "run", lambda *_: TimedRun(next(times), 0))
    monkeypatch.setattr(pairing, "runs_in_one", lambda workload: 3)
    points = grid([real_model("smollm2-q4_1")], [Workload(4, 0)], threads=[2])
    rows = measure_beside(points, [FakePeer(calls)], Effort(1), warm=True)
    assert rows[0].samples_ns == [7000]


def test_runs_go_on_until_the_ratio_is_known(
    real_model: Callable[[str], Path], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1000, 1500, 1500, 1000] + [2000, 2500, 1500, 1000, 3000] + [2000] * 40)
    monkeypatch.setattr(FakeEngine, "time", lambda *_: next(times))
    points = grid([real_model("smollm2-q4_1")], [Workload(8, 0)], threads=[2])
    rows = measure_beside(points, [FakePeer(calls)], Effort(2, until=0.02, most=20))
    assert 4 < len(rows[0].samples_ns) < 20
    rows = measure_beside(points, [FakePeer(calls)], Effort(2), warm=False)
    assert len(rows[0].samples_ns) == 2


def test_ctrl_c_keeps_the_rounds_that_were_finished(
    real_model: Callable[[str], Path], calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeEngine.time

    def stop(self: FakeEngine, workload: Workload, tokens: Sequence[int]) -> int:
        if len(calls) > 9:  # four runs of the trial, one to warm up, two rounds
            raise KeyboardInterrupt
        return time(self, workload, tokens)

    monkeypatch.setattr(FakeEngine, "time", stop)
    peer = FakePeer(calls)
    points = grid([real_model("smollm2-q4_1")], [Workload(80, 0)], threads=[2])
    with pytest.raises(Interrupted) as stopped:
        measure_beside(points, [peer], Effort(5))
    assert [len(row.samples_ns) for row in stopped.value.rows] == [2, 2]
    assert peer.closed == ["fast", "slow"]


@pytest.mark.usefixtures("calls")
def test_command_writes_peers_in_every_format(
    real_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = f"llama-bench:{fake_bench(tmp_path).path}"
    plain = [*("-m", str(real_model("smollm2-q4_1"))), *("-p", "8", "-n", "0", "-r", "2", "-t", "2")]
    arguments = [*plain, "--peer", peer, "--db", str(tmp_path / "h.sqlite")]
    assert main(arguments) == 0
    assert "(2.00 × as long: llama.cpp abcd123 no repack)" in capsys.readouterr().out
    assert main([*arguments, "-o", "csv", "--plot", str(tmp_path / "x.png")]) == 0
    capsys.readouterr()
    assert main([*arguments, "-o", "csv", "--save", str(tmp_path / "found")]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["engine"].split()[0], row["ratio"]) for row in found] == [
        ("lltool", ""),
        ("llama.cpp", "2.0"),
    ]
    assert (tmp_path / "x.png").exists()
    assert [row.ratio for row in recall(tmp_path / "h.sqlite")] == [None, 2] * 3
    assert list(csv.DictReader((tmp_path / "found.csv").open())) == found
    kept = json.loads((tmp_path / "found.json").read_text())
    assert [row["ratio"] for row in kept] == [None, 2]
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("calls")
def test_a_peer_that_is_not_installed_is_reported(
    real_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*("-m", str(real_model("smollm2-q4_1"))), *("-p", "8", "-n", "0", "-r", "2", "--no-memory")]
    arguments += [
        "--no-history",
        "--peer",
        f"llama-bench:{tmp_path}/llama-bench",
        "--peer",
        "llama-cpp-python:/bin/false",
    ]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 1
    assert "cannot be run (No such file or directory); build llama-bench of llama.cpp, and name its path" in err
    assert "/bin/false has no llama-cpp-python; `pip install llama-cpp-python` there" in err
    with pytest.raises(InputError, match="cannot be run"):
        main([*arguments, "--strict"])
    with pytest.raises(InputError, match="--peer vllm: neither a peer"):
        main([*arguments, "--peer", "vllm"])
