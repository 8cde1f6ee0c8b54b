"""Draws the history: speed over time."""

from collections.abc import Sequence
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any

from lltool.eval.bench.plots.speed import (
    PANEL_HEIGHT,
    describe_errors,
    describe_rows,
    drawn_speed,
    label_of,
    panel_of,
    set_speeds,
)
from lltool.eval.bench.results.history import SERIES, series_of
from lltool.eval.bench.results.rows import ResultRow
from lltool.eval.common.figure import (
    add_legends,
    add_panels,
    add_title,
    draw_intervals,
    legend_height,
    look,
    picture,
    set_dates,
)
from lltool.eval.common.names import short_names
from lltool.gguf.errors import InputError

_MANY = 6  # series; if a panel has more, panels are as wide as the picture


def plot_history(rows: Sequence[ResultRow], target: Path) -> Path:
    """Draws a panel each for prefill and decode, with a line for each test, model and setting."""
    rows = [row for row in rows if row.test_time]
    if not rows:
        raise InputError("nothing to plot: the history has no matching result with a time")
    found: dict[str, dict[tuple[Any, ...], list[ResultRow]]] = {}
    for row in sorted(rows, key=_order):
        found.setdefault(panel_of(row), {}).setdefault(series_of(row), []).append(row)
    panels: dict[str, dict[str, list[ResultRow]]] = {}
    for panel, by_key in found.items():
        tests = {rows[0].test for rows in by_key.values()}
        title = panel if len(tests) > 1 else f"{panel}, {min(tests)}"
        panels[title] = dict(zip(name_series(list(by_key)), by_key.values(), strict=True))
    columns = 1 if max(map(len, panels.values())) > _MANY else 2
    deep = [list(series) for series in panels.values()]
    legends = legend_height(deep) if columns > 1 else sum(legend_height([labels], 1) for labels in deep)
    height = 0.9 + PANEL_HEIGHT * ceil(len(panels) / columns) + legends
    with picture(target, height) as figure:
        body = add_title(figure, describe_rows(rows), describe_errors([drawn_speed(row) for row in rows]))
        axes = add_panels(body, len(panels), columns)
        for axis, (title, series) in zip(axes, panels.items(), strict=True):
            _draw(axis, series)
            axis.set_title(title)
        add_legends(body, axes, columns)
    return target


def _order(row: ResultRow) -> tuple[Any, ...]:
    """Prefill, then decode, then both, and within them by length and setting."""
    return row.n_gen > 0, row.n_prompt, row.n_gen, row.n_parallel, row.model_type, row.ran["n_threads"]


def name_series(keys: Sequence[tuple[Any, ...]]) -> list[str]:
    """A name for each series, of what differs; a model is named by its file only if its type does not tell it."""
    columns = {name: list(values) for name, values in zip(SERIES, zip(*keys, strict=True), strict=True)}
    models = dict.fromkeys(zip(columns["file"], columns["model_type"], strict=True))
    same = columns["file" if len(dict(reversed(pair) for pair in models)) == len(models) else "model_type"]
    for name, marks in (("file", "-."), ("model_type", " ")):
        whole = list(dict.fromkeys(columns[name]))
        shorter = dict(zip(whole, short_names(whole, marks), strict=True))
        columns[name] = [shorter[value] for value in columns[name]] if columns[name] is not same else []
    differing = [name for name, values in columns.items() if len(set(values)) > 1]
    return [label_of({name: columns[name][number] for name in differing}) for number in range(len(keys))]


def _draw(axis: Any, series: dict[str, list[ResultRow]]) -> None:
    set_speeds(axis, [drawn_speed(row) for rows in series.values() for row in rows])
    for number, (name, rows) in enumerate(series.items()):
        times: list[Any] = [datetime.fromisoformat(row.test_time) for row in rows if row.test_time]
        speeds = [drawn_speed(row) for row in rows]
        axis.plot(times, [speed.middle for speed in speeds], label=name or None, **look(number))
        draw_intervals(axis, times, [(speed.low, speed.high) for speed in speeds], color=look(number)["color"])
    set_dates(axis)
    axis.set_xlabel("time (UTC)")
