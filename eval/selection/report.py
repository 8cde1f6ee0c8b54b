"""Reports of a folder of results as tables and plots: an HTML page, Markdown, CSV and PNG."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor, isfinite, log10
from pathlib import Path
from statistics import mean
from typing import Any

from lltool import __version__
from lltool.eval.bench.results.rows import Interval
from lltool.eval.common.store import write_whole
from lltool.eval.common.tables import format_table
from lltool.eval.selection.report_plot import Plot, PlottedFile, draw_png, draw_svg, front
from lltool.eval.selection.runs import MeasuredFile, Quality, Runs, Scope, scopes_of
from lltool.gguf.errors import InputError
from lltool.gguf.optional import require
from lltool.gguf.regular_file import read_bytes
from lltool.gguf.whole_file import check_output

MIB = 1 << 20
STARRED = "no other file is smaller, closer to the original and faster at once"
_MARK = b'<p class="quiet">lltool '  # appears in every page made from the template
TEMPLATE = Path(__file__).resolve().parent.parent / "data" / "report.html.j2"


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first column holds names, the others hold numbers if `has_numbers`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    has_numbers: bool = True

    def markdown(self) -> str:
        rows = [[cell.replace("|", "/") for cell in row] for row in self.rows]
        return format_table(self.columns, rows, left=1 if self.has_numbers else len(self.columns))


@dataclass(frozen=True)
class Loss:
    """The loss of each file by name, with its standard error; `label` says what the numbers are."""

    label: str
    values: dict[str, tuple[float, float]]


def main_table(entries: Sequence[MeasuredFile]) -> Table:
    """A line for each file: size, loss, speed, memory. A star marks the files on the Pareto front."""
    scopes = scopes_of(entries)
    several = len(scopes) > 1
    has_divergence = any(entry.divergence for entry in entries)
    tests = tests_of(entries)
    columns = ["file", "MiB", "bits a weight", "perplexity" + (f", {scopes[0].text}" if several else "")]
    over = f", mean of {len(scopes)} texts" if several else ""
    columns += [f"KL divergence, nats a token{over}", f"same best token{over}"] if has_divergence else []
    columns += [_test_title(test, threads) for test, threads in tests]
    has_memory = any(entry.memory for entry in entries)
    columns += ["memory, MiB"] if has_memory else []
    best = front_of(entries)
    rows = []
    for entry in entries:
        row = [entry.name + (" *" if entry.name in best else "")]
        row.append("–" if entry.bytes is None else f"{entry.bytes / MIB:.1f}")
        row.append("–" if entry.bits_per_weight is None else f"{entry.bits_per_weight:.2f}")
        row.append(_perplexity_cell(entry.qualities.get(scopes[0])) if scopes else "–")
        if has_divergence:
            row += _divergence_cells(entry, scopes)
        row += [_speed_cell(entry, test, threads) for test, threads in tests]
        if has_memory:
            row.append(f"{entry.memory / MIB:.0f}" if entry.memory else "–")
        rows.append(tuple(row))
    return Table("Which file to take", tuple(columns), tuple(rows))


def format_main(entries: Sequence[MeasuredFile]) -> str:
    """The main table in Markdown, with an explanation of its stars."""
    return main_table(entries).markdown() + (f"\n\n\\* {STARRED}" if front_of(entries) else "")


def text_tables(entries: Sequence[MeasuredFile]) -> list[Table]:
    """For several texts, tables of perplexity and, if it was measured, divergence of each file on each text."""
    scopes = scopes_of(entries)
    if len(scopes) < 2:
        return []
    titles = tuple(scope.text for scope in scopes)
    if len(set(titles)) < len(titles):
        titles = tuple(f"{scope.text} ({scope.method}, {scope.scored} tokens scored)" for scope in scopes)
    tables = []
    for name in ("perplexity", "divergence"):
        rows = []
        for entry in entries:
            found = [entry.qualities.get(scope) for scope in scopes]
            cells = [_perplexity_cell(q) if name == "perplexity" else _divergence_cell(q) for q in found]
            if any(cell != "–" for cell in cells):
                rows.append((entry.name, *cells))
        if rows:
            title = {"perplexity": "Perplexity by text", "divergence": "KL divergence by text, nats a token"}[name]
            tables.append(Table(title, ("file", *titles), tuple(rows)))
    return tables


def speed_table(entries: Sequence[MeasuredFile]) -> Table | None:
    """Tokens per second: the median and its interval."""
    tests = tests_of(entries)
    rows = []
    for entry in entries:
        cells = []
        for test in tests:
            speed = entry.speeds.get(test)
            cells.append(f"{speed.middle:.1f} ({speed.low:.1f} – {speed.high:.1f})" if speed else "–")
        rows.append((entry.name, *cells))
    titles = [f"{test}, {_threads(threads)}" for test, threads in tests]
    return Table("Speed, tokens a second: median (interval)", ("file", *titles), tuple(rows)) if tests else None


def tests_of(entries: Sequence[MeasuredFile]) -> list[tuple[str, int]]:
    """Each test and number of threads once, in order of first appearance."""
    return list(dict.fromkeys(test for entry in entries for test in entry.speeds))


def losses(entries: Sequence[MeasuredFile]) -> Loss | None:
    """The mean divergence over texts if two files have it; else the perplexity on the text that most files have."""
    scopes = scopes_of(entries)
    if not scopes:
        return None
    diverged = {entry.name: entry.divergence for entry in entries if entry.divergence and has_all(entry, scopes)}
    if len(diverged) > 1:
        return Loss("KL divergence (nats a token)", diverged)
    found = {entry.name: entry.qualities[scopes[0]] for entry in entries if scopes[0] in entry.qualities}
    return Loss(f"perplexity on {scopes[0].text}", {name: (q.perplexity, q.error) for name, q in found.items()})


def has_all(entry: MeasuredFile, scopes: Sequence[Scope]) -> bool:
    return entry.qualities.keys() >= set(scopes)


def front_of(entries: Sequence[MeasuredFile]) -> list[str]:
    """Names of the files on the Pareto front of size, loss and, if it is known for all, speed of generation."""
    loss, speeds = losses(entries), decode_speeds(entries)
    named = [e for e in entries if e.bytes is not None and e.name in loss.values] if loss else []
    named = [e for e in named if loss and isfinite(loss.values[e.name][0])]
    if loss is None or not named:
        return []
    costs = [[e.bytes or 0, loss.values[e.name][0]] for e in named]
    if all(e.name in speeds for e in named):
        costs = [[*cost, -speeds[e.name].middle] for cost, e in zip(costs, named, strict=True)]
    return [named[i].name for i in front(costs)]


def decode_speeds(entries: Sequence[MeasuredFile]) -> dict[str, Interval]:
    """Speeds of generation in the test that most files have; among several such tests, in that with most threads."""
    tests = [test for test in tests_of(entries) if test[0].startswith("tg")]
    if not tests:
        return {}
    test = max(tests, key=lambda test: (sum(test in entry.speeds for entry in entries), test[1]))
    return {entry.name: entry.speeds[test] for entry in entries if test in entry.speeds}


def plots(entries: Sequence[MeasuredFile]) -> list[Plot]:
    """Size against loss, and time of a generated token against loss where speeds were measured."""
    loss, speeds = losses(entries), decode_speeds(entries)
    if loss is None:
        return []
    known = [entry for entry in entries if entry.name in loss.values]
    costs = {
        "Size": ("size (MiB)", "smaller", {e.name: e.bytes / MIB for e in known if e.bytes is not None}),
        "Time": (
            "time of a generated token (ms)",
            "faster",
            {e.name: 1000 / speeds[e.name].middle for e in known if e.name in speeds},
        ),
    }
    drawn = []
    for title, (label, better, places) in costs.items():
        found = {name: (x, *loss.values[name]) for name, x in places.items()}
        points = [PlottedFile(name, *place) for name, place in found.items() if isfinite(place[1]) and any(place[1:])]
        zero = [(name, x) for name, (x, *lost) in found.items() if not any(lost)]  # the reference itself
        note = f"bold: no {better} file loses less" + "; bars: ± standard error" * any(p.error for p in points)
        if lost := [name for name, place in found.items() if not isfinite(place[1])]:
            note += f"; not drawn, as their loss is no number: {', '.join(lost)}"
        if points:
            drawn.append(Plot(f"{title} against loss", label, loss.label, points, zero, note))
    return drawn


def format_markdown(runs: Runs, title: str, advice: str = "", command: str = "") -> str:
    """The report in Markdown: the tables, what was run, and the notes."""
    blocks = [f"# {title}", *[advice] * bool(advice), format_main(runs.entries)]
    for table in (*text_tables(runs.entries), speed_table(runs.entries), runs_table(runs)):
        if table:
            blocks.append(f"## {table.title}\n\n{table.markdown()}")
    if command:
        blocks.append(f"Made by `{command}`.")
    if runs.notes:
        blocks.append("\n".join(f"- {note}" for note in runs.notes))
    return "\n\n".join(blocks) + "\n"


def runs_table(runs: Runs) -> Table:
    """The runs behind the results, with their machines and settings."""
    columns = ("result", "measured with", "on", "when", "command", "settings")
    rows = tuple(
        (f"{run.file} ({run.kind})", run.tool, run.machine or "–", run.when or "–", run.command or "–", run.details)
        for run in runs.runs
    )
    return Table("What was run", columns, rows, has_numbers=False)


def format_csv(entries: Sequence[MeasuredFile]) -> str:
    """A line for each file, with all figures in full precision."""
    records = as_records(entries)
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_records(entries: Sequence[MeasuredFile]) -> list[dict[str, Any]]:
    """A flat record for each file: bytes, nats per token, tokens per second; unknown values are left out."""
    records = []
    for entry in entries:
        record: dict[str, Any] = {
            "name": entry.name,
            "path": entry.path,
            "sha256": entry.sha256,
            "bytes": entry.bytes,
            "bits_per_weight": entry.bits_per_weight,
            "memory_bytes": entry.memory,
        }
        for scope, quality in entry.qualities.items():
            record |= {f"{scope.text} {field}": value for field, value in asdict(quality).items()}
        for (test, threads), speed in entry.speeds.items():
            prefix = f"{test} t{threads}"
            record |= {f"{prefix} ts": speed.middle, f"{prefix} low_ts": speed.low, f"{prefix} high_ts": speed.high}
        records.append({name: value for name, value in record.items() if value is not None})
    return records


def format_page(runs: Runs, title: str, advice: str = "", command: str = "") -> str:
    """A self-contained HTML page."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)  # names in results may be hostile
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    details = [table for table in (*text_tables(runs.entries), speed_table(runs.entries)) if table]
    return template.render(
        title=title,
        advice=advice,
        command=command,
        made=f"lltool {__version__}",  # no date, so that the same results give the same page
        main=main_table(runs.entries),
        starred=STARRED if front_of(runs.entries) else "",
        plots=[draw_svg(plot) for plot in plots(runs.entries)],
        details=details,
        files=[(entry.name, entry.path, entry.sha256) for entry in runs.entries],
        runs=runs_table(runs),
        notes=runs.notes,
    )


