"""Plots for choosing a file: cost against loss, a line for each family of types, names that do not collide."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import cos, hypot, pi, sin
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any

from lltool.eval.common.figure import INK, add_panels, draw_intervals, look, picture, plain, set_log

# Placeholders for the colours of the page, so that one drawing serves light, dark and print.
_PAGE = {"#010203": "var(--ink)", "#040506": "var(--faint)"}
_ON_WHITE = (INK, "#bbbbbb")

_WIDTH, _HEIGHT = 4.4, 4.2  # inches
# Kinds of types by their names, which parts of the names of files hold.
_FAMILIES = {"ternary types": r"TQ\d", "I types": r"IQ\d", "K types": r"Q\d_K", "legacy types": r"Q\d_[01]"}
_GAP = 3.0  # pixels kept free around a name
_DISTANCES = (9, 16, 26, 40, 60, 84)  # pixels from a point to its name


@dataclass(frozen=True)
class PlottedFile:
    """A file's place in a plot; `error` is one standard error of `y`."""

    name: str
    x: float
    y: float
    error: float = 0.0


@dataclass(frozen=True)
class Plot:
    """Points, of which those on the Pareto front are named in bold: smaller is better in both directions.

    `at_zero` are (name, x) of files whose loss is 0 by definition; `note` says what is bold or left out.
    """

    title: str
    x_label: str
    y_label: str
    points: Sequence[PlottedFile]
    at_zero: Sequence[tuple[str, float]] = ()
    note: str = ""


def family_of(name: str) -> str:
    """The family of the type that a file's name tells; of a name that tells none, the name."""
    found = (family for family, pattern in _FAMILIES.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, name)


def front(costs: Sequence[Sequence[float]]) -> list[int]:
    """The indices of the rows on the Pareto front, which no row beats: as good in all columns and better in one.

    Smaller is better.
    """

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)

    return [i for i, row in enumerate(costs) if not any(beats(other, row) for other in costs)]


