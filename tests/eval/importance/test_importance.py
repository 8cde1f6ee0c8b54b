"""Importance collected from tiny models against the observers' own sums, and from a real one against llama-imatrix."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.model import Model, load_model
from lltool.eval.importance.collect import (
    Collected,
    collect,
    estimate_stability,
    is_observed,
    report_coverage,
)
from lltool.eval.importance.job import ImportanceJob, JobProgress, collect_importance
from lltool.eval.importance.statistics import layer_statistics, matrix_statistics
from lltool.eval.scoring.perplexity import perplexity
from lltool.gguf.errors import InputError
from lltool.quant.importance import Importance, merge, read_importance, write_importance
from tests.conftest import GoldenFile
from tests.eval.derived_models import f16_copy
from tests.eval.tiny_text_model import random_text, write_text_model

CONTEXT = 32
NOTHING = Collected({}, {})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("tiny") / "model.gguf")


def load(path: Path, *, process_output: bool = False, **options: Any) -> Model:
    options = {"context": CONTEXT, "batch": CONTEXT, "precision": "f32", **options}
    sequences = max(1, options["batch"] // CONTEXT)
    return load_model(path, sequences=sequences, observe=lambda name: is_observed(name, process_output), **options)


def some_windows(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 96, (count, CONTEXT)).astype(np.int32)


def last(model: Model, windows: NDArray[np.int32], before: Collected = NOTHING, **options: bool) -> Collected:
    return list(collect(model, windows, before, **options))[-1]


@pytest.mark.parametrize("batch", [7, CONTEXT, 3 * CONTEXT])
def test_every_token_of_every_window_counts(path: Path, batch: int) -> None:
    """Windows split over batches, one window per batch, and several; the last batch is not full."""
    windows = some_windows(5)
    with load(path, executor="reference") as reference:
        for window in windows:
            sequence = reference.new_sequence()
            reference.forward([(sequence, window, "none")])
            sequence.free()
        wanted = reference.executor.take_observations()
    with load(path, batch=batch) as model:
        found = last(model, windows)
        assert found.done == 5
        assert perplexity(model, windows.ravel().tolist(), context=CONTEXT).running == pytest.approx(found.running())
    assert found.sums.keys() == wanted.keys()
    assert len(wanted) == 3 * 7
    for name, seen in wanted.items():
        assert found.counts[name].tolist() == [5 * CONTEXT]
        # float32 through three layers, on two executors; sums of squares double its error.
        np.testing.assert_allclose(found.sums[name], seen.sums, rtol=2e-4, err_msg=name)


def test_no_more_windows_at_once_than_the_cache_holds(path: Path) -> None:
    options: dict[str, Any] = {"context": CONTEXT, "sequences": 1, "observe": lambda name: is_observed(name, False)}
    with load_model(path, batch=4 * CONTEXT, **options) as model:
        assert model.batch == 2 * CONTEXT  # a page
        assert last(model, some_windows(3)).done == 3


def test_perplexity_and_its_error_are_those_of_the_perplexity_command(path: Path) -> None:
    windows = some_windows(4)
    with load(path) as model:
        found = last(model, windows)
        wanted = perplexity(model, windows.ravel().tolist(), context=CONTEXT)
        silent = last(model, windows, perplexity=False)
    assert found.running() == pytest.approx(wanted.running, rel=1e-6)
    assert found.error(CONTEXT - 1 - CONTEXT // 2) == pytest.approx(wanted.error, rel=1e-6)
    assert silent.running() == []
    assert all(np.array_equal(silent.sums[name], found.sums[name]) for name in found.sums)


@pytest.mark.parametrize("perplexity_too", [True, False])
def test_the_output_matrix_is_observed_on_request(path: Path, perplexity_too: bool) -> None:
    """With tied weights the matrix is the token embedding; each row counts once, and so does a window's last row."""
    with load(path, process_output=True, batch=20) as model:
        found = last(model, some_windows(2), perplexity=perplexity_too, process_output=True)
        assert found.counts["token_embd.weight"].tolist() == [2 * CONTEXT]
        assert len(found.running()) == (2 if perplexity_too else 0)
    assert len(found.sums) == 3 * 7 + 1


@pytest.mark.parametrize("batch", [CONTEXT, 4 * CONTEXT])
def test_a_window_that_gives_nan_is_skipped_and_harms_no_other(tmp_path: Path, batch: int) -> None:
    broken = write_text_model(tmp_path / "model.gguf", broken="~")  # token 94
    windows = some_windows(4) % 94
    with load(broken, batch=batch) as model:
        wanted = last(model, windows[[0, 2, 3]])
        windows[1, 5] = 94
        found = last(model, windows)
    assert found.skipped == (1,)
    assert found.done == 4
    assert len(found.losses) == 3
    for name, sums in wanted.sums.items():
        assert found.counts[name].tolist() == [3 * CONTEXT]
        np.testing.assert_allclose(found.sums[name], sums, rtol=1e-5)


