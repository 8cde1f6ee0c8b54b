"""When a difference from a baseline is a regression: the statistics of the gate.

**What honest runs do.** A kernel that rounds activations to 8 bits gives a slightly different answer when its sums
are ordered differently: other instruction sets, other batch sizes, a new compiler. That moves each token's loss by
some 0.1 nats, up as often as down. So a baseline holds several honest runs, made under every instruction set that the
recording machine has, each held against a *reference*: what the model says when all is computed in float32. The runs'
distance from the reference is the noise floor, and a later run is judged by whether it is like them.

**Means over tokens** (loss, divergence, agreement). The unit is a window of text, as tokens of a window share their
past and so their errors; of the answers it is a prompt. The difference `d` between the run now and the mean of the
recorded runs is taken window by window, so that hard and easy windows cancel. How far honest runs lie apart in the same
window, their variance `v`, is known from the R recorded ones: the mean over W windows of a new one is off by
`s = sqrt(v * (1 + 1 / R) / W)`. The run is a regression when `d`, counted towards worse, is beyond the limit `t * s`,
with t the quantile of Student's distribution with `W * (R - 1)` degrees of freedom that an honest run passes by chance
once in `1 / ALPHA` checks. The errors are those of honest runs only: a fault that hits some windows harder than others
does not excuse itself by its own spread.

What float32 cannot tell apart (`rounding_of` in runs.py) is no regression either, however small the errors. In float32
itself there is no such noise, and that bound alone is the limit: a divergence beyond it is another function.

**Counts** (greedy flips) are held against the recorded runs' counts by Fisher's exact test: were all runs alike, the
flips of all of them together would fall on this run as a hypergeometric draw does.

**The 99.9 % divergence** asks for no shape of the tail. How many tokens of this run are above the recorded runs' 99.9 %
value is a count like that of flips, and judged in the same way. In other words: a regression is when the lower
confidence bound of the quantile now, which is an order statistic, is above the quantile then.

**Exact things** (token ids of texts and prompts) may not differ at all.

**Speed** is a ratio to what the same machine does a moment before and after, in a probe that is none of our code; its
error is the 95 % interval of the median of both sides, widened to the same chance of a false alarm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import comb, exp, hypot, log, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltool.eval.intervals import Z95

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

    @property
    def failed(self) -> bool:
        """Also what is no number has failed."""
        return self.limit is not None and not self.worse * self.difference <= self.worse * self.limit

    @property
    def verdict(self) -> str:
        return "REGRESSION" if self.failed else "reported" if self.limit is None else "ok"


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
) -> Row:
    """The mean of `now` (W,) against the mean of the recorded runs (R, W), two or more, window by window.

    A difference up to `resolution` is none. `show` turns a mean into what the row shows, as exp does for perplexity.
    """
    recorded, values = np.asarray(runs, np.float64), np.asarray(now, np.float64)
    count, windows = recorded.shape
    mean = float(values.mean() - recorded.mean())
    error = sqrt(float(recorded.var(axis=0, ddof=1).mean()) * (1 + 1 / count) / windows)
    margin = max(student_quantile(windows * (count - 1)) * error, resolution)
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
    )


def judge_rounding(measure: str, runs: ArrayLike, now: ArrayLike, rounding: float) -> Row:
    """The mean of `now` (W,) against that of the recorded runs (R, W), which may differ by `rounding` only."""
    base, found = (float(np.asarray(values, np.float64).mean()) for values in (runs, now))
    return Row(measure, base, found, found - base, None, rounding)


def judge_tail(
    measure: str, runs: Sequence[Sequence[float]], tokens: NDArray[np.float64], *, resolution: float = 0.0
) -> Row:
    """The 99.9 % value of `tokens` against that of the recorded runs, whose `largest` tokens are given."""
    then, now = sorted(chain(*runs), reverse=True), np.sort(tokens)[::-1]
    above = int(len(runs) * tokens.size * TAIL)
    base, found = then[above], float(now[int(tokens.size * TAIL)])
    bound = float(now[min(_too_many(above, tokens.size, len(runs)), tokens.size) - 1])
    margin = max(found - bound, resolution)
    return Row(measure, base, found, found - base, margin / Z, margin)


def largest(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """What `judge_tail` needs of a recorded run."""
    return np.sort(tokens)[::-1][: max(8, tokens.size // 100)]


def judge_count(measure: str, runs: Sequence[int], now: int, size: int) -> Row:
    """`now` of `size` against the counts of recorded runs of the same size."""
    recorded = sum(runs)
    base = recorded / len(runs)
    # Poisson errors of both counts; an empty count is as uncertain as one of 1.
    error = sqrt(max(now, 1) + max(recorded, 1) / len(runs) ** 2)
    return Row(measure, base, now, now - base, error, _too_many(recorded, size, len(runs)) - 1 - base)


def _too_many(recorded: int, size: int, runs: int) -> int:
    """The smallest count in a run that by chance happens less than ALPHA, with `recorded` in `runs` others."""
    count = 1
    while count <= size and _chance_of(count, recorded, size, runs) >= ALPHA:
        count += 1
    return count


def _chance_of(count: int, recorded: int, size: int, runs: int) -> float:
    """That of `count + recorded` events in runs + 1 runs of `size`, `count` or more fall on the last run."""
    events = count + recorded
    ways = sum(comb(size, k) * comb(size * runs, events - k) for k in range(count, min(size, events) + 1))
    return ways / comb(size * (runs + 1), events)


def judge_exact(measure: str, differing: int, size: int) -> Row:
    """`differing` of `size` things are not what was recorded."""
    return Row(measure, size, size - differing, -differing, None, 0, -1)


def judge_speed(measure: str, then: tuple[float, float], now: tuple[float, float], *, gated: bool) -> Row:
    """Speeds in units of a probe, each with half its 95 % interval as a fraction; the row shows their ratio."""
    error = hypot(then[1], now[1]) / Z95
    ratio = now[0] / then[0]
    return Row(measure, 1, ratio, ratio - 1, ratio * error, exp(-Z * error) - 1 if gated else None, -1)


def half_width(low: float | None, high: float | None) -> float:
    """Half the width of an interval as a fraction of its middle, in logarithms."""
    return log(high / low) / 2 if low and high else 1.0
