"""Rows from anywhere, ours or llama-bench's, made alike; and a row's speed with its error."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, hypot, inf
from typing import Any

from lltool.eval.bench.record import LLAMA_BENCH_COLUMNS, OWN_COLUMNS, Row
from lltool.eval.bench.statistics import NORMAL_95, estimate_drift, summarize
from lltool.gguf.errors import InputError

NEEDED = ("model_filename", "model_type", "n_threads", "n_prompt", "n_gen", "avg_ts")
MEDIAN = "95 % interval of the median"
MEAN = "mean ± 2 standard deviations, as there are no samples"
ONE_RUN = "none, of a single run"

_TYPES = {"TEXT": str, "INTEGER": int, "REAL": float}
_ABSENT: Row = {"n_depth": 0, "n_parallel": 1, "engine": "llama.cpp", "notes": [], "settings": {}, "machine": {}}


@dataclass(frozen=True)
class Interval:
    """Tokens a second, from low to high with 95 % confidence; `kind` tells what the bounds are."""

    middle: float
    low: float
    high: float
    kind: str = MEDIAN

    @property
    def is_known(self) -> bool:
        """Whether there is an error to go by."""
        return self.low < self.high


def speed_of(row: Row) -> Interval:
    """The speed of a complete row; one with neither interval nor samples has its mean and standard deviation."""
    if row["median_ts"] is not None:
        middle, low, high = (row[name] for name in ("median_ts", "low_ts", "high_ts"))
        return Interval(middle, middle, middle, ONE_RUN) if low is None else Interval(middle, low, high)
    mean, deviation = row["avg_ts"], row["stddev_ts"]
    if not deviation:
        return Interval(mean, mean, mean, ONE_RUN)
    room = NORMAL_95 * hypot(deviation / mean, _foreign_drift())
    return Interval(mean, mean * exp(-room), mean * exp(room), MEAN)


def family_of(row: Row) -> str:
    """The engine without its version, which is the second word: as in `transformers 5.23.0 float32`."""
    words = row["engine"].split()
    return " ".join(words[:1] + words[2:])


def format_speed(speed: Interval) -> str:
    """As in `96.1 (94.0 – 98.3)`."""
    return f"{speed.middle:.1f}" + (f" ({speed.low:.1f} – {speed.high:.1f})" if speed.is_known else "")


def complete_row(found: Mapping[str, Any], place: str) -> Row:
    """All columns, typed, from what a file holds, where numbers and lists may be text; what is not there is None.

    Raises InputError, which begins with `place`, for what is not a row of a bench.
    """
    missing = [name for name in NEEDED if found.get(name) in (None, "")]
    if missing:
        raise InputError(f"{place}: has no {missing[0]}; wanted results of `lltool bench` or llama-bench")
    row: Row = {}
    for name, type in (LLAMA_BENCH_COLUMNS | OWN_COLUMNS).items():
        value = found.get(name)
        try:
            row[name] = None if value is None or (value == "" and type != "TEXT") else _typed(value, type)
        except (ValueError, TypeError) as error:
            raise InputError(f"{place}: {name} is {value!r}, wanted {type}") from error
        if row[name] is None:
            row[name] = _ABSENT.get(name)
    _check(row, place)
    if row["median_ts"] is None and row["samples_ts"]:
        summary = summarize(row["samples_ts"], drift=_foreign_drift())
        row |= {"median_ts": summary.median, "low_ts": summary.low, "high_ts": summary.high}
    return row


def _check(row: Row, place: str) -> None:
    """Lists are lists of numbers, speeds are above 0, and an interval encloses its median."""
    for name, kind in (
        ("samples_ns", list),
        ("samples_ts", list),
        ("notes", list),
        ("settings", dict),
        ("machine", dict),
    ):
        wanted = "numbers" if name.startswith("samples") else "a list" if kind is list else "an object"
        is_good = row[name] is None or isinstance(row[name], kind)
        if name.startswith("samples"):
            is_good = is_good and all(isinstance(value, (int, float)) for value in row[name] or ())
        if not is_good:
            raise InputError(f"{place}: {name} is {row[name]!r}, wanted {wanted}")
    if not all(0 < speed < inf for speed in (row["avg_ts"], *(row["samples_ts"] or ()))):
        raise InputError(f"{place}: a speed is not above 0; wanted tokens a second")
    bounds = [row[name] for name in ("low_ts", "median_ts", "high_ts")]
    if None not in bounds and not 0 < bounds[0] <= bounds[1] <= bounds[2] < inf:
        found = ", ".join(f"{name} {row[name]}" for name in ("low_ts", "median_ts", "high_ts"))
        raise InputError(f"{place}: {found}; wanted them above 0 and rising")


def _foreign_drift() -> float:
    """Between runs on a machine of which nothing is known."""
    return estimate_drift((), is_virtual=True)


def _typed(value: Any, type: str) -> Any:
    match type:
        case "JSON":
            return json.loads(value) if isinstance(value, str) else value
        case "BOOLEAN":
            return bool(int(value))
    return _TYPES[type](value)
