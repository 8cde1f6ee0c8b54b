"""Rows of measurements as text: llama-bench's five formats, and llama-batched-bench's table."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from lltool import __version__
from lltool.eval.bench.plan import Settings, Workload, resolve
from lltool.eval.bench.record import LLAMA_BENCH_COLUMNS, OWN_COLUMNS, Row

COLUMNS = LLAMA_BENCH_COLUMNS | OWN_COLUMNS
GIB = 1 << 30

# llama-bench's optional columns of Markdown in its order: their title and width, below 0 for text on the left.
_OPTIONAL = {
    "n_gpu_layers": ("ngl", 3),
    "n_cpu_moe": ("n_cpu_moe", 10),
    "n_threads": ("threads", 7),
    "cpu_mask": ("cpu_mask", -10),
    "cpu_strict": ("cpu_strict", 10),
    "poll": ("poll", 10),
    "n_batch": ("n_batch", 7),
    "n_ubatch": ("n_ubatch", 8),
    "type_k": ("type_k", 6),
    "type_v": ("type_v", 6),
    "main_gpu": ("main_gpu", 10),
    "split_mode": ("sm", 6),
    "no_kv_offload": ("nkvo", 13),
    "flash_attn": ("fa", 3),
    "devices": ("dev", -12),
    "tensor_split": ("ts", -12),
    "tensor_buft_overrides": ("ot", -21),
    "load_mode": ("lm", 10),
    "lazy_mode": ("lazy_mode", -10),
    "embeddings": ("embd", 10),
    "no_op_offload": ("nopo", 4),
    "no_host": ("noh", 4),
    "repack": ("rpk", 3),
    "fit_target": ("fitt", 10),
    "fit_min_ctx": ("fitc", 11),
}
_BATCHED = ("PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s")
_BATCHED_WIDTHS = (6, 6, 4, 6, 8, 8, 8, 8, 8, 8)
_SETTING_OF = {"n_threads": "threads", "n_batch": "batch", "n_ubatch": "ubatch"}


def format_rows(rows: Sequence[Row], form: str) -> str:
    """`form` is a key of FORMATS; without a row there is nothing to print but what surrounds them."""
    return FORMATS[form](rows)


def format_json(rows: Sequence[Row]) -> str:
    return json.dumps(list(rows), indent=2)


def format_jsonl(rows: Sequence[Row]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def format_csv(rows: Sequence[Row], columns: Mapping[str, str] = COLUMNS) -> str:
    """A header and a line a row, every field quoted: True and False are 1 and 0, lists are JSON, null is empty."""
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows(
        ["" if (value := stored(row, name, columns)) is None else value for name in columns] for row in rows
    )
    return text.getvalue().rstrip("\n")


def format_sql(rows: Sequence[Row]) -> str:
    """llama-bench's table `llama_bench`, which its tools read, and all columns once more in `lltool_bench`.

    What llama-bench has no column for, several sequences at once, is in the second table alone.
    """
    single = [row for row in rows if row["n_parallel"] == 1]
    lines = [create_table("llama_bench", LLAMA_BENCH_COLUMNS), create_table("lltool_bench", COLUMNS), ""]
    lines += [insert_row("llama_bench", LLAMA_BENCH_COLUMNS, row) for row in single]
    lines += [insert_row("lltool_bench", COLUMNS, row) for row in rows]
    return "\n".join(lines)


def create_table(name: str, columns: Mapping[str, str]) -> str:
    """The statement that makes a table of rows, unless it is there."""
    types = {"BOOLEAN": "INTEGER", "JSON": "TEXT"}
    body = ",\n".join(f"  {column} {types.get(type, type)}" for column, type in columns.items())
    return f"CREATE TABLE IF NOT EXISTS {name} (\n{body}\n);"


def stored(row: Row, name: str, columns: Mapping[str, str] = COLUMNS) -> Any:
    """A value as CSV and SQL hold it."""
    value = row.get(name)
    if columns[name] == "JSON":
        return json.dumps(value)
    return int(value) if isinstance(value, bool) else value


def insert_row(table: str, columns: Mapping[str, str], row: Row) -> str:
    """The statement that adds a row."""
    values = (stored(row, name, columns) for name in columns)
    quoted = ("NULL" if value is None else "'" + str(value).replace("'", "''") + "'" for value in values)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(quoted)});"


def format_markdown(rows: Sequence[Row]) -> str:
    """llama-bench's table, which shows the settings that differ from the default or from each other; then notes."""
    if any(row["n_parallel"] > 1 for row in rows):
        return _format_batched(rows)
    optional = [name for name in _OPTIONAL if name == "n_threads" or _is_told(name, rows)]
    titles = [("model", -30), ("size", 10), ("params", 10), ("backend", -10)]
    titles += [_OPTIONAL[name] for name in optional]
    titles += [("test", 15), ("t/s", 20), ("median (95 %)", 26)]
    lines = [[title for title, _ in titles], ["-" * (abs(width) - 1) + "-:"[width > 0] for _, width in titles]]
    for row in rows:
        size, count = format_size(row["model_size"]), format_count(row["model_n_params"])
        cells = [row["model_type"], size, count, row["backends"], *(_cell(name, row) for name in optional)]
        lines.append([*cells, test_name(row), f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}", _median(row)])
    columns = zip(*lines, strict=True)
    widths = [
        max(map(len, column)) * (1 if width > 0 else -1) for (_, width), column in zip(titles, columns, strict=True)
    ]
    table = ["| " + " | ".join(_pad(cell, w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([*table, *_footer(rows)])


def _format_batched(rows: Sequence[Row]) -> str:
    """llama-batched-bench's table, one for each way to run each model; times are means, in seconds."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        told = [f"{_OPTIONAL[name][0]} {_cell(name, row)}" for name in _OPTIONAL if _is_told(name, rows)]
        title = ", ".join([row["model_type"], Path(row["model_filename"]).name, *told])
        groups.setdefault(title, []).append(row)
    lines = []
    for title, group in groups.items():
        lines += [title, "", _join_batched(_BATCHED), "|" + "-|-".join("-" * width for width in _BATCHED_WIDTHS) + "-|"]
        for row in group:
            prompt, generation, count = row["n_prompt"], row["n_gen"], row["n_parallel"]
            whole, first = row["avg_ns"] / 1e9, mean(row["samples_prompt_ns"]) / 1e9
            cached = count * (row["n_depth"] + prompt + generation)
            speeds = [_rate(count * prompt, first), _rate(count * generation, whole - first)]
            total = _rate(count * (prompt + generation), whole)
            times = (first, speeds[0], whole - first, speeds[1], whole, total)
            cells = [prompt, generation, count, cached, *(f"{x:.{3 - i % 2}f}" for i, x in enumerate(times))]
            lines.append(_join_batched(cells))
        lines.append("")
    return "\n".join([*lines[:-1], *_footer(rows)])


def _join_batched(cells: Sequence[Any]) -> str:
    return "|" + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, _BATCHED_WIDTHS, strict=True)) + " |"


FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    "md": format_markdown,
    "csv": format_csv,
    "json": format_json,
    "jsonl": format_jsonl,
    "sql": format_sql,
}


def test_name(row: Row) -> str:
    return str(Workload(row["n_prompt"], row["n_gen"], row["n_depth"], row["n_parallel"]))


def format_size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / (1 << 20):.2f} MiB"


def format_count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _is_told(name: str, rows: Sequence[Row]) -> bool:
    """Whether a setting differs from the default, from row to row, or from what was asked for."""
    default = _defaults()[_SETTING_OF.get(name, name)]
    return any(row[name] != default or name in _asked(row) for row in rows)


@cache
def _defaults() -> dict[str, Any]:
    return asdict(resolve(Settings(Path())))


def _asked(row: Row) -> dict[str, Any]:
    asked: dict[str, Any] = row["settings"].get("asked", {})
    return asked


def _cell(name: str, row: Row) -> str:
    value = row[name]
    text = str(int(value) if isinstance(value, bool) else value)
    return f"{text} (asked {_asked(row)[name]})" if name in _asked(row) else text


def _median(row: Row) -> str:
    if row["median_ts"] is None:
        return ""
    if row["low_ts"] is None or row["high_ts"] is None:
        return f"{row['median_ts']:.2f}"
    return f"{row['median_ts']:.2f} ({row['low_ts']:.2f} – {row['high_ts']:.2f})"


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _pad(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)


def _footer(rows: Sequence[Row]) -> list[str]:
    notes: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        for note in row["notes"]:
            notes.setdefault(note, []).append(str(number))
    builds = dict.fromkeys(f"build: {row['build_commit']} (lltool {__version__})" for row in rows)
    lines = [f"- row{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {note}" for note, numbers in notes.items()]
    return [*([""] if notes else []), *lines, "", *builds]
