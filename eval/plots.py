"""Plots of results, drawn without a display and saved as PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lltool.eval.throughput import Measurement
from lltool.gguf.errors import InputError

MIB = 1 << 20


@dataclass(frozen=True)
class QualityPoint:
    """One file of a model: its size in bytes, and perplexity with one standard error."""

    name: str
    bytes: int
    perplexity: float
    error: float


def plot_throughput(measurements: Sequence[Measurement], target: Path) -> Path:
    """Bars of tokens a second (mean, error bar: one standard deviation), a panel a workload, a group a model."""
    workloads = list(dict.fromkeys(str(m.workload) for m in measurements))
    figure, axes = _figure(len(workloads))
    for axis, workload in zip(axes, workloads, strict=True):
        _draw_speeds(axis, [m for m in measurements if str(m.workload) == workload])
    return _save(figure, target)


def plot_demo(points: Sequence[QualityPoint], measurements: Sequence[Measurement], target: Path) -> Path:
    """Size against perplexity, and beside it the speed of the same files."""
    workloads = list(dict.fromkeys(str(m.workload) for m in measurements))
    figure, axes = _figure(1 + len(workloads))
    _draw_quality(axes[0], points)
    for axis, workload in zip(axes[1:], workloads, strict=True):
        _draw_speeds(axis, [m for m in measurements if str(m.workload) == workload])
    return _save(figure, target)


def _draw_quality(axis: Any, points: Sequence[QualityPoint]) -> None:
    for point in points:
        axis.errorbar(point.bytes / MIB, point.perplexity, yerr=point.error, fmt="o", capsize=4)
        axis.annotate(point.name, (point.bytes / MIB, point.perplexity), (6, 6), textcoords="offset points")
    axis.set_xlim(0, 1.2 * max(point.bytes for point in points) / MIB)  # room for the names
    axis.set_xlabel("file size (MiB)")
    axis.set_ylabel("perplexity ± standard error (lower is better)")
    axis.set_title("size against quality")
    axis.grid(alpha=0.3)


def _draw_speeds(axis: Any, measurements: Sequence[Measurement]) -> None:
    names = list(dict.fromkeys(m.path.stem for m in measurements))
    threads = sorted({m.threads for m in measurements})
    width = 0.8 / len(threads)
    for i, count in enumerate(threads):
        group = [m for m in measurements if m.threads == count]
        places = [names.index(m.path.stem) + (i - (len(threads) - 1) / 2) * width for m in group]
        label = f"{count} thread{'s' if count > 1 else ''}"
        heights, errors = [m.mean for m in group], [m.deviation for m in group]
        axis.bar(places, heights, width * 0.95, yerr=errors, capsize=3, label=label)
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axis.set_ylim(0, 1.3 * max(m.mean + m.deviation for m in measurements))  # room for the legend
    workload = measurements[0].workload
    axis.set_title(f"{workload} ({'prefill' if workload.prompt else 'generation'})")
    axis.set_ylabel("tokens a second ± standard deviation")
    axis.legend(loc="upper right")
    axis.grid(axis="y", alpha=0.3)


def _figure(panels: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * panels, 4.5), layout="constrained")  # no pyplot: no display, no global state
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _save(figure: Any, target: Path) -> Path:
    partial = target.with_name(f".{target.name}.partial")
    try:
        figure.savefig(partial, format="png", dpi=120)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target
