"""Compares two files of results: matches rows with the same settings and gives their difference with its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from lltool.eval.bench.plots.speed import FEW_RUNS, describe_rows, has_few_runs, panel_of
from lltool.eval.bench.results.rows import ResultRow, speed_of
from lltool.eval.bench.results.statistics import summarize_samples
from lltool.eval.bench.settings import SETTINGS
from lltool.eval.common.figure import (
    COLORS,
    GREY,
    INK,
    add_legends,
    add_panels,
    add_title,
    draw_intervals,
    picture,
    plain,
)
from lltool.eval.common.tables import format_table
from lltool.gguf.errors import InputError
from lltool.gguf.optional import to_frame

if TYPE_CHECKING:
    from pandas import DataFrame

# What can distinguish rows besides the workload. What has a single value in each file distinguishes none, and is
# compared.
_DISTINGUISHING = ("engine", "model", *(setting.column for setting in SETTINGS))
_NAMED = ("engine_version", "build_commit", "model_sha256", "cpu_info", "gpu_info", "backends")  # never matched
SpeedVerdict = Literal["faster", "slower", "no difference seen", "a single run"]


@dataclass(frozen=True)
class Difference:
    """How much faster b is than a, as a fraction of a's speed, with a 95 % interval; `is_paired`: both ran in turns."""

    name: str
    a: ResultRow
    b: ResultRow
    change: float
    low: float
    high: float
    is_paired: bool

    @property
    def verdict(self) -> SpeedVerdict:
        if not self.low < self.high:
            return "a single run"
        return "faster" if self.low > 0 else "slower" if self.high < 0 else "no difference seen"


@dataclass(frozen=True)
class Comparison:
    """Rows of a and b matched by settings, rows without a match, and what differs between the files as a whole."""

    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    between: Mapping[str, tuple[Any, Any]]
    older: int = 0  # rows left out because a later one has the same settings

    def beyond(self, limit: float) -> list[Difference]:
        """The differences that are slower by more than `limit` and whose interval excludes 0."""
        return [d for d in self.differences if d.verdict == "slower" and d.change < -limit]

    def to_pandas(self) -> "DataFrame":
        """A row for each difference, with the fields of `comparison_to_json`. Needs pandas."""
        return to_frame(comparison_to_json(self, None)["differences"])


def compare_rows(a: Sequence[ResultRow], b: Sequence[ResultRow]) -> Comparison:
    """Matches the rows of `a` and `b`; raises InputError if no row of `a` has a match in `b`."""
    views = [[_view(row) for row in rows] for rows in (a, b)]
    values = {name: [{view[name] for view in side} for side in views] for name in (*_DISTINGUISHING, *_NAMED)}
    known = [name for name in _DISTINGUISHING if not any(None in side for side in values[name])]
    telling = [name for name in known if any(len(side) > 1 for side in values[name])]
    between = {
        name: (_one(sides[0]), _one(sides[1]))
        for name, sides in values.items()
        if name not in telling and sides[0] != sides[1] and not any(None in side for side in sides)
    }
    keyed = []
    for rows, side in zip((a, b), views, strict=True):
        pairs = sorted(zip(rows, side, strict=True), key=lambda pair: pair[0].test_time or "")
        keyed.append({(row.workload, *(view[name] for name in telling)): row for row, view in pairs})
    ours, theirs = keyed
    sides = enumerate((a, b))
    runs = {(side, row.test_time, str(row.samples_ns), row.avg_ts) for side, rows in sides for row in rows}
    names = {key: _name(row, telling) for side in keyed for key, row in side.items()}
    if not ours.keys() & theirs.keys():
        raise InputError(
            f"the two have no row with the same settings: {_list(names[k] for k in ours)} against "
            f"{_list(names[k] for k in theirs)}"
        )
    return Comparison(
        tuple(_differ(names[key], row, theirs[key]) for key, row in ours.items() if key in theirs),
        tuple(names[key] for key in ours if key not in theirs),
        tuple(names[key] for key in theirs if key not in ours),
        between,
        max(0, len(runs) - len(ours) - len(theirs)),
    )


def _view(row: ResultRow) -> dict[str, Any]:
    """What _DISTINGUISHING and _NAMED name."""
    special = {"engine": row.family, "model": row.model_name, "precision": row.precision, "engine_version": row.engine}
    return {name: special[name] if name in special else row.column(name) for name in (*_DISTINGUISHING, *_NAMED)}


def _name(row: ResultRow, telling: Sequence[str]) -> str:
    heads = {"model": row.model_name, "engine": row.family, "precision": row.precision or ""}
    others = (name for name in telling if name not in heads)
    parts = [f"{'threads' if name == 'n_threads' else name} {row.column(name)}" for name in others]
    return ", ".join([*(heads[name] for name in heads if name in telling), row.test, *parts])


def _differ(name: str, a: ResultRow, b: ResultRow) -> Difference:
    session, samples = a.settings.get("session"), (a.samples_ts or (), b.samples_ts or ())
    if session and session == b.settings.get("session") and len(samples[0]) == len(samples[1]):
        ratio = summarize_samples([theirs / ours for ours, theirs in zip(*samples, strict=True)])
        low, high = (ratio.median if bound is None else bound for bound in (ratio.low, ratio.high))
        return Difference(name, a, b, ratio.median - 1, low - 1, high - 1, True)
    x, y = speed_of(a), speed_of(b)
    change = y.middle / x.middle
    if not (x.is_known and y.is_known):
        return Difference(name, a, b, change - 1, change - 1, change - 1, False)
    # The errors are independent, so their squares add: in logarithms, and separately for each side of the interval.
    below = hypot(log(y.middle / y.low), log(x.high / x.middle))
    above = hypot(log(y.high / y.middle), log(x.middle / x.low))
    return Difference(name, a, b, change - 1, change * exp(-below) - 1, change * exp(above) - 1, False)


