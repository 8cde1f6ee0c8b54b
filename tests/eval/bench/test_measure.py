"""What a benchmark runs: in which order, how many tokens at once, after how long a past, and what it records."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.engine.model import Model, load_model
from lltool.eval.bench.results.record import Interrupted
from lltool.eval.bench.run import measure as module
from lltool.eval.bench.run.measure import measure_points
from lltool.eval.bench.run.plan import TimedRun, grid, resolve, workloads
from lltool.eval.bench.run.runner import Runner
from lltool.eval.bench.run.schedule import Effort
from lltool.eval.bench.settings import Settings, Workload
from lltool.gguf.errors import InputError
from tests.engine import tiny_gguf

ONCE = Effort(1, most=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return tiny_gguf.write_model(path, tiny_gguf.metadata(), tiny_gguf.tensors())


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int, str]]]:
    """What the model is given to append: for each piece the cached tokens, the new ones, and the logits wanted."""
    seen: list[list[tuple[int, int, str]]] = []
    append = Model._append

    def record(self: Model, pieces: Any, types: Any = None) -> Any:
        seen.append([(sequence.length, len(tokens), wanted) for sequence, tokens, wanted in pieces])
        return append(self, pieces, types)

    monkeypatch.setattr(Model, "_append", record)
    return seen


def run(tiny: Path, workload: Workload, **settings: Any) -> TimedRun:
    runner = Runner(resolve(Settings(tiny, threads=1, **settings)), [workload])
    try:
        return runner.run(workload)
    finally:
        runner.close()


def test_a_prompt_is_submitted_in_batches_and_computed_in_smaller_ones(tiny: Path, forwards: list[Any]) -> None:
    found = run(tiny, Workload(100, 2), batch=64, ubatch=48)
    prompt = [[(0, 48, "none")], [(48, 16, "last")], [(64, 36, "last")]]
    assert forwards == [*prompt, [(100, 1, "last")], [(101, 1, "last")]]
    assert len(found.token_ns) == 2
    assert found.nanoseconds == found.prompt_ns + sum(found.token_ns)


def test_generation_alone_has_no_prompt(tiny: Path, forwards: list[Any]) -> None:
    found = run(tiny, Workload(0, 3))
    assert forwards == [[(0, 1, "last")], [(1, 1, "last")], [(2, 1, "last")]]
    assert (found.prompt_ns, found.nanoseconds) == (0, sum(found.token_ns))


def test_sequences_share_batches(tiny: Path, forwards: list[Any]) -> None:
    run(tiny, Workload(10, 1, sequences=3), batch=64, ubatch=16)
    assert forwards == [
        [(0, 10, "last"), (0, 6, "none")],
        [(6, 4, "last"), (0, 10, "last")],
        [(10, 1, "last"), (10, 1, "last"), (10, 1, "last")],
    ]


def test_the_past_is_computed_once_and_used_again(tiny: Path, forwards: list[Any]) -> None:
    shallow, deep, wide = Workload(4, 1, 70), Workload(4, 1, 130), Workload(2, 1, 70, 2)
    runner = Runner(resolve(Settings(tiny, threads=1)), [shallow, deep, wide])
    for workload in (shallow, deep, shallow, wide):
        runner.run(workload)
    past = [pieces for pieces in forwards if pieces[0][1] > 4]
    assert past == [[(0, 70, "last")], [(70, 60, "last")]]
    assert forwards[1:3] == forwards[6:8] == [[(70, 4, "last")], [(74, 1, "last")]]
    assert forwards[-2] == [(70, 2, "last"), (70, 2, "last")]
    runner.close()


def test_what_is_timed_is_what_the_model_computes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the last step after a shared past, for two sequences, equal those of each text evaluated alone."""
    workload = Workload(9, 2, 70, 2)
    runner = Runner(
        resolve(Settings(tiny, threads=1, precision="f32", type_k="f32", type_v="f32", ubatch=7)), [workload]
    )
    drawn: list[Any] = []
    draw = runner._draw
    monkeypatch.setattr(runner, "_draw", lambda *shape: drawn.append(draw(*shape)) or drawn[-1])
    last: list[Any] = []
    forward = Model.forward

    def keep(self: Model, pieces: Any) -> Any:
        logits = forward(self, pieces)
        last[:] = [logits.all()] if logits.rows else last
        return logits

    monkeypatch.setattr(Model, "forward", keep)
    runner.run(workload)
    runner.close()
    monkeypatch.setattr(Model, "forward", forward)
    past, texts = drawn
    with load_model(tiny, threads=1, precision="f32", sequences=2) as model:
        for row, text in zip(last[0], texts, strict=True):
            expected = model.evaluate(model.new_sequence(), [*past[0], *text])
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)  # sums in another order


