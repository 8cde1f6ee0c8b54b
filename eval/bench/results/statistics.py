"""Estimates speed from a handful of timings: their median, and an interval for the next run of the same test.

The interval combines two independent errors. *Scatter* is seen within a run: the order statistics that enclose the
median, which assume no shape (timings are skewed: nothing makes a run faster, much makes it slower), widened if slow
samples stand next to slow ones. *Drift* is not seen within a run: a machine is slower this hour than the last. It comes
from earlier runs on the machine (`estimate_drift`) or from a stated guess.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb, exp, hypot, log, sqrt
from statistics import fmean, median, stdev

# Fewer than six samples enclose the true median in less than 95 % of cases, so their distances from the median are
# multiplied by this. Simulated with normal, log-normal, exponential and bursty samples, which agree within 15 %.
STRETCH = {2: 14.0, 3: 4.5, 4: 1.7, 5: 1.12}
NORMAL_95, NORMAL_QUARTILE = 1.96, 0.6745  # standard deviations within which 95 % and 50 % of values lie
DRIFT_GUESS = {"bare": 0.015, "virtual": 0.04}  # between runs, as a fraction; see reports/LOG.md
GUESS_WEIGHT = 3  # a guess counts as much as this many earlier runs


@dataclass(frozen=True)
class SampleSummary:
    """Statistics in the unit of the samples; a single sample has no interval."""

    mean: float
    deviation: float
    median: float
    low: float | None
    high: float | None
    # Half the width of the interval without drift, as a fraction of the median; repeating narrows it.
    scatter: float | None


def summarize_samples(samples: Sequence[float], *, drift: float = 0.0, disturbance: float = 0.0) -> SampleSummary:
    """Mean ± deviation (of a sample, n - 1) as in llama-bench, and the median with a 95 % interval.

    `samples` are positive speeds in the order in which they were taken; `drift` is the relative standard deviation
    between runs. `disturbance` is an upper bound of the fraction of the time that was lost to others: the interval
    reaches up to the speed without that loss.
    """
    assert samples
    assert min(samples) > 0
    middle, deviation = median(samples), stdev(samples) if len(samples) > 1 else 0.0
    if len(samples) == 1:
        return SampleSummary(samples[0], 0.0, middle, None, None, None)
    below, above = (side * _clumping(samples) for side in _enclose(samples, middle))
    between = NORMAL_95 * drift
    return SampleSummary(
        mean=fmean(samples),
        deviation=deviation,
        median=middle,
        low=middle * exp(-hypot(below, between)),
        high=middle * exp(hypot(above, between)) / (1 - disturbance),
        scatter=(exp(above) - exp(-below)) / 2,
    )


def _enclose(samples: Sequence[float], middle: float) -> tuple[float, float]:
    """How far the true median lies below and above its estimate, in logarithms, at 95 % confidence."""
    ordered, count = sorted(samples), len(samples)
    skipped, tail = 0, 1.0  # samples left out at each end, and 2**count times the chance that the median lies beyond
    while 2 * (tail + comb(count, skipped + 1)) <= 0.05 * 2**count:
        skipped += 1
        tail += comb(count, skipped)
    stretch = STRETCH.get(count, 1.0)
    return stretch * log(middle / ordered[skipped]), stretch * log(ordered[-1 - skipped] / middle)


def _clumping(samples: Sequence[float]) -> float:
    """The factor that widens the interval because slow samples stand next to slow ones; 1 if that is unknown."""
    count = len(samples)
    if count < 8:
        return 1.0
    ranks = [
        sum(other < sample for other in samples) + sum(other == sample for other in samples) / 2 for sample in samples
    ]
    centred = [rank - count / 2 for rank in ranks]
    power = sum(c * c for c in centred)
    if power == 0:
        return 1.0
    # The correlation of independent samples is -1/count on average.
    correlation = sum(a * b for a, b in pairwise(centred)) / power + 1 / count
    correlation = min(max(correlation, 0.0), 0.8)
    return sqrt((1 + correlation) / (1 - correlation))


def estimate_drift(runs: Iterable[Sequence[float]], *, is_virtual: bool) -> float:
    """The relative standard deviation between runs on a machine; `runs` has a sequence of medians for each test.

    It is derived from the median deviation, because a run that bursts have spoilt has a wide interval of its own. A
    guess for this kind of machine counts as GUESS_WEIGHT further runs, so that two runs that happened to agree do not
    make the next interval too narrow.
    """
    guess, deviations, known = DRIFT_GUESS["virtual" if is_virtual else "bare"], [], 0
    for medians in runs:
        if (count := len(medians)) > 1:
            middle, known = median(medians), known + count - 1
            deviations += [abs(log(value / middle)) * sqrt(count / (count - 1)) for value in medians]
    seen = median(deviations) / NORMAL_QUARTILE if deviations else 0.0
    return sqrt((GUESS_WEIGHT * guess**2 + known * seen**2) / (GUESS_WEIGHT + known))


def agree(a: SampleSummary, b: SampleSummary) -> bool:
    """Whether two runs of the same test are no further apart than their combined errors."""
    slower, faster = (a, b) if a.median <= b.median else (b, a)
    if slower.high is None or faster.low is None:
        return True
    room = hypot(log(slower.high / slower.median), log(faster.median / faster.low))
    return log(faster.median / slower.median) <= room
