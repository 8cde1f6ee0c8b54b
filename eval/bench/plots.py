"""Pictures of throughput: what varies in the rows decides which; prefill and decode have panels of their own."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from lltool.eval.bench.record import Row
from lltool.eval.bench.rows import Interval, speed_of
from lltool.eval.figure import COLORS, LINES, MARKERS, add_title, picture
from lltool.gguf.errors import InputError

MOST_LINES = 6  # in one panel; beyond it the other parameters are held at one value each
SPEED = "tokens a second"


@dataclass(frozen=True)
class Parameter:
    """A number that can vary: how an axis names it, how a label does, and which value to hold it at."""

    axis: str
    label: str
    hold: Callable[[Sequence[Any]], Any]


PARAMETERS = {
    "n_threads": Parameter("threads", "{} threads", max),
    "length": Parameter("length (tokens)", "{} tokens", max),
    "n_depth": Parameter("depth (tokens already in the cache)", "depth {}", min),
    "n_batch": Parameter("logical batch (tokens)", "batch {}", max),
    "n_ubatch": Parameter("physical batch (tokens)", "ubatch {}", max),
    "n_gpu_layers": Parameter("layers on the GPU", "{} GPU layers", max),
    "n_parallel": Parameter("sequences at once", "{} sequences", max),
}
_USUAL = {"n_parallel": 1, "n_depth": 0}  # not worth a word
MAIN = ("engine", "model", "length", "n_threads")  # what engines can always be told to be alike in
# What else tells rows apart.
NAMES = (
    *("engine", "model", "type_k", "type_v", "flash_attn", "precision", "load_mode", "repack", "split_mode"),
    *("n_cpu_moe", "no_kv_offload", "cpu_mask"),
)


Key = tuple[tuple[str, Any], ...]  # the columns and values that tell a line from the others


@dataclass(frozen=True)
class Point:
    """A row as the pictures see it: its panel, its parameters and names by column, its speed, a word about it."""

    panel: str
    settings: Mapping[str, Any]
    speed: Interval
    note: str = ""


def points_of(rows: Sequence[Row]) -> list[Point]:
    """Raises InputError when there is nothing to draw."""
    if not rows:
        raise InputError("nothing to plot: no row has been measured")
    types = {row["model_type"] for row in rows}
    by_file = len({(row["model_type"], row["model_filename"]) for row in rows}) > len(types)
    points = []
    for row in rows:
        settings = {name: row.get(name) for name in (*PARAMETERS, *NAMES)}
        model = Path(row["model_filename"]).stem if by_file else row["model_type"]
        settings |= {"length": row["n_prompt"] + row["n_gen"], "model": model}
        settings["precision"] = row["settings"].get("precision")
        note = f"  {row['ratio']:.2f}×" if row.get("ratio") else ""
        point = Point(panel_of(row), settings, speed_of(row), note)
        if point not in points:  # asked for in two ways that come to the same
            points.append(point)
    return points


def panel_of(row: Row) -> str:
    return "prefill" if not row["n_gen"] else "decode" if not row["n_prompt"] else "prefill and decode together"


def plot_rows(rows: Sequence[Row], target: Path) -> Path:
    """Draws speed over each parameter that varies, and engines or models side by side where none does."""
    points = points_of(rows)
    varying = set(_vary_in(points))
    questions = [name for name in PARAMETERS if _panels_over(points, name)]
    has_bars = not questions or "engine" in varying
    panels = max([len(_panels_over(points, name)) for name in questions] + [len(_by_panel(points)) * has_bars])
    heights = [1.5 + 0.25 * _most_bars(points)] * has_bars + [4.0] * len(questions)
    with picture(target, 3.2 + 3.9 * panels, 0.9 + sum(heights)) as figure:
        body = add_title(figure, describe_rows(rows), describe_constants(rows, points, varying))
        parts = list(body.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        if has_bars:
            _draw_side_by_side(parts.pop(0), points)
        for part, name in zip(parts, questions, strict=True):
            _draw_over(part, points, name)
    return target


def describe_rows(rows: Sequence[Row]) -> str:
    """The title: what was measured and where."""
    models, machines = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model_type", "cpu_info"))
    devices = list(dict.fromkeys(row["gpu_info"] for row in rows if row.get("gpu_info") and row["n_gpu_layers"]))
    place = " + ".join([*(machines if len(machines) == 1 else [f"{len(machines)} machines"]), *devices])
    named = " and ".join(models) if len(models) < 3 else f"{len(models)} models"
    return f"{named} on {place or 'an unnamed machine'}"


def describe_constants(rows: Sequence[Row], points: Sequence[Point], varying: set[str]) -> str:
    """The subtitle: what held for all rows, how often each was run, on which day, what error bars are."""
    first = points[0].settings
    facts = [] if "engine" in varying else [first["engine"]]
    shown = [name for name in ("n_threads", "n_batch", "n_ubatch", "n_depth", "n_parallel") if name not in varying]
    facts += [label_of({name: first[name]}) for name in shown if first[name] not in (None, _USUAL.get(name))]
    if first["type_k"] and not {"type_k", "type_v"} & varying:
        facts.append(f"cache {first['type_k']}" + f"/{first['type_v']}" * (first["type_k"] != first["type_v"]))
    runs = sorted({len(row["samples_ns"]) for row in rows if row.get("samples_ns")})
    facts += [f"{'–'.join(str(n) for n in dict.fromkeys((runs[0], runs[-1])))} runs each"] if runs else []
    days = sorted({str(row["test_time"])[:10] for row in rows if row.get("test_time")})
    facts += [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else []
    errors = describe_errors([point.speed for point in points])
    ratio = (
        "; ×: how many times as fast lltool is, the median of neighbouring runs" if any(p.note for p in points) else ""
    )
    return " · ".join(facts) + f"\n{errors}{ratio}"


def describe_errors(speeds: Sequence[Interval]) -> str:
    """What error bars are."""
    return f"error bars: {' or '.join(dict.fromkeys(speed.kind for speed in speeds))}"


def top_of(speeds: Sequence[Interval]) -> float:
    """As far as a picture goes: an interval that is far wider than the speeds must not make them small."""
    return min(max(speed.high for speed in speeds), 2 * max(speed.middle for speed in speeds))


def _by_panel(points: Sequence[Point]) -> dict[str, list[Point]]:
    panels: dict[str, list[Point]] = {}
    for point in points:
        panels.setdefault(point.panel, []).append(point)
    return panels


def _panels_over(points: Sequence[Point], name: str) -> dict[str, list[Point]]:
    """The panels in which this parameter varies."""
    return {
        panel: found
        for panel, found in _by_panel(points).items()
        if len({point.settings[name] for point in found} - {None}) > 1
    }


def _vary_in(points: Sequence[Point]) -> list[str]:
    """What tells the points apart; a setting that just goes with the engine does not."""
    found = []
    for name in (*NAMES, *PARAMETERS):
        values = {(point.settings["engine"] if name not in MAIN else "", point.settings[name]) for point in points}
        if len(values) > len({engine for engine, _ in values}):
            found.append(name)
    return found


def _draw_over(part: Any, points: Sequence[Point], name: str) -> None:
    """Speed over one parameter: a panel each for prefill and decode, a line for each combination of the others."""
    panels = _panels_over(points, name)
    axes = part.subplots(1, len(panels), squeeze=False)[0]
    for axis, (panel, found) in zip(axes, panels.items(), strict=True):
        kept, held = _hold(found, name)
        held |= {other: kept[0].settings[other] for other in ("length",) if other not in (name, *_vary_in(kept))}
        lines = _lines(kept, name)
        places = _scale(axis, sorted({point.settings[name] for point in kept}), name)
        for number, (key, line) in enumerate(lines.items()):
            line.sort(key=lambda point: point.settings[name])
            middle, below, above = error_bars([point.speed for point in line])
            axis.errorbar(
                [places[point.settings[name]] for point in line],
                middle,
                (below, above),
                capsize=3,
                elinewidth=1.1,
                label=label_of(dict(key)),
                transform=_beside(axis, 3 * (number - (len(lines) - 1) / 2)),
                **_looks(list(lines))[key],
            )
        axis.set_title(", ".join([panel, *([label_of(held)] if held else [])]))
        length = {"prefill": "prompt ", "decode": "generated "}.get(panel, "") if name == "length" else ""
        axis.set_xlabel(f"{length}{PARAMETERS[name].axis}")
        axis.set_ylabel(SPEED)
        axis.set_ylim(0, 1.08 * top_of([point.speed for point in kept]))
    add_legends(part, axes)


def _lines(points: Sequence[Point], name: str) -> dict[Key, list[Point]]:
    """The points of each combination of what varies besides this parameter."""
    lines: dict[Key, list[Point]] = {}
    for point in points:
        key = tuple((other, point.settings[other]) for other in _vary_in(points) if other != name)
        lines.setdefault(key, []).append(point)
    return lines


def add_legends(part: Any, axes: Sequence[Any]) -> None:
    """One legend under all panels where they have the same lines, else one under each; none for a single line."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    longest = max((len(label) for _, labels in found for label in labels), default=0)
    columns = 3 if longest < 34 else 2
    if all(labels == found[0][1] for _, labels in found):
        if len(found[0][1]) > 1:
            part.legend(*found[0], loc="outside lower center", ncols=columns if len(axes) > 1 else 2)
        return
    for axis, (handles, labels) in zip(axes, found, strict=True):
        columns = 2 if longest < 34 else 1
        axis.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)


