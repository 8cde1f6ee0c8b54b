"""Results kept in a SQLite file, in llama-bench's table and ours: `sqlite3 FILE < results.sql` adds to the same.

`llama_bench` has llama-bench's columns, so that its scripts read the file; `lltool_bench` has all columns.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lltool.eval.bench.environment import identify_machine
from lltool.eval.bench.record import LLAMA_BENCH_COLUMNS, Row
from lltool.eval.bench.rows import complete_row, family_of, format_speed, speed_of
from lltool.eval.bench.statistics import estimate_drift
from lltool.eval.bench.tables import COLUMNS, create_table, stored, test_name
from lltool.eval.bench.watch import BUSY
from lltool.eval.markdown import format_table
from lltool.gguf.errors import InputError

VERSION = 1  # of the tables, in `PRAGMA user_version`; llama-bench leaves 0 there
PATIENCE = 30.0  # seconds to wait for another process that writes
# What a row of both tables has in common, whatever wrote it.
_IDENTITY = ("build_commit", "model_filename", "n_threads", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns")


# What the parts of a series' key are.
SERIES = (
    *("engine", "file", "test", "cpu_info", "gpu_info", "model_type"),
    *("n_threads", "n_batch", "n_ubatch", "type_k", "type_v", "n_gpu_layers"),
)


def default_database() -> Path:
    return Path.home() / ".cache" / "lltool" / "bench.sqlite"


def keep(path: Path, rows: Sequence[Row]) -> None:
    """Adds the rows, all or none, waiting for others who write; makes file and folder where they are not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path) as database:
        database.execute("BEGIN IMMEDIATE")
        _check(database, path)
        for table, columns in (("llama_bench", LLAMA_BENCH_COLUMNS), ("lltool_bench", COLUMNS)):
            database.execute(create_table(table, columns))
            _add_columns(database, table, columns)
            places = ", ".join("?" for _ in columns)
            statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"
            fitting = [row for row in rows if table == "lltool_bench" or row["n_parallel"] == 1]
            database.executemany(statement, [[stored(row, name) for name in columns] for row in fitting])
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.commit()


def recall(path: Path, *, model: str = "", test: str = "", last: int | None = None) -> list[Row]:
    """The rows in the order of their time: of models whose name or file has `model` in it, of tests named `test`.

    `last` takes the latest so many of each test, model and setting.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no history yet; `lltool bench --db {path}` begins one")
    with _open(path) as database:
        tables = _check(database, path)
        found = list(_select(database, "lltool_bench", "")) if "lltool_bench" in tables else []
        if "llama_bench" in tables:
            same = " AND ".join(f"ours.{name} IS theirs.{name}" for name in _IDENTITY)
            twin = f"WHERE NOT EXISTS (SELECT 1 FROM lltool_bench AS ours WHERE {same})"
            found += _select(database, "llama_bench AS theirs", twin if "lltool_bench" in tables else "")
    rows = [complete_row(row, f"{path}: row {number}") for number, row in enumerate(found, 1)]
    rows.sort(key=lambda row: row["test_time"] or "")
    rows = [
        row
        for row in rows
        if model.lower() in f"{row['model_type']}\n{row['model_filename']}".lower()
        and test.replace(" ", "") in ("", test_name(row).replace(" ", ""))
    ]
    if last is None:
        return rows
    series: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        series.setdefault(series_of(row), []).append(row)
    kept = {id(row) for group in series.values() for row in group[-last:]}
    return [row for row in rows if id(row) in kept]


def find_drift(path: Path | None, machine: Mapping[str, Any]) -> float:
    """How far speed wanders on this machine from run to run, by what one build measured again and again.

    Not by what was measured while others had the processor: that has a wide interval of its own.
    """
    series: dict[tuple[Any, ...], list[float]] = {}
    for row in recall(path) if path and path.exists() else ():
        is_busy = any(note.startswith(BUSY) for note in row["notes"])
        if row["median_ts"] and not is_busy and identify_machine(row["machine"]) == identify_machine(machine):
            series.setdefault((row["build_commit"], *series_of(row)), []).append(row["median_ts"])
    return estimate_drift(series.values(), is_virtual=machine["is_virtual"])


def series_of(row: Row) -> tuple[Any, ...]:
    """What rows have in common that are the same measurement at different times: engine, model, test, main settings."""
    return (family_of(row), Path(row["model_filename"]).name, test_name(row), *(row[name] for name in SERIES[3:]))


def format_history(rows: Sequence[Row]) -> str:
    """A Markdown table in the order of time."""
    titles = ("time (UTC)", "engine", "build", "model", "test", "threads", "t/s (95 %)")
    lines = []
    for row in rows:
        when = str(row["test_time"] or "").replace("T", " ").rstrip("Z")
        what = (when, row["engine"], str(row["build_commit"] or ""), row["model_type"], test_name(row))
        lines.append((*what, str(row["n_threads"]), format_speed(speed_of(row))))
    return format_table(titles, lines, left=5)


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            yield database
    except sqlite3.Error as error:
        raise InputError(f"{path}: {error}; wanted a history of `lltool bench` that can be read and written") from error


def _check(database: sqlite3.Connection, path: Path) -> set[str]:
    """The names of the tables. Raises InputError for a file of something else, or of a later version."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not tables & {"llama_bench", "lltool_bench"}:
        raise InputError(f"{path}: a database of something else, with a table {min(tables)}; name another file")
    if version > VERSION:
        raise InputError(
            f"{path}: a history of version {version}, this lltool knows {VERSION}; a later lltool reads it"
        )
    return tables


def _add_columns(database: sqlite3.Connection, table: str, columns: dict[str, str]) -> None:
    """Adds what a table of an older llama-bench lacks."""
    present = {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}
    types = {"BOOLEAN": "INTEGER", "JSON": "TEXT"}
    for name in columns.keys() - present:
        database.execute(f"ALTER TABLE {table} ADD COLUMN {name} {types.get(columns[name], columns[name])}")


def _select(database: sqlite3.Connection, table: str, condition: str) -> Iterator[dict[str, Any]]:
    return (dict(row) for row in database.execute(f"SELECT * FROM {table} {condition}"))
