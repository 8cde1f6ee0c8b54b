"""The demo's picture: size against quality, and the speed of the same files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.eval.bench.plots import draw_bars
from lltool.eval.bench.record import Row
from lltool.eval.bench.rows import speed_of
from lltool.eval.bench.tables import test_name
from lltool.eval.figure import COLORS, picture

MIB = 1 << 20


@dataclass(frozen=True)
class QualityPoint:
    """One file of a model: its size in bytes, and perplexity with one standard error."""

    name: str
    bytes: int
    perplexity: float
    error: float


def plot_demo(points: Sequence[QualityPoint], rows: Sequence[Row], target: Path) -> Path:
    """Size against perplexity, and beside it bars of tokens a second, a panel a test."""
    tests = list(dict.fromkeys(test_name(row) for row in rows))
    series = list(dict.fromkeys(_threads(row) for row in rows))
    with picture(target, 5 * (1 + len(tests)), 4.5) as figure:
        axes = figure.subplots(1, 1 + len(tests))
        _draw_quality(axes[0], points)
        for axis, test in zip(axes[1:], tests, strict=True):
            groups: dict[str, dict[str, Any]] = {}
            for row in rows:
                if test_name(row) == test:
                    groups.setdefault(Path(row["model_filename"]).stem, {})[_threads(row)] = speed_of(row)
            draw_bars(axis, groups, series)
            axis.set_title(test)
        axes[-1].legend(loc="lower right")
    return target


def _threads(row: Row) -> str:
    return f"{row['n_threads']} thread{'s' * (row['n_threads'] > 1)}"


def _draw_quality(axis: Any, points: Sequence[QualityPoint]) -> None:
    for point, color in zip(points, COLORS, strict=False):
        axis.errorbar(point.bytes / MIB, point.perplexity, yerr=point.error, fmt="o", capsize=4, color=color)
        axis.annotate(point.name, (point.bytes / MIB, point.perplexity), (6, 6), textcoords="offset points")
    axis.set_xlim(0, 1.2 * max(point.bytes for point in points) / MIB)  # room for the names
    axis.set_xlabel("file size (MiB)")
    axis.set_ylabel("perplexity ± standard error (lower is better)")
    axis.set_title("size against quality")