def format_comparison(found: Comparison, names: tuple[str, str]) -> str:
    """A Markdown table of the differences, and notes below it."""
    rows = []
    for d in found.differences:
        error = f" ({100 * d.low:+.1f} … {100 * d.high:+.1f})" if d.low < d.high else ""
        speeds = [str(speed_of(row)) for row in (d.a, d.b)]
        rows.append((d.name, d.verdict, *speeds, f"{100 * d.change:+.1f} %{error}"))
    titles = ("test", "B is", "A t/s (95 %)", "B t/s (95 %)", "difference (95 %)")
    lines = [f"A: {names[0]}", f"B: {names[1]}", "", format_table(titles, rows, left=2)]
    between = ", ".join(f"{name} ({a}, {b})" for name, (a, b) in found.between.items())
    notes = [f"A and B as a whole differ in {between}"] if between else []
    notes += [f"only in {side}: {name}" for side, only in (("A", found.only_a), ("B", found.only_b)) for name in only]
    notes += [f"{found.older} older rows of the same settings are left out"] if found.older else []
    if not all(d.is_paired for d in found.differences):
        notes.append("A and B did not run in turns; the intervals include the machine's drift as far as it is known")
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)])


def comparison_to_json(found: Comparison, limit: float | None) -> dict[str, Any]:
    """The comparison as plain JSON data; changes are fractions of a's speed."""
    return {
        "differences": [
            {
                "name": d.name,
                "a_ts": speed_of(d.a).middle,
                "b_ts": speed_of(d.b).middle,
                "change": d.change,
                "low": d.low,
                "high": d.high,
                "is_paired": d.is_paired,
                "verdict": d.verdict,
            }
            for d in found.differences
        ],
        "only_a": found.only_a,
        "only_b": found.only_b,
        "between": found.between,
        "limit": limit,
        "beyond_limit": [] if limit is None else [d.name for d in found.beyond(limit)],
    }


def plot_comparison(found: Comparison, names: tuple[str, str], target: Path, limit: float | None = None) -> Path:
    """Draws a bar for each difference, to the right if b is faster, with its error; prefill and decode are panels."""
    panels: dict[str, list[Difference]] = {}
    for difference in found.differences:
        panels.setdefault(panel_of(difference.a), []).append(difference)
    looks = {"faster": COLORS[0], "slower": COLORS[1], "no difference seen": GREY, "a single run": "#cccccc"}
    counts = [max(2, len(differences)) for differences in panels.values()]
    with picture(target, 1.9 + sum(0.8 + 0.4 * count for count in counts)) as figure:
        title = describe_rows([row for d in found.differences for row in (d.a, d.b)])
        few = f", {FEW_RUNS}" * any(map(_is_of_few_runs, found.differences))
        notes = f"error bars: 95 % interval of the difference{few}; an arrow: it reaches beyond the axis"
        notes += "" if limit is None else f"; dashed: the limit, -{100 * limit:g} %"
        body = add_title(figure, title, f"A: {names[0]}\nB: {names[1]}\n{notes}")
        axes = add_panels(body, len(panels), 1, sharex=True, height_ratios=counts)
        for axis, (panel, differences) in zip(axes, panels.items(), strict=True):
            axis.set_xlim(*_reach(found.differences))
            places = range(len(differences))
            axis.barh(places, [100 * d.change for d in differences], 0.7, color=[looks[d.verdict] for d in differences])
            shown = [(0.0, 0.0) if _is_of_few_runs(d) else (100 * d.low, 100 * d.high) for d in differences]
            draw_intervals(axis, places, shown, along="x")
            axis.axvline(0, color=INK, linewidth=0.8)
            if limit is not None:
                axis.axvline(-100 * limit, color=INK, linewidth=1, linestyle="--")
            axis.set_yticks(places, [plain(d.name.replace(", ", "\n", 1)) for d in differences])
            room = max(0.0, (2 - len(differences)) / 2)
            axis.set_ylim(len(differences) - 0.5 + room, -0.5 - room)
            axis.grid(axis="y", visible=False)
            axis.set_title(panel)
        axes[-1].set_xlabel("difference of B's speed from A's (%; to the right: B is faster)")
        for verdict in looks:
            if any(d.verdict == verdict for d in found.differences):
                name = f"B is {verdict}" if verdict in ("faster", "slower") else verdict
                for axis in axes:
                    axis.barh(0, 0, color=looks[verdict], label=name)
        add_legends(body, axes, least=1)
    return target


def _is_of_few_runs(difference: Difference) -> bool:
    return has_few_runs(difference.a) or has_few_runs(difference.b)


def _reach(differences: Sequence[Difference]) -> tuple[float, float]:
    """The limits of the horizontal axis in percent, beyond which the intervals that are far wider than others go on."""
    shown = [d for d in differences if not _is_of_few_runs(d)]
    usual = median([max(-d.low, d.high) for d in shown] or [0.0])
    most = 120 * max(usual, *(abs(d.change) for d in differences), 0.01)
    ends = [bound for d in differences for bound in ((d.low, d.high) if d in shown else (d.change,))]
    return max(105 * min(-0.01, *ends), -most), min(105 * max(0.01, *ends), most)


def _one(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else ", ".join(sorted(map(str, values)))


def _list(names: Any) -> str:
    found = list(names)
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