def write_report(runs: Runs, page: Path, title: str, advice: str = "", command: str = "") -> list[Path]:
    """Writes the page (.html), and Markdown, CSV and PNG files beside it; returns the paths of the files.

    `advice` stands at the top, `command` below the runs. Raises InputError as `check_report` does, and for a file that
    cannot be written.
    """
    check_report(page)
    texts = {
        page: format_page(runs, title, advice, command),
        page.with_suffix(".md"): format_markdown(runs, title, advice, command),
        page.with_suffix(".csv"): format_csv(runs.entries),
    }
    for path, text in texts.items():
        try:
            write_whole(path, text)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    written = list(texts)
    if drawn := plots(runs.entries):
        draw_png(drawn, page.with_suffix(".png"))
        written.append(page.with_suffix(".png"))
    return written


def check_report(page: Path) -> None:
    """Raises InputError if the page or a file beside it would replace a file that is not part of a report of lltool.

    It also does so without matplotlib, which draws the pictures.
    """
    if page.suffix not in (".html", ".htm"):
        raise InputError(f"{page}: a report is an HTML page; wanted a name that ends with .html")
    require("matplotlib", str(page))
    is_report = page.is_file() and _MARK in read_bytes(page)
    for path in (page, *map(page.with_suffix, (".md", ".csv", ".png"))):
        check_output(path)
        if path.is_file() and not is_report:
            raise InputError(
                f"{path}: exists, and is not part of a report of lltool; move it away or name another page"
            )


