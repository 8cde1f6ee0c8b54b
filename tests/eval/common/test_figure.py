"""The common style: the same bytes for the same picture, nothing left behind, and intervals that say where they end."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf

from lltool.eval.common.figure import (
    WIDTH,
    add_legends,
    add_panels,
    add_title,
    draw_intervals,
    legend_height,
    look,
    picture,
    set_dates,
    set_log,
)
from tests.eval.drawn_texts import misplaced_texts

LONG = "series {} with a name of " + "very " * 9 + "many words"


def draw(target: Path, series: int = 3, name: str = "series {} of $x$ and $y$") -> Path:
    labels = [name.format(number) for number in range(series)]
    with picture(target, 3 + legend_height([labels])) as figure:
        body = add_title(figure, "A title of " + "many words " * 12, "A subtitle in/one/" + "long_word" * 20)
        axes = add_panels(body, 2)
        for axis in axes:
            for number, label in enumerate(labels):
                axis.plot([1, 2], [number, number], label=label, **look(number))
        add_legends(body, axes)
    return target


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_picture_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first, second = (draw(tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert b"<dc:date>" not in first
    assert b"Creation" not in first


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    draw(tmp_path / "a.png")
    assert dict(mpl.rcParams) == before
    assert Gcf.figs == {}  # the figures that stay open


@pytest.mark.parametrize(("series", "name"), [(1, "{}"), (2, LONG), (30, "series {}"), (30, LONG)])
def test_titles_and_legends_have_room(tmp_path: Path, figures: list[Any], series: int, name: str) -> None:
    draw(tmp_path / "a.png", series, name)
    assert misplaced_texts(figures[0]) == []
    (legend,) = figures[0].subfigs[0].legends or [None]
    assert (legend is None) == (series == 1)
    assert min(axis.get_window_extent().height for axis in figures[0].axes) > 160  # an inch is left for the lines


def test_thirty_series_look_different() -> None:
    assert len({tuple(look(number).values()) for number in range(196)}) == 196


def test_an_interval_that_goes_on_is_an_arrow_without_a_cap(tmp_path: Path) -> None:
    with picture(tmp_path / "a.png", 3, WIDTH) as figure:
        axis = figure.subplots()
        axis.set_ylim(0, 10)
        intervals = [(1, 2), (3, 99), (-1, 5), (4, 4), (np.nan, np.nan)]
        draw_intervals(axis, [10, 20, 30, 40, 50], intervals)
        ends = {line.get_marker(): list(zip(*line.get_data(), strict=True)) for line in axis.lines}
        assert ends == {"_": [(10, 1), (20, 3), (10, 2), (30, 5)], "^": [(20, 10)], "v": [(30, 0)]}
        (stems,) = axis.collections
        assert [segment.tolist() for segment in stems.get_segments()] == [
            [[10, 1], [10, 2]],
            [[20, 3], [20, 10]],
            [[30, 0], [30, 5]],
        ]
        other = figure.add_axes((0, 0, 1, 1))
        other.set_xlim(0, 10)
        draw_intervals(other, [1, 2], [(1, 7), (2, 4)], along="x", limit=5)
        ends = {line.get_marker(): list(zip(*line.get_data(), strict=True)) for line in other.lines}
        assert ends == {"|": [(1, 1), (2, 2), (4, 2)], ">": [(5, 1)]}


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [(0.02, 3, ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]), (0.005, 200, ["0.01", "0.1", "1", "10", "100"])],
)
def test_logarithmic_axes_have_plain_numbers(tmp_path: Path, low: float, high: float, labels: list[str]) -> None:
    with picture(tmp_path / "a.png", 3) as figure:
        axis = figure.subplots()
        axis.set_ylim(low, high)
        set_log(axis, "y")
        figure.canvas.draw()
        seen = [label.get_text() for label in axis.get_yticklabels() if low <= label.get_position()[1] <= high]
        assert seen == labels


def test_dates_are_those_of_iso_8601(tmp_path: Path) -> None:
    days = ["2026-01-30", "2026-01-31", "2026-02-01", "2026-02-02"]
    with picture(tmp_path / "a.png", 3) as figure:
        axis = figure.subplots()
        axis.plot(np.array(days, "datetime64[D]"), range(4))
        set_dates(axis)
        figure.canvas.draw()
        seen = [label.get_text() for label in axis.get_xticklabels()]
        assert [label for label in seen if label in ("01-31", "2026-02", "02-02")] == ["01-31", "2026-02", "02-02"]
        assert axis.xaxis.get_offset_text().get_text() == "2026"
