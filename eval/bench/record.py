"""What is known of a measurement, and the flat row of it: llama-bench's columns in its order, then ours."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from statistics import mean, median, stdev
from typing import Any

from lltool import __version__
from lltool.engine.tuning import cpu_name
from lltool.eval.bench.latency import summarize_latency
from lltool.eval.bench.limits import Limits
from lltool.eval.bench.plan import Point, Run, Settings
from lltool.eval.bench.statistics import summarize
from lltool.eval.bench.work import Work
from lltool.eval.provenance import tool_digest
from lltool.gguf.describe import Description

Row = dict[str, Any]  # plain JSON values

# llama-bench's columns and SQL types; BOOLEAN is INTEGER in SQL and CSV, true or false in JSON.
LLAMA_BENCH_COLUMNS = {
    "build_commit": "TEXT",
    "build_number": "INTEGER",
    "cpu_info": "TEXT",
    "gpu_info": "TEXT",
    "backends": "TEXT",
    "model_filename": "TEXT",
    "model_type": "TEXT",
    "model_size": "INTEGER",
    "model_n_params": "INTEGER",
    "n_batch": "INTEGER",
    "n_ubatch": "INTEGER",
    "n_threads": "INTEGER",
    "cpu_mask": "TEXT",
    "cpu_strict": "BOOLEAN",
    "poll": "INTEGER",
    "type_k": "TEXT",
    "type_v": "TEXT",
    "n_gpu_layers": "INTEGER",
    "n_cpu_moe": "INTEGER",
    "split_mode": "TEXT",
    "main_gpu": "INTEGER",
    "no_kv_offload": "BOOLEAN",
    "flash_attn": "INTEGER",
    "devices": "TEXT",
    "tensor_split": "TEXT",
    "tensor_buft_overrides": "TEXT",
    "load_mode": "TEXT",
    "lazy_mode": "TEXT",
    "embeddings": "BOOLEAN",
    "no_op_offload": "INTEGER",
    "no_host": "BOOLEAN",
    "repack": "BOOLEAN",
    "fit_target": "INTEGER",
    "fit_min_ctx": "INTEGER",
    "n_prompt": "INTEGER",
    "n_gen": "INTEGER",
    "n_depth": "INTEGER",
    "test_time": "TEXT",
    "avg_ns": "INTEGER",
    "stddev_ns": "INTEGER",
    "avg_ts": "REAL",
    "stddev_ts": "REAL",
}

# Ours; JSON is text in SQL and CSV.
OWN_COLUMNS = {
    "engine": "TEXT",
    "n_parallel": "INTEGER",
    "median_ts": "REAL",
    "low_ts": "REAL",
    "high_ts": "REAL",
    "ratio": "REAL",  # of a peer's row: how many times as fast we were in the same test, run for run
    "ratio_low": "REAL",
    "ratio_high": "REAL",
    "read_bytes_per_s": "REAL",  # weights and cache that must be read, and the part of the measured read bandwidth
    "read_share": "REAL",
    "multiply_adds_per_s": "REAL",  # and the part of the measured peak
    "multiply_share": "REAL",
    "ttft_ms": "REAL",
    "token_ms_p50": "REAL",
    "token_ms_p95": "REAL",
    "token_ms_p99": "REAL",
    "load_ms": "REAL",
    "first_token_ms": "REAL",
    "peak_rss_bytes": "INTEGER",
    "energy_j": "REAL",
    "samples_ns": "JSON",
    "samples_ts": "JSON",
    "samples_prompt_ns": "JSON",
    "notes": "JSON",
    "model_sha256": "TEXT",
    "settings": "JSON",
    "machine": "JSON",
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; `rows` has the repetitions that were finished."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__()
        self.rows = rows


@dataclass(frozen=True)
class Measurement:
    """The repetitions of one point; `ran` is what was really set, `started` is RFC 3339 in UTC."""

    point: Point
    ran: Settings
    model: Description
    model_sha256: str
    started: str
    runs: tuple[Run, ...]
    engine: str = f"lltool {__version__}"
    load_ms: float | None = None
    first_token_ms: float | None = None  # from the start of loading
    peak_rss_bytes: int | None = None
    energy_j: float | None = None
    work: Work | None = None  # of one run
    limits: Limits | None = None
    notes: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    drift: float = 0.0  # relative standard deviation from one time of measuring to the next
    disturbance: float = 0.0  # the fraction of the time that others had the processor

    @property
    def nanoseconds(self) -> list[int]:
        return [run.nanoseconds for run in self.runs]

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [self.point.workload.tokens * 1e9 / ns for ns in self.nanoseconds]


def to_row(m: Measurement) -> Row:
    """The row of llama-bench, where what this engine has no notion of says 'not used', and ours behind it."""
    ran, workload, summary = m.ran, m.point.workload, summarize(m.speeds, drift=m.drift, disturbance=m.disturbance)
    latency = summarize_latency(m.runs)
    row: Row = {
        "build_commit": tool_digest()[:8],
        "build_number": 0,
        "cpu_info": cpu_name(),
        "gpu_info": "",
        "backends": "CPU",
        "model_filename": str(ran.model),
        "model_type": model_type(m.model),
        "model_size": m.model.tensor_bytes,
        "model_n_params": m.model.parameters,
        "n_batch": ran.batch,
        "n_ubatch": ran.ubatch,
        "n_threads": ran.threads,
        "n_prompt": workload.prompt,
        "n_gen": workload.generation,
        "n_depth": workload.depth,
        "test_time": m.started,
        "avg_ns": round(mean(m.nanoseconds)),
        "stddev_ns": round(stdev(m.nanoseconds)) if len(m.runs) > 1 else 0,
        "avg_ts": summary.mean,
        "stddev_ts": summary.deviation,
    }
    row = {name: row[name] if name in row else getattr(ran, name) for name in LLAMA_BENCH_COLUMNS}
    row["no_op_offload"] = int(row["no_op_offload"])
    own: Row = {
        "engine": m.engine,
        "n_parallel": workload.sequences,
        "median_ts": summary.median,
        "low_ts": summary.low,
        "high_ts": summary.high,
        **_efforts(m),
        "ttft_ms": latency.ttft,
        "token_ms_p50": latency.token_p50,
        "token_ms_p95": latency.token_p95,
        "token_ms_p99": latency.token_p99,
        "load_ms": m.load_ms,
        "first_token_ms": m.first_token_ms,
        "peak_rss_bytes": m.peak_rss_bytes,
        "energy_j": m.energy_j,
        "samples_ns": m.nanoseconds,
        "samples_ts": m.speeds,
        "samples_prompt_ns": [run.prompt_ns for run in m.runs],
        "notes": list(m.notes),
        "model_sha256": m.model_sha256,
        "settings": {"precision": ran.precision, "asked": _asked(m.point.settings, ran), **_limits(m)},
        "machine": dict(m.machine),
    }
    return row | {name: own.get(name) for name in OWN_COLUMNS}


def _limits(m: Measurement) -> Row:
    return {"limits": asdict(m.limits)} if m.limits else {}


def _efforts(m: Measurement) -> Row:
    """How much the median run read and multiplied, and how near that is to what the machine can do."""
    if not (m.work and m.limits):
        return {}
    seconds = median(m.nanoseconds) * 1e-9
    return {
        "read_bytes_per_s": m.work.read / seconds,
        "read_share": m.work.read_seconds(m.limits) / seconds,
        "multiply_adds_per_s": m.work.multiply_adds / seconds,
        "multiply_share": m.work.multiply_seconds(m.limits) / seconds,
    }


def _asked(asked: Settings, ran: Settings) -> dict[str, Any]:
    """What was asked for in so many words and is not what ran."""
    default = Settings(asked.model)
    named = {f.name: getattr(asked, f.name) for f in fields(Settings)}
    return {n: v for n, v in named.items() if v not in (getattr(default, n), getattr(ran, n))}


def model_type(model: Description) -> str:
    """Architecture, parameters and file type, as in `qwen2 494M Q4_K_M`."""
    count = model.parameters
    label = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
    return f"{model.architecture} {label} {model.file_type or 'of mixed types'}"
