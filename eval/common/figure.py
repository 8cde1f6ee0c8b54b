"""The common style of all pictures, and all that needs matplotlib: files, titles, legends, axes and intervals."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, inf
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from lltool import __version__
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.gguf.whole_file import whole_file

# Okabe and Ito, "Color Universal Design" (2008), darkest contrasts first; yellow is missing, as it is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, QUIET, GREY = "#222222", "#555555", "#999999"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
SUFFIXES = (".png", ".svg")
WIDTH = 8.4  # inches, of two panels: a small laptop shows all of it, and its text can be read at half the size
_CHARACTERS = 108  # of a legend, in this width

_STYLE: Any = {  # matplotlib's own type for this dictionary lists hundreds of keys
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "lltool",  # ids in a file of SVG are otherwise random
}


@contextmanager
def picture(target: Path, height: float, width: float = WIDTH, **style: Any) -> Iterator[Any]:
    """Gives a matplotlib figure of `width` by `height` inches and saves it on exit, whole or not at all.

    The same content gives the same bytes. `style` are matplotlib's parameters. Raises InputError for a suffix other
    than .png and .svg, for a file that cannot be written, and without matplotlib.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"{target}: pictures are written as {' or '.join(SUFFIXES)}; use one of these suffixes")
    require("matplotlib", str(target))
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE | style):
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")  # no pyplot: nothing stays open
        FigureCanvasAgg(figure)  # measures texts
        yield figure
        _save(figure, target)


def _save(figure: Any, target: Path) -> None:
    made = f"lltool {__version__}"
    kind = target.suffix.lower()[1:]
    try:
        with whole_file(target) as temporary:
            metadata = {"Software": made} if kind == "png" else {"Creator": made, "Date": None}
            figure.savefig(temporary, format=kind, metadata=metadata)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error


def add_title(figure: Any, title: str, subtitle: str) -> Any:
    """Writes a title and below it a grey subtitle for the whole picture; returns the subfigure to draw on."""
    head = figure.suptitle("", x=0.01, ha="left", fontweight="bold", fontsize=12)
    body = figure.subfigures(1, 1)
    below = body.suptitle("", x=0.01, ha="left", color=QUIET, fontsize=9)
    for text, whole in ((head, title), (below, subtitle)):
        _wrap_to(0.98 * figure.bbox.width, text, plain(whole))
    return body


def _wrap_to(width: float, text: Any, whole: str) -> None:
    """Breaks the lines of a text where they are longer than `width` pixels."""
    for characters in range(160, 10, -4):
        text.set_text("\n".join(fill(line, characters) for line in whole.split("\n")))
        if text.get_window_extent().width <= width:
            return


def plain(text: str) -> str:
    """The text for matplotlib, where a $ would start a formula."""
    return text.replace("$", r"\$")


def add_panels(subfigure: Any, count: int, columns: int = 2, **layout: Any) -> list[Any]:
    """The axes of `count` panels, with `columns` of them in a row; `layout` are options of matplotlib's subplots."""
    columns = min(columns, count)
    axes = subfigure.subplots(ceil(count / columns), columns, squeeze=False, **layout).flatten()
    for axis in axes[count:]:
        axis.remove()
    return list(axes[:count])


