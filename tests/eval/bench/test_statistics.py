"""Intervals of timings: exact on small cases, with the stated coverage on noise like a real machine's."""

from collections.abc import Callable
from math import exp, hypot, log

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lltool.eval.bench.results.statistics import (
    DRIFT_GUESS,
    NORMAL_95,
    NORMAL_QUARTILE,
    SampleSummary,
    agree,
    estimate_drift,
    summarize_samples,
)

Noise = Callable[[np.random.Generator, int], NDArray[np.float64]]


def test_mean_and_deviation_are_llama_benchs() -> None:
    found = summarize_samples([1000, 500, 2000])
    assert found.mean == pytest.approx(3500 / 3)
    assert found.median == 1000
    assert found.deviation == pytest.approx(763.763, rel=1e-5)  # of the sample, n - 1
    assert summarize_samples([7.0]) == SampleSummary(7.0, 0.0, 7.0, None, None, None)


def test_the_interval_of_six_reaches_from_the_least_to_the_largest() -> None:
    found = summarize_samples([9, 10, 11, 10, 8, 12])  # the true median is outside 2 times in 64
    assert [found.low, found.median, found.high] == pytest.approx([8, 10, 12])
    assert found.scatter == pytest.approx(0.2)
    nine = summarize_samples([1, 900, 3, 20, 4, 8, 5, 7, 6])  # the second from each end: outside 20 times in 512
    assert [nine.low, nine.median, nine.high] == pytest.approx([3, 6, 20])


@pytest.mark.parametrize("count", [6, 7, 8, 9, 12, 25, 60])
def test_the_interval_is_the_narrowest_pair_of_order_statistics_that_encloses_the_median(count: int) -> None:
    samples = 100 + np.random.default_rng(count).permutation(count)
    mixed = np.empty(count)  # low and high in turns, so that none is next to its like and nothing is widened
    mixed[::2], mixed[1::2] = np.sort(samples)[: (count + 1) // 2], np.sort(samples)[(count + 1) // 2 :]
    found = summarize_samples(mixed.tolist())
    # As many samples are below the median as heads are thrown: 2.5 % of throws leave out `skipped` or fewer.
    skipped = int(stats.binom.ppf(0.025, count, 0.5)) - 1
    skipped += stats.binom.cdf(skipped + 1, count, 0.5) <= 0.025
    assert (found.low, found.high) == pytest.approx((100 + skipped, 100 + count - 1 - skipped))
    assert pytest.approx(stats.norm.ppf([0.975, 0.75]), abs=5e-5) == (NORMAL_95, NORMAL_QUARTILE)


def test_equal_samples_leave_drift_and_disturbance() -> None:
    still = summarize_samples([5.0] * 9)
    assert (still.low, still.high, still.scatter) == (5, 5, 0)
    drifting = summarize_samples([5.0] * 9, drift=0.02)
    assert drifting.low == pytest.approx(5 * exp(-1.96 * 0.02))
    assert drifting.high == pytest.approx(5 * exp(1.96 * 0.02))
    disturbed = summarize_samples(
        [5.0] * 9, disturbance=0.5
    )  # half the time went to others, so it can be twice as fast
    assert (disturbed.low, disturbed.median, disturbed.high) == (5, 5, 10)


def test_slow_neighbours_of_slow_samples_widen_the_interval() -> None:
    mixed, clumped = [8.0, 10.0] * 8, [8.0] * 8 + [10.0] * 8
    assert summarize_samples(mixed).high == pytest.approx(10)
    assert (summarize_samples(clumped).high or 0) > 12


def bursts(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    return random.normal(0, 0.01, count) + (random.random(count) < 0.15) * random.uniform(0.3, 1, count)


NOISES: dict[str, Noise] = {
    "normal": lambda random, count: random.normal(0, 0.02, count),
    "exponential": lambda random, count: random.exponential(0.05, count),
    "log-normal": lambda random, count: 0.03 * np.exp(random.normal(0, 1, count)),
    "bursts": bursts,
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
@pytest.mark.parametrize("count", [3, 5, 6, 8, 12, 30])
def test_the_interval_covers_95_percent(noise: Noise, count: int) -> None:
    random = np.random.default_rng(count)
    truth, trials = float(np.median(noise(random, 100_000))), 800
    found = [summarize_samples(np.exp(-noise(random, count)).tolist()) for _ in range(trials)]
    held = sum((s.low or 0) <= exp(-truth) <= (s.high or 0) for s in found) / trials
    assert held > 0.92  # 0.95 less four standard errors


def test_runs_an_hour_apart_agree_9_times_in_10_when_the_drift_is_known() -> None:
    random, drift = np.random.default_rng(1), 0.04

    def run(stated: float) -> SampleSummary:
        return summarize_samples(np.exp(-bursts(random, 5) + random.normal(0, drift)).tolist(), drift=stated)

    learnt = estimate_drift([[run(0).median for _ in range(12)] for _ in range(4)], is_virtual=True)
    assert learnt == pytest.approx(drift, rel=0.4)
    trials = 500
    assert sum(agree(run(learnt), run(learnt)) for _ in range(trials)) / trials > 0.9
    assert sum(agree(run(0), run(0)) for _ in range(trials)) / trials < 0.9  # scatter alone misses the drift


def test_drift_without_history_is_a_guess() -> None:
    assert estimate_drift([], is_virtual=True) == pytest.approx(DRIFT_GUESS["virtual"])
    assert estimate_drift([[5.0]], is_virtual=False) == pytest.approx(DRIFT_GUESS["bare"])
    assert estimate_drift([[100.0] * 40], is_virtual=True) < DRIFT_GUESS["virtual"] / 3
    pairs = [[100.0, 100.0 * exp(d)] for d in np.random.default_rng(0).normal(0, 0.1 * 2**0.5, 400)]
    assert estimate_drift(pairs, is_virtual=True) == pytest.approx(0.1, rel=0.1)


def test_agreement_takes_both_errors_together() -> None:
    a, b = SampleSummary(1, 0, 100, 90, 110, 0.1), SampleSummary(1, 0, 112, 105, 120, 0.07)
    assert agree(a, b)
    assert agree(b, a)
    c = SampleSummary(1, 0, 114, 108.5, 120, 0.05)
    assert hypot(log(110 / 100), log(114 / 108.5)) < log(114 / 100) < log(110 / 100) + log(114 / 108.5)
    assert not agree(a, c)
    assert not agree(c, a)
    assert agree(a, SampleSummary(1, 0, 500, None, None, None))  # a single sample claims nothing
