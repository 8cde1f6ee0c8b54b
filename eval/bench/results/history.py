"""Keeps results in a SQLite file, in llama-bench's table and ours; `sqlite3 FILE < results.sql` adds to them.

`llama_bench` has llama-bench's columns, so that its scripts read the file; `lltool_bench` has all columns.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from lltool.eval.bench.machine.environment import identify_machine
from lltool.eval.bench.machine.watch import BUSY
from lltool.eval.bench.results.rows import COLUMNS, LLAMA_BENCH_COLUMNS, ResultRow, Results, complete_row, speed_of
from lltool.eval.bench.results.statistics import estimate_drift
from lltool.eval.bench.results.tables import create_table, stored
from lltool.eval.bench.settings import SETTINGS
from lltool.eval.common.tables import format_table
from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import open_regular
from lltool.gguf.whole_file import check_output

VERSION = 1  # of the tables, in `PRAGMA user_version`; llama-bench leaves 0 there
PATIENCE = 30.0  # seconds to wait for another process that writes
# Columns of both tables that identify a row, whichever program wrote it.
_IDENTITY = ("build_commit", "model_filename", "n_threads", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns")


_MAIN = tuple(setting.column for setting in SETTINGS if setting.in_series)
_PLACE = ("cpu_info", "gpu_info", "model_type")
# The names of the parts of the key that `series_of` returns.
SERIES = ("engine", "file", "test", *_PLACE, *_MAIN)


def default_database() -> Path:
    return Path.home() / ".cache" / "lltool" / "bench.sqlite"


def keep(path: Path, rows: Sequence[ResultRow]) -> None:
    """Adds all rows or none, waiting while others write; creates the file, and the default file's folder."""
    if path == default_database():
        path.parent.mkdir(parents=True, exist_ok=True)
    check_output(path)
    with _open(path) as database:
        database.execute("BEGIN IMMEDIATE")
        _check(database, path)
        for table, columns in (("llama_bench", LLAMA_BENCH_COLUMNS), ("lltool_bench", COLUMNS)):
            database.execute(create_table(table, columns))
            _add_columns(database, table, columns)
            places = ", ".join("?" for _ in columns)
            statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"
            fitting = [row.columns() for row in rows if table == "lltool_bench" or row.n_parallel == 1]
            database.executemany(statement, [[stored(row, name) for name in columns] for row in fitting])
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.commit()


def recall(path: Path, *, model: str = "", test: str = "", last: int | None = None) -> Results:
    """The rows in order of time, of models with `model` in their name or file and of tests named `test`.

    `last` keeps only that many of the latest rows of each test, model and setting. A missing file is an InputError.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no history yet; `lltool bench --db {path}` starts one")
    with _open(path) as database:
        tables = _check(database, path)
        found = list(_select(database, "lltool_bench", "")) if "lltool_bench" in tables else []
        if "llama_bench" in tables:
            same = " AND ".join(f"ours.{name} IS theirs.{name}" for name in _IDENTITY)
            twin = f"WHERE NOT EXISTS (SELECT 1 FROM lltool_bench AS ours WHERE {same})"
            found += _select(database, "llama_bench AS theirs", twin if "lltool_bench" in tables else "")
    rows = Results(complete_row(row, f"{path}: row {number}") for number, row in enumerate(found, 1))
    rows.sort(key=lambda row: row.test_time or "")
    rows = Results(
        row
        for row in rows
        if model.lower() in f"{row.model_type}\n{row.model_filename}".lower()
        and test.replace(" ", "") in ("", row.test.replace(" ", ""))
    )
    if last is None:
        return rows
    series: dict[tuple[Any, ...], list[ResultRow]] = {}
    for row in rows:
        series.setdefault(series_of(row), []).append(row)
    kept = {id(row) for group in series.values() for row in group[-last:]}
    return Results(row for row in rows if id(row) in kept)


def find_drift(path: Path | None, machine: Mapping[str, Any]) -> float:
    """The relative standard deviation of speed between runs on this machine, from repeated runs of the same build.

    Runs during which others used the processor do not count: they have a wide interval of their own.
    """
    series: dict[tuple[Any, ...], list[float]] = {}
    for row in recall(path) if path and path.exists() else ():
        is_busy = any(note.startswith(BUSY) for note in row.notes)
        if row.median_ts and not is_busy and identify_machine(row.machine) == identify_machine(machine):
            series.setdefault((row.build_commit, *series_of(row)), []).append(row.median_ts)
    return estimate_drift(series.values(), is_virtual=machine["is_virtual"])


def series_of(row: ResultRow) -> tuple[Any, ...]:
    """The key of rows that repeat one measurement at different times: engine, model, test and main settings."""
    return (row.family, row.model_name, row.test, *(row.column(name) for name in (*_PLACE, *_MAIN)))


def format_history(rows: Sequence[ResultRow]) -> str:
    """A Markdown table with a line for each row, in the given order."""
    titles = ("time (UTC)", "engine", "build", "model", "test", "threads", "t/s (95 %)")
    lines = []
    for row in rows:
        when = (row.test_time or "").replace("T", " ").rstrip("Z")
        what = (when, row.engine, row.build_commit or "", row.model_type, row.test)
        lines.append((*what, str(row.ran["n_threads"]), str(speed_of(row))))
    return format_table(titles, lines, left=5)


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    if path.exists():
        open_regular(path).close()
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            yield database
    except sqlite3.Error as error:
        raise InputError(f"{path}: {error}; wanted a history of `lltool bench` that can be read and written") from error


def _check(database: sqlite3.Connection, path: Path) -> set[str]:
    """The names of the tables. Raises InputError for another program's database and for a later version."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if tables and not tables & {"llama_bench", "lltool_bench"}:
        raise InputError(f"{path}: not a history: the database has a table {min(tables)}; name another file")
    if version > VERSION:
        raise InputError(
            f"{path}: a history of version {version}, but this lltool reads version {VERSION}; use a later lltool"
        )
    return tables


def _add_columns(database: sqlite3.Connection, table: str, columns: dict[str, str]) -> None:
    """Adds the columns that a table of an older llama-bench lacks."""
    present = {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}
    types = {"BOOLEAN": "INTEGER", "JSON": "TEXT"}
    for name in columns.keys() - present:
        database.execute(f"ALTER TABLE {table} ADD COLUMN {name} {types.get(columns[name], columns[name])}")


def _select(database: sqlite3.Connection, table: str, condition: str) -> Iterator[dict[str, Any]]:
    return (dict(row) for row in database.execute(f"SELECT * FROM {table} {condition}"))
