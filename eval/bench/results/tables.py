"""Formats rows of measurements as text: llama-bench's five formats, and llama-batched-bench's table."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from lltool import __version__
from lltool.eval.bench.results.rows import COLUMNS, LLAMA_BENCH_COLUMNS, ResultRow
from lltool.eval.bench.run.plan import resolve
from lltool.eval.bench.settings import SETTINGS, Setting, Settings
from lltool.eval.common.quantities import format_count, format_size
from lltool.eval.common.tables import format_table

Values = Mapping[str, Any]  # of columns, as JSON holds them

# llama-bench's optional Markdown columns in its order.
_OPTIONAL = sorted((setting for setting in SETTINGS if setting.place), key=lambda setting: setting.place)
_BATCHED = ("PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s")
_BATCHED_WIDTHS = (6, 6, 4, 6, 8, 8, 8, 8, 8, 8)


def format_rows(rows: Sequence[ResultRow], form: str) -> str:
    """The rows as text; `form` is a key of FORMATS. Without rows the text has headers and statements only."""
    return FORMATS[form](rows)


def format_json(rows: Iterable[Values]) -> str:
    return json.dumps(list(rows), indent=2)


def format_jsonl(rows: Iterable[Values]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def format_csv(rows: Iterable[Values], columns: Mapping[str, str] = COLUMNS) -> str:
    """A header and a line a row, with all fields quoted: True and False are 1 and 0, lists are JSON, null is empty."""
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows(
        ["" if (value := stored(row, name, columns)) is None else value for name in columns] for row in rows
    )
    return text.getvalue().rstrip("\n")


def format_sql(rows: Sequence[ResultRow]) -> str:
    """llama-bench's table `llama_bench`, which its tools read, and all columns once more in `lltool_bench`.

    Rows of several sequences at once, for which llama-bench has no column, are in the second table only.
    """
    lines = [create_table("llama_bench", LLAMA_BENCH_COLUMNS), create_table("lltool_bench", COLUMNS), ""]
    lines += [insert_row("llama_bench", LLAMA_BENCH_COLUMNS, row.columns()) for row in rows if row.n_parallel == 1]
    lines += [insert_row("lltool_bench", COLUMNS, row.columns()) for row in rows]
    return "\n".join(lines)


def create_table(name: str, columns: Mapping[str, str]) -> str:
    """The statement that creates a table of rows unless it exists."""
    types = {"BOOLEAN": "INTEGER", "JSON": "TEXT"}
    body = ",\n".join(f"  {column} {types.get(type, type)}" for column, type in columns.items())
    return f"CREATE TABLE IF NOT EXISTS {name} (\n{body}\n);"


def stored(row: Values, name: str, columns: Mapping[str, str] = COLUMNS) -> Any:
    """A value as CSV and SQL hold it."""
    value = row.get(name)
    if columns[name] == "JSON":
        return json.dumps(value)
    return int(value) if isinstance(value, bool) else value


def insert_row(table: str, columns: Mapping[str, str], row: Values) -> str:
    """The statement that adds a row."""
    values = (stored(row, name, columns) for name in columns)
    quoted = ("NULL" if value is None else "'" + str(value).replace("'", "''") + "'" for value in values)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(quoted)});"


def format_markdown(rows: Sequence[ResultRow]) -> str:
    """llama-bench's table, with the settings that differ from the default or were asked for but not used, and notes."""
    if any(row.n_parallel > 1 for row in rows):
        return _format_batched(rows)
    optional = [setting for setting in _OPTIONAL if setting.name == "threads" or _is_shown(setting, rows)]
    titles = [("model", -30), ("size", 10), ("params", 10), ("backend", -10)]
    titles += [(setting.title, setting.width) for setting in optional]
    titles += [("test", 15), ("t/s", 20), ("median (95 %)", 26)]
    lines = []
    for row in rows:
        sizes = (_or_empty(format_size, row.model_size), _or_empty(format_count, row.model_n_params))
        cells = [row.model_type, *sizes, row.backends or "", *(_cell(setting, row) for setting in optional)]
        speed = f"{row.avg_ts:.2f}" + ("" if row.stddev_ts is None else f" ± {row.stddev_ts:.2f}")
        lines.append([*cells, row.test, speed, _median(row)])
    least = [abs(width) for _, width in titles]
    table = format_table([title for title, _ in titles], lines, left=[width < 0 for _, width in titles], least=least)
    return "\n".join([table, *_footer(rows)])


def _format_batched(rows: Sequence[ResultRow]) -> str:
    """llama-batched-bench's table, one for each model and combination of settings; times are means, in seconds."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        shown = [f"{setting.title} {_cell(setting, row)}" for setting in _OPTIONAL if _is_shown(setting, rows)]
        title = ", ".join([row.model_type, row.model_name, *shown])
        groups.setdefault(title, []).append(row)
    lines = []
    for title, group in groups.items():
        lines += [title, "", _join_batched(_BATCHED), "|" + "-|-".join("-" * width for width in _BATCHED_WIDTHS) + "-|"]
        for row in group:
            prompt, generation, count = row.n_prompt, row.n_gen, row.n_parallel
            whole, first = (row.avg_ns or 0) / 1e9, mean(row.samples_prompt_ns or [0]) / 1e9
            cached = count * row.workload.context
            speeds = [_rate(count * prompt, first), _rate(count * generation, whole - first)]
            total = _rate(count * (prompt + generation), whole)
            times = (first, speeds[0], whole - first, speeds[1], whole, total)
            cells = [prompt, generation, count, cached, *(f"{x:.{3 - i % 2}f}" for i, x in enumerate(times))]
            lines.append(_join_batched(cells))
        lines.append("")
    return "\n".join([*lines[:-1], *_footer(rows)])


def _join_batched(cells: Sequence[Any]) -> str:
    return "|" + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, _BATCHED_WIDTHS, strict=True)) + " |"


FORMATS: dict[str, Callable[[Sequence[ResultRow]], str]] = {
    "md": format_markdown,
    "csv": lambda rows: format_csv(row.columns() for row in rows),
    "json": lambda rows: format_json(row.columns() for row in rows),
    "jsonl": lambda rows: format_jsonl(row.columns() for row in rows),
    "sql": format_sql,
}


def _or_empty(show: Callable[[int], str], value: int | None) -> str:
    return "" if value is None else show(value)


def _is_shown(setting: Setting, rows: Sequence[ResultRow]) -> bool:
    """Whether a setting is shown: in some row it differs from the default or from what was asked for."""
    default = getattr(_defaults(), setting.name)
    return any(row.ran[setting.column] != default or setting.name in row.asked for row in rows)


@cache
def _defaults() -> Settings:
    return resolve(Settings(Path()))


def _cell(setting: Setting, row: ResultRow) -> str:
    value = row.ran[setting.column]
    text = str(int(value) if isinstance(value, bool) else value)
    return f"{text} (asked {row.asked[setting.name]})" if setting.name in row.asked else text


def _median(row: ResultRow) -> str:
    if row.median_ts is None:
        return ""
    if row.low_ts is None or row.high_ts is None:
        return f"{row.median_ts:.2f}"
    return f"{row.median_ts:.2f} ({row.low_ts:.2f} – {row.high_ts:.2f})"


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _footer(rows: Sequence[ResultRow]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        for note in row.notes:
            notes.setdefault(note, []).append(str(number))
    builds = dict.fromkeys(f"build: {row.build_commit} (lltool {__version__})" for row in rows)
    lines = [f"- row{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {note}" for note, numbers in notes.items()]
    return [*([""] if notes else []), *lines, "", *builds]
