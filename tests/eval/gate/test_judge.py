"""The gate's statistics, against scipy, enumeration and simulated honest runs."""

from itertools import product
from math import comb, exp, nan, sqrt

import numpy as np
import pytest
from scipy import stats

from lltool.eval.gate.judge import (
    ALPHA,
    Z,
    judge_count,
    judge_exact,
    judge_mean,
    judge_rounding,
    judge_speed,
    judge_tail,
    largest,
    student_quantile,
)


@pytest.mark.parametrize(("freedom", "error"), [(7, 3e-3), (8, 2e-3), (15, 1e-4), (31, 3e-6), (100, 1e-8)])
def test_student_quantile_is_scipys(freedom: int, error: float) -> None:
    """The series is truncated, which shows at few degrees of freedom."""
    for alpha in (ALPHA, 0.025):
        assert student_quantile(freedom, alpha) == pytest.approx(stats.t.isf(alpha, freedom), rel=error)


def test_a_mean_is_compared_with_the_runs_window_by_window() -> None:
    runs = np.arange(8.0) + [[1.0], [1.2]] + np.tile([0.01, -0.01], 4) * [[1], [-1]]
    now = np.arange(8) + 1.1 + np.tile([0.6, 0.2], 4)
    row = judge_mean("loss", runs, now)
    # In half of the windows the runs are 0.18 apart, in half 0.22.
    error = sqrt((0.18**2 + 0.22**2) / 2 / 2 * 1.5 / 8)
    assert (row.baseline, row.now, row.difference) == pytest.approx((4.6, 5.0, 0.4))
    assert (row.error, row.limit) == pytest.approx((error, student_quantile(8) * error))
    assert row.failed
    assert not judge_mean("loss", runs, now, worse=-1).failed
    assert not judge_mean("loss", runs, now, resolution=0.41).failed
    shown = judge_mean("perplexity", runs, now, show=exp)
    assert (shown.now, shown.difference) == pytest.approx((exp(5.0), exp(5.0) - exp(4.6)))
    assert shown.error == pytest.approx(error * exp(4.6))
    assert shown.failed


def test_less_agreement_fails_and_more_does_not() -> None:
    runs = np.full((2, 16), 0.98) + np.tile([[0.001, -0.001], [-0.001, 0.001]], 8)
    worse = judge_mean("agreement", runs, np.full(16, 0.97), worse=-1)
    assert worse.limit is not None
    assert -0.01 < worse.limit < 0
    assert worse.failed
    assert not judge_mean("agreement", runs, np.full(16, 0.99), worse=-1).failed


def test_in_float32_only_rounding_may_differ() -> None:
    runs = [[1e-7, 3e-7], [2e-7, 2e-7]]
    assert not judge_rounding("kl", runs, [4e-7, 2e-7], 1.1e-7).failed
    assert judge_rounding("kl", runs, [4e-7, 2.4e-7], 1.1e-7).failed


@pytest.mark.parametrize("value", [nan, float("inf")])
@pytest.mark.filterwarnings("error")
def test_values_that_are_not_numbers_fail(value: float) -> None:
    assert judge_mean("loss", np.ones((2, 8)), [1.0] * 7 + [value]).failed


def test_the_tail_may_have_as_many_tokens_beyond_the_recorded_value_as_chance_allows() -> None:
    size = 2000
    recorded = np.concatenate([np.linspace(0, 1, size - 2), [3.0, 3.0]])
    runs = [largest(recorded), largest(recorded[:-1])]  # the fifth of 4000 is the 99.9 % value
    base = recorded[-3]
    # Fisher's test: the chance that k or more of 4 + k tokens above it fall on one run of three is below ALPHA.
    chance = {k: sum(comb(4 + k, n) * 2 ** (4 + k - n) for n in range(k, 5 + k)) / 3 ** (4 + k) for k in range(30)}
    allowed = max(k for k in chance if chance[k] >= ALPHA)
    tokens = np.full(size, 0.1)
    tokens[:allowed] = 2.0
    row = judge_tail("tail", runs, tokens)
    assert (row.baseline, row.now, row.failed) == (base, 2.0, False)
    tokens[allowed] = 2.0
    assert judge_tail("tail", runs, tokens).failed
    assert not judge_tail("tail", runs, tokens, resolution=2).failed


def test_counts_are_judged_by_fishers_exact_test() -> None:
    size, runs = 5, [1, 0]
    row = judge_count("flips", runs, 3, size)

    def chance(count: int) -> float:
        """The fraction of all ways to spread the flips over three runs that have `count` or more in the last."""
        spread = [cells for cells in product((0, 1), repeat=3 * size) if sum(cells) == count + sum(runs)]
        return sum(sum(cells[2 * size :]) >= count for cells in spread) / len(spread)

    allowed = max(count for count in range(size + 1) if chance(count) >= ALPHA)
    assert row.limit == pytest.approx(allowed - 0.5)
    large = [judge_count("flips", [3, 4], now, 200) for now in range(40)]
    failing = [now for now, row in enumerate(large) if row.failed]
    assert failing == list(range(failing[0], 40))
    # The counts of all three runs, 600 tokens, are given: the last run's count is hypergeometric.
    chances = [stats.hypergeom.sf(now - 1, 600, 7 + now, 200) for now in range(40)]
    assert failing[0] == next(now for now, chance in enumerate(chances) if chance < ALPHA)


def test_exact_things_may_not_differ_and_speed_is_gated_on_request() -> None:
    assert judge_exact("tokens", 1, 4096).failed
    assert not judge_exact("tokens", 0, 4096).failed
    then, now = (10.0, 0.05), (5.0, 0.05)
    assert judge_speed("speed", then, now, gated=False).verdict == "reported"
    row = judge_speed("speed", then, now, gated=True)
    assert row.verdict == "REGRESSION"
    assert row.limit == pytest.approx(exp(-Z * sqrt(2) * 0.05 / 1.959964) - 1)
    assert not judge_speed("speed", then, (9.5, 0.05), gated=True).failed
    assert not judge_speed("speed", then, (20.0, 0.05), gated=True).failed


def test_honest_runs_pass_and_shifted_ones_fail() -> None:
    """Runs of 16 windows around a common truth; each token's noise has the long tail of divergences."""
    random = np.random.default_rng(0)
    trials = 300
    runs = random.lognormal(0, 0.3, (trials, 1, 16, 1)) * random.lognormal(0, 1, (trials, 3, 16, 127))
    means, caught = runs.mean(axis=3), 0
    for mean, (first, second, third) in zip(means, runs.reshape(trials, 3, -1), strict=True):
        assert not judge_mean("kl", mean[:2], mean[2]).failed  # in 300 trials 0.03 alarms are expected
        assert not judge_tail("tail", [largest(first), largest(second)], third).failed
        caught += judge_mean("kl", mean[:2], 1.4 * mean[2]).failed
        assert judge_tail("tail", [largest(first), largest(second)], 4 * third).failed
    assert caught > 0.6 * trials
