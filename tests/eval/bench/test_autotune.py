"""The search for numbers of threads: what it tries, what it chooses, and that it ends."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lltool.engine.cpu import tuning
from lltool.engine.cpu.threads import available_cpus
from lltool.engine.cpu.tuning import Tuned, keep_tuned, read_tuned
from lltool.eval.bench.run import autotune as module
from lltool.eval.bench.run.autotune import BATCH, DECODE, LEAST, candidates, choose_threads, format_search, search
from lltool.eval.bench.run.plan import grid, with_tuned_threads
from lltool.eval.bench.settings import Workload
from lltool.tools.cli import main
from tests.engine import tiny_gguf


def test_candidates() -> None:
    assert candidates(1, 1) == [1]
    assert candidates(2, 4) == [1, 2, 4]
    assert candidates(8, 8) == list(range(1, 9))
    assert candidates(32, 64) == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 28, 32, 64]
    assert len(candidates(128, 256)) < 20


def test_the_fewest_threads_that_are_about_as_fast() -> None:
    assert choose_threads({1: 200.0, 2: 102.0, 4: 100.0}) == 2
    assert choose_threads({1: 200.0, 2: 104.0, 4: 100.0}) == 4
    assert choose_threads({1: 90.0, 2: 104.0}) == 1


class Machine:
    """A machine on which decoding is best with two threads and batches with four; every run advances the clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.runs: Counter[tuple[int, Workload]] = Counter()

    def clock(self) -> float:
        return self.seconds

    def run(self, threads: int, workload: Workload) -> int:
        best = 2 if workload == DECODE else 4
        milliseconds = 20 * (1 + abs(threads - best))
        self.runs[threads, workload] += 1
        if self.runs[threads, workload] == 3:
            milliseconds *= 10  # disturbed
        self.seconds += milliseconds / 1e3
        return milliseconds * 1_000_000


def test_search_finds_the_best_of_each_kind_and_ends() -> None:
    machine = Machine()
    found = search([1, 2, 3, 4], machine.run, 2.0, clock=machine.clock)
    assert found.tuned == Tuned(2, 4)
    assert 2.0 < machine.seconds < 4.0
    assert machine.runs[2, DECODE] > machine.runs[1, DECODE] > 1  # 1 is twice as slow, and drops out when that is known
    assert machine.runs[4, BATCH] > machine.runs[1, BATCH]
    text = format_search(found)
    assert [line.split("|")[2].strip() for line in text.splitlines()[2:]] == ["200.0", "400.0 *", "200.0", "133.3"]


def test_a_slow_machine_tries_each_a_few_times() -> None:
    machine = Machine()
    search([2, 3], machine.run, 0.0, clock=machine.clock)
    assert machine.runs[2, DECODE] == LEAST + 1  # one more to warm up
    assert machine.runs[3, DECODE] == 2  # far behind after one round


def test_the_command_keeps_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(module.autotune, "__kwdefaults__", {"seconds": 0.0})
    path = tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())
    assert main(["bench", "-m", str(path), "--autotune", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    (found,) = json.loads(out)
    tuned = read_tuned(path.stat().st_size)
    assert tuned == Tuned(found["decode"], found["batch"])
    assert max(found["decode"], found["batch"]) <= len(available_cpus())
    assert f"kept in {tmp_path}/.cache/lltool/threads.json, the default for models of about this size" in err
    assert main(["bench", "-m", str(path), "--autotune"]) == 0
    assert "| threads | one token at a time, t/s |" in capsys.readouterr().out
    assert main(["bench", "-m", str(path), "--autotune", "-t", "1"]) == 2
    assert "--autotune searches for the best -t; leave out -t" in capsys.readouterr().err


def test_a_bench_runs_with_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(tuning, "available_cpus", lambda: set(range(8)))
    path = tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())
    runs = [Workload(8, 0), Workload(0, 4), Workload(8, 4), Workload(0, 4, sequences=2)]
    points = grid([path], runs)
    assert with_tuned_threads(points) == points
    keep_tuned(path.stat().st_size, Tuned(3, 5))
    assert [point.settings.threads for point in with_tuned_threads(points)] == [5, 3, 5, 5]
