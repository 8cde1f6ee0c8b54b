"""Standard errors and intervals against scipy."""

from math import isnan, sqrt

import numpy as np
import pytest
from scipy import stats

from lltool.eval.common.intervals import Z95, mean_error, share_error, wilson


def test_the_error_is_the_samples_deviation_over_the_root_of_their_number() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean_error(values) == pytest.approx((values.mean(), stats.sem(values)))
    assert isnan(mean_error([3.0])[1])


def test_weights_count_like_repetitions_in_the_mean_and_the_deviation() -> None:
    values, weights = np.array([1.0, 2.0, 5.0]), np.array([1.0, 3.0, 2.0])
    repeated = np.repeat(values, [1, 3, 2])
    assert mean_error(values, weights) == pytest.approx((repeated.mean(), repeated.std() / sqrt(2)))


def test_a_share_is_a_mean_of_zeros_and_ones() -> None:
    assert share_error(0.3, 10) == pytest.approx(mean_error([1] * 3 + [0] * 7)[1])
    assert isnan(share_error(1.0, 1))


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 10), (24, 25), (500, 1000), (3, 10_042)])
def test_the_interval_of_a_share_is_wilsons(successes: int, trials: int) -> None:
    theirs = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-15) == Z95
