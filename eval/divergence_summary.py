"""What llama-perplexity --kl-divergence prints of two models on a text: the figures, and its lines.

All errors are one standard error; those of differences and ratios are of the pairs, in which much of the text's own
ups and downs cancels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import exp, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.eval.divergence import DivergenceResult

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
class Summary:
    """Of a base model P and a model Q on `scored` tokens; Δp is Q - P of the token that comes, as a share of 1."""

    scored: int
    perplexity: Figure
    base_perplexity: Figure
    correlation: float  # of both losses, token by token
    log_ratio: Figure  # ln(perplexity / base_perplexity)
    ratio: Figure
    difference: Figure
    divergence: Figure  # nats
    divergence_percentiles: Mapping[float, float]
    change: Figure  # mean Δp
    change_percentiles: Mapping[float, float]
    change_rms: Figure
    same_top: Figure

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(*results: DivergenceResult) -> Summary:
    """The figures of one text, or of several as if they were one."""
    table = np.concatenate([result.table for result in results])
    return _summarize(DivergenceResult(results[0].windows, table))


def _summarize(result: DivergenceResult) -> Summary:
    loss, base_loss = _figure(-result.log_probs), _figure(-result.base_log_probs)
    perplexity, base = perplexity_of(result.log_probs), perplexity_of(result.base_log_probs)
    count = len(result.tokens)
    covariance = float(np.cov(result.log_probs, result.base_log_probs, ddof=0)[0, 1]) / max(1, count - 1)
    log_ratio = Figure(loss.value - base_loss.value, _error_of_difference(loss.error, base_loss.error, covariance))
    ratio = exp(log_ratio.value)
    shared = covariance * perplexity.value * base.value
    difference = Figure(perplexity.value - base.value, _error_of_difference(perplexity.error, base.error, shared))
    change = np.exp(result.log_probs) - np.exp(result.base_log_probs)
    squares = _figure(change**2)
    rms = sqrt(squares.value)
    share = result.same_top
    return Summary(
        scored=count,
        perplexity=perplexity,
        base_perplexity=base,
        correlation=covariance / (loss.error * base_loss.error) if loss.error and base_loss.error else nan,
        log_ratio=log_ratio,
        ratio=Figure(ratio, ratio * log_ratio.error),
        difference=difference,
        divergence=_figure(result.tokens),
        divergence_percentiles=_percentiles(result.tokens, _DIVERGENCES),
        change=_figure(change),
        change_percentiles=_percentiles(change, _CHANGES),
        change_rms=Figure(rms, squares.error / (2 * rms) if rms else 0.0),
        same_top=Figure(share, sqrt(share * (1 - share) / max(1, count - 1))),
    )


def running_line(chunk: int, result: DivergenceResult) -> str:
    """The line of the table under RUNNING_HEADER for the chunks so far."""
    s = summarize(result)
    return (
        f"{chunk:4d}    {_plain(s.perplexity, 9, 4)}    {_plain(s.log_ratio, 10, 5)}    "
        f"{_plain(s.divergence, 10, 5)}    {_percent(s.change_rms, 6)}    {_percent(s.same_top, 6)}"
    )


def report_lines(summary: Summary) -> Iterator[str]:
    """The sections that llama-perplexity ends with."""
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


def perplexity_of(log_probs: NDArray[np.float64]) -> Figure:
    loss = _figure(-log_probs)
    return Figure(exp(loss.value), exp(loss.value) * loss.error)


def _figure(values: NDArray[np.float64]) -> Figure:
    return Figure(float(values.mean()), float(values.std() / sqrt(max(1, len(values) - 1))))


def _error_of_difference(first: float, second: float, covariance: float) -> float:
    return sqrt(max(0.0, first**2 + second**2 - 2 * covariance))


def _percentiles(values: NDArray[np.float64], percents: tuple[float, ...]) -> dict[float, float]:
    return dict(zip(percents, np.percentile(values, percents).tolist(), strict=True))


def _plain(figure: Figure, width: int = 10, digits: int = 6) -> str:
    return f"{figure.value:{width}.{digits}f} ± {figure.error:{width}.{digits}f}"


def _percent(figure: Figure, width: int) -> str:
    return f"{100 * figure.value:6.3f} ± {100 * figure.error:{width}.3f} %"


def _name(percent: float) -> str:
    names: dict[float, str] = {100: "Maximum", 50: "Median ", 0: "Minimum"}
    return names.get(percent, f"{percent:4.1f}%  ")
