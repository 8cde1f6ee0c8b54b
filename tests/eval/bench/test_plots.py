"""Plots of rows: which panels they have, what their axes say, and that no label overlaps another."""

from pathlib import Path
from typing import Any

import pytest

from lltool.eval.bench.plots.speed import plot_rows
from lltool.gguf.errors import InputError
from tests.eval.bench.made_rows import made_row
from tests.eval.drawn_texts import misplaced_texts

TWO_MODELS = ("llama 135M Q4_0", "llama 135M Q8_0")
SPEED = "speed (tokens a second)"


def panels(figure: Any) -> list[tuple[str, str]]:
    return [(axis.get_title(), axis.get_xlabel()) for axis in figure.axes]


def test_a_picture_for_each_parameter_that_varies(tmp_path: Path, figures: list[Any]) -> None:
    rows = [
        made_row(prompt, generation, model_type=model, n_threads=threads)
        for model in TWO_MODELS
        for threads in (1, 2)
        for prompt, generation in ((128, 0), (512, 0), (0, 64))
    ]
    target = plot_rows(rows, tmp_path / "out.png")
    assert target.read_bytes().startswith(b"\x89PNG")
    assert panels(figures[0]) == [
        ("prefill", "threads"),
        ("decode, 64 tokens", "threads"),
        ("prefill", "prompt length (tokens)"),
    ]
    threads, decode, lengths = figures[0].axes
    assert threads.get_legend_handles_labels()[1] == [f"{m}, {n} tokens" for m in ("Q4_0", "Q8_0") for n in (128, 512)]
    assert decode.get_legend_handles_labels()[1] == ["Q4_0", "Q8_0"]
    assert lengths.get_legend_handles_labels()[1] == [
        f"{m}, {t}" for m in ("Q4_0", "Q8_0") for t in ("1 thread", "2 threads")
    ]
    assert {axis.get_ylabel() for axis in figures[0].axes} == {SPEED}
    title, subtitle = figures[0].get_suptitle(), figures[0].subfigs[0].get_suptitle()
    assert title == "llama 135M Q4_0 and Q8_0 on Example CPU 9000"
    assert subtitle.startswith("lltool 0.1.0 · batch 2048 · ubatch 512 · cache f16 · 5 runs each · 2026-01-02")
    assert subtitle.endswith("error bars: 95 % interval of the median")


def test_of_many_combinations_the_held_values_are_named(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(n_threads=t, n_ubatch=u, n_depth=d) for t in (1, 2, 4) for u in (64, 256, 512) for d in (0, 999)]
    plot_rows(rows, tmp_path / "out.png")
    over_threads = figures[0].axes[0]
    assert panels(figures[0])[0] == ("prefill, 512 tokens", "threads")
    assert over_threads.get_legend_handles_labels()[1] == [
        f"depth {d}, ubatch {u}" for u in (64, 256, 512) for d in (0, 999)
    ]
    rows += [made_row(n_threads=t, n_ubatch=u, n_depth=d) for t in (1, 2, 4) for u in (64, 256, 512) for d in (5, 7)]
    plot_rows(rows, tmp_path / "out.png")
    assert panels(figures[1])[0] == ("prefill, depth 0, 512 tokens", "threads")
    assert figures[1].axes[0].get_legend_handles_labels()[1] == ["ubatch 64", "ubatch 256", "ubatch 512"]


def test_lines_stand_at_their_values_with_the_interval_as_error(tmp_path: Path, figures: list[Any]) -> None:
    speeds = {1: (99.0, 100.0, 101.0), 2: (149.0, 150.0, 151.0)}
    rows = [made_row(speeds=speeds[t], n_threads=t) for t in (2, 1)]
    plot_rows(rows, tmp_path / "out.svg")
    line, caps = figures[0].axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [100, 150])
    assert caps.get_marker() == "_"
    ends = [rows[1].low_ts, rows[0].low_ts, rows[1].high_ts, rows[0].high_ts]
    assert list(caps.get_ydata()) == pytest.approx(ends)
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")


def test_engines_stand_side_by_side_with_their_ratio(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(0, 64), made_row(0, 64, speeds=(50.0, 50.0, 50.5), engine="other 1", ratio=2.0)]
    plot_rows(rows, tmp_path / "out.png")
    assert panels(figures[0]) == [("decode, 64 tokens", SPEED)]
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["100", "50  2.00×"]
    assert "how many times as fast lltool is" in figures[0].subfigs[0].get_suptitle()


@pytest.mark.parametrize("speeds", [(80.0,), (60.0, 100.0)])
def test_one_or_two_runs_have_no_interval(tmp_path: Path, figures: list[Any], speeds: tuple[float, ...]) -> None:
    rows = [made_row(speeds=speeds, n_threads=t) for t in (1, 2)]
    assert (rows[0].high_ts is None) == (len(speeds) == 1)
    for found in (rows, rows[:1]):
        plot_rows(found, tmp_path / "out.png")
        assert not figures[-1].axes[0].collections
        assert "error bars: none for fewer than 3 runs" in figures[-1].subfigs[0].get_suptitle()
    assert len(figures[0].axes[0].lines) == 1
    assert figures[0].axes[0].get_ylim() == (0, pytest.approx(1.08 * 80))
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["80"]


