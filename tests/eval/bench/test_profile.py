"""Profiles: the work of a workload equals a count token by token, and rows add up."""

import csv
import io
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from lltool.engine.batch import Batch
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.attention import Attention
from lltool.engine.operations.linear import Linear
from lltool.eval.bench.machine.limits import Limits
from lltool.eval.bench.profile import measure as module
from lltool.eval.bench.profile.measure import BETWEEN, Operation, profile, rows_of
from lltool.eval.bench.profile.tables import format_profiles
from lltool.eval.bench.run.plan import GridPoint, resolve
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.run.work import Call, Work, calls_of, work_of
from lltool.eval.bench.settings import Settings, Workload
from lltool.tools.cli import main
from tests.engine import tiny_gguf

LIMITS = Limits(1, "scalar", read=1e9, read_large_pages=2e9, int8=8e9, int16=4e9, float32=2e9)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_gguf.write_model(tmp_path / "tiny.gguf", tiny_gguf.metadata(), tiny_gguf.tensors())


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that the executor runs."""
    seen: list[Batch] = []
    run = CpuExecutor.run
    monkeypatch.setattr(CpuExecutor, "run", lambda self, batch: (seen.append(batch), run(self, batch))[1])
    return seen


def cut(batch: Batch) -> Call:
    """A batch as pieces."""
    positions = [batch.positions[batch.sequences == sequence] for sequence in dict.fromkeys(batch.sequences.tolist())]
    return Call(tuple((int(p[0]), len(p)) for p in positions), len(batch.outputs))


@pytest.mark.parametrize(
    ("workload", "sizes"),
    [
        (Workload(100, 3), {"batch": 64, "ubatch": 48}),
        (Workload(10, 2, sequences=3), {"batch": 64, "ubatch": 16}),
        (Workload(0, 4, 70), {}),
        (Workload(130, 0, 20, 2), {"batch": 200, "ubatch": 64}),
    ],
)
def test_calls_are_those_that_the_runner_makes(
    tiny: Path, batches: list[Batch], workload: Workload, sizes: dict[str, int]
) -> None:
    settings = resolve(Settings(tiny, threads=1, **sizes))  # type: ignore[arg-type]
    runner = Runner(settings, [workload])
    runner.run(workload)
    batches.clear()  # the past has been computed
    runner.run(workload)
    assert list(calls_of(workload, settings)) == [cut(batch) for batch in batches]
    runner.close()


def count_by_hand(op: Attention, batches: Sequence[Batch]) -> tuple[int, int]:
    """Bytes of float16 keys and values, and multiply-adds, counted one token and one key at a time."""
    read = products = 0
    for batch in batches:
        for sequence in set(batch.sequences.tolist()):
            keys = set()
            for position in batch.positions[batch.sequences == sequence].tolist():
                seen = [k for k in range(position + 1) if not op.window or k > position - op.window]
                keys |= set(seen)
                products += 2 * len(seen) * op.heads * op.head_dim
            read += 2 * 2 * len(keys) * op.kv_heads * op.head_dim
    return read, products


@pytest.mark.parametrize("workload", [Workload(150, 2), Workload(0, 3, 100), Workload(40, 1, 30, 3)])
def test_work_is_what_counting_gives(tiny: Path, batches: list[Batch], workload: Workload) -> None:
    settings = resolve(Settings(tiny, threads=1, ubatch=64))
    runner = Runner(settings, [workload])
    program = runner.model.program
    runner.run(workload)
    batches.clear()
    runner.run(workload)
    calls = list(calls_of(workload, settings))
    windows = set()
    for op in program.ops:
        found = work_of([op], calls, program, settings)
        if isinstance(op, Attention):
            assert (found.read, found.int16) == count_by_hand(op, batches)
            assert found.float32 == found.int8 == 0
            windows.add(op.window)
        if isinstance(op, Linear) and op.weights == ("blk.0.ffn_down.weight",):
            assert found == Work(len(batches) * 64 * 32 * 4, int16=workload.tokens * 64 * 32)
        if isinstance(op, Linear) and op.weights == ("token_embd.weight",):  # logits are computed for last tokens only
            outputs = [len(batch.outputs) for batch in batches if len(batch.outputs)]
            assert found == Work(len(outputs) * 96 * 32 * 4, int16=sum(outputs) * 96 * 32)
    assert windows == {0, 64}
    runner.close()


def test_the_limit_that_binds_is_the_one_that_takes_longest() -> None:
    """1 GB at 1 GB/s is 1 s, 16 G products of int8 at 8 G/s are 2 s, and 1 G of floats half a second."""
    operation = Operation("linear", "Q8_0", 1, 5.0, Work(1e9, 16e9, float32=1e9))
    assert operation.find_limit(LIMITS) == (pytest.approx(0.5), "int8")
    reading = Operation("linear", "Q8_0", 1, 5.0, Work(3e9, 16e9))
    assert reading.find_limit(LIMITS) == (pytest.approx(0.6), "read")
    assert reading.find_limit(replace(LIMITS, large_pages=True)) == (pytest.approx(0.4), "int8")
    assert Operation("norm", "", 1, 5.0, Work()).find_limit(LIMITS) == (0.0, "")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_limits", lambda threads: LIMITS)
    monkeypatch.setattr(module, "limits_for", lambda limits, program: limits)  # the system chooses the pages


def test_times_of_the_operations_add_up(tiny: Path, quick: None) -> None:
    (found,) = profile([GridPoint(Settings(tiny, threads=1), Workload(32, 2))], 2)
    assert sum(op.seconds for op in found.operations) == pytest.approx(found.seconds)
    counts = {part: op.count for op in found.operations for part in op.name.split(", ")}  # of what runs together
    assert counts["linear attn_q attn_k attn_v"] == counts["linear ffn_down"] == 3
    assert counts[BETWEEN] == 1
    rows = list(rows_of([found]))
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert sum(row.us_per_token for row in rows) == pytest.approx(found.seconds / 34 * 1e6)
    down = next(row for row in rows if "linear ffn_down" in row.operation)
    assert (down.types, down.multiply_adds_per_token) == ("F32", 3 * 64 * 32)
    assert down.read_bytes_per_token == pytest.approx(3 * 3 * 64 * 32 * 4 / 34)  # layers, calls


def test_every_format_has_the_same_rows(tiny: Path, quick: None) -> None:
    found = profile(
        [GridPoint(Settings(tiny, threads=1), Workload(8, 0)), GridPoint(Settings(tiny, threads=1), Workload(0, 2))], 1
    )
    rows = list(rows_of(found))
    assert json.loads(format_profiles(found, "json")) == [asdict(row) for row in rows]
    assert [json.loads(line) for line in format_profiles(found, "jsonl").splitlines()] == [asdict(row) for row in rows]
    read = list(csv.DictReader(io.StringIO(format_profiles(found, "csv"))))
    assert [row["operation"] for row in read] == [row.operation for row in rows]
    assert np.allclose([float(row["us_per_token"]) for row in read], [row.us_per_token for row in rows])
    with sqlite3.connect(":memory:") as database:
        database.executescript(format_profiles(found, "sql"))
        kept = database.execute("SELECT n_prompt, operation, us_per_token FROM lltool_profile").fetchall()
    assert kept == [(row.n_prompt, row.operation, row.us_per_token) for row in rows]
    text = format_profiles(found, "md")
    assert text.count("linear ffn_down") == 2
    assert "2.0 in large ones (the weights lie in small ones); int8 8, int16 4, float32 2 GMAC/s" in text


def test_the_command_prints_and_draws(
    tiny: Path, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "profile.png"
    line = ["bench", "-m", str(tiny), "-p", "8", "-n", "2", "-r", "1", "--profile", "--plot", str(plot)]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "gemma3 0M" in out
    assert "linear ffn_gate ffn_up" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_exact_mode_multiplies_floats(tiny: Path) -> None:
    runner = Runner(resolve(Settings(tiny, threads=1, precision="f32")), [Workload(8, 0)])
    program = runner.model.program
    calls = [Call(((0, 8),), 1)]
    exact, usual = (
        work_of(program.ops, calls, program, resolve(Settings(tiny, threads=1, precision=precision)))  # type: ignore[arg-type]
        for precision in ("f32", "int8")
    )
    assert exact == Work(usual.read, float32=usual.int16)
    runner.close()
