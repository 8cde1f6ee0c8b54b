"""Plots to choose by: what a file costs against what it loses, the front of the best, names that do not collide."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, hypot, pi, sin
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lltool.eval.figure import picture

# Colours that stand for those of the page, so that one drawing serves light, dark and print.
_PAGE = {"#010203": "var(--ink)", "#040506": "var(--faint)", "#070809": "var(--line)"}
_INK, _FAINT, _FRONT = _PAGE
_ON_WHITE = {_INK: "#222222", _FAINT: "#bbbbbb", _FRONT: "#d9480f"}

_WIDTH, _HEIGHT = 6.2, 4.6  # inches
_GAP = 3.0  # pixels around a name
_DISTANCES = (9, 16, 26, 40, 60, 84)  # pixels from a point to its name


@dataclass(frozen=True)
class Point:
    """A file's place in a plot: `y` with one standard error; `shade`, where known, gives its colour."""

    name: str
    x: float
    y: float
    error: float = 0.0
    shade: float | None = None


@dataclass(frozen=True)
class Plot:
    """Points with the line through the best of them. A smaller `y` is better; of `x` a larger one if `more_is_better`.

    `at_zero` are (name, x) of files that lose nothing by definition.
    """

    title: str
    x_label: str
    y_label: str
    points: Sequence[Point]
    at_zero: Sequence[tuple[str, float]] = ()
    more_is_better: bool = False
    shade_label: str = ""


def front(costs: Sequence[Sequence[float]]) -> list[int]:
    """The rows that no other row beats: as good in every column and better in one. Smaller is better."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)

    return [i for i, row in enumerate(costs) if not any(beats(other, row) for other in costs)]


def draw_svg(plot: Plot) -> str:
    """An SVG element to stand in a page, in the page's colours (`--ink`, `--faint`, `--line`)."""
    from matplotlib import rc_context

    with (
        TemporaryDirectory() as folder,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.title}),  # the same plot, the same bytes
    ):
        target = Path(folder) / "plot.svg"
        with picture(target, _WIDTH, _HEIGHT) as figure:
            figure.patch.set_visible(False)
            _draw(_axes(figure, 1)[0], plot, _INK, _FAINT, _FRONT)
        text = target.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    for color, name in _PAGE.items():
        text = text.replace(color, name)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A page with several plots wants the names of their parts to differ.
    prefix = re.sub(r"\W+", "-", plot.title)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', _opening(plot.title), text, count=1)


def _opening(title: str) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{title}">'
    )


def draw_png(plots: Sequence[Plot], target: Path) -> None:
    """The plots beside each other on white."""
    with picture(target, _WIDTH * len(plots), _HEIGHT) as figure:
        for axis, plot in zip(_axes(figure, len(plots)), plots, strict=True):
            _draw(axis, plot, *_ON_WHITE.values())


def _axes(figure: Any, panels: int) -> list[Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # measures how wide names are
    return list(figure.subplots(1, panels, squeeze=False)[0])


def _draw(axis: Any, plot: Plot, ink: str, faint: str, line: str) -> None:
    points = plot.points
    if points and all(point.y > 0 for point in points) and max(p.y for p in points) > 8 * min(p.y for p in points):
        axis.set_yscale("log")
    sign = -1 if plot.more_is_better else 1
    best = [points[i] for i in front([(sign * point.x, point.y) for point in points])]
    best.sort(key=lambda point: point.x)
    axis.plot([p.x for p in best], [p.y for p in best], color=line, linewidth=1.4, zorder=1)
    axis.errorbar(
        [p.x for p in points],
        [p.y for p in points],
        yerr=[min(p.error, 0.9 * p.y) for p in points],
        fmt="none",
        ecolor=faint,
        capsize=3,
        zorder=2,
    )
    shaded = bool(points) and all(p.shade is not None for p in points)
    drawn = axis.scatter(
        [p.x for p in points],
        [p.y for p in points],
        c=[p.shade for p in points] if shaded else line,
        cmap="viridis" if shaded else None,
        s=42,
        edgecolors=ink,
        linewidths=0.6,
        zorder=3,
    )
    if shaded and len(points) > 1:
        bar = axis.figure.colorbar(drawn, ax=axis)
        bar.set_label(plot.shade_label, color=ink)
        bar.ax.tick_params(colors=ink)
        bar.outline.set_edgecolor(faint)
    _set_limits(axis, plot)
    bottom = axis.get_ylim()[0]
    for _, x in plot.at_zero:
        axis.plot([x], [bottom], marker="v", markersize=8, color=ink, clip_on=False, zorder=4)
    axis.set_title(plot.title, color=ink)
    axis.set_xlabel(plot.x_label, color=ink)
    axis.set_ylabel(plot.y_label.replace("$", r"\$"), color=ink)
    axis.tick_params(colors=ink, which="both")
    axis.patch.set_visible(False)
    axis.grid(color=faint, alpha=0.4, linewidth=0.6)
    for spine in axis.spines.values():
        spine.set_color(faint)
    names = [(p.name, p.x, p.y, any(p is other for other in best)) for p in points]
    names += [(f"{name} (0)", x, bottom, False) for name, x in plot.at_zero]
    place_names(axis, names, ink, [(p.x, p.y) for p in best])


def _set_limits(axis: Any, plot: Plot) -> None:
    """Room for names on all sides, and 0 at the left so that lengths compare."""
    xs = [p.x for p in plot.points] + [x for _, x in plot.at_zero]
    axis.set_xlim(0, 1.22 * max(xs, default=1.0))
    low = min((p.y - p.error for p in plot.points), default=0.0)
    high = max((p.y + p.error for p in plot.points), default=1.0)
    if axis.get_yscale() == "log":
        low = min(p.y for p in plot.points)
        axis.set_ylim(low / 2, high * 2)
    else:
        room = 0.15 * (high - low or abs(high) or 1.0)
        axis.set_ylim(low - room, high + room)


def place_names(
    axis: Any, names: Sequence[tuple[str, float, float, bool]], ink: str, line: Sequence[tuple[float, float]] = ()
) -> list[Any]:
    """Writes (name, x, y, is bold) beside the points, where they hit no name, mark, border or `line`, if they can."""
    figure = axis.figure
    figure.canvas.draw()  # settles the layout, after which places on the canvas are known
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    border = axis.get_window_extent(renderer)
    spots = [tuple(axis.transData.transform((x, y))) for _, x, y, _ in names]
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in spots]
    corners = [tuple(axis.transData.transform(place)) for place in line]
    for (ax, ay), (bx, by) in pairwise(corners):
        for part in (step / 40 for step in range(41)):
            x, y = ax + part * (bx - ax), ay + part * (by - ay)
            taken.append((x - 1, y - 1, x + 1, y + 1))
    placed = []
    for (name, x, y, is_bold), (px, py) in zip(names, spots, strict=True):
        text = axis.annotate(
            name.replace("$", r"\$"),  # which would start a formula
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

        # Around the point, nearest ring first, to the right first of all.
        places = []
        for distance in _DISTANCES:
            for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6):
                dx, dy = cos(step * pi / 6) * distance * scale, sin(step * pi / 6) * distance * scale
                left = px + dx - width * (1 - cos(step * pi / 6)) / 2
                places.append((left, py + dy - height / 2))
        left, base = min(places, key=lambda place: overlap(*place))  # the first of the free ones
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
