"""Makes the row of results of a measurement."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, median, stdev
from typing import Any

from lltool import __version__
from lltool.engine.cpu.tuning import cpu_name
from lltool.eval.bench.machine.limits import Limits
from lltool.eval.bench.results.latency import summarize_latency
from lltool.eval.bench.results.rows import ResultRow, Results
from lltool.eval.bench.results.statistics import summarize_samples
from lltool.eval.bench.run.plan import GridPoint, TimedRun, device_of
from lltool.eval.bench.run.work import Work
from lltool.eval.bench.settings import SETTINGS, Settings
from lltool.eval.common.provenance import tool_digest
from lltool.gguf.describe import Description


class Interrupted(KeyboardInterrupt):
    """Raised for Ctrl-C during a measurement; `rows` holds the repetitions that were finished."""

    def __init__(self, rows: Results) -> None:
        super().__init__()
        self.rows = rows


def make_row(
    point: GridPoint,
    ran: Settings,
    model: Description,
    runs: Sequence[TimedRun],
    *,
    work: Work | None = None,
    limits: Limits | None = None,
    drift: float = 0.0,
    disturbance: float = 0.0,
    **known: Any,
) -> ResultRow:
    """The row of a point's repetitions with the settings `ran` in effect; `known` are further columns.

    `work` is that of one run, `drift` the relative standard deviation of speed between measurements, `disturbance` an
    upper bound of the fraction of the time that was lost to others.
    """
    device = device_of(ran)
    workload, times = point.workload, [run.nanoseconds for run in runs]
    speeds = [workload.tokens * 1e9 / ns for ns in times]
    summary, latency = summarize_samples(speeds, drift=drift, disturbance=disturbance), summarize_latency(runs)
    return ResultRow(
        build_commit=tool_digest()[:8],
        build_number=0,
        cpu_info=cpu_name(),
        gpu_info=device.name if device else "",
        backends="OpenCL" if device else "CPU",
        model_filename=str(ran.model),
        model_type=model_type(model),
        model_size=model.tensor_bytes,
        model_n_params=model.parameters,
        ran={setting.column: getattr(ran, setting.name) for setting in SETTINGS if setting.has_column},
        **workload.columns(),
        avg_ns=round(mean(times)),
        stddev_ns=round(stdev(times)) if len(runs) > 1 else 0,
        avg_ts=summary.mean,
        stddev_ts=summary.deviation,
        engine=f"lltool {__version__}",
        median_ts=summary.median,
        low_ts=summary.low,
        high_ts=summary.high,
        **(_efforts(work, limits, median(times) * 1e-9) if work and limits else {}),
        ttft_ms=latency.ttft,
        token_ms_p50=latency.token_p50,
        token_ms_p95=latency.token_p95,
        token_ms_p99=latency.token_p99,
        samples_ns=times,
        samples_ts=speeds,
        samples_prompt_ns=[run.prompt_ns for run in runs],
        settings={
            "precision": ran.precision,
            **({"lora": ran.lora} if ran.lora != "none" else {}),
            "asked": _asked(point.settings, ran),
            **({"limits": asdict(limits)} if limits else {}),
        },
        **known,
    )


def _efforts(work: Work, limits: Limits, seconds: float) -> dict[str, Any]:
    """How much a run read and multiplied a second, and the fractions of the machine's limits."""
    return {
        "read_bytes_per_s": work.read / seconds,
        "read_share": work.read_seconds(limits) / seconds,
        "multiply_adds_per_s": work.multiply_adds / seconds,
        "multiply_share": work.multiply_seconds(limits) / seconds,
    }


def _asked(asked: Settings, ran: Settings) -> dict[str, Any]:
    """The settings that were asked for explicitly and differ from those in effect."""
    default = Settings(asked.model)
    named = {setting.name: getattr(asked, setting.name) for setting in SETTINGS}
    return {n: v for n, v in named.items() if v not in (getattr(default, n), getattr(ran, n))}


def model_type(model: Description) -> str:
    """Architecture, parameters and file type, as in `qwen2 494M Q4_K_M`."""
    count = model.parameters
    label = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
    return f"{model.architecture} {label} {model.file_type or 'of mixed types'}"
