"""Profiles as text, in the formats of `lltool bench`, and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from lltool.eval.bench import tables
from lltool.eval.bench.limits import Limits
from lltool.eval.bench.profile import COLUMNS, Profile, rows_of
from lltool.eval.figure import COLORS, add_title, picture
from lltool.eval.markdown import format_table

_TITLES = ("operation", "types", "count", "us/token", "share", "MB/token", "MMAC/token", "GB/s", "GMAC/s", "of limit")
_LIMITS = {
    "read": "reading",
    "int8": "int8 products",
    "int16": "int16 products",
    "float32": "float32 products",
    "": "no limit known",
}


def format_profiles(profiles: Sequence[Profile], form: str) -> str:
    """`form` is one of `lltool bench`'s; Markdown is a table a profile."""
    rows = list(rows_of(profiles))
    match form:
        case "md":
            return "\n\n".join(map(_format_markdown, profiles))
        case "csv":
            return tables.format_csv(rows, COLUMNS)
        case "sql":
            inserts = [tables.insert_row("lltool_profile", COLUMNS, row) for row in rows]
            return "\n".join([tables.create_table("lltool_profile", COLUMNS), "", *inserts])
        case _:
            return tables.format_rows(rows, form)


def _format_markdown(profile: Profile) -> str:
    lines = []
    for row in rows_of([profile]):
        amounts = [row["read_bytes_per_token"] / 1e6, row["multiply_adds_per_token"] / 1e6]
        rates = [row["read_bytes_per_s"] / 1e9, row["multiply_adds_per_s"] / 1e9]
        cells = [f"{x:.{digits}f}" if x else "" for x, digits in zip(amounts + rates, (2, 1, 1, 1), strict=True)]
        limit = f"{row['limit_share']:.0%} {row['limit_name']}" if row["limit_name"] else ""
        first = (row["operation"], row["types"], str(row["count"]), f"{row['us_per_token']:.1f}", f"{row['share']:.1%}")
        lines.append((*first, *cells, limit))
    return "\n".join([title_of(profile), "", format_table(_TITLES, lines, left=2), "", describe_limits(profile.limits)])


def title_of(profile: Profile) -> str:
    """As in `qwen2 630M Q4_K_M, tg128, 2 threads: 12345.6 us a token, 81.0 t/s`."""
    threads = f"{profile.ran.threads} thread" + "s" * (profile.ran.threads > 1)
    each = profile.seconds / profile.workload.tokens
    return f"{profile.model}, {profile.workload}, {threads}: {each * 1e6:.1f} us a token, {1 / each:.1f} t/s"


def describe_limits(limits: Limits) -> str:
    """What the fractions are of."""
    small, large = (f"{value / 1e9:.1f}" for value in (limits.read, limits.read_large_pages))
    peaks = ", ".join(f"{kind} {getattr(limits, kind) / 1e9:.0f}" for kind in ("int8", "int16", "float32"))
    threads = f"{limits.threads} thread{'s' * (limits.threads > 1)} ({limits.isa})"
    weights = "large" if limits.large_pages else "small"
    reading = f"{small} GB/s read in small pages, {large} in large ones (the weights lie in {weights} ones)"
    return f"limits of {threads}: {reading}; {peaks} GMAC/s"


def plot_profiles(profiles: Sequence[Profile], target: Path) -> Path:
    """Time of each operation, a panel a profile; colour and words tell the limit that binds and how near it is."""
    longest = max(len(profile.operations) for profile in profiles)
    with picture(target, 1.5 + 6.5 * len(profiles), 1.8 + 0.28 * longest) as figure:
        body = add_title(figure, "time of each operation", describe_limits(profiles[0].limits))
        axes = body.subplots(1, len(profiles), squeeze=False)[0]
        colors = dict(zip(_LIMITS, (*COLORS[:4], "#999999"), strict=True))
        for axis, profile in zip(axes, profiles, strict=True):
            rows = list(rows_of([profile]))
            longest_time = max(row["us_per_token"] for row in rows)
            for place, row in enumerate(rows):
                axis.barh(place, row["us_per_token"], 0.75, color=colors[row["limit_name"]])
                share = f"{row['share']:.0%}" + (f", {row['limit_share']:.0%} of limit" if row["limit_name"] else "")
                axis.annotate(share, (row["us_per_token"], place), (4, 0), textcoords="offset points", va="center")
            names = [" ".join([row["operation"], row["types"]]).strip() for row in rows]
            axis.set_yticks(range(len(rows)), names, fontsize=7.5)
            axis.invert_yaxis()
            axis.grid(axis="y", visible=False)
            axis.set_xlim(0, 1.4 * longest_time)
            axis.set_xlabel("us a token")
            axis.set_title(title_of(profile), fontsize=8.5)
        used = [limit for limit in _LIMITS if any(row["limit_name"] == limit for row in rows_of(profiles))]
        patches = [axes[0].barh(0, 0, color=colors[limit]) for limit in used]
        body.legend(patches, [_LIMITS[limit] for limit in used], loc="outside lower center", ncols=len(used))
    return target
