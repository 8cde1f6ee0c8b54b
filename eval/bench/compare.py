"""Two files of results against each other: rows with the same settings, their difference and its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, log
from pathlib import Path
from statistics import median
from typing import Any, Literal

from lltool.eval.bench.plots import describe_rows, panel_of
from lltool.eval.bench.record import Row
from lltool.eval.bench.rows import family_of, format_speed, speed_of
from lltool.eval.bench.statistics import summarize
from lltool.eval.bench.tables import test_name
from lltool.eval.figure import COLORS, add_title, picture
from lltool.eval.markdown import format_table
from lltool.gguf.errors import InputError

WORKLOAD = ("n_prompt", "n_gen", "n_depth", "n_parallel")
# What else can tell rows apart. One that has one value in a file tells none of its rows apart: it is what is compared.
SETTINGS = (
    *("engine", "model", "n_threads", "n_batch", "n_ubatch", "type_k", "type_v", "n_gpu_layers", "n_cpu_moe"),
    *("split_mode", "no_kv_offload", "flash_attn", "load_mode", "lazy_mode", "repack", "embeddings", "cpu_mask"),
    *("cpu_strict", "poll", "tensor_split", "tensor_buft_overrides", "devices", "precision"),
)
_NAMED = ("engine_version", "build_commit", "model_sha256", "cpu_info", "gpu_info", "backends")  # only ever named
Verdict = Literal["faster", "slower", "no difference seen", "a single run"]


@dataclass(frozen=True)
class Difference:
    """How much faster b is than a, as a fraction of a, with a 95 % interval; `is_paired` if both ran in turns."""

    name: str
    a: Row
    b: Row
    change: float
    low: float
    high: float
    is_paired: bool

    @property
    def verdict(self) -> Verdict:
        if not self.low < self.high:
            return "a single run"
        return "faster" if self.low > 0 else "slower" if self.high < 0 else "no difference seen"


@dataclass(frozen=True)
class Comparison:
    """Rows of a and b matched by settings, those without a like, and what differs between the files as a whole."""

    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    between: Mapping[str, tuple[Any, Any]]
    older: int = 0  # rows left out because a later one has the same settings

    def beyond(self, limit: float) -> list[Difference]:
        """Those that are slower by more than `limit`, and slower for sure."""
        return [d for d in self.differences if d.verdict == "slower" and d.change < -limit]


def compare_rows(a: Sequence[Row], b: Sequence[Row]) -> Comparison:
    """Raises InputError when no row of `a` has its like in `b`."""
    views = [[_view(row) for row in rows] for rows in (a, b)]
    values = {name: [{view[name] for view in side} for side in views] for name in (*SETTINGS, *_NAMED)}
    known = [name for name in SETTINGS if not any(None in side for side in values[name])]
    telling = [name for name in known if any(len(side) > 1 for side in values[name])]
    between = {
        name: (_one(sides[0]), _one(sides[1]))
        for name, sides in values.items()
        if name not in telling and sides[0] != sides[1] and not any(None in side for side in sides)
    }
    keyed = []
    for rows, side in zip((a, b), views, strict=True):
        pairs = sorted(zip(rows, side, strict=True), key=lambda pair: pair[0]["test_time"] or "")
        keyed.append({tuple(view[name] for name in (*WORKLOAD, *telling)): row for row, view in pairs})
    ours, theirs = keyed
    sides = enumerate((a, b))
    runs = {(side, row["test_time"], str(row["samples_ns"]), row["avg_ts"]) for side, rows in sides for row in rows}
    names = {key: _name(row, telling) for side in keyed for key, row in side.items()}
    if not ours.keys() & theirs.keys():
        raise InputError(
            f"no row of one has the settings of a row of the other: {_list(names[k] for k in ours)} against "
            f"{_list(names[k] for k in theirs)}"
        )
    return Comparison(
        tuple(_differ(names[key], row, theirs[key]) for key, row in ours.items() if key in theirs),
        tuple(names[key] for key in ours if key not in theirs),
        tuple(names[key] for key in theirs if key not in ours),
        between,
        max(0, len(runs) - len(ours) - len(theirs)),
    )


def _view(row: Row) -> dict[str, Any]:
    """A row by the names of WORKLOAD, SETTINGS and _NAMED."""
    special = {
        "engine": family_of(row),
        "engine_version": row["engine"],
        "model": Path(row["model_filename"]).name,
        "precision": row["settings"].get("precision"),
    }
    return row | special


def _name(row: Row, telling: Sequence[str]) -> str:
    parts = [f"{name} {row[name]}" for name in telling if name not in ("engine", "model", "precision")]
    parts = [part.replace("n_threads", "threads") for part in parts]
    heads = {"model": Path(row["model_filename"]).name, "engine": family_of(row)}
    heads["precision"] = row["settings"].get("precision", "")
    return ", ".join([*(heads[name] for name in heads if name in telling), test_name(row), *parts])


def _differ(name: str, a: Row, b: Row) -> Difference:
    session, samples = a["settings"].get("session"), (a["samples_ts"] or (), b["samples_ts"] or ())
    if session and session == b["settings"].get("session") and len(samples[0]) == len(samples[1]):
        ratio = summarize([theirs / ours for ours, theirs in zip(*samples, strict=True)])
        low, high = (ratio.median if bound is None else bound for bound in (ratio.low, ratio.high))
        return Difference(name, a, b, ratio.median - 1, low - 1, high - 1, True)
    x, y = speed_of(a), speed_of(b)
    change = y.middle / x.middle
    if not (x.is_known and y.is_known):
        return Difference(name, a, b, change - 1, change - 1, change - 1, False)
    # The errors of both are independent: they add as squares, in logarithms, each side of the interval for itself.
    below = hypot(log(y.middle / y.low), log(x.high / x.middle))
    above = hypot(log(y.high / y.middle), log(x.middle / x.low))
    return Difference(name, a, b, change - 1, change * exp(-below) - 1, change * exp(above) - 1, False)


def format_comparison(found: Comparison, names: tuple[str, str]) -> str:
    """A Markdown table, and below it what else there is to say."""
    rows = []
    for d in found.differences:
        error = f" ({100 * d.low:+.1f} … {100 * d.high:+.1f})" if d.low < d.high else ""
        speeds = [format_speed(speed_of(row)) for row in (d.a, d.b)]
        rows.append((d.name, d.verdict, *speeds, f"{100 * d.change:+.1f} %{error}"))
    titles = ("test", "B is", "A t/s (95 %)", "B t/s (95 %)", "difference (95 %)")
    lines = [f"A: {names[0]}", f"B: {names[1]}", "", format_table(titles, rows, left=2)]
    between = ", ".join(f"{name} ({a}, {b})" for name, (a, b) in found.between.items())
    notes = [f"A and B as a whole differ in {between}"] if between else []
    notes += [f"only in {side}: {name}" for side, only in (("A", found.only_a), ("B", found.only_b)) for name in only]
    notes += [f"{found.older} older rows of the same settings are left out"] if found.older else []
    if not all(d.is_paired for d in found.differences):
        notes.append("A and B did not run in turns; what the machine did meanwhile is in the intervals as far as known")
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)])


def describe(found: Comparison, limit: float | None) -> dict[str, Any]:
    """The comparison as plain JSON data; changes are fractions of a."""
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
    """A bar a row, to the right where b is faster, with its error; a panel each for prefill and decode."""
    from matplotlib.patches import Patch

    panels: dict[str, list[Difference]] = {}
    for difference in found.differences:
        panels.setdefault(panel_of(difference.a), []).append(difference)
    looks = {"faster": COLORS[0], "slower": COLORS[1], "no difference seen": "#999999", "a single run": "#cccccc"}
    height = 2.2 + 0.33 * max(map(len, panels.values()))
    with picture(target, 3.2 + 3.9 * len(panels), height) as figure:
        title = describe_rows([row for d in found.differences for row in (d.a, d.b)])
        bars = "error bars: 95 % interval of the difference" + ("" if limit is None else f"; dashed: -{limit:.1%}")
        body = add_title(figure, title, f"A: {names[0]}\nB: {names[1]}\n{bars}")
        axes = body.subplots(1, len(panels), squeeze=False, sharex=True)[0]
        for axis, (panel, differences) in zip(axes, panels.items(), strict=True):
            changes = [100 * d.change for d in differences]
            sides = [[100 * (d.change - d.low) for d in differences], [100 * (d.high - d.change) for d in differences]]
            axis.barh(range(len(changes)), changes, 0.7, color=[looks[d.verdict] for d in differences])
            axis.errorbar(
                changes, range(len(changes)), xerr=sides, fmt="none", ecolor="#222222", capsize=3, elinewidth=1.2
            )
            axis.set_xlim(*_reach(found.differences))
            axis.axvline(0, color="#222222", linewidth=0.8)
            if limit is not None:
                axis.axvline(-100 * limit, color="#222222", linewidth=1, linestyle="--")
            axis.set_yticks(range(len(differences)), [d.name.replace(", ", "\n", 1) for d in differences])
            axis.invert_yaxis()
            axis.grid(axis="y", visible=False)
            axis.set_xlabel("how much faster B is than A (%)")
            axis.set_title(panel)
        seen = [verdict for verdict in looks if any(d.verdict == verdict for d in found.differences)]
        handles = [Patch(color=looks[verdict]) for verdict in seen]
        body.legend(
            handles,
            [f"B is {v}" if v in ("faster", "slower") else v for v in seen],
            loc="outside lower center",
            ncols=4,
        )
    return target


def _reach(differences: Sequence[Difference]) -> tuple[float, float]:
    """From where to where a picture goes, in percent: intervals that are far wider than the others run out of it."""
    usual = median(max(-d.low, d.high) for d in differences)
    most = 120 * max(usual, *(abs(d.change) for d in differences), 0.01)
    low, high = 105 * min(d.low for d in differences), 105 * max(d.high for d in differences)
    return max(min(low, -1.0), -most), min(max(high, 1.0), most)


def _one(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else ", ".join(sorted(map(str, values)))


def _list(names: Any) -> str:
    found = list(names)
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
