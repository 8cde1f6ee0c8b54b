"""Shows profiles as text, in the formats of `lltool bench`, and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from lltool.eval.bench.machine.limits import NOT_MEASURABLE, Limits, format_share
from lltool.eval.bench.profile.measure import COLUMNS, Profile, ProfileRow, rows_of
from lltool.eval.bench.results import tables
from lltool.eval.common.figure import COLORS, GREY, add_legends, add_panels, add_title, picture
from lltool.eval.common.tables import format_table

_TITLES = ("operation", "types", "count", "µs a token", "share", "MB/token", "MMAC/token", "GB/s", "GMAC/s", "of limit")
_LIMITS = {
    "read": "reading",
    "int8": "int8 products",
    "int16": "int16 products",
    "float32": "float32 products",
    "": "no limit known",
}


def format_profiles(profiles: Sequence[Profile], form: str) -> str:
    """The profiles as text; `form` is a format of `lltool bench`, and Markdown has a table for each profile."""
    rows = [asdict(row) for row in rows_of(profiles)]
    match form:
        case "csv":
            return tables.format_csv(rows, COLUMNS)
        case "sql":
            inserts = [tables.insert_row("lltool_profile", COLUMNS, row) for row in rows]
            return "\n".join([tables.create_table("lltool_profile", COLUMNS), "", *inserts])
        case "json":
            return tables.format_json(rows)
        case "jsonl":
            return tables.format_jsonl(rows)
    return "\n\n".join(map(_format_markdown, profiles))


def _format_markdown(profile: Profile) -> str:
    lines = []
    for row in rows_of([profile]):
        amounts = [row.read_bytes_per_token / 1e6, row.multiply_adds_per_token / 1e6]
        rates = [row.read_bytes_per_s / 1e9, row.multiply_adds_per_s / 1e9]
        cells = [f"{x:.{digits}f}" if x else "" for x, digits in zip(amounts + rates, (2, 1, 1, 1), strict=True)]
        share = format_share(row.limit_share) if row.limit_name else ""
        limit = share if share == NOT_MEASURABLE else f"{share} {row.limit_name}".strip()
        first = (row.operation, row.types, str(row.count), f"{row.us_per_token:.1f}", f"{100 * row.share:.1f} %")
        lines.append((*first, *cells, limit))
    table = format_table(_TITLES, lines, left=2)
    return "\n".join([f"{name_of_run(profile)}, {title_of(profile)}", "", table, "", describe_limits(profile.limits)])


def name_of_run(profile: Profile) -> str:
    """The model and its threads, such as `qwen2 630M Q4_K_M, 2 threads`."""
    return f"{profile.model}, {profile.ran.threads} thread" + "s" * (profile.ran.threads > 1)


def title_of(profile: Profile) -> str:
    """The workload and its speed, such as `tg128: 12.3 ms a token, 81.0 tokens a second`."""
    each = profile.seconds / profile.workload.tokens
    unit, scale = _unit(each)
    return f"{profile.workload}: {each * scale:.4g} {unit} a token, {1 / each:.4g} tokens a second"


def _unit(seconds: float) -> tuple[str, float]:
    """The unit in which so much time is a handy number, and how many of it are a second."""
    return ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)


def describe_limits(limits: Limits) -> str:
    """The limits to which the fractions refer."""
    small, large = (f"{value / 1e9:.1f}" for value in (limits.read, limits.read_large_pages))
    peaks = ", ".join(f"{kind} {getattr(limits, kind) / 1e9:.0f}" for kind in ("int8", "int16", "float32"))
    threads = f"{limits.threads} thread{'s' * (limits.threads > 1)} ({limits.isa})"
    weights = "large" if limits.large_pages else "small"
    reading = f"{small} GB/s read in small pages, {large} in large ones (the weights lie in {weights} ones)"
    return f"limits of {threads}: {reading}; {peaks} GMAC/s"


def plot_profiles(profiles: Sequence[Profile], target: Path) -> Path:
    """Draws the time of each operation, a panel for each profile; colour and text show the limit and its share."""
    runs = list(dict.fromkeys(map(name_of_run, profiles)))
    counts = [len(profile.operations) for profile in profiles]
    colors = dict(zip(_LIMITS, (*COLORS[:4], GREY), strict=True))
    with picture(target, 1.2 + sum(0.8 + 0.32 * count for count in counts)) as figure:
        title = "Time of each operation" + f": {runs[0]}" * (len(runs) == 1)
        notes = list(dict.fromkeys(describe_limits(profile.limits) for profile in profiles))
        rows = [list(rows_of([profile])) for profile in profiles]
        if any(NOT_MEASURABLE in _describe_share(row) for found in rows for row in found):
            notes.append(
                f"{NOT_MEASURABLE}: faster than the measured limit, from a cache or as others used the machine"
            )
        body = add_title(figure, title, "\n".join(notes))
        axes = add_panels(body, len(profiles), 1, height_ratios=[c + 1.5 for c in counts])
        for axis, profile, found in zip(axes, profiles, rows, strict=True):
            _draw(axis, found, colors)
            axis.set_title(title_of(profile) if len(runs) == 1 else f"{name_of_run(profile)}, {title_of(profile)}")
            for limit, name in _LIMITS.items():
                if any(row.limit_name == limit for other in rows for row in other):
                    axis.barh(0, 0, color=colors[limit], label=name)
        add_legends(body, axes)
    return target


def _draw(axis: Any, rows: Sequence[ProfileRow], colors: Mapping[str, str]) -> None:
    longest = max(row.us_per_token for row in rows)
    unit, scale = _unit(longest * 1e-6)
    axis.barh(
        range(len(rows)),
        [row.us_per_token * 1e-6 * scale for row in rows],
        0.75,
        color=[colors[row.limit_name] for row in rows],
    )
    for place, row in enumerate(rows):
        end = (row.us_per_token * 1e-6 * scale, place)
        axis.annotate(_describe_share(row), end, (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    names = [fill(f"{row.operation} {row.types}", 42) for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlim(0, 1.6 * longest * 1e-6 * scale)
    axis.set_xlabel(f"time ({unit} a token)")


def _describe_share(row: ProfileRow) -> str:
    """The share of the time, and that of the limit."""
    limit = format_share(row.limit_share)
    of_limit = f", {limit if limit == NOT_MEASURABLE else f'{limit} of the limit'}" if row.limit_name else ""
    return f"{100 * row.share:.0f} %{of_limit}"
