"""Draws what was measured through servers: speed, latencies and processor time, a series for each server."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lltool.eval.bench.plots.speed import FEW_RUNS, FEWEST_RUNS, describe_errors, set_speeds
from lltool.eval.bench.results.rows import Interval
from lltool.eval.bench.through.rows import ServedRow
from lltool.eval.common.figure import (
    add_legends,
    add_panels,
    add_title,
    beside,
    draw_intervals,
    legend_height,
    look,
    picture,
    plain,
)

_PANEL_HEIGHT = 2.6
_LATENCIES = {
    "time to the first token": ("first_ms_p50", "first_ms_p95"),
    "time between tokens": ("token_ms_p50", "token_ms_p95"),
}


def plot_served(rows: Sequence[ServedRow], target: Path) -> Path:
    """A panel each for speed, first token, further tokens and, where it is known, processor time."""
    servers = list(dict.fromkeys(row.server for row in rows))
    tests = list(dict.fromkeys(_label(row) for row in rows))
    costs = [row for row in rows if row.processor_ms is not None]
    count = 3 + bool(costs)
    height = 1.2 + _PANEL_HEIGHT * ((count + 1) // 2) + legend_height([servers])
    model, speeds = Path(rows[0].model).stem, {id(row): _drawn_speed(row) for row in rows}
    errors = describe_errors(list(speeds.values()))
    subtitle = f"{rows[0].test_time[:10]} · {errors}; latencies: the median, and a line up to the 95th percentile"
    with picture(target, height) as figure:
        body = add_title(figure, f"{model} through {' and '.join(servers)}", subtitle)
        axes = add_panels(body, count)
        set_speeds(axes[0], list(speeds.values()))
        drawn = {key: (speed.middle, speed.low, speed.high) for key, speed in speeds.items()}
        _draw(axes[0], rows, servers, tests, drawn)
        axes[0].set_title("speed")
        for axis, (title, (low, high)) in zip(axes[1:], _LATENCIES.items(), strict=False):
            values = {id(row): (getattr(row, low), getattr(row, low), getattr(row, high)) for row in rows}
            known = {key: found for key, found in values.items() if None not in found}
            axis.set_ylim(0, 1.08 * max((found[2] for found in known.values()), default=1.0))
            _draw(axis, rows, servers, tests, known)
            axis.set_title(title)
            axis.set_ylabel("ms")
        if costs:
            axes[3].set_ylim(0, 1.08 * max(row.processor_ms or 0.0 for row in costs))
            _draw(axes[3], costs, servers, tests, {id(row): (row.processor_ms,) * 3 for row in costs})
            axes[3].set_title("processor time of the server")
            axes[3].set_ylabel("ms a token")
        add_legends(body, axes)
    return target


def _drawn_speed(row: ServedRow) -> Interval:
    few = len(row.samples_ts) < FEWEST_RUNS
    return Interval(row.median_ts, row.median_ts, row.median_ts, FEW_RUNS) if few else row.speed


def _label(row: ServedRow) -> str:
    return row.test + (f"\n{row.clients} clients" if row.clients > 1 else "")


def _draw(
    axis: Any, rows: Sequence[ServedRow], servers: Sequence[str], tests: Sequence[str], values: Mapping[int, Any]
) -> None:
    """A point with its interval for each row: its middle, low and high are values[id(row)]."""
    for number, server in enumerate(servers):
        found = [
            (tests.index(_label(row)), values[id(row)]) for row in rows if row.server == server and id(row) in values
        ]
        moved, style = beside(axis, 7 * (number - (len(servers) - 1) / 2)), {**look(number), "linestyle": "none"}
        places = [place for place, _ in found]
        axis.plot(places, [middle for _, (middle, _, _) in found], label=server, transform=moved, **style)
        bounds = [(low, high) for _, (_, low, high) in found]
        draw_intervals(axis, places, bounds, color=style["color"], transform=moved)
    axis.set_xticks(range(len(tests)), [plain(test) for test in tests])
    axis.set_xlim(-0.5, len(tests) - 0.5)
