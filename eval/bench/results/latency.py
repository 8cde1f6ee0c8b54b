"""Summarizes latency as a user sees it: time to the first token, between tokens, and in total.

The runs are those that give the speed. They may also be made behind a server: the prompt's time then ends when the
first token has arrived, a token's time when the next one has, and both include everything in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from lltool.eval.bench.run.plan import TimedRun


@dataclass(frozen=True)
class Latency:
    """Milliseconds; None for what the workload does not have, or has too few tokens for."""

    ttft: float | None
    token_p50: float | None
    token_p95: float | None
    token_p99: float | None
    total: float


def summarize_latency(runs: Sequence[TimedRun]) -> Latency:
    """Medians over runs, and percentiles over the tokens of all runs; the p-th needs 100 / (100 - p) tokens."""
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