def test_points_are_measured_in_turns_and_equal_ones_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[int, str]] = []

    def record(self: Runner, workload: Workload) -> TimedRun:
        order.append((self.model.threads, str(workload)))
        return TimedRun(1000 + len(order), 0)

    monkeypatch.setattr(Runner, "run", record)
    points = grid([tiny], workloads([4, 0], [2]), threads=[1, 2], n_gpu_layers=[0, 99])
    told: list[tuple[int, int, str]] = []
    effort = Effort(2, most=2)
    found = measure_points(points, effort, warm=False, memory=False, progress=lambda *step: told.append(step))
    four = [(1, "pp4"), (1, "tg2"), (2, "pp4"), (2, "tg2")]
    assert sorted(order[:4]) == four
    assert order[4:8] == order[:4][::-1]
    assert [(row.ran["n_threads"], row.test, row.asked.get("n_gpu_layers", 0)) for row in found] == [
        (*test, layers) for layers in (0, 99) for test in four
    ]
    assert [row.samples_ns for row in found[:4]] == [row.samples_ns for row in found[4:]]
    assert [any("-ngl 99" in note for note in row.notes) for row in found] == [False] * 4 + [True] * 4
    assert told[0][:2] == (0, 8)
    assert told[-1][0] == told[-1][1] == len(order)
    assert (found[0].model_type.split()[0], len(found[0].model_sha256)) == ("gemma3", 64)


def test_warming_up_runs_the_prompt_and_one_token(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Runner, "run", lambda self, workload: seen.append(str(workload)) or TimedRun(1000, 0))
    measure_points(grid([tiny], [Workload(4, 3)]), Effort(1, most=1), memory=False)
    assert seen[:3] == ["pp4+tg1", "pp4+tg1", "pp4+tg3"]


def test_an_interrupt_keeps_what_is_done(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [3]

    def count_down(self: Runner, workload: Workload) -> TimedRun:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return TimedRun(1000, 0)

    monkeypatch.setattr(Runner, "run", count_down)
    with pytest.raises(Interrupted) as stopped:
        measure_points(grid([tiny], workloads([4], [2])), Effort(5, most=5), warm=False)
    assert sorted(len(row.samples_ns) for row in stopped.value.rows) == [1, 2]
    with pytest.raises(Interrupted) as stopped:
        measure_points(grid([tiny], workloads([4], [2])), ONCE)
    assert stopped.value.rows == []


def test_memory_and_load_time_come_from_a_fresh_process(tiny: Path) -> None:
    (found,) = measure_points(grid([tiny], [Workload(4, 0)], threads=[1]), ONCE, warm=False)
    assert found.load_ms is not None
    assert found.first_token_ms is not None
    assert 0 < found.load_ms < found.first_token_ms
    assert found.peak_rss_bytes is None or found.peak_rss_bytes > 1 << 20


def test_results_are_kept_if_memory_cannot_be_measured(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise InputError("no memory left")

    monkeypatch.setattr(module, "measure_footprint", fail)
    (found,) = measure_points(grid([tiny], [Workload(4, 0)], threads=[1]), ONCE, warm=False)
    assert (len(found.samples_ns), found.peak_rss_bytes) == (1, None)
    assert "no memory left" in found.notes


def test_more_than_the_models_context_is_refused_before_anything_runs(
    tiny: Path, real_model: Callable[[str], Path], forwards: list[Any]
) -> None:
    points = grid([real_model("smollm2-q4_1"), tiny], [Workload(500, 0, 20)])
    with pytest.raises(InputError, match=r"tiny\.gguf: pp500 @ d20 needs a context of 520 tokens, but the model"):
        measure_points(points)
    with pytest.raises(InputError, match="threads 0"):
        measure_points([points[0], replace(points[0], settings=replace(points[0].settings, threads=0))])
    assert forwards == []
