"""Draws throughput: the columns that vary decide the plots, and prefill and decode have separate panels."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path
from textwrap import fill
from typing import Any

from lltool.eval.bench.results.rows import Interval, ResultRow, speed_of
from lltool.eval.bench.settings import SETTINGS, WORKLOAD, Axis
from lltool.eval.common.figure import (
    COLORS,
    LINES,
    MARKERS,
    add_legends,
    add_panels,
    add_title,
    beside,
    draw_intervals,
    legend_height,
    picture,
    plain,
    set_log,
)
from lltool.eval.common.names import short_names
from lltool.gguf.errors import InputError

MOST_LINES = 6  # in one panel; if there were more, other parameters are held at one value each
SPEED = "speed (tokens a second)"
FEWEST_RUNS = 3  # an interval of fewer runs is too wide to be drawn
FEW_RUNS = f"none for fewer than {FEWEST_RUNS} runs"
PANEL_HEIGHT = 3.0  # inches, without a legend
LABEL_WIDTH = 34  # characters
_PANEL_WIDTH = 200  # points between the first and the last tick, at least
_LOG_FROM = 20  # the ratio of speeds from which their axis is logarithmic


MAIN = ("engine", "model", "n_threads", "length")  # columns that can be compared between any engines
_AXES = {described.column: described.axis for described in (*WORKLOAD, *SETTINGS) if described.axis}
_AXES["length"] = Axis("length (tokens)", "{} tokens")
# How numbers that can vary are shown, by column; those of MAIN first.
AXES = {name: _AXES[name] for name in sorted(_AXES, key=lambda name: MAIN.index(name) if name in MAIN else len(MAIN))}
# The other columns that can distinguish rows.
NAMES = ("engine", "model", *(setting.column for setting in SETTINGS if not setting.axis))
_USUAL = {described.column: described.default for described in WORKLOAD}  # values that the subtitle leaves out

Key = tuple[tuple[str, Any], ...]  # the columns and values that distinguish a line from the others
Block = tuple[float, Callable[[Any], None]]  # a row of panels: its height in inches, and how a subfigure gets it


@dataclass(frozen=True)
class SpeedPoint:
    """A row as the plots use it: its panel, its parameters and names by column, its speed, and a note."""

    panel: str
    settings: Mapping[str, Any]
    speed: Interval
    note: str = ""


def points_of(rows: Sequence[ResultRow]) -> list[SpeedPoint]:
    """The points of the rows, without duplicates. Raises InputError if there is nothing to draw."""
    if not rows:
        raise InputError("nothing to plot: no row has been measured")
    types = {row.model_type for row in rows}
    by_file = len({(row.model_type, row.model_filename) for row in rows}) > len(types)
    models = list(dict.fromkeys(Path(row.model_filename).stem if by_file else row.model_type for row in rows))
    shorter = dict(zip(models, short_names(models, "-." if by_file else " ") if models[1:] else models, strict=True))
    points = []
    for row in rows:
        special = {
            "engine": row.engine,
            "model": shorter[Path(row.model_filename).stem if by_file else row.model_type],
            "length": row.n_prompt + row.n_gen,
            "precision": row.precision,
        }
        settings = {name: special[name] if name in special else row.column(name) for name in (*AXES, *NAMES)}
        note = f"  {row.ratio:.2f}×" if row.ratio else ""
        point = SpeedPoint(panel_of(row), settings, drawn_speed(row), note)
        if point not in points:  # the same measurement can be asked for in two ways
            points.append(point)
    return points


def drawn_speed(row: ResultRow) -> Interval:
    """The speed of a row, with the interval that a picture shows."""
    speed = speed_of(row)
    few = has_few_runs(row)
    return Interval(speed.middle, speed.middle, speed.middle, FEW_RUNS) if few or not speed.is_known else speed


def has_few_runs(row: ResultRow) -> bool:
    """Whether a row has too few runs for an interval; a row that does not hold its runs is taken at its word."""
    return 0 < len(row.samples_ts or ()) < FEWEST_RUNS


def panel_of(row: ResultRow) -> str:
    return "prefill" if not row.n_gen else "decode" if not row.n_prompt else "prefill and decode together"


def plot_rows(rows: Sequence[ResultRow], target: Path) -> Path:
    """Draws speed over each parameter that varies, and bars if none does or engines are compared."""
    points = points_of(rows)
    varying = set(_vary_in(points))
    swept = [name for name in AXES if _panels_over(points, name)]
    blocks = [_side_by_side(points)] if not swept or "engine" in varying else []
    blocks += [_over(points, name) for name in swept]
    heights = [height for height, _ in blocks]
    with picture(target, 0.9 + sum(heights)) as figure:
        body = add_title(figure, describe_rows(rows), describe_constants(rows, points, varying))
        subfigures = body.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
        for subfigure, (_, draw) in zip(subfigures, blocks, strict=True):
            draw(subfigure)
    return target


def describe_rows(rows: Sequence[ResultRow]) -> str:
    """The title: what was measured and where."""
    models, machines = (list(dict.fromkeys(row.column(name) for row in rows)) for name in ("model_type", "cpu_info"))
    devices = list(dict.fromkeys(row.gpu_info for row in rows if row.gpu_info and row.ran["n_gpu_layers"]))
    place = " + ".join([*(machines if len(machines) == 1 else [f"{len(machines)} machines"]), *devices])
    shorter = short_names(models, " ")
    same = models[0].removesuffix(shorter[0]) if models[1:] else ""
    named = same + (" and " if len(models) < 3 else ", ").join(shorter if same else models)
    return f"{named if len(models) < 6 else f'{same}{len(models)} models'} on {place or 'an unnamed machine'}"


def describe_constants(rows: Sequence[ResultRow], points: Sequence[SpeedPoint], varying: set[str]) -> str:
    """The subtitle: settings common to all rows, runs of each, days, and the meaning of the error bars."""
    first = points[0].settings
    facts = [] if "engine" in varying else [first["engine"]]
    shown = [name for name in ("n_threads", "n_batch", "n_ubatch", "n_depth", "n_parallel") if name not in varying]
    facts += [label_of({name: first[name]}) for name in shown if first[name] not in (None, _USUAL.get(name))]
    if first["type_k"] and not {"type_k", "type_v"} & varying:
        facts.append(f"cache {first['type_k']}" + f"/{first['type_v']}" * (first["type_k"] != first["type_v"]))
    runs = sorted({len(row.samples_ns) for row in rows if row.samples_ns})
    if runs:
        facts.append(f"{'–'.join(str(n) for n in dict.fromkeys((runs[0], runs[-1])))} run{'s' * (runs[-1] > 1)} each")
    days = sorted({row.test_time[:10] for row in rows if row.test_time})
    facts += [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    errors = describe_errors([point.speed for point in points])
    ratio = (
        "; ×: how many times as fast lltool is, the median of neighbouring runs" if any(p.note for p in points) else ""
    )
    return " · ".join(facts) + f"\n{errors}{ratio}"


def describe_errors(speeds: Sequence[Interval]) -> str:
    """The meaning of the error bars."""
    arrows = "; an arrow: it reaches beyond the axis" if any(speed.high > 2 * speed.middle for speed in speeds) else ""
    return f"error bars: {' or '.join(dict.fromkeys(speed.kind for speed in speeds))}{arrows}"


def top_of(speeds: Sequence[Interval]) -> float:
    """The upper limit of an axis: an interval far wider than the speeds must not make them small."""
    return min(max(speed.high for speed in speeds), 2 * max(speed.middle for speed in speeds))


def set_speeds(axis: Any, speeds: Sequence[Interval]) -> None:
    """Sets the vertical axis for these speeds: from 0, or logarithmic if they differ by a large factor."""
    axis.set_ylabel(SPEED)
    least, most = (chosen(speed.middle for speed in speeds) for chosen in (min, max))
    if most > _LOG_FROM * least:
        axis.set_ylim(least / 2, 2 * most)
        set_log(axis, "y")
    else:
        axis.set_ylim(0, 1.08 * top_of(speeds))


def _by_panel(points: Sequence[SpeedPoint]) -> dict[str, list[SpeedPoint]]:
    panels: dict[str, list[SpeedPoint]] = {}
    for point in points:
        panels.setdefault(point.panel, []).append(point)
    return panels


def _panels_over(points: Sequence[SpeedPoint], name: str) -> dict[str, list[SpeedPoint]]:
    """The panels in which this parameter varies."""
    return {
        panel: found
        for panel, found in _by_panel(points).items()
        if len({point.settings[name] for point in found} - {None}) > 1
    }


def _vary_in(points: Sequence[SpeedPoint]) -> list[str]:
    """The columns that distinguish the points; a setting that only differs between engines does not count."""
    found = []
    for name in (*NAMES, *AXES):
        values = {(point.settings["engine"] if name not in MAIN else "", point.settings[name]) for point in points}
        if len(values) > len({engine for engine, _ in values}):
            found.append(name)
    return found


def _over(points: Sequence[SpeedPoint], name: str) -> Block:
    """Speed over one parameter: a panel each for prefill and decode, a line for each combination of the others."""
    panels = {}
    for panel, found in _panels_over(points, name).items():
        kept, held = _hold(found, name)
        held |= {other: kept[0].settings[other] for other in ("length",) if other not in (name, *_vary_in(kept))}
        panels[", ".join([panel, *([label_of(held)] if held else [])])] = panel, _lines(kept, name)
    labels = [[label_of(dict(key)) for key in lines] for _, lines in panels.values()]

    def draw(subfigure: Any) -> None:
        axes = add_panels(subfigure, len(panels))
        for axis, (title, (panel, lines)) in zip(axes, panels.items(), strict=True):
            _draw_lines(axis, lines, name)
            axis.set_title(title)
            length = {"prefill": "prompt ", "decode": "generated "}.get(panel, "") if name == "length" else ""
            axis.set_xlabel(f"{length}{AXES[name].title}")
        add_legends(subfigure, axes)

    return PANEL_HEIGHT * ceil(len(panels) / 2) + legend_height(labels), draw


def _draw_lines(axis: Any, lines: dict[Key, list[SpeedPoint]], name: str) -> None:
    kept = [point for line in lines.values() for point in line]
    places = _scale(axis, sorted({point.settings[name] for point in kept}), name)
    set_speeds(axis, [point.speed for point in kept])
    looks = _looks(list(lines))
    for number, (key, line) in enumerate(lines.items()):
        line.sort(key=lambda point: point.settings[name])
        moved = beside(axis, 3 * (number - (len(lines) - 1) / 2))
        xs = [places[point.settings[name]] for point in line]
        axis.plot(xs, [p.speed.middle for p in line], label=label_of(dict(key)), transform=moved, **looks[key])
        bounds = [(p.speed.low, p.speed.high) for p in line]
        draw_intervals(axis, xs, bounds, color=looks[key]["color"], transform=moved)


def _lines(points: Sequence[SpeedPoint], name: str) -> dict[Key, list[SpeedPoint]]:
    """The points of each line: a line for each combination of the other columns that vary."""
    lines: dict[Key, list[SpeedPoint]] = {}
    for point in points:
        key = tuple((other, point.settings[other]) for other in _vary_in(points) if other != name)
        lines.setdefault(key, []).append(point)
    return lines


def _hold(points: list[SpeedPoint], name: str) -> tuple[list[SpeedPoint], dict[str, Any]]:
    """Holds other parameters at one value each until MOST_LINES is kept; returns the points left and those values."""
    held: dict[str, Any] = {}
    others = [other for other in _vary_in(points) if other in AXES and other != name]
    for other in sorted(others, key=lambda other: len({point.settings[other] for point in points}), reverse=True):
        if len(_lines(points, name)) <= MOST_LINES:
            break
        counts = Counter(point.settings[other] for point in points)
        often = [value for value, count in counts.items() if count == max(counts.values())]
        held[other] = AXES[other].hold(often)
        points = [point for point in points if point.settings[other] == held[other]]
    return points, held


def _looks(keys: Sequence[Key]) -> dict[Key, dict[str, str]]:
    """Colour shows the first column that differs, marker and dashes the rest; without a rest they show it too."""
    heads, rests = (list(dict.fromkeys(key[part] for key in keys)) for part in (slice(1), slice(1, None)))
    looks = {}
    for key in keys:
        head, rest = heads.index(key[:1]), rests.index(key[1:])
        mark = rest if len(rests) > 1 else head
        dashes = LINES[mark % len(LINES)]
        looks[key] = {"color": COLORS[head % len(COLORS)], "marker": MARKERS[mark % len(MARKERS)], "linestyle": dashes}
    return looks


def _scale(axis: Any, values: Sequence[int], name: str) -> dict[int, float]:
    """Sets ticks at the values and returns their places; a range of a factor of 8 or more is logarithmic."""
    places = {value: float(value) for value in values}
    if values[0] > 0 and values[-1] >= 8 * values[0]:
        axis.set_xscale("log", base=2)
    elif name == "n_gpu_layers" and len(values) > 2 and values[-1] > 2 * values[-2]:
        places[values[-1]] = values[-2] + values[-2] / (len(values) - 2)  # 99 stands for all layers
    scaled = {value: log(place) if axis.get_xscale() == "log" else place for value, place in places.items()}
    ticks = [values[0]]
    for value in values[1:]:
        room = (4 + 3 * len(f"{value}{ticks[-1]}")) / _PANEL_WIDTH * (scaled[values[-1]] - scaled[values[0]])
        if scaled[value] - scaled[ticks[-1]] > room:
            ticks.append(value)
    axis.set_xticks([places[value] for value in ticks], [str(value) for value in ticks])
    axis.minorticks_off()
    first, last = places[values[0]], places[values[-1]]
    if axis.get_xscale() == "log":
        room = (last / first) ** 0.08
        axis.set_xlim(first / room, last * room)
    else:
        room = 0.08 * (last - first)
        axis.set_xlim(first - room, last + room)
    return places


def _side_by_side(points: Sequence[SpeedPoint]) -> Block:
    """Bars: a group for each model and combination of settings that differ, with a bar for each engine."""
    panels: dict[str, dict[str, dict[str, SpeedPoint]]] = {}
    series = list(dict.fromkeys(point.settings["engine"] for point in points))
    for panel, found in _by_panel(points).items():
        named = [name for name in _vary_in(found) if name != "engine"]
        title = panel if "length" in named else f"{panel}, {label_of({'length': found[0].settings['length']})}"
        groups = panels.setdefault(title, {})
        for point in found:
            shown = {name: point.settings[name] for name in named or ("model",)}
            label = "\n".join(fill(part, LABEL_WIDTH) for part in label_of(shown).split(", "))
            groups.setdefault(label, {})[point.settings["engine"]] = point
    labels = [label for groups in panels.values() for label in groups]
    tallest = max(0.24 * len(series), *(0.17 * (label.count("\n") + 1) for label in labels)) + 0.08
    columns = 2 if max(len(line) for label in labels for line in label.split("\n")) < 20 else 1
    counts = [max(2, len(groups)) for groups in panels.values()]
    rows = [max(counts[first : first + columns]) for first in range(0, len(counts), columns)]

    def draw(subfigure: Any) -> None:
        axes = add_panels(subfigure, len(panels), columns)
        for axis, (title, groups) in zip(axes, panels.items(), strict=True):
            _draw_bars(axis, groups, series)
            axis.set_title(title)
        if len(series) > 1:
            add_legends(subfigure, axes)

    return sum(0.85 + tallest * count for count in rows) + legend_height([series]), draw


def _draw_bars(axis: Any, groups: Mapping[str, Mapping[str, SpeedPoint]], series: Sequence[str]) -> None:
    """Draws horizontal bars with their values and notes: groups from top to bottom, a bar for each of `series`."""
    points = [point for group in groups.values() for point in group.values()]
    top, height = top_of([point.speed for point in points]), 0.8 / len(series)
    has_notes = any(point.note for point in points)
    axis.set_xlim(0, (1.42 if has_notes else 1.22) * top)
    for number, name in enumerate(series):
        bars = [(i, group[name]) for i, group in enumerate(groups.values()) if name in group]
        places = [i + (number - (len(series) - 1) / 2) * height for i, _ in bars]
        color = COLORS[number % len(COLORS)]
        axis.barh(places, [point.speed.middle for _, point in bars], 0.92 * height, color=color, label=name)
        draw_intervals(axis, places, [(point.speed.low, point.speed.high) for _, point in bars], along="x", limit=top)
        for place, (_, point) in zip(places, bars, strict=True):
            text, end = _figures(point.speed.middle) + point.note, min(point.speed.high, top)
            axis.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center")
    room = max(0.0, (2 - len(groups)) / 2)  # a single bar must not fill the panel
    axis.set_ylim(len(groups) - 0.5 + room, -0.5 - room)
    axis.set_yticks(range(len(groups)), [plain(label) for label in groups])
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(SPEED)


def _figures(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def label_of(settings: Mapping[str, Any]) -> str:
    """A label such as `llama 135M Q4_0, 2 threads`."""
    parts = []
    for name, value in settings.items():
        if name in AXES:
            text = AXES[name].label.format(value)
            parts.append(text.removesuffix("s") if value == 1 else text)
        else:
            parts.append(f"{name} {value}" if name in NAMES[2:] else str(value))
    return ", ".join(parts)
