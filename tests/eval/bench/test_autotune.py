"""The search for numbers of threads: what it tries, what it chooses, and that it ends."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lltool.engine.cpu import tuning
from lltool.engine.cpu.tuning import Tuned, keep_tuned, read_tuned
from lltool.engine.model import load_model
from lltool.eval.bench.run import autotune as module
from lltool.eval.bench.run.autotune import (
    BATCH,
    DECODE,
    LEAST,
    Search,
    Timings,
    candidates,
    describe_search,
    format_search,
    search,
)
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


def timings(*rounds: dict[int, int], usual: int = 4) -> Timings:
    return Timings(usual, tuple(rounds), 0)


def test_fewer_threads_are_chosen_if_they_are_as_fast() -> None:
    assert timings(*6 * [{1: 2000, 2: 1020, 4: 1000}]).best == 2
    assert timings(*6 * [{1: 2000, 2: 1040, 4: 1000}]).best == 4
    assert timings(*6 * [{1: 900, 2: 1040, 4: 1000}]).best == 1
    assert timings(*6 * [{2: 1000, 4: 800, 8: 600}]).best == 8
    assert timings(*6 * [{2: 1000, 4: 800, 8: 790}]).best == 4


def test_nothing_is_chosen_that_the_interval_does_not_support() -> None:
    """One thread is faster in the median, but two of six rounds say otherwise."""
    rounds = [{1: 900, 2: 1000}] * 4 + [{1: 1100, 2: 1000}] * 2
    assert timings(*rounds, usual=2).medians == {1: 900.0, 2: 1000.0}
    assert timings(*rounds, usual=2).interval(1, 2) == pytest.approx((0.9, 1.1))
    assert timings(*rounds, usual=2).best == 2
    few = timings(*[{1: 500, 2: 1000}] * (LEAST - 1), usual=2)
    assert (few.is_judged, few.best) == (False, 2)


def test_ratios_are_paired_within_a_round() -> None:
    """The machine slows down from round to round, but one thread always takes 0.9 of the time of two."""
    slower = [{1: 900 * k, 2: 1000 * k} for k in range(1, 7)]
    assert timings(*slower, usual=2).interval(1, 2) == pytest.approx((0.9, 0.9))
    assert timings(*slower, usual=2).best == 1


class Machine:
    """A machine on which decoding is best with two threads and batches with four; every run advances the clock.

    Other programs disturb each `every`-th run of it.
    """

    def __init__(self, every: int = 0) -> None:
        self.seconds = 0.0
        self.every = every
        self.total = 0
        self.runs: Counter[tuple[int, Workload]] = Counter()

    def clock(self) -> float:
        return self.seconds

    def run(self, threads: int, workload: Workload) -> int | None:
        best = 2 if workload == DECODE else 4
        milliseconds = 20 * (1 + abs(threads - best))
        self.runs[threads, workload] += 1
        self.total += 1
        is_disturbed = self.every and self.total % self.every == 0
        self.seconds += milliseconds * (10 if is_disturbed else 1) / 1e3
        return None if is_disturbed else milliseconds * 1_000_000


@pytest.mark.parametrize("every", [0, 7])
def test_search_finds_the_best_of_each_kind_and_ends(every: int) -> None:
    machine = Machine(every)
    found = search([1, 2, 3, 4], 3, machine.run, 2.0, clock=machine.clock)
    assert found.tuned == Tuned(2, 4)
    assert found.is_judged
    assert (found.decode.disturbed + found.batch.disturbed > 0) == bool(every)
    assert 2.0 < machine.seconds < 12.0
    assert machine.runs[2, DECODE] > machine.runs[1, DECODE] > 1  # 1 is twice as slow, and drops out when that is known
    assert machine.runs[4, BATCH] > machine.runs[1, BATCH]
    text = format_search(found)
    assert [line.split("|")[2].strip() for line in text.splitlines()[2:]] == ["200.0", "400.0 *", "200.0", "133.3"]
    assert describe_search(found) == ""


def test_a_slow_machine_tries_each_a_few_times() -> None:
    machine = Machine()
    search([2, 3], 2, machine.run, 0.0, clock=machine.clock)
    assert machine.runs[2, DECODE] == LEAST + 1  # one more to warm up
    assert machine.runs[3, DECODE] == 2  # far behind after one round


def test_a_busy_machine_is_given_up_after_a_while_and_not_judged() -> None:
    machine = Machine(every=2)
    found = search([1, 2], 2, machine.run, 2.0, 30.0, clock=machine.clock)
    assert 30 <= machine.seconds < 33
    assert not found.is_judged
    assert found.tuned == Tuned(2, 2)
    rounds = found.decode.disturbed
    assert describe_search(found).startswith(
        f"one token at a time: cannot judge, other programs held the processor in {rounds} of {rounds} rounds; many at"
    )


def stand_in(monkeypatch: pytest.MonkeyPatch, decode: Timings, batch: Timings) -> None:
    """Makes the search find these timings, after real runs."""
    real = module.search

    def made(*arguments: Any) -> Search:
        real(*arguments[:3], 0.0, 0.0)
        return Search(decode, batch)

    monkeypatch.setattr(module, "search", made)


def test_the_command_keeps_what_it_finds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(tuning, "default_threads", lambda: 2)
    monkeypatch.setattr(tuning, "available_cpus", lambda: {0, 1})
    path = tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())
    stand_in(monkeypatch, *2 * [timings(*[{1: 900, 2: 1000}] * 3 + [{1: 1100, 2: 1000}] * 2, usual=2)])
    assert main(["bench", "-m", str(path), "--autotune"]) == 1
    assert "cannot judge" in (said := capsys.readouterr()).err
    assert "nothing was kept" in said.err
    assert "*" not in said.out
    assert read_tuned(path.stat().st_size) is None

    stand_in(monkeypatch, timings(*[{1: 900, 2: 1000}] * 6, usual=2), timings(*[{1: 1900, 2: 1000}] * 6, usual=2))
    assert main(["bench", "-m", str(path), "--autotune", "-o", "json"]) == 0
    out, err = capsys.readouterr()
    (found,) = json.loads(out)
    assert (found["judged"], found["decode"], found["batch"], found["decode_ns"]) == (True, 1, 2, {"1": 900, "2": 1000})
    assert read_tuned(path.stat().st_size) == Tuned(1, 2)
    assert f"kept in {tmp_path}/.cache/lltool/threads.json, the default for models of about this size" in err
    assert main(["bench", "-m", str(path), "--autotune"]) == 0
    assert "| threads | one token at a time, t/s |" in capsys.readouterr().out

    used = f"threads: 1 for one token, 2 for many, as bench --autotune kept in {tmp_path}/.cache/lltool/threads.json"
    load_model(path).close()
    assert used in caplog.text
    caplog.clear()
    load_model(path, threads=1).close()
    assert used not in caplog.text
    assert main(["bench", "-m", str(path), "-p", "8", "-n", "0", "-r", "1"]) == 0
    assert used in capsys.readouterr().err
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