def draw_svg(plot: Plot) -> str:
    """An SVG element for a page, in the page's colours (`--ink`, `--faint`)."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "plot.svg"
        with picture(target, _HEIGHT, _WIDTH, **{"svg.fonttype": "none"}) as figure:  # text stays text
            figure.patch.set_visible(False)
            _draw(figure.subplots(), plot, *_PAGE)
        text = target.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    for color, name in _PAGE.items():
        text = text.replace(color, name)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids must differ between the plots of a page.
    prefix = re.sub(r"\W+", "-", plot.title)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', _opening(plot.title), text, count=1)


def _opening(title: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{title}">'
    )


def draw_png(plots: Sequence[Plot], target: Path) -> None:
    """Draws the plots side by side on white."""
    with picture(target, _HEIGHT, _WIDTH * len(plots)) as figure:
        for axis, plot in zip(add_panels(figure, len(plots)), plots, strict=True):
            _draw(axis, plot, *_ON_WHITE)


def _draw(axis: Any, plot: Plot, ink: str, faint: str) -> None:
    points = plot.points
    best = {points[i].name for i in front([(point.x, point.y) for point in points])}
    _set_limits(axis, plot)
    bounds = [(p.y - p.error, p.y + p.error) for p in points]
    draw_intervals(axis, [p.x for p in points], bounds, color=ink)
    families: dict[str, list[PlottedFile]] = {}
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        families.setdefault(family_of(point.name), []).append(point)
    for number, (family, found) in enumerate(sorted(families.items())):
        label = family if family in _FAMILIES else None
        axis.plot([p.x for p in found], [p.y for p in found], label=label, **look(number) | {"linestyle": "-"})
    bottom = axis.get_ylim()[0]
    for _, x in plot.at_zero:
        axis.plot([x], [bottom], marker="v", markersize=8, color=ink, clip_on=False, zorder=4)
    axis.set_title(plot.title, color=ink)
    axis.set_xlabel("\n".join([plot.x_label, *[fill(plot.note, 60)] * bool(plot.note)]), color=ink)
    axis.set_ylabel(plain(plot.y_label), color=ink)
    axis.tick_params(colors=ink, which="both")
    axis.patch.set_visible(False)
    axis.grid(color=faint, alpha=0.4, linewidth=0.6)
    for spine in axis.spines.values():
        spine.set_color(faint)
    if len(families) > 1 and axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=3, labelcolor=ink)
    lines = [[(p.x, p.y) for p in found] for found in families.values()]
    names = [(p.name, p.x, p.y, p.name in best) for p in points]
    names += [(f"{name} (0)", x, bottom, False) for name, x in plot.at_zero]
    place_names(axis, names, ink, lines)


def _set_limits(axis: Any, plot: Plot) -> None:
    """Leaves room for names on all sides, and starts x at 0 so that lengths are comparable."""
    points = plot.points
    axis.set_xlim(0, 1.22 * max([p.x for p in points] + [x for _, x in plot.at_zero], default=1.0))
    low, high = min((p.y for p in points), default=0.0), max((p.y for p in points), default=1.0)
    if low > 0 and high > 8 * low:
        axis.set_ylim(low / 2, high * 2)
        set_log(axis, "y")
    else:
        low, high = min(p.y - p.error for p in points), max(p.y + p.error for p in points)
        room = 0.15 * (high - low or abs(high) or 1.0)
        axis.set_ylim(low - room, high + room)


def place_names(
    axis: Any,
    names: Sequence[tuple[str, float, float, bool]],
    ink: str,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
) -> list[Any]:
    """Writes (name, x, y, is bold) beside the points, if possible clear of names, marks, the border and `lines`."""
    figure = axis.figure
    figure.canvas.draw()  # fixes the layout, so that positions on the canvas are known
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    border = axis.get_window_extent(renderer)
    spots = [tuple(axis.transData.transform((x, y))) for _, x, y, _ in names]
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in spots]
    corners = [[tuple(axis.transData.transform(place)) for place in line] for line in lines]
    for (ax, ay), (bx, by) in chain.from_iterable(map(pairwise, corners)):
        for part in (step / 40 for step in range(41)):
            x, y = ax + part * (bx - ax), ay + part * (by - ay)
            taken.append((x - 1, y - 1, x + 1, y + 1))
    placed = []
    for (name, x, y, is_bold), (px, py) in zip(names, spots, strict=True):
        text = axis.annotate(
            plain(name),
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=ink,
            fontweight="bold" if is_bold else "normal",
            annotation_clip=False,
            zorder=5,
        )
        box = text.get_window_extent(renderer)
        width, height = box.width, box.height

        def overlap(left: float, base: float, width: float = width, height: float = height) -> float:
            mine = (left - _GAP, base - _GAP, left + width + _GAP, base + height + _GAP)
            beyond = border.x0 - mine[0], mine[2] - border.x1, border.y0 - mine[1], mine[3] - border.y1
            return sum(max(0.0, float(length)) for length in beyond) * height + sum(
                _common_area(mine, other) for other in taken
            )

        # Positions around the point: the nearest ring first, and in each ring the right side first.
        places = []
        for distance in _DISTANCES:
            for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6):
                dx, dy = cos(step * pi / 6) * distance * scale, sin(step * pi / 6) * distance * scale
                left = px + dx - width * (1 - cos(step * pi / 6)) / 2
                places.append((left, py + dy - height / 2))
        left, base = min(places, key=lambda place: overlap(*place))  # of several free places, the first
        text.set_position(((left - px) / scale, (base - py) / scale))
        taken.append((left, base, left + width, base + height))
        nearest = (min(max(px, left), left + width), min(max(py, base), base + height))
        if hypot(nearest[0] - px, nearest[1] - py) > 14 * scale:
            ends = axis.transData.inverted().transform([(px, py), nearest])
            axis.plot(ends[:, 0], ends[:, 1], color=ink, linewidth=0.5, alpha=0.6, zorder=2)
        placed.append(text)
    return placed


def _common_area(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
