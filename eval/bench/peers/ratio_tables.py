"""Shows our rows and those of peers side by side, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from lltool.eval.bench.machine.limits import format_share
from lltool.eval.bench.plots.speed import describe_rows
from lltool.eval.bench.results.rows import ResultRow, speed_of
from lltool.eval.common.figure import COLORS, INK, add_legends, add_title, picture, plain, set_log
from lltool.eval.common.tables import format_table

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


def format_ratios(rows: Sequence[ResultRow]) -> str:
    """A Markdown table; a ratio above 1 means that lltool is faster."""
    lines, ours = [], rows[0]
    for row in rows:
        ratio, pairs = "", ""
        if row.ratio is None:
            ours = row
        else:
            known = row.ratio_low is not None
            ratio = f"{row.ratio:.2f}" + (f" ({row.ratio_low:.2f} – {row.ratio_high:.2f})" if known else "")
            found = pairs_of(ours, row)
            pairs = f"{min(found):.2f} – {max(found):.2f}"
        what = (row.model_type, row.test, row.engine, str(row.ran["n_threads"]))
        lines.append((*what, str(speed_of(row)), *_efforts(row), ratio, pairs))
    notes = [note for row in rows if (note := describe_modes(row))]
    notes += dict.fromkeys(f"{row.test}: {note}" for row in rows for note in row.notes)
    table = format_table((*_TITLES, "pairs"), lines, left=3)
    return "\n".join([table, *([""] if notes else []), *(f"- {note}" for note in notes)])


def pairs_of(ours: ResultRow, theirs: ResultRow) -> list[float]:
    """Our speed divided by theirs, round by round."""
    return [b / a for a, b in zip(ours.samples_ns or (), theirs.samples_ns or (), strict=True)]


def describe_modes(row: ResultRow) -> str:
    """Says which of a peer's modes was chosen, and how much longer the others took in the trial."""
    modes = row.settings.get("modes_ns", {})
    others = [f"{ns / modes[row.engine]:.2f} × as long: {name}" for name, ns in modes.items() if name != row.engine]
    chosen = f"{row.model_type}, {row.test}: {row.engine} is the fastest of its modes in a trial"
    return f"{chosen} ({'; '.join(others)})" if others else ""


def _efforts(row: ResultRow) -> tuple[str, ...]:
    found = (row.read_bytes_per_s, row.read_share, row.multiply_adds_per_s, row.multiply_share)
    known = [value for value in found if value is not None]
    if len(known) < 4:
        return ("", "", "", "")
    return (f"{known[0] / 1e9:.1f}", format_share(known[1]), f"{known[2] / 1e9:.1f}", format_share(known[3]))


def plot_ratios(rows: Sequence[ResultRow], target: Path) -> Path:
    """Draws a line for each test and model: pairs' ratios as points, the median as a bar, on a logarithmic axis."""
    engines = list(dict.fromkeys(_label(row) for row in rows if row.ratio is not None))
    tests = list(dict.fromkeys((row.model_type, row.test) for row in rows))
    with picture(target, 1.9 + len(tests) * max(0.4, 0.3 * len(engines))) as figure:
        body = add_title(figure, describe_rows(rows), "bars: medians; points: each pair of neighbouring runs")
        axis = body.subplots()
        height, ours = 0.8 / max(1, len(engines)), rows[0]
        for row in rows:
            if row.ratio is None:
                ours = row
                continue
            number = engines.index(_label(row))
            place = tests.index((row.model_type, row.test)) + (number - (len(engines) - 1) / 2) * height
            color, found = COLORS[number % len(COLORS)], pairs_of(ours, row)
            axis.plot(found, [place] * len(found), "o", markersize=3, color=color, alpha=0.5)
            axis.plot([row.ratio] * 2, [place - height / 2.4, place + height / 2.4], color=color, linewidth=2.5)
            axis.annotate(f"{row.ratio:.2f}", (max(found), place), (6, 0), textcoords="offset points", va="center")
        for number, engine in enumerate(engines):
            axis.plot([], [], color=COLORS[number % len(COLORS)], linewidth=2.5, label=f"compared with {engine}")
        axis.axvline(1, color=INK, linewidth=1)
        axis.margins(x=0.12)
        set_log(axis, "x", 2)
        models = {model for model, _ in tests}
        axis.set_yticks(
            range(len(tests)), [plain(f"{model}\n{test}") if models - {model} else test for model, test in tests]
        )
        axis.set_ylim(len(tests) - 0.4, -0.6)
        axis.set_xlabel("lltool's speed / the engine's (times as fast; above 1: lltool is faster)")
        add_legends(body, [axis])
    return target


def _label(row: ResultRow) -> str:
    """The engine without its mode."""
    return row.family.split(" ")[0]
