"""A folder of results as tables and pictures: one page of HTML, Markdown, CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import floor, log10
from pathlib import Path
from statistics import mean
from typing import Any

from lltool import __version__
from lltool.eval.bench.rows import Interval
from lltool.eval.markdown import format_table
from lltool.eval.report_plot import Plot, Point, draw_png, draw_svg, front
from lltool.eval.runs import Entry, Quality, Runs, Scope, scopes_of
from lltool.eval.store import write_whole
from lltool.gguf.errors import InputError

MIB = 1 << 20
STARRED = "no other file is smaller, closer to the original and faster at once"
TEMPLATE = Path(__file__).resolve().parent / "data" / "report.html.j2"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is of names, the others of numbers if it has some."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    has_numbers: bool = True

    def markdown(self) -> str:
        rows = [[cell.replace("|", "/") for cell in row] for row in self.rows]
        return format_table(self.columns, rows, left=1 if self.has_numbers else len(self.columns))


@dataclass(frozen=True)
class Loss:
    """What each file loses, by name, each with its error; `label` says what the numbers are."""

    label: str
    values: dict[str, tuple[float, float]]


def main_table(entries: Sequence[Entry]) -> Table:
    """A line a file: size, what it loses on the first text, speed. A star marks those on the front of the best."""
    scopes = scopes_of(entries)
    several = len(scopes) > 1
    has_divergence = any(entry.divergence for entry in entries)
    tests = tests_of(entries)
    columns = ["file", "MiB", "bits a weight", "perplexity" + (f", {scopes[0].text}" if several else "")]
    over = f", mean of {len(scopes)} texts" if several else ""
    columns += [f"KL divergence, nats{over}", f"same best token{over}"] if has_divergence else []
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


def format_main(entries: Sequence[Entry]) -> str:
    """The main table in Markdown, with what its stars mean."""
    return main_table(entries).markdown() + (f"\n\n\\* {STARRED}" if front_of(entries) else "")


def text_tables(entries: Sequence[Entry]) -> list[Table]:
    """Where there are several texts: perplexity, and divergence if it was measured, of each file on each of them."""
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


def speed_table(entries: Sequence[Entry]) -> Table | None:
    """Tokens a second with what the median lies between."""
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


def tests_of(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    """Each test and number of threads once, in the order in which they were found."""
    return list(dict.fromkeys(test for entry in entries for test in entry.speeds))


def losses(entries: Sequence[Entry]) -> Loss | None:
    """Divergence in the mean over texts, if two files have it; else perplexity on the text that most of them have."""
    scopes = scopes_of(entries)
    if not scopes:
        return None
    diverged = {entry.name: entry.divergence for entry in entries if entry.divergence and has_all(entry, scopes)}
    if len(diverged) > 1:
        return Loss("KL divergence (nats a token)", diverged)
    found = {entry.name: entry.qualities[scopes[0]] for entry in entries if scopes[0] in entry.qualities}
    return Loss(f"perplexity on {scopes[0].text}", {name: (q.perplexity, q.error) for name, q in found.items()})


def has_all(entry: Entry, scopes: Sequence[Scope]) -> bool:
    return entry.qualities.keys() >= set(scopes)


def front_of(entries: Sequence[Entry]) -> list[str]:
    """Names of the files that no other beats in size, loss and speed of generation (if that is known) together."""
    loss, speeds = losses(entries), decode_speeds(entries)
    named = [e for e in entries if e.bytes is not None and e.name in loss.values] if loss else []
    if loss is None or not named:
        return []
    costs = [[e.bytes or 0, loss.values[e.name][0]] for e in named]
    if all(e.name in speeds for e in named):
        costs = [[*cost, -speeds[e.name].middle] for cost, e in zip(costs, named, strict=True)]
    return [named[i].name for i in front(costs)]


def decode_speeds(entries: Sequence[Entry]) -> dict[str, Interval]:
    """Of generation, in the test that most files have; of those in the one with most threads."""
    tests = [test for test in tests_of(entries) if test[0].startswith("tg")]
    if not tests:
        return {}
    test = max(tests, key=lambda test: (sum(test in entry.speeds for entry in entries), test[1]))
    return {entry.name: entry.speeds[test] for entry in entries if test in entry.speeds}


def plots(entries: Sequence[Entry]) -> list[Plot]:
    """Size against loss, and speed against loss where speeds were measured."""
    loss, speeds = losses(entries), decode_speeds(entries)
    if loss is None:
        return []
    points, zero = [], []
    for entry in entries:
        if entry.bytes is None or entry.name not in loss.values:
            continue
        value, error = loss.values[entry.name]
        size = entry.bytes / MIB
        speed = speeds[entry.name].middle if entry.name in speeds else None
        if value == 0 and error == 0:  # the reference itself
            zero.append((entry.name, size, speed))
        else:
            points.append((entry.name, size, speed, value, error))
    drawn = []
    if points:
        sizes = [Point(name, size, value, error, speed) for name, size, speed, value, error in points]
        at_zero = [(name, size) for name, size, _ in zero]
        drawn.append(Plot("Size against loss", "size (MiB)", loss.label, sizes, at_zero, False, "tokens a second"))
    timed = [Point(name, speed, value, error, size) for name, size, speed, value, error in points if speed]
    if timed:
        at_zero = [(name, speed) for name, _, speed in zero if speed]
        label = "generated tokens a second"
        drawn.append(Plot("Speed against loss", label, loss.label, timed, at_zero, True, "size (MiB)"))
    return drawn


def format_markdown(runs: Runs, title: str, advice: str = "", command: str = "") -> str:
    """The tables, what was run and the notes."""
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
    """What was run and on what."""
    columns = ("result", "measured with", "on", "when", "command", "settings")
    rows = tuple(
        (f"{run.file} ({run.kind})", run.tool, run.machine or "–", run.when or "–", run.command or "–", run.details)
        for run in runs.runs
    )
    return Table("What was run", columns, rows, has_numbers=False)


def format_csv(entries: Sequence[Entry]) -> str:
    """A line a file with all figures in full precision."""
    records = as_records(entries)
    columns = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def as_records(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A flat record a file: bytes, nats a token, tokens a second; what is not known is left out."""
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
    """One HTML page that needs nothing from elsewhere."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)  # names in results may be hostile
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    details = [table for table in (*text_tables(runs.entries), speed_table(runs.entries)) if table]
    return template.render(
        title=title,
        advice=advice,
        command=command,
        made=f"lltool {__version__}, {datetime.now(UTC):%Y-%m-%d}",
        main=main_table(runs.entries),
        starred=STARRED if front_of(runs.entries) else "",
        plots=[draw_svg(plot) for plot in plots(runs.entries)],
        details=details,
        files=[(entry.name, entry.path, entry.sha256) for entry in runs.entries],
        runs=runs_table(runs),
        notes=runs.notes,
    )


def write_report(runs: Runs, page: Path, title: str, advice: str = "", command: str = "") -> list[Path]:
    """Writes the page (.html), and Markdown, CSV and PNG beside it; returns the files.

    `advice` stands at the top, `command` with what was run.
    """
    if page.suffix not in (".html", ".htm"):
        raise InputError(f"{page}: a report is a page; wanted a name that ends with .html")
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


def plus_minus(value: float, error: float) -> str:
    """`value ± error` to two digits of the error, one decimal at least."""
    if error <= 0:
        return f"{value:.4g}"
    digits = max(1 - floor(log10(error)), 1)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _perplexity_cell(quality: Quality | None) -> str:
    return plus_minus(quality.perplexity, quality.error) if quality else "–"


def _divergence_cell(quality: Quality | None) -> str:
    if quality is None or quality.divergence is None:
        return "–"
    return plus_minus(quality.divergence, quality.divergence_error)


def _divergence_cells(entry: Entry, scopes: Sequence[Scope]) -> list[str]:
    """The means over texts, of a file that was measured on all of them."""
    tops = [quality.same_top for quality in entry.qualities.values() if quality.same_top is not None]
    if entry.divergence is None or not has_all(entry, scopes):
        return ["–", "–"]
    return [plus_minus(*entry.divergence), f"{100 * mean(tops):.1f} %"]


def _test_title(test: str, threads: int) -> str:
    unit = "ms a token" if test.startswith("tg") else "t/s"
    return f"{test} {unit}, {_threads(threads)}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _speed_cell(entry: Entry, test: str, threads: int) -> str:
    speed = entry.speeds.get((test, threads))
    if speed is None:
        return "–"
    return f"{1000 / speed.middle:.2f}" if test.startswith("tg") else f"{speed.middle:.1f}"