def plus_minus(value: float, error: float) -> str:
    """`value ± error` to two significant digits of the error, with at least one decimal."""
    if not (isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(1 - floor(log10(error)), 1)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _perplexity_cell(quality: Quality | None) -> str:
    return plus_minus(quality.perplexity, quality.error) if quality else "–"


def _divergence_cell(quality: Quality | None) -> str:
    if quality is None or quality.divergence is None:
        return "–"
    return plus_minus(quality.divergence, quality.divergence_error)


def _divergence_cells(entry: MeasuredFile, scopes: Sequence[Scope]) -> list[str]:
    """The means over texts; dashes for a file that was not measured on all of them."""
    tops = [quality.same_top for quality in entry.qualities.values() if quality.same_top is not None]
    if entry.divergence is None or not has_all(entry, scopes):
        return ["–", "–"]
    return [plus_minus(*entry.divergence), f"{100 * mean(tops):.1f} %"]


def _test_title(test: str, threads: int) -> str:
    unit = "ms a token" if test.startswith("tg") else "t/s"
    return f"{test} {unit}, {_threads(threads)}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _speed_cell(entry: MeasuredFile, test: str, threads: int) -> str:
    speed = entry.speeds.get((test, threads))
    if speed is None:
        return "–"
    return f"{1000 / speed.middle:.2f}" if test.startswith("tg") else f"{speed.middle:.1f}"