def test_wide_intervals_end_in_an_arrow_and_do_not_make_the_speeds_small(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(n_threads=t, speeds=(60.0, 100.0, 190.0)) for t in (1, 2)]
    low, high = rows[0].low_ts, rows[0].high_ts
    assert low is not None
    assert high is not None
    assert high > 1000
    plot_rows(rows, tmp_path / "out.png")
    axis = figures[0].axes[0]
    assert axis.get_ylim() == (0, pytest.approx(1.08 * 200))
    ends = {line.get_marker(): list(line.get_ydata()) for line in axis.lines[1:]}
    assert ends == {"_": pytest.approx([low, low]), "^": pytest.approx([216, 216])}
    plot_rows(rows[:1], tmp_path / "out.png")
    axis = figures[1].axes[0]
    assert axis.get_xlim() == (0, pytest.approx(1.22 * 200))
    assert axis.texts[0].xy == (200, 0)
    assert {line.get_marker(): list(line.get_xdata()) for line in axis.lines} == {"|": pytest.approx([low]), ">": [200]}
    assert all("; an arrow: it reaches beyond the axis" in figure.subfigs[0].get_suptitle() for figure in figures)


def test_speeds_that_differ_by_a_large_factor_have_a_logarithmic_axis(tmp_path: Path, figures: list[Any]) -> None:
    speeds = {(model, t): (100.0 if model == TWO_MODELS[0] else 4.0) * t for model in TWO_MODELS for t in (1, 2)}
    rows = [made_row(model_type=model, n_threads=t, speeds=(speed,)) for (model, t), speed in speeds.items()]
    plot_rows(rows, tmp_path / "out.png")
    plot_rows(rows[:2], tmp_path / "out.png")
    assert [figure.axes[0].get_yscale() for figure in figures] == ["log", "linear"]
    assert figures[0].axes[0].get_ylim() == (2, 400)


def test_models_are_named_by_what_differs(tmp_path: Path, figures: list[Any]) -> None:
    names = ["llama 135M F16", "llama 135M Q4_K imatrix", "llama 135M Q4_K"]
    plot_rows([made_row(model_type=name) for name in names], tmp_path / "out.png")
    assert figures[0].get_suptitle() == "llama 135M F16, Q4_K imatrix, Q4_K on Example CPU 9000"
    labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert labels == ["F16", "Q4_K imatrix", "Q4_K"]
    plot_rows([made_row(model_filename=f"a/smol-{name}.gguf") for name in "xy"], tmp_path / "out.png")
    assert [label.get_text() for label in figures[1].axes[0].get_yticklabels()] == ["x", "y"]


def test_what_was_asked_for_in_two_ways_is_drawn_once(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(settings={"asked": {"n_gpu_layers": n}}) for n in (0, 99)]
    plot_rows(rows, tmp_path / "out.png")
    assert len(figures[0].axes[0].patches) == 1


def test_other_settings_are_bars_of_their_own(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(load_mode=mode, settings={"precision": p}) for mode in ("mmap", "none") for p in ("int8", "f32")]
    plot_rows(rows, tmp_path / "out.png")
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == [
        f"load_mode {mode}\nprecision {p}" for mode in ("mmap", "none") for p in ("int8", "f32")
    ]


LONG = "qwen2 630M Q4_K_M-of-a-checkpoint-with-a-name-that-nobody-shortened"
CROWDS: dict[str, list[Any]] = {
    "engines": [
        made_row(p, g, model_type=m, engine=f"engine number {i} with a long name", n_threads=t, speeds=(90.0 + i,) * 3)
        for i in range(5)
        for m in TWO_MODELS
        for p, g in ((512, 0), (0, 64))
        for t in (1, 32)
    ],
    "long names": [made_row(p, g, model_type=f"{LONG}-{i}") for i in (1, 2) for p, g in ((512, 0), (0, 64))],
    "long lines": [made_row(model_type=f"{LONG}-{i}", n_threads=t) for i in (1, 2) for t in (1, 2, 4)],
    "30 bars": [made_row(model_type=f"model Q{i}") for i in range(30)],
    "30 lines": [
        made_row(p, g, model_type=f"model Q{i}", n_threads=t)
        for i in range(30)
        for t in (1, 2, 3, 8, 12, 13, 64)
        for p, g in ((512, 0), (0, 64), (64, 16))
    ],
    "one point": [made_row()],
    "one line": [made_row(p) for p in (1, 3, 16, 100, 128, 512, 32768)],
}


@pytest.mark.parametrize("rows", CROWDS.values(), ids=list(CROWDS))
def test_labels_do_not_collide(tmp_path: Path, figures: list[Any], rows: list[Any]) -> None:
    plot_rows(rows, tmp_path / "out.png")
    assert misplaced_texts(figures[0]) == []


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        ([], "out.png", "nothing to plot"),
        ([made_row()], "out.jpg", r"out.jpg: pictures are written as .png or .svg"),
        ([made_row()], "missing/out.png", "missing: no such folder; make it first"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, rows: list[Any], name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot_rows(rows, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
