"""When a difference from a baseline is a regression: the statistics of the gate.

**What honest runs do.** A kernel that rounds activations to 8 bits gives a slightly different answer when its sums
are ordered differently: other instruction sets, other batch sizes, a new compiler. That moves each token's loss by
some 0.1 nats, up as often as down. So a baseline holds several honest runs, made under every instruction set that the
recording machine has, each held against a *reference*: what the model says when all is computed in float32. The runs'
distance from the reference is the noise floor, and a later run is judged by whether it is like them.

**Means over tokens** (loss, divergence, agreement). The unit is a window of text, as tokens of a window share their
past and so their errors. `d_w`, what the run now and the mean of the recorded runs differ by in window w, is paired:
hard and easy windows cancel. Of W windows, `d` is the mean and `s = sd(d_w) / sqrt(W)` its standard error. The run is
a regression when `d`, counted towards worse, is beyond the limit: the larger of

- `t * s`, with t the quantile of Student's distribution with W - 1 degrees of freedom that an honest run passes by
  chance once in `1 / ALPHA` checks, and
- how far the recorded honest runs lie from their own mean, as what they differ by is no regression.

**The 99.9 % divergence** asks for no shape of the tail. If this run is like the recorded ones, a token passes their
99.9 % value with a chance of 0.1 %; the number that do is binomial, and so many as happen less than once in `1 /
ALPHA` checks are too many. In other words: a regression is when the lower confidence bound of the quantile now, which
is an order statistic, is above the quantile then.

**Counts** (greedy flips) are held against the recorded runs' counts by Fisher's exact test: were all runs alike, the
flips of all of them together would fall on this run as a hypergeometric draw does.

**Exact things** (token ids of texts and prompts) may not differ at all.

**Speed** is a ratio to what the same machine does a moment before and after, in a probe that is none of our code; its
error is the 95 % interval of the median of both sides, widened to the same chance of a false alarm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb, exp, hypot, log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The chance that one measure of an honest run is called a regression; with ten measures one check of a thousand is.
ALPHA = 1e-4
Z = -NormalDist().inv_cdf(ALPHA)  # 3.72 standard errors
TAIL = 1e-3


@dataclass(frozen=True)
class Row:
    """One measure of a run, against the baseline.

    `difference`, with its standard `error`, and `limit` have the sign and unit of `now - baseline`. Without a limit the
    measure is only reported. `worse` is 1 where more is worse and -1 where less is.
    """

    measure: str
    baseline: float
    now: float
    difference: float
    error: float | None
    limit: float | None
    worse: int = 1
    unit: str = ""

    @property
    def failed(self) -> bool:
        """Also what is no number has failed."""
        return self.limit is not None and not self.worse * self.difference <= self.worse * self.limit


def student_quantile(freedom: int, alpha: float = ALPHA) -> float:
    """What a variable of Student's distribution passes with a chance of `alpha`; good to 1 % from 7 degrees up.

    The expansion around the normal quantile (Abramowitz and Stegun, 26.7.5).
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
    unit: str = "",
) -> Row:
    """The mean of `now` (W,) against the mean of the recorded runs (R, W), window by window.

    A difference up to `resolution` is none. `show` turns a mean into what the row shows, as exp does for perplexity.
    """
    recorded, values = np.asarray(runs, np.float64), np.asarray(now, np.float64)
    gaps: NDArray[np.float64] = values - recorded.mean(axis=0)
    mean, error = float(gaps.mean()), float(gaps.std(ddof=1)) / sqrt(gaps.size)
    spread = float(np.abs(recorded.mean(axis=1) - recorded.mean()).max())
    margin = max(student_quantile(gaps.size - 1) * error, spread, resolution)
    base = float(recorded.mean())
    shown, slope = show(base), (show(base + 1e-6) - show(base - 1e-6)) / 2e-6
    return Row(
        measure,
        shown,
        show(float(values.mean())),
        show(base + mean) - shown,
        error * slope,
        show(base + worse * margin) - shown,
        worse,
        unit,
    )


def judge_tail(measure: str, runs: Sequence[float], tokens: NDArray[np.float64], unit: str = "") -> Row:
    """The 99.9 % value of `tokens` against the largest one of the recorded runs."""
    base, now = max(runs), quantile(tokens)
    ordered = np.sort(tokens)[::-1]
    allowed = _allowed(tokens.size)
    lower = float(ordered[min(allowed, tokens.size - 1)])  # at most `allowed` tokens may be above `base`
    margin = max(0.0, now - lower)
    return Row(measure, base, now, now - base, margin / Z, margin, unit=unit)


def quantile(tokens: NDArray[np.float64]) -> float:
    return float(np.quantile(tokens, 1 - TAIL))


def _allowed(count: int) -> int:
    """The most of `count` tokens that pass a 99.9 % value, but for a chance of ALPHA."""
    chance, total = (1 - TAIL) ** count, 0.0
    for passed in range(count):
        total += chance
        if 1 - total < ALPHA:
            return passed
        chance *= (count - passed) / (passed + 1) * TAIL / (1 - TAIL)
    return count


def judge_count(measure: str, runs: Sequence[int], now: int, size: int, unit: str = "") -> Row:
    """`now` of `size` against the counts of recorded runs of the same size."""
    recorded = sum(runs)
    allowed = 0
    while allowed < size and _chance_of(allowed + 1, recorded, size, len(runs)) >= ALPHA:
        allowed += 1
    base = recorded / len(runs)
    # Poisson errors of both counts; an empty count is as uncertain as one of 1.
    error = sqrt(max(now, 1) + max(recorded, 1) / len(runs) ** 2)
    return Row(measure, base, now, now - base, error, allowed - base, unit=unit)


def _chance_of(count: int, recorded: int, size: int, runs: int) -> float:
    """That of `count + recorded` events in runs + 1 runs of `size`, `count` or more fall on the last run."""
    events = count + recorded
    ways = sum(comb(size, k) * comb(size * runs, events - k) for k in range(count, min(size, events) + 1))
    return ways / comb(size * (runs + 1), events)


def judge_exact(measure: str, differing: int, size: int) -> Row:
    """`differing` of `size` things are not what was recorded."""
    return Row(measure, size, size - differing, -differing, None, 0, -1)


def judge_speed(
    measure: str, then: tuple[float, float], now: tuple[float, float], *, gated: bool, unit: str = ""
) -> Row:
    """Speeds in units of a probe, each with half its 95 % interval as a fraction; the row shows their ratio."""
    error = hypot(then[1], now[1]) / 1.96
    ratio = now[0] / then[0]
    return Row(measure, 1, ratio, ratio - 1, ratio * error, exp(-Z * error) - 1 if gated else None, -1, unit)


def half_width(low: float | None, high: float | None) -> float:
    """Half the width of an interval as a fraction of its middle, in logarithms."""
    return log(high / low) / 2 if low and high else 1.0