def look(number: int) -> dict[str, str]:
    """Colour, dashes and marker of a series; the first 196 series differ."""
    turn = number // len(COLORS)
    marker = MARKERS[(number + turn) % len(MARKERS)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": LINES[turn % len(LINES)], "marker": marker}


def add_legends(subfigure: Any, axes: Sequence[Any], columns: int = 2, least: int = 2) -> None:
    """Adds one legend under all panels if their series are the same, else one under each; none below `least` series.

    There are `columns` panels beside each other.
    """
    found = [axis.get_legend_handles_labels() for axis in axes]
    if all(labels == found[0][1] for _, labels in found):
        handles, labels = found[0]
        if len(labels) >= least:
            style: dict[str, Any] = {"ncols": _columns(labels, _CHARACTERS), "loc": "outside lower center"}
            subfigure.legend(handles, _wrap(labels, _CHARACTERS), **style)
        return
    width = _CHARACTERS // columns
    for axis, (handles, labels) in zip(axes, found, strict=True):
        style = {"ncols": _columns(labels, width), "loc": "upper center", "borderaxespad": 0}
        below = {"bbox_to_anchor": (0.5, 0), "bbox_transform": _moved(axis, axis.transAxes, 0, -36)}
        axis.legend(handles, _wrap(labels, width), **style, **below)


def legend_height(found: Sequence[Sequence[str]], columns: int = 2) -> float:
    """The inches of the legends that `add_legends` adds under panels with these labels."""
    characters = _CHARACTERS // columns
    if all(labels == found[0] for labels in found):
        found, characters = (found[:1] if len(found[0]) > 1 else []), _CHARACTERS
    return 0.19 * max((ceil(len(labels) / _columns(labels, characters)) for labels in found), default=0)


def _columns(labels: Sequence[str], characters: int) -> int:
    longest = max(map(len, labels), default=0)
    return max(1, min(len(labels), characters // (longest + 8)))


def _wrap(labels: Sequence[str], characters: int) -> list[str]:
    return [plain(fill(label, characters - 6)) for label in labels]


def set_log(axis: Any, dimension: Literal["x", "y"], base: int = 10) -> None:
    """Makes an axis logarithmic, with plain numbers at its ticks."""
    from matplotlib.ticker import NullLocator

    getattr(axis, f"set_{dimension}scale")("log", base=base)
    scale = getattr(axis, f"{dimension}axis")
    low, high = getattr(axis, f"get_{dimension}lim")()
    scale.set_major_locator(log_ticks(low, high, base))
    scale.set_minor_locator(NullLocator())
    scale.set_major_formatter("{x:g}")


def log_ticks(low: float, high: float, base: int = 10) -> Any:
    """The locator of a logarithmic axis from `low` to `high`: closer ticks in a shorter range."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if base == 10 and high < 5 * low:
        return MaxNLocator(4)
    steps = (1, 1.5) if base == 2 else (1, 2, 5) if high < 3000 * low else (1,)
    return LogLocator(base, subs=steps)


def set_dates(axis: Any) -> None:
    """Writes the times along x as dates of ISO 8601, and within a day as hours and minutes."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=2, maxticks=6)  # type: ignore[no-untyped-call]
    formats = ["%Y", "%Y-%m", "%m-%d", "%H:%M", "%H:%M", "%H:%M:%S"]
    edges = ["%Y", "%Y", "%Y-%m", "%m-%d", "%H:%M", "%H:%M"]
    offsets = ["", "", "%Y", "%Y-%m-%d", "%Y-%m-%d", "%Y-%m-%d"]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, None, formats, offsets, edges))  # type: ignore[no-untyped-call]


def beside(axis: Any, shift: float) -> Any:
    """Data coordinates moved right by `shift` points, so that the intervals of several series are all visible."""
    return _moved(axis, axis.transData, shift, 0)


def _moved(axis: Any, transform: Any, right: float, up: float) -> Any:
    from matplotlib.transforms import ScaledTranslation

    return transform + ScaledTranslation(right / 72, up / 72, axis.get_figure(root=True).dpi_scale_trans)


def draw_intervals(
    axis: Any,
    places: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    along: Literal["x", "y"] = "y",
    color: str = INK,
    transform: Any = None,
    limit: float = inf,
) -> None:
    """Draws (low, high) along an axis, whose limits are set, at `places` of the other; without length, nothing.

    An end beyond `limit` or the axis is drawn there as an arrow, and has no cap.
    """
    first, last = sorted(getattr(axis, f"get_{along}lim")())
    last = min(last, limit)
    known = [(place, low, high) for place, (low, high) in zip(places, intervals, strict=True) if low < high]
    kept = [(place, max(low, first), min(high, last)) for place, low, high in known]
    if not kept:
        return
    transform = transform or axis.transData
    lines = axis.vlines if along == "y" else axis.hlines
    lines(*zip(*kept, strict=True), color=color, linewidth=1.1, transform=transform, zorder=1.9)
    cap, down, up = ("_", "v", "^") if along == "y" else ("|", "<", ">")
    ends = [(place, low, cap if low >= first else down) for place, low, _ in known]
    ends += [(place, high, cap if high <= last else up) for place, _, high in known]
    for marker in dict.fromkeys(marker for _, _, marker in ends):
        found = [(place, min(max(end, first), last)) for place, end, which in ends if which == marker]
        xy = zip(*(found if along == "y" else [(end, place) for place, end in found]), strict=True)
        size = 6.5 if marker == cap else 5
        axis.plot(*xy, marker, markersize=size, color=color, transform=transform, clip_on=False, zorder=1.9)
