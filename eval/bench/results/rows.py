"""A row of results: llama-bench's columns in its order, then ours. Reads it from columns, and gives its speed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from math import exp, hypot, inf
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from lltool.eval.bench.results.statistics import NORMAL_95, estimate_drift, summarize_samples
from lltool.eval.bench.settings import SETTINGS, Workload
from lltool.gguf.errors import InputError
from lltool.gguf.optional import to_frame

if TYPE_CHECKING:
    from pandas import DataFrame

MEDIAN = "95 % interval of the median"
MEAN = "mean ± 2 standard deviations, as there are no samples"
ONE_RUN = "none for a single run"


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One test of one engine; None is what is not known. `ran` holds the settings in effect, by column."""

    build_commit: str | None = None
    build_number: int | None = None
    cpu_info: str | None = None
    gpu_info: str | None = None
    backends: str | None = None
    model_filename: str
    model_type: str
    model_size: int | None = None
    model_n_params: int | None = None
    ran: Mapping[str, Any]
    n_prompt: int
    n_gen: int
    n_depth: int = 0
    test_time: str | None = None
    avg_ns: int | None = None
    stddev_ns: int | None = None
    avg_ts: float
    stddev_ts: float | None = None
    # llama-bench's columns end here.
    engine: str = "llama.cpp"
    n_parallel: int = 1
    median_ts: float | None = None
    low_ts: float | None = None
    high_ts: float | None = None
    ratio: float | None = None  # in a peer's row: our speed over the peer's in the same test, the median over pairs
    ratio_low: float | None = None
    ratio_high: float | None = None
    read_bytes_per_s: float | None = None  # of the weights and the cache that must be read
    read_share: float | None = None  # the fraction of the measured read bandwidth
    multiply_adds_per_s: float | None = None
    multiply_share: float | None = None  # the fraction of the measured peak
    ttft_ms: float | None = None
    token_ms_p50: float | None = None
    token_ms_p95: float | None = None
    token_ms_p99: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    peak_rss_bytes: int | None = None
    energy_j: float | None = None
    samples_ns: list[int] | None = None
    samples_ts: list[float] | None = None
    samples_prompt_ns: list[int] | None = None
    notes: list[str] = field(default_factory=list)
    model_sha256: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def workload(self) -> Workload:
        return Workload(self.n_prompt, self.n_gen, self.n_depth, self.n_parallel)

    @property
    def test(self) -> str:
        """The test's name, such as `pp512 @ d64`."""
        return str(self.workload)

    @property
    def model_name(self) -> str:
        """The model's file without its folder."""
        return Path(self.model_filename).name

    @property
    def family(self) -> str:
        """The engine without its version, the second word, such as 5.23.0 in `transformers 5.23.0 float32`."""
        words = self.engine.split()
        return " ".join(words[:1] + words[2:])

    @property
    def precision(self) -> str | None:
        return self.settings.get("precision")

    @property
    def lora(self) -> str:
        """The adapters of the run, "none" without any."""
        return str(self.settings.get("lora", "none"))

    @property
    def asked(self) -> Mapping[str, Any]:
        """The settings that were asked for and are not in effect."""
        return self.settings.get("asked", {})  # type: ignore[no-any-return]

    def column(self, name: str) -> Any:
        """The value of a column."""
        return self.ran.get(name) if name in _SETTING_COLUMNS else getattr(self, name)

    def columns(self) -> dict[str, Any]:
        """The values of all columns, in order, as JSON holds them."""
        return {name: self.column(name) for name in COLUMNS}


class Results(list[ResultRow]):
    """Rows in the order of their points, or of time in a history."""

    def to_pandas(self) -> "DataFrame":
        """A row for each, with the columns of the CSV file, and `test`, such as `pp512 @ d64`. Needs pandas."""
        return to_frame({"test": row.test, **row.columns()} for row in self)


_SQL_TYPES: dict[object, str] = {int: "INTEGER", float: "REAL", str: "TEXT", list: "JSON", dict: "JSON"}
_SETTING_COLUMNS = {setting.column: setting.type for setting in SETTINGS if setting.has_column}


def sql_columns(owner: type) -> Iterator[tuple[str, str]]:
    """The names and SQL types of a dataclass's fields. BOOLEAN is INTEGER in SQL and CSV, JSON is text in both."""
    for f in fields(owner):
        kind: Any = f.type
        kind = get_args(kind)[0] if isinstance(kind, UnionType) else kind
        yield f.name, _SQL_TYPES.get(get_origin(kind) or kind, "")


