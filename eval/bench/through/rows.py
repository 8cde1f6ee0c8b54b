"""A row of results through a server: one test, with the latencies of its requests; and the rows as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from lltool.eval.bench.results.rows import ONE_RUN, Interval, sql_columns
from lltool.eval.bench.results.tables import format_csv, format_json, format_jsonl
from lltool.eval.bench.settings import Workload
from lltool.eval.bench.through.client import Answer
from lltool.eval.bench.through.load import LoadRun
from lltool.eval.common.tables import format_table

# The parts of a request's time that an lltool server reports, by the column that holds each.
ITEMS = {
    "http_ms": "HTTP",
    "template_ms": "template",
    "queue_ms": "queue",
    "prefill_ms": "prefill",
    "decode_ms": "decode",
}


@dataclass(frozen=True, kw_only=True)
class ServedRow:
    """One test through one server; None is what is not known. Latencies are percentiles over all its requests.

    `token_ms` is the time between two pieces of an answer, and `processor_ms` the server's processor time for each
    generated token, or for each token of the prompts where one is generated. `ratio` is the first server's speed over
    this one's, the median over rounds. The items, means over requests, are known of a server that reports them.
    """

    server: str
    url: str
    model: str
    n_prompt: int
    n_gen: int
    clients: int
    test_time: str
    requests: int
    failed: int
    prompt_tokens: float  # of a request, on average
    generated_tokens: float
    prompt_ts: float  # tokens a second, of all clients together
    generated_ts: float
    median_ts: float  # of the speed that the test is about
    low_ts: float | None
    high_ts: float | None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    first_ms_p50: float | None = None
    first_ms_p95: float | None = None
    token_ms_p50: float | None = None
    token_ms_p95: float | None = None
    total_ms_p50: float | None = None
    total_ms_p95: float | None = None
    processor_ms: float | None = None
    processor_ratio: float | None = None
    http_ms: float | None = None
    template_ms: float | None = None
    queue_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    samples_ts: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def test(self) -> str:
        return str(Workload(self.n_prompt, self.n_gen))

    @property
    def speed(self) -> Interval:
        """The speed that the test is about with its interval over rounds."""
        if self.low_ts is None or self.high_ts is None:
            return Interval(self.median_ts, self.median_ts, self.median_ts, ONE_RUN)
        return Interval(self.median_ts, self.low_ts, self.high_ts)

    def columns(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = dict(sql_columns(ServedRow))


def speed_of_run(run: LoadRun, workload: Workload) -> float:
    """Tokens a second of a run: those generated, or those of the prompts where none is to be."""
    tokens = (each.generated_tokens if workload.generation else each.prompt_tokens for each in run.answers)
    return sum(tokens) / run.seconds


def processor_ms(runs: Sequence[LoadRun], workload: Workload) -> float | None:
    """The processor time in ms for each token that `speed_of_run` counts."""
    seconds = [run.processor_seconds for run in runs]
    tokens = sum(speed_of_run(run, workload) * run.seconds for run in runs)
    known = [each for each in seconds if each is not None]
    return 1000 * sum(known) / tokens if len(known) == len(seconds) and tokens else None


def latencies(answers: Sequence[Answer]) -> dict[str, float | None]:
    """The percentiles of good answers by column, in ms."""
    found: dict[str, float | None] = {}
    times = {
        "first": [each.first for each in answers if each.first is not None],
        "token": [gap for each in answers for gap in np.diff(each.pieces).tolist()],
        "total": [each.seconds for each in answers],
    }
    for name, values in times.items():
        for share in (50, 95):
            found[f"{name}_ms_p{share}"] = float(np.percentile(values, share)) * 1000 if values else None
    return found


def items(answers: Sequence[Answer]) -> dict[str, float]:
    """Where the time of a request goes, in ms, the mean over requests; empty if the server does not say.

    What the server does not account for is HTTP: the way of the request and of the answer, and the clients' own time.
    """
    if not answers or not all("template_ms" in each.timings for each in answers):
        return {}

    def mean(name: str) -> float:
        return fmean(float(each.timings[name]) for each in answers)

    found = {
        "template_ms": mean("template_ms"),
        "queue_ms": mean("queue_ms"),
        "prefill_ms": mean("prompt_ms"),
        "decode_ms": mean("predicted_ms"),
    }
    total = 1000 * fmean(each.seconds for each in answers)
    return {"http_ms": max(0.0, total - sum(found.values()))} | found


def format_served(rows: Sequence[ServedRow], form: str) -> str:
    """The rows as text; `form` is md, csv, json or jsonl."""
    columns: list[Mapping[str, Any]] = [row.columns() for row in rows]
    match form:
        case "csv":
            return format_csv(columns, COLUMNS)
        case "json":
            return format_json(columns)
        case "jsonl":
            return format_jsonl(columns)
    return _format_markdown(rows)


def _format_markdown(rows: Sequence[ServedRow]) -> str:
    titles = ["test", "clients", "server", "requests", "failed", "t/s (95 %)", "first ms p50", "p95", "token ms p50"]
    titles += ["p95", "processor ms a token", "first server / this", "by processor time"]
    lines = [
        [
            row.test,
            str(row.clients),
            row.server,
            str(row.requests),
            str(row.failed),
            str(row.speed),
            *(_ms(value) for value in (row.first_ms_p50, row.first_ms_p95, row.token_ms_p50, row.token_ms_p95)),
            _ms(row.processor_ms),
            _ratio(row),
            "" if row.processor_ratio is None else f"{row.processor_ratio:.2f}",
        ]
        for row in rows
    ]
    parts = [format_table(titles, lines, left=[True, False, True, *[False] * (len(titles) - 3)])]
    if itemised := [row for row in rows if row.http_ms is not None]:
        cells = [
            [row.test, str(row.clients), row.server, *(_ms(getattr(row, name)) for name in ITEMS)] for row in itemised
        ]
        heads = ["ms a request", "clients", "server", *ITEMS.values()]
        parts.append(format_table(heads, cells, left=[True, False, True, *[False] * len(ITEMS)]))
    if notes := dict.fromkeys(note for row in rows for note in row.notes):
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(row: ServedRow) -> str:
    if row.ratio is None:
        return ""
    known = row.ratio_low is not None and row.ratio_high is not None
    return f"{row.ratio:.2f}" + (f" ({row.ratio_low:.2f} – {row.ratio_high:.2f})" if known else "")