def job(path: Path, folder: Path, **options: Any) -> ImportanceJob:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(random_text(9 * CONTEXT + 5))
    settings: dict[str, Any] = {"context": CONTEXT, "batch": CONTEXT, "precision": "f32", "save_every": 2}
    return ImportanceJob(path, text, folder / "imatrix.gguf", **{**settings, **options})


class StopHere(Exception):
    pass


def stop_after(count: int) -> Callable[[JobProgress], None]:
    def stop(progress: JobProgress) -> None:
        if progress.collected.done == count:
            raise StopHere

    return stop


@pytest.mark.parametrize("stop", [1, 3, 4, 8])
def test_a_resumed_job_gives_the_file_that_one_run_gives(path: Path, tmp_path: Path, stop: int) -> None:
    whole = job(path, tmp_path)
    collect_importance(whole)
    wanted = whole.output.read_bytes()
    whole.output.unlink()

    with pytest.raises(StopHere):
        collect_importance(whole, progress=stop_after(stop))
    assert read_importance(whole.output).chunk_count == stop
    said: list[str] = []
    report = collect_importance(whole, say=said.append)
    assert report.resumed == stop
    assert said == [f"{whole.output}: resuming after window {stop} of 9"]
    assert whole.output.read_bytes() == wanted
    assert collect_importance(whole).resumed == 9
    assert whole.output.read_bytes() == wanted
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["imatrix.gguf", "text.txt"]


def test_more_chunks_resume_and_other_settings_start_over(path: Path, tmp_path: Path) -> None:
    collect_importance(job(path, tmp_path, chunks=3))
    assert collect_importance(job(path, tmp_path, chunks=5)).resumed == 3
    said: list[str] = []
    report = collect_importance(job(path, tmp_path, chunks=5, first=2), say=said.append)
    assert report.resumed == 0
    assert said[0].endswith("imatrix.gguf: starting over, because of another settings")
    (tmp_path / "text.txt").write_text(random_text(200, seed=2))
    assert collect_importance(job(path, tmp_path, chunks=5, first=2), say=said.append).resumed == 0
    assert said[1].endswith("starting over, because of another text_sha256")
    assert collect_importance(job(path, tmp_path, chunks=1, first=2), say=said.append).resumed == 0
    assert said[2].endswith("starting over, because it has 4 windows, wanted 1")