def _columns() -> Iterator[tuple[str, str]]:
    for name, type in sql_columns(ResultRow):
        yield from _SETTING_COLUMNS.items() if name == "ran" else [(name, type)]


COLUMNS = dict(_columns())
LLAMA_BENCH_COLUMNS = dict(list(COLUMNS.items())[: list(COLUMNS).index("engine")])
# Columns without which nothing is a row.
_NEEDED = (
    *(f.name for f in fields(ResultRow) if f.default is f.default_factory is MISSING and f.name != "ran"),
    "n_threads",
)


@dataclass(frozen=True)
class Interval:
    """A speed in tokens a second with its 95 % interval; `kind` says how the bounds were found."""

    middle: float
    low: float
    high: float
    kind: str = MEDIAN

    @property
    def is_known(self) -> bool:
        """Whether the bounds differ, so that the error is known."""
        return self.low < self.high

    def __str__(self) -> str:
        """The speed and its interval, such as `96.1 (94.0 – 98.3)`."""
        return f"{self.middle:.1f}" + (f" ({self.low:.1f} – {self.high:.1f})" if self.is_known else "")


def speed_of(row: ResultRow) -> Interval:
    """The speed of a row: its median and interval or, without these, its mean and standard deviation."""
    if (middle := row.median_ts) is not None:
        if row.low_ts is None or row.high_ts is None:
            return Interval(middle, middle, middle, ONE_RUN)
        return Interval(middle, row.low_ts, row.high_ts)
    mean, deviation = row.avg_ts, row.stddev_ts
    if not deviation:
        return Interval(mean, mean, mean, ONE_RUN)
    room = NORMAL_95 * hypot(deviation / mean, _foreign_drift())
    return Interval(mean, mean * exp(-room), mean * exp(room), MEAN)


def complete_row(found: Mapping[str, Any], place: str) -> ResultRow:
    """The row of a file's values, which may be text; columns that are missing get their default or None.

    Raises InputError, whose message begins with `place`, for values that are not a row of a bench.
    """
    missing = [name for name in _NEEDED if found.get(name) in (None, "")]
    if missing:
        raise InputError(f"{place}: has no {missing[0]}; wanted results of `lltool bench` or llama-bench")
    given = {}
    for name, type in COLUMNS.items():
        value = found.get(name)
        try:
            given[name] = None if value is None or (value == "" and type != "TEXT") else _typed(value, type)
        except (ValueError, TypeError) as error:
            raise InputError(f"{place}: {name} is {value!r}, wanted {type}") from error
    ran = {name: given.pop(name) for name in _SETTING_COLUMNS}
    row = ResultRow(ran=ran, **{name: value for name, value in given.items() if value is not None})
    _check(row, place)
    if row.median_ts is None and row.samples_ts:
        summary = summarize_samples(row.samples_ts, drift=_foreign_drift())
        row = replace(row, median_ts=summary.median, low_ts=summary.low, high_ts=summary.high)
    return row


def _check(row: ResultRow, place: str) -> None:
    """Raises InputError for a value of the wrong kind, a speed of 0 or less, or an interval without its median."""
    for name, value in ((name, row.column(name)) for name, type in COLUMNS.items() if type == "JSON"):
        is_object, are_numbers = name in ("settings", "machine"), name.startswith("samples")
        wanted = "an object" if is_object else "numbers" if are_numbers else "a list"
        is_good = value is None or isinstance(value, dict if is_object else list)
        if not is_good or (are_numbers and not all(isinstance(number, (int, float)) for number in value or ())):
            raise InputError(f"{place}: {name} is {value!r}, wanted {wanted}")
    if not all(0 < speed < inf for speed in (row.avg_ts, *(row.samples_ts or ()))):
        raise InputError(f"{place}: a speed is not above 0; wanted tokens a second")
    known = [bound for bound in (row.low_ts, row.median_ts, row.high_ts) if bound is not None]
    if len(known) == 3 and not (0 < known[0] <= known[1] <= known[2] < inf):
        found = "low_ts {}, median_ts {}, high_ts {}".format(*known)
        raise InputError(f"{place}: {found}; wanted all above 0, in rising order")


def _foreign_drift() -> float:
    """The drift between runs on a machine about which nothing is known."""
    return estimate_drift((), is_virtual=True)


def _typed(value: Any, type: str) -> Any:
    match type:
        case "JSON":
            return json.loads(value) if isinstance(value, str) else value
        case "BOOLEAN":
            return bool(int(value))
    return {"TEXT": str, "INTEGER": int, "REAL": float}[type](value)
