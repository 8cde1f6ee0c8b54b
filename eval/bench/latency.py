"""What a user feels: time to the first token, between tokens, and in all. From the runs that give the speed.

A run is a run wherever it was made: behind a server, the prompt's time is until the first token has come, and a token's
until the next one has, with all that lies between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from lltool.eval.bench.plan import Run


@dataclass(frozen=True)
class Latency:
    """Milliseconds; None for what the workload does not have, or has too few tokens to tell."""

    ttft: float | None
    token_p50: float | None
    token_p95: float | None
    token_p99: float | None
    total: float


def summarize_latency(runs: Sequence[Run]) -> Latency:
    """Medians over runs; percentiles over the tokens of all runs, the p-th of at least 100 / (100 - p) tokens."""
    has_prompt = all(run.prompt_ns for run in runs)
    tokens = np.array([ns for run in runs for ns in run.token_ns]) / 1e6

    def percentile(p: int) -> float | None:
        return float(np.percentile(tokens, p)) if len(tokens) * (100 - p) >= 100 else None

    return Latency(
        ttft=median(run.prompt_ns for run in runs) / 1e6 if has_prompt else None,
        token_p50=percentile(50),
        token_p95=percentile(95),
        token_p99=percentile(99),
        total=median(run.nanoseconds for run in runs) / 1e6,
    )
