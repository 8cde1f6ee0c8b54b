"""Pictures of rows: which panels there are, what their axes say, and that no label lies on another."""

from pathlib import Path
from typing import Any

import pytest

from lltool.eval.bench import plots
from lltool.eval.bench.plots import plot_rows
from lltool.gguf.errors import InputError
from tests.eval.made_rows import made_row

TWO_MODELS = ("llama 135M Q4_0", "llama 135M Q8_0")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures as they are before they are saved."""
    found: list[Any] = []
    keep = plots.add_title

    def record(figure: Any, title: str, subtitle: str) -> Any:
        found.append(figure)
        return keep(figure, title, subtitle)

    monkeypatch.setattr(plots, "add_title", record)
    return found


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
    assert threads.get_legend_handles_labels()[1] == [f"{m}, {n} tokens" for m in TWO_MODELS for n in (128, 512)]
    assert decode.get_legend_handles_labels()[1] == list(TWO_MODELS)
    assert lengths.get_legend_handles_labels()[1] == [
        f"{m}, {t}" for m in TWO_MODELS for t in ("1 thread", "2 threads")
    ]
    assert {axis.get_ylabel() for axis in figures[0].axes} == {"tokens a second"}
    title, subtitle = figures[0].get_suptitle(), figures[0].subfigs[0].get_suptitle()
    assert title == "llama 135M Q4_0 and llama 135M Q8_0 on Example CPU 9000"
    assert subtitle.startswith("lltool 0.1.0 · batch 2048 · ubatch 512 · cache f16 · 5 runs each · 2026-01-02")
    assert subtitle.endswith("error bars: 95 % interval of the median")


def test_many_combinations_are_held_at_one_value_which_is_said(tmp_path: Path, figures: list[Any]) -> None:
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
    (line, caps, _) = figures[0].axes[0].containers[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [100, 150])
    assert list(caps[0].get_ydata()) == pytest.approx([rows[1]["low_ts"], rows[0]["low_ts"]])
    assert list(caps[1].get_ydata()) == pytest.approx([rows[1]["high_ts"], rows[0]["high_ts"]])
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")


def test_engines_stand_side_by_side_with_their_ratio(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(0, 64), made_row(0, 64, speeds=(50.0, 50.0, 50.5), engine="other 1")]
    rows[1]["ratio"] = 2.0
    plot_rows(rows, tmp_path / "out.png")
    assert panels(figures[0]) == [("decode, 64 tokens", "tokens a second")]
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["100", "50  2.00×"]
    assert "how many times as fast lltool is" in figures[0].subfigs[0].get_suptitle()


def test_a_single_row_is_a_bar_without_error(tmp_path: Path, figures: list[Any]) -> None:
    plot_rows([made_row(speeds=(80.0,))], tmp_path / "out.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["80"]
    assert "error bars: none, of a single run" in figures[0].subfigs[0].get_suptitle()


def test_wide_intervals_do_not_make_the_speeds_small(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(n_threads=t, speeds=(60.0, 140.0)) for t in (1, 2)]
    assert rows[0]["high_ts"] > 1000
    plot_rows(rows, tmp_path / "out.png")
    assert figures[0].axes[0].get_ylim() == (0, pytest.approx(1.08 * 200))
    plot_rows(rows[:1], tmp_path / "out.png")
    assert figures[1].axes[0].get_xlim() == (0, pytest.approx(1.18 * 200))
    assert figures[1].axes[0].texts[0].xy == (200, 0)


def test_what_was_asked_for_in_two_ways_is_drawn_once(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(settings={"asked": {"n_gpu_layers": n}}) for n in (0, 99)]
    plot_rows(rows, tmp_path / "out.png")
    assert len(figures[0].axes[0].patches) == 1


def test_other_settings_are_bars_of_their_own(tmp_path: Path, figures: list[Any]) -> None:
    rows = [made_row(load_mode=mode, settings={"precision": p}) for mode in ("mmap", "none") for p in ("int8", "f32")]
    plot_rows(rows, tmp_path / "out.png")
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == [
        f"llama 135M Q4_0\nprecision {p}\nload_mode {mode}" for mode in ("mmap", "none") for p in ("int8", "f32")
    ]


def test_labels_do_not_collide(tmp_path: Path, figures: list[Any]) -> None:
    engines = [f"engine number {i} with a long name" for i in range(5)]
    rows = [
        made_row(p, g, model_type=m, engine=e, n_threads=t, speeds=(90.0 + i, 100.0 + i, 110.0 + i))
        for i, e in enumerate(engines)
        for m in TWO_MODELS
        for p, g in ((512, 0), (0, 64))
        for t in (1, 32)
    ]
    plot_rows(rows, tmp_path / "out.png")
    figure = figures[0]
    for axis in figure.axes:
        ticks = [label for label in axis.get_xticklabels() if label.get_position()[0] <= axis.get_xlim()[1]]
        boxes = [text.get_window_extent() for text in [*ticks, *axis.texts, *axis.get_yticklabels(), axis.title]]
        assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
        assert not [box for box in boxes if box.x0 < figure.bbox.x0 or box.x1 > figure.bbox.x1 + 1]


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        ([], "out.png", "nothing to plot"),
        ([made_row()], "out.jpg", r"out.jpg: pictures are written as .png or .svg"),
        ([made_row()], "missing/out.png", r"missing/out.png: cannot be written: No such file"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, rows: list[Any], name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot_rows(rows, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
