"""Rows of ours and of peers side by side, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from lltool.eval.bench.plots import describe_rows
from lltool.eval.bench.record import Row
from lltool.eval.bench.rows import family_of, format_speed, speed_of
from lltool.eval.bench.tables import test_name
from lltool.eval.figure import COLORS, add_title, picture
from lltool.eval.markdown import format_table

_TITLES = (
    "model",
    "test",
    "engine",
    "threads",
    "t/s (95 %)",
    "GB/s",
    "of read",
    "GMAC/s",
    "of peak",
    "lltool / engine (95 %)",
)


def format_ratios(rows: Sequence[Row]) -> str:
    """A Markdown table; a ratio above 1 means that lltool is faster."""
    lines, ours = [], rows[0]
    for row in rows:
        ratio, pairs = "", ""
        if row["ratio"] is None:
            ours = row
        else:
            known = row["ratio_low"] is not None
            ratio = f"{row['ratio']:.2f}" + (f" ({row['ratio_low']:.2f} – {row['ratio_high']:.2f})" if known else "")
            found = pairs_of(ours, row)
            pairs = f"{min(found):.2f} – {max(found):.2f}"
        what = (row["model_type"], test_name(row), row["engine"], str(row["n_threads"]))
        lines.append((*what, format_speed(speed_of(row)), *_efforts(row), ratio, pairs))
    notes = [note for row in rows if (note := describe_modes(row))]
    notes += dict.fromkeys(f"{test_name(row)}: {note}" for row in rows for note in row["notes"])
    table = format_table((*_TITLES, "pairs"), lines, left=3)
    return "\n".join([table, *([""] if notes else []), *(f"- {note}" for note in notes)])


def pairs_of(ours: Row, theirs: Row) -> list[float]:
    """How many times as fast we were, round by round."""
    return [b / a for a, b in zip(ours["samples_ns"], theirs["samples_ns"], strict=True)]


def describe_modes(row: Row) -> str:
    """Which of a peer's modes was chosen, and how much faster it was in the trial."""
    modes = row["settings"].get("modes_ns", {})
    others = [
        f"{ns / modes[row['engine']]:.2f} × as long: {name}" for name, ns in modes.items() if name != row["engine"]
    ]
    chosen = f"{row['model_type']}, {test_name(row)}: {row['engine']} is the fastest of its modes in a trial"
    return f"{chosen} ({'; '.join(others)})" if others else ""


def _efforts(row: Row) -> tuple[str, ...]:
    if row["read_share"] is None:
        return ("", "", "", "")
    rates = (row["read_bytes_per_s"] / 1e9, row["multiply_adds_per_s"] / 1e9)
    return (f"{rates[0]:.1f}", f"{row['read_share']:.0%}", f"{rates[1]:.1f}", f"{row['multiply_share']:.0%}")


def plot_ratios(rows: Sequence[Row], target: Path) -> Path:
    """A line a test and model: each pair's ratio as a point, the median as a bar, on a logarithmic axis."""
    from matplotlib.ticker import LogLocator

    engines = list(dict.fromkeys(_label(row) for row in rows if row["ratio"] is not None))
    tests = list(dict.fromkeys((row["model_type"], test_name(row)) for row in rows))
    with picture(target, 8.5, 1.6 + 0.3 * len(tests) * max(1, len(engines))) as figure:
        axis = add_title(
            figure, describe_rows(rows), "lltool's speed / the engine's: medians, and each pair"
        ).subplots()
        height, ours = 0.8 / max(1, len(engines)), rows[0]
        for row in rows:
            if row["ratio"] is None:
                ours = row
                continue
            number = engines.index(_label(row))
            place = tests.index((row["model_type"], test_name(row))) + (number - (len(engines) - 1) / 2) * height
            color, found = COLORS[number % len(COLORS)], pairs_of(ours, row)
            axis.plot(found, [place] * len(found), "o", markersize=3, color=color, alpha=0.5)
            axis.plot([row["ratio"]] * 2, [place - height / 2.4, place + height / 2.4], color=color, linewidth=2.5)
            axis.annotate(f"{row['ratio']:.2f}", (max(found), place), (6, 0), textcoords="offset points", va="center")
        for number, engine in enumerate(engines):
            axis.plot([], [], color=COLORS[number % len(COLORS)], linewidth=2.5, label=engine)
        axis.axvline(1, color="#222222", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(LogLocator(2, subs=(1, 1.5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.margins(x=0.12)
        axis.set_yticks(range(len(tests)), [f"{model}\n{test}" for model, test in tests])
        axis.set_ylim(len(tests) - 0.4, -0.6)
        axis.set_xlabel("times as fast (above 1: lltool is faster)")
        axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.35 / len(tests)), ncols=2)
    return target


def _label(row: Row) -> str:
    """The engine whatever its mode."""
    return family_of(row).split(" ")[0]