def _hold(points: list[Point], name: str) -> tuple[list[Point], dict[str, Any]]:
    """Points at one value of as many other parameters as must be held for the lines to be few, and those values."""
    held: dict[str, Any] = {}
    others = [other for other in _vary_in(points) if other in PARAMETERS and other != name]
    for other in sorted(others, key=lambda other: len({point.settings[other] for point in points}), reverse=True):
        if len(_lines(points, name)) <= MOST_LINES:
            break
        counts = Counter(point.settings[other] for point in points)
        often = [value for value, count in counts.items() if count == max(counts.values())]
        held[other] = PARAMETERS[other].hold(often)
        points = [point for point in points if point.settings[other] == held[other]]
    return points, held


def _beside(axis: Any, shift: float) -> Any:
    """Data coordinates, moved so many points to the right: error bars of several lines are all seen."""
    from matplotlib.transforms import ScaledTranslation

    return axis.transData + ScaledTranslation(shift / 72, 0, axis.figure.dpi_scale_trans)


def _looks(keys: Sequence[Key]) -> dict[Key, dict[str, str]]:
    """Colour tells the first thing that differs, marker and dashes the rest; without a rest the marker tells it too."""
    heads, rests = (list(dict.fromkeys(key[part] for key in keys)) for part in (slice(1), slice(1, None)))
    looks = {}
    for key in keys:
        head, rest = heads.index(key[:1]), rests.index(key[1:])
        mark = rest if len(rests) > 1 else head
        dashes = LINES[mark % len(LINES)]
        looks[key] = {"color": COLORS[head % len(COLORS)], "marker": MARKERS[mark % len(MARKERS)], "linestyle": dashes}
    return looks


