"""The statistics of the gate, which decide whether a difference from a baseline is a regression.

**Honest runs** are runs of a correct program. A kernel that rounds activations to 8 bits gives slightly different
results when its sums are ordered differently: under other instruction sets, with other batch sizes, after a change of
compiler. That moves each token's loss by about 0.1 nats, up as often as down. A baseline therefore holds several honest
runs, made under every instruction set of the recording machine, and each is compared with a *reference*, the results of
the model when everything is computed in float32. The distance of these runs from the reference is the noise floor, and
a later run is judged by whether it is like them.

**Means over tokens** (loss, divergence, agreement). The unit is a window of text, because the tokens of a window share
their past and so their errors; for answers the unit is a prompt. The difference `d` between the new run and the mean of
the R recorded runs is taken window by window, so that hard and easy windows cancel. The recorded runs give the variance
`v` of honest runs in the same window, so the mean of a new honest run over W windows has the standard error
`s = sqrt(v * (1 + 1 / R) / W)`. The run is a regression if `d`, counted towards worse, exceeds `t * s`, where `t` is
the quantile of Student's distribution with `W * (R - 1)` degrees of freedom that an honest run exceeds by chance with
probability ALPHA. The error comes from honest runs only, so that a fault which affects some windows more than others is
not excused by its own spread.

A difference that float32 cannot resolve (`rounding_of` in runs.py) is not a regression either, however small the errors
are. Runs in float32 have no such noise, and that bound alone is their limit: a larger divergence means that another
function is computed.

**Counts** (greedy flips) are compared with the recorded runs' counts by Fisher's exact test: if all runs are alike, the
share of all flips that falls on the new run has a hypergeometric distribution.

**The 99.9 % divergence** needs no assumption about the shape of the tail. The number of the new run's tokens above the
recorded runs' 99.9 % value is a count like that of flips, and is judged in the same way. In other words, the run is a
regression if the lower confidence bound of the new quantile, an order statistic, is above the recorded quantile.

**Exact measures** (token ids of texts and prompts) may not differ at all.

**Speed** is a ratio to that of a probe, which runs none of our code on the same machine a moment before and after. Its
error is the 95 % interval of the median of both sides, widened to the same chance of a false alarm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import comb, exp, hypot, log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltool.eval.common.intervals import Z95

# The chance that one measure of an honest run fails; with ten measures, one check of honest runs in a thousand fails.
ALPHA = 1e-4
Z = -NormalDist().inv_cdf(ALPHA)  # 3.72 standard errors
TAIL = 1e-3


@dataclass(frozen=True)
class Judgement:
    """One measure of a run, compared with the baseline.

    `difference`, its standard `error` and `limit` have the sign and unit of `now - baseline`. Without a limit the
    measure is only reported. `worse` is 1 if more is worse and -1 if less is worse.
    """

    measure: str
    baseline: float
    now: float
    difference: float
    error: float | None
    limit: float | None
    worse: int = 1

    @property
    def failed(self) -> bool:
        """Whether the difference is beyond the limit; NaN fails too."""
        return self.limit is not None and not self.worse * self.difference <= self.worse * self.limit

    @property
    def verdict(self) -> str:
        return "REGRESSION" if self.failed else "reported" if self.limit is None else "ok"


def student_quantile(freedom: int, alpha: float = ALPHA) -> float:
    """The value that Student's distribution exceeds with probability `alpha`, within 1 % from 7 degrees of freedom up.

    Uses the expansion around the normal quantile (Abramowitz and Stegun, 26.7.5).
    """
    z = -NormalDist().inv_cdf(alpha)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum((term / freedom**power for power, term in enumerate(terms, 1)), 0.0)


def judge_mean(
    measure: str,
    runs: ArrayLike,
    now: ArrayLike,
    *,
    worse: int = 1,
    resolution: float = 0.0,
    show: Callable[[float], float] = float,
) -> Judgement:
    """Compares the mean of `now` (W,) with that of two or more recorded runs (R, W), window by window.

    A difference up to `resolution` does not count. `show` converts a mean to the displayed value, such as exp for
    perplexity.
    """
    recorded, values = np.asarray(runs, np.float64), np.asarray(now, np.float64)
    count, windows = recorded.shape
    mean = float(values.mean() - recorded.mean())
    error = sqrt(float(recorded.var(axis=0, ddof=1).mean()) * (1 + 1 / count) / windows)
    margin = max(student_quantile(windows * (count - 1)) * error, resolution)
    base = float(recorded.mean())
    shown, slope = show(base), (show(base + 1e-6) - show(base - 1e-6)) / 2e-6
    return Judgement(
        measure,
        shown,
        show(float(values.mean())),
        show(base + mean) - shown,
        error * slope,
        show(base + worse * margin) - shown,
        worse,
    )


def judge_rounding(measure: str, runs: ArrayLike, now: ArrayLike, rounding: float) -> Judgement:
    """Compares the mean of `now` (W,) with that of the recorded runs (R, W); it may exceed it by `rounding` only."""
    base, found = (float(np.asarray(values, np.float64).mean()) for values in (runs, now))
    return Judgement(measure, base, found, found - base, None, rounding)


def judge_tail(
    measure: str, runs: Sequence[Sequence[float]], tokens: NDArray[np.float64], *, resolution: float = 0.0
) -> Judgement:
    """Compares the 99.9 % value of `tokens` with that of the recorded runs, of which the `largest` tokens are given."""
    then, now = sorted(chain(*runs), reverse=True), np.sort(tokens)[::-1]
    above = int(len(runs) * tokens.size * TAIL)
    base, found = then[above], float(now[int(tokens.size * TAIL)])
    bound = float(now[min(_too_many(above, tokens.size, len(runs)), tokens.size) - 1])
    margin = max(found - bound, resolution)
    return Judgement(measure, base, found, found - base, margin / Z, margin)


def largest(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest values of a recorded run, as many as `judge_tail` needs."""
    return np.sort(tokens)[::-1][: max(8, tokens.size // 100)]


def judge_count(measure: str, runs: Sequence[int], now: int, size: int) -> Judgement:
    """Compares a count of `now` out of `size` with the counts of recorded runs of the same size."""
    recorded = sum(runs)
    base = recorded / len(runs)
    # Poisson errors of both counts; an empty count is as uncertain as one of 1.
    error = sqrt(max(now, 1) + max(recorded, 1) / len(runs) ** 2)
    return Judgement(measure, base, now, now - base, error, _too_many(recorded, size, len(runs)) - 1 - base)


def _too_many(recorded: int, size: int, runs: int) -> int:
    """The smallest count in a run whose chance is below ALPHA, with `recorded` events in `runs` other runs."""
    count = 1
    while count <= size and _chance_of(count, recorded, size, runs) >= ALPHA:
        count += 1
    return count


def _chance_of(count: int, recorded: int, size: int, runs: int) -> float:
    """The chance that of `count + recorded` events in runs + 1 runs of `size`, `count` or more are in the last run."""
    events = count + recorded
    ways = sum(comb(size, k) * comb(size * runs, events - k) for k in range(count, min(size, events) + 1))
    return ways / comb(size * (runs + 1), events)


def judge_exact(measure: str, differing: int, size: int) -> Judgement:
    """Fails if any of `size` items differs from what was recorded."""
    return Judgement(measure, size, size - differing, -differing, None, 0, -1)


def judge_speed(measure: str, then: tuple[float, float], now: tuple[float, float], *, gated: bool) -> Judgement:
    """Compares speeds in units of a probe, each given with half its 95 % interval as a fraction, by their ratio."""
    error = hypot(then[1], now[1]) / Z95
    ratio = now[0] / then[0]
    return Judgement(measure, 1, ratio, ratio - 1, ratio * error, exp(-Z * error) - 1 if gated else None, -1)


def half_width(low: float | None, high: float | None) -> float:
    """Half the width of an interval as a fraction of its middle, in logarithms."""
    return log(high / low) / 2 if low and high else 1.0
