"""The figures that llama-perplexity --kl-divergence prints for two models on a text, and the lines it prints.

All errors are one standard error. Those of differences and ratios are computed from pairs of values at the same token,
in which much of the text's own variation cancels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import exp, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.eval.common.intervals import mean_error, share_error
from lltool.eval.divergence.divergence import DivergenceResult
from lltool.eval.scoring.perplexity import perplexity_of

RUNNING_HEADER = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            "
    "Same top p"
)
_DIVERGENCES = (100, 99.9, 99, 95, 90, 50, 10, 5, 1, 0.1, 0)  # percentiles
_CHANGES = (100, 99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1, 0)


@dataclass(frozen=True)
class Figure:
    value: float
    error: float


@dataclass(frozen=True)
class DivergenceSummary:
    """Figures of a base model P and a model Q on `scored` tokens; Δp is Q - P of the token that really comes next."""

    scored: int
    perplexity: Figure
    base_perplexity: Figure
    correlation: float  # of both losses, token by token
    log_ratio: Figure  # ln(perplexity / base_perplexity)
    ratio: Figure
    difference: Figure
    divergence: Figure  # nats
    divergence_percentiles: Mapping[float, float]
    change: Figure  # mean Δp, as a fraction of 1
    change_percentiles: Mapping[float, float]
    change_rms: Figure
    same_top: Figure

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize_divergence(*results: DivergenceResult) -> DivergenceSummary:
    """The figures of one text, or of several taken together as one."""
    table = np.concatenate([result.table for result in results])
    return _summarize(DivergenceResult(results[0].windows, table))


def _summarize(result: DivergenceResult) -> DivergenceSummary:
    loss, base_loss = (Figure(*mean_error(-log_probs)) for log_probs in (result.log_probs, result.base_log_probs))
    perplexity, base = (Figure(*perplexity_of(log_probs)) for log_probs in (result.log_probs, result.base_log_probs))
    count = len(result.tokens)
    covariance = float(np.cov(result.log_probs, result.base_log_probs, ddof=0)[0, 1]) / max(1, count - 1)
    log_ratio = Figure(loss.value - base_loss.value, _error_of_difference(loss.error, base_loss.error, covariance))
    ratio = exp(log_ratio.value)
    shared = covariance * perplexity.value * base.value
    difference = Figure(perplexity.value - base.value, _error_of_difference(perplexity.error, base.error, shared))
    change = np.exp(result.log_probs) - np.exp(result.base_log_probs)
    squares = Figure(*mean_error(change**2))
    rms = sqrt(squares.value)
    share = result.same_top
    return DivergenceSummary(
        scored=count,
        perplexity=perplexity,
        base_perplexity=base,
        correlation=covariance / (loss.error * base_loss.error) if loss.error and base_loss.error else nan,
        log_ratio=log_ratio,
        ratio=Figure(ratio, ratio * log_ratio.error),
        difference=difference,
        divergence=Figure(*mean_error(result.tokens)),
        divergence_percentiles=_percentiles(result.tokens, _DIVERGENCES),
        change=Figure(*mean_error(change)),
        change_percentiles=_percentiles(change, _CHANGES),
        change_rms=Figure(rms, squares.error / (2 * rms) if rms else 0.0),
        same_top=Figure(share, share_error(share, count)),
    )


def running_line(chunk: int, result: DivergenceResult) -> str:
    """The table line under RUNNING_HEADER for the chunks so far."""
    s = summarize_divergence(result)
    return (
        f"{chunk:4d}    {_plain(s.perplexity, 9, 4)}    {_plain(s.log_ratio, 10, 5)}    "
        f"{_plain(s.divergence, 10, 5)}    {_percent(s.change_rms, 6)}    {_percent(s.same_top, 6)}"
    )


def report_lines(summary: DivergenceSummary) -> Iterator[str]:
    """The sections that llama-perplexity prints at its end."""
    s = summary
    yield "====== Perplexity statistics ======"
    yield f"Mean PPL(Q)                   : {_plain(s.perplexity)}"
    yield f"Mean PPL(base)                : {_plain(s.base_perplexity)}"
    yield f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * s.correlation:6.2f}%"
    yield f"Mean ln(PPL(Q)/PPL(base))     : {_plain(s.log_ratio)}"
    yield f"Mean PPL(Q)/PPL(base)         : {_plain(s.ratio)}"
    yield f"Mean PPL(Q)-PPL(base)         : {_plain(s.difference)}"
    yield ""
    yield "====== KL divergence statistics ======"
    yield f"Mean    KLD: {_plain(s.divergence)}"
    for percent, value in s.divergence_percentiles.items():
        yield f"{_name(percent)} KLD: {value:10.6f}"
    yield ""
    yield "====== Token probability statistics ======"
    yield f"Mean    Δp: {_percent(s.change, 5)}"
    for percent, value in s.change_percentiles.items():
        yield f"{_name(percent)} Δp: {100 * value:6.3f}%"
    yield f"RMS Δp    : {_percent(s.change_rms, 5)}"
    yield f"Same top p: {_percent(s.same_top, 5)}"


def _error_of_difference(first: float, second: float, covariance: float) -> float:
    return sqrt(max(first**2 + second**2 - 2 * covariance, 0.0))  # in this order, NaN stays NaN


def _percentiles(values: NDArray[np.float64], percents: tuple[float, ...]) -> dict[float, float]:
    return dict(zip(percents, np.percentile(values, percents).tolist(), strict=True))


def _plain(figure: Figure, width: int = 10, digits: int = 6) -> str:
    return f"{figure.value:{width}.{digits}f} ± {figure.error:{width}.{digits}f}"


def _percent(figure: Figure, width: int) -> str:
    return f"{100 * figure.value:6.3f} ± {100 * figure.error:{width}.3f} %"


def _name(percent: float) -> str:
    names: dict[float, str] = {100: "Maximum", 50: "Median ", 0: "Minimum"}
    return names.get(percent, f"{percent:4.1f}%  ")
