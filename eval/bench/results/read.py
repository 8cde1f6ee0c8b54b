"""Reads rows from results of `lltool bench` or llama-bench: JSON, JSONL, CSV or a SQLite database."""

import csv
import json
from pathlib import Path
from typing import Any

from lltool.eval.bench.results.history import recall
from lltool.eval.bench.results.rows import Results, complete_row
from lltool.gguf.errors import InputError
from lltool.gguf.regular_file import open_regular, read_bytes

WANTED = "wanted JSON, JSONL, CSV or SQLite of `lltool bench` or llama-bench"


def read_rows(path: Path) -> Results:
    """All rows. Raises InputError with the file, the row and what was found."""
    with open_regular(path) as file:
        is_database = file.read(16) == b"SQLite format 3\0"
    if is_database:
        rows = recall(path)
    else:
        try:
            text = read_bytes(path).decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a text file; {WANTED}") from error
        found = _parse(path, text.strip())
        rows = Results(complete_row(row, f"{path}: row {number}") for number, row in enumerate(found, 1))
    if not rows:
        raise InputError(f"{path}: holds no results; {WANTED}")
    return rows


def _parse(path: Path, text: str) -> list[dict[str, Any]]:
    if text.startswith("CREATE TABLE"):
        raise InputError(f"{path}: holds SQL statements; make a database from them: sqlite3 results.sqlite < {path}")
    if text[:1] not in ("[", "{"):
        lines = text.split("\n")
        if "avg_ts" not in lines[0]:
            raise InputError(f"{path}: begins with {text[:20]!r}; {WANTED}")
        return list(csv.DictReader(lines))
    try:
        rows = json.loads(text) if text[0] == "[" else [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: invalid JSON: {error}; {WANTED}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: not a list of rows; {WANTED}")
    return list(rows)