def _scale(axis: Any, values: Sequence[int], name: str) -> dict[int, float]:
    """Where each value stands, with ticks there: lengths and batches that double on a logarithmic axis."""
    places = {value: float(value) for value in values}
    if values[0] > 0 and values[-1] >= 8 * values[0]:
        axis.set_xscale("log", base=2)
    elif name == "n_gpu_layers" and len(values) > 2 and values[-1] > 2 * values[-2]:
        places[values[-1]] = values[-2] + values[-2] / (len(values) - 2)  # 99 stands for all of them
    ticks = [values[0]]
    room = (places[values[-1]] - places[values[0]]) / 13
    for value in values[1:]:
        if axis.get_xscale() == "log" or places[value] - places[ticks[-1]] > room:
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


def _draw_side_by_side(part: Any, points: Sequence[Point]) -> None:
    """Bars: a group for each model and setting, in it a bar for each engine."""
    panels = _by_panel(points)
    axes = part.subplots(1, len(panels), squeeze=False)[0]
    series = list(dict.fromkeys(point.settings["engine"] for point in points))
    for axis, (panel, found) in zip(axes, panels.items(), strict=True):
        groups: dict[str, dict[str, Point]] = {}
        told = [name for name in _vary_in(found) if name != "engine"]
        for point in found:
            shown = {name: point.settings[name] for name in ("model", *told)}
            groups.setdefault(label_of(shown).replace(", ", "\n"), {})[point.settings["engine"]] = point
        _draw_bars(axis, groups, series)
        axis.set_title(panel if "length" in told else f"{panel}, {label_of({'length': found[0].settings['length']})}")
    if len(series) > 1:
        add_legends(part, axes)


def _most_bars(points: Sequence[Point]) -> int:
    return max(len(found) for found in _by_panel(points).values())


def _draw_bars(axis: Any, groups: Mapping[str, Mapping[str, Point]], series: Sequence[str]) -> None:
    """Lying bars with their values and notes: groups from above to below, in each a bar for each of `series`."""
    points = [point for group in groups.values() for point in group.values()]
    top = top_of([point.speed for point in points])
    height = 0.8 / len(series)
    for number, name in enumerate(series):
        bars = [(i, group[name]) for i, group in enumerate(groups.values()) if name in group]
        places = [i + (number - (len(series) - 1) / 2) * height for i, _ in bars]
        middle, below, above = error_bars([point.speed for _, point in bars], top)
        color = COLORS[number % len(COLORS)]
        axis.barh(places, middle, 0.92 * height, color=color, label=name)
        axis.errorbar(middle, places, xerr=(below, above), fmt="none", ecolor="#222222", capsize=2.5, elinewidth=1)
        for place, (_, point) in zip(places, bars, strict=True):
            text, end = _figures(point.speed.middle) + point.note, min(point.speed.high, top)
            axis.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(groups)), list(groups))
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, (1.35 if any(point.note for point in points) else 1.18) * top)
    axis.set_xlabel(SPEED)


def error_bars(speeds: Sequence[Interval], top: float = inf) -> tuple[list[float], list[float], list[float]]:
    """Middles, and how far error bars go below and above them, to `top` at most."""
    return (
        [speed.middle for speed in speeds],
        [speed.middle - speed.low for speed in speeds],
        [min(speed.high, top) - speed.middle for speed in speeds],
    )


def _figures(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def label_of(settings: Mapping[str, Any]) -> str:
    """As in `llama 135M Q4_0, 2 threads`."""
    parts = []
    for name, value in settings.items():
        if name in PARAMETERS:
            text = PARAMETERS[name].label.format(value)
            parts.append(text.removesuffix("s") if value == 1 else text)
        else:
            parts.append(f"{name} {value}" if name in NAMES[2:] else str(value))
    return ", ".join(parts)