def test_from_chunk_skips_the_chunks_before(path: Path, tmp_path: Path) -> None:
    """Importance of all windows is that of the first four and that of the rest, added up."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = collect_importance(job(path, tmp_path)).importance
    first = collect_importance(job(path, tmp_path / "a", chunks=4)).importance
    rest = collect_importance(job(path, tmp_path / "b", first=4)).importance
    both = merge([first, rest], CONTEXT)
    assert (whole.chunk_count, first.chunk_count, rest.chunk_count, both.chunk_count) == (9, 4, 5, 9)
    for name, sums in whole.sums.items():
        np.testing.assert_allclose(both.sums[name], sums, rtol=1e-6)

    begun = job(path, tmp_path / "b", first=4, merge=(tmp_path / "a/imatrix.gguf",))
    joined = collect_importance(begun).importance  # added to on the way
    assert joined.datasets == (*first.datasets, *rest.datasets)
    assert joined.chunk_count == 9
    for name, sums in whole.sums.items():
        np.testing.assert_allclose(joined.sums[name], sums, rtol=1e-6)


def test_snapshots_equal_a_shorter_run(path: Path, tmp_path: Path) -> None:
    collect_importance(job(path, tmp_path, snapshot_every=3))
    assert sorted(file.name for file in tmp_path.glob("*.at_*")) == [f"imatrix.gguf.at_{n}" for n in (3, 6, 9)]
    snapshot = (tmp_path / "imatrix.gguf.at_6").read_bytes()
    (tmp_path / "imatrix.gguf").unlink()
    collect_importance(job(path, tmp_path, chunks=6))
    assert (tmp_path / "imatrix.gguf").read_bytes() == snapshot


def test_skipped_windows_are_reported_and_remembered(tmp_path: Path) -> None:
    broken = write_text_model(tmp_path / "model.gguf", broken="~")
    clean = random_text(4 * CONTEXT, without="~")
    (tmp_path / "text.txt").write_text(clean[:40] + "~" + clean[41:])
    report = collect_importance(job(broken, tmp_path))
    assert report.collected.skipped == (1,)
    assert report.importance.chunk_count == 3
    again = collect_importance(job(broken, tmp_path))
    assert again.resumed == 4
    assert again.collected.skipped == (1,)

    (tmp_path / "text.txt").write_text(
        "~" * 3 * CONTEXT + clean
    )  # at first there is nothing to write and nothing to compare with
    late = collect_importance(job(broken, tmp_path))
    assert (late.skipped, late.importance.chunk_count) == ((0, 1, 2), 4)

    (tmp_path / "text.txt").write_text("~" * 100)
    (tmp_path / "imatrix.gguf").unlink()
    with pytest.raises(InputError, match=r"all 3 windows of .*text.txt gave NaN or infinity"):
        collect_importance(job(broken, tmp_path))
    assert not (tmp_path / "imatrix.gguf").exists()


def test_it_ends_when_the_ranking_is_stable(path: Path, tmp_path: Path) -> None:
    """Windows are taken from all over the text; its first four windows would give other sums."""
    first = collect_importance(job(path, tmp_path, chunks=4)).importance
    said: list[str] = []
    report = collect_importance(job(path, tmp_path, until_stable=0.05), say=said.append)
    assert not np.array_equal(report.importance.sums["blk.0.attn_q.weight"], first.sums["blk.0.attn_q.weight"])
    assert report.collected.done == 4  # stability is known once there are two saved states to compare
    assert report.stability is not None
    assert said[1:] == [f"the ranking is stable after 4 of 9 windows: {report.stability:.4f}"]
    assert read_importance(tmp_path / "imatrix.gguf").chunk_count == 4
    again = collect_importance(job(path, tmp_path, until_stable=0.05))
    assert (again.resumed, again.collected.done) == (4, 4)
    never = collect_importance(job(path, tmp_path, until_stable=0.999999))
    assert never.collected.done == 9


def test_chats_are_rendered_with_the_models_template(path: Path, tmp_path: Path) -> None:
    lines = ['[{"role": "user", "content": "Hello, you there"}]', "", '{"messages": [{"role": "a", "content": "Hi"}]}']
    (tmp_path / "text.txt").write_text("\n".join(lines))
    chat = collect_importance(job(path, tmp_path, context=8, batch=8, chat=True)).importance
    (tmp_path / "text.txt").write_text("user:Hello, you there\na:Hi\n")
    plain = collect_importance(job(path, tmp_path, context=8, batch=8)).importance
    assert chat.chunk_count == plain.chunk_count == 3
    assert all(np.array_equal(chat.sums[name], plain.sums[name]) for name in plain.sums)
    for line, message in [
        ("[3]", "line 1: wanted a list of messages"),
        ("{", "text.txt, line 1: not JSON: Expecting property name"),
        ('{"text": "a"}', "line 1: wanted a list of messages"),
    ]:
        (tmp_path / "text.txt").write_text(line)
        with pytest.raises(InputError, match=message):
            collect_importance(job(path, tmp_path, chat=True))


def test_importance_of_another_model_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    for name, columns, message in [
        ("blk.7.attn_q.weight", 32, r"other.gguf: blk.7.attn_q.weight: .*model.gguf has no such matrix"),
        ("blk.0.attn_q.weight", 48, r"other.gguf: blk.0.attn_q.weight: has 48 columns, but .*model.gguf has 32"),
    ]:
        ones = {name: np.ones((1, columns), np.float32)}
        write_importance(other, Importance(ones, {name: np.ones(1, np.float32)}, 1, CONTEXT))
        with pytest.raises(InputError, match=message):
            collect_importance(job(path, tmp_path, merge=(other,)))


def test_inputs_and_other_files_are_not_overwritten(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.gguf"
    shutil.copy(path, copy)
    before = copy.read_bytes()
    with pytest.raises(InputError, match=r"model.gguf: would overwrite its own source"):
        collect_importance(replace(job(copy, tmp_path), output=copy))
    with pytest.raises(InputError, match=r"model.gguf: not an importance file"):
        collect_importance(replace(job(path, tmp_path), output=copy))
    with pytest.raises(InputError, match="none: no such folder; make it first"):
        collect_importance(replace(job(path, tmp_path), output=tmp_path / "none" / "imatrix.gguf"))
    assert copy.read_bytes() == before


def test_stability_is_the_distance_to_the_truth() -> None:
    """For means of n draws, the estimate is close to the correlation with the expected values, which it never sees."""
    rng = np.random.default_rng(0)
    truth = rng.gamma(2, size=3000)
    draws = [truth * rng.chisquare(1, (size, 3000)).mean(axis=0) * size for size in (60, 30)]
    counts = [np.array([count], np.float32) for count in (60, 90)]
    earlier = Importance({"w": draws[0][None].astype(np.float32)}, {"w": counts[0]}, 2, 30)
    now = Importance({"w": (draws[0] + draws[1])[None].astype(np.float32)}, {"w": counts[1]}, 3, 30)
    order = [np.argsort(np.argsort(values)) for values in (truth, now.sums["w"][0])]
    actual = np.corrcoef(*order)[0, 1]
    assert 1 - estimate_stability(earlier, now)["w"] == pytest.approx(1 - actual, rel=0.15)
    assert estimate_stability(now, now) == {}


def test_coverage_names_what_has_no_data() -> None:
    sums = {"a": np.array([[1, 0, 2]], np.float32), "b": np.array([[1, 2, 3], [0, 0, 0]], np.float32)}
    counts = {"a": np.array([4], np.float32), "b": np.array([4, 0], np.float32)}
    coverage = report_coverage(Importance(sums, counts, 1, 4), ["a", "b", "c"])
    assert (coverage.entries, coverage.missing) == (2, ("c",))
    assert coverage.idle_columns == {"a": 1}
    assert coverage.idle_experts == {"b": 1}


def test_statistics_by_hand() -> None:
    sums = {
        "blk.0.attn_q.weight": np.array([[2, 2, 2, 2]], np.float32),
        "blk.1.attn_q.weight": np.array([[8, 0, 0, 8]], np.float32),
        "blk.1.ffn_up_exps.weight": np.array([[6, 3], [9, 9]], np.float32),
        "output.weight": np.array([[1, 3]], np.float32),
    }
    counts = {name: np.array([2], np.float32) for name in sums}
    counts["blk.1.ffn_up_exps.weight"] = np.array([3, 0], np.float32)
    matrices = matrix_statistics(Importance(sums, counts, 1, 2))
    assert [(s.kind, s.layer, s.total) for s in matrices] == [
        ("attn_q", 1, 8),
        ("attn_q", 0, 4),
        ("ffn_up_exps", 1, 3),
        ("output", None, 2),
    ]
    second, first, experts, _ = matrices
    assert (first.low, first.high, first.mean, first.deviation, first.outliers, first.cosine) == (1, 1, 1, 0, 0, 0)
    assert (first.entropy, first.entropy_share, first.active) == (2, 1, 1)
    assert (second.entropy, second.entropy_share, second.active) == (1, 0.5, 0.5)
    assert second.cosine == pytest.approx(np.sqrt(0.5))
    assert experts.columns == 2  # only of the expert that saw tokens
    assert [(layer.layer, layer.total) for layer in layer_statistics(matrices)] == [(0, 4), (1, (8 * 4 + 3 * 2) / 6)]


# Total, lowest, highest, mean, deviation, active, columns, entropy, outliers, cosine, as llama-imatrix computes them.
LLAMA_STATISTICS = """
blk.18.attn_k.weight 100.938 0.00644405 54.76127 0.1752395 2.291957 1 576 4.434133 0.005208333 0.9992899
blk.7.ffn_down.weight 40.03621 0.007097969 0.60996 0.02606524 0.03176234 1 1536 10.09655 0.06315104 0.4341221
blk.0.attn_q.weight 1.30746 6.108684e-08 0.2712155 0.002269896 0.01377883 0.890625 576 5.798527 0.01736111 0
"""


def test_statistics_are_llama_imatrixs(golden_file: GoldenFile) -> None:
    found = {s.name: s for s in matrix_statistics(read_importance(golden_file("imatrix/smollm2-imatrix.gguf")))}
    for line in LLAMA_STATISTICS.strip().splitlines():
        name, *wanted = line.split()
        s = found[name]
        values = (s.total, s.low, s.high, s.mean, s.deviation, s.active, s.columns, s.entropy, s.outliers, s.cosine)
        # It sums up to 1536 values in float32, one after the other.
        assert values == pytest.approx([float(value) for value in wanted], rel=1e-5), name


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_importance_is_llama_imatrixs(
    golden_file: GoldenFile, real_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """llama-imatrix rounds the inputs of F16 matrices to F16 and lltool does not: 2^-11 at each of 30 layers."""
    model = f16_copy(real_model("smollm2-q4_1"), tmp_path / "f16.gguf")
    output = tmp_path / "imatrix.gguf"
    made = ImportanceJob(model, golden_file("text/calib.txt"), output, chunks=40, perplexity=False, precision="f32")
    found = collect_importance(made).importance
    wanted = read_importance(golden_file("imatrix/smollm2-imatrix.gguf"))
    assert found.sums.keys() == wanted.sums.keys()
    assert (found.chunk_count, found.chunk_size) == (wanted.chunk_count, wanted.chunk_size)
    for name, values in wanted.sums.items():
        a, b = found.sums[name].astype(np.float64)[0], values.astype(np.float64)[0]
        assert np.array_equal(found.counts[name], wanted.counts[name])
        assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b), name
        assert a @ b > (1 - 1e-6) * np.linalg.norm(a) * np.linalg.norm(b), name
