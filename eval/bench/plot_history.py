"""Speed over time, from the history."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lltool.eval.bench.history import SERIES, series_of
from lltool.eval.bench.plots import (
    SPEED,
    add_legends,
    describe_errors,
    describe_rows,
    error_bars,
    label_of,
    panel_of,
    top_of,
)
from lltool.eval.bench.record import Row
from lltool.eval.bench.rows import speed_of
from lltool.eval.figure import COLORS, LINES, MARKERS, add_title, picture
from lltool.gguf.errors import InputError


def plot_history(rows: Sequence[Row], target: Path) -> Path:
    """A panel each for prefill and decode, in it a line for each test, model and setting."""
    rows = [row for row in rows if row["test_time"]]
    if not rows:
        raise InputError("nothing to plot: the history has no such result with a time")
    panels: dict[str, dict[tuple[Any, ...], list[Row]]] = {}
    for row in rows:
        panels.setdefault(panel_of(row), {}).setdefault(series_of(row), []).append(row)
    with picture(target, 3.2 + 3.9 * len(panels), 5.0) as figure:
        body = add_title(figure, describe_rows(rows), describe_errors([speed_of(row) for row in rows]))
        axes = body.subplots(1, len(panels), squeeze=False)[0]
        for axis, (panel, series) in zip(axes, panels.items(), strict=True):
            _draw(axis, series)
            axis.set_title(panel)
        add_legends(body, axes)
    return target


def _draw(axis: Any, series: dict[tuple[Any, ...], list[Row]]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    differing = [
        len(set(values)) > 1 or name == "test" for name, values in zip(SERIES, zip(*series, strict=True), strict=True)
    ]
    for number, (key, rows) in enumerate(series.items()):
        times = [datetime.fromisoformat(row["test_time"]) for row in rows]
        middle, below, above = error_bars([speed_of(row) for row in rows])
        shown = {name: part for name, part, is_shown in zip(SERIES, key, differing, strict=True) if is_shown}
        axis.errorbar(
            times,
            middle,
            (below, above),
            capsize=3,
            elinewidth=1.1,
            label=label_of(shown),
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number // len(COLORS) % len(LINES)],
        )
    locator = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axis.set_xlabel("time (UTC)")
    axis.set_ylabel(SPEED)
    axis.set_ylim(0, 1.08 * top_of([speed_of(row) for rows in series.values() for row in rows]))
