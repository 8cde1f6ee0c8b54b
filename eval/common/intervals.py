"""Confidence intervals of shares, and standard errors."""

from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054  # 95 % of a normal distribution lies within this many standard deviations of its mean


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share by the score method (Wilson 1927), which stays within 0 and 1."""
    share, z2 = successes / trials, Z95**2
    middle = share + z2 / (2 * trials)
    half = Z95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return (middle - half) / (1 + z2 / trials), (middle + half) / (1 + z2 / trials)


def standard_error(deviation: float, count: int) -> float:
    """The standard error of the mean of `count` values with this deviation (mean square); NaN for a single value."""
    return deviation / sqrt(count - 1) if count > 1 else nan


def share_error(share: float, count: int) -> float:
    """The standard error of a share of `count` cases; NaN for a single case."""
    return sqrt(share * (1 - share) / (count - 1)) if count > 1 else nan


def mean_error(values: ArrayLike, weights: NDArray[np.float64] | None = None) -> tuple[float, float]:
    """The mean, by `weights` if given, and its standard error."""
    array = np.asarray(values, np.float64)
    mean = np.average(array, weights=weights)
    deviation = sqrt(np.average((array - mean) ** 2, weights=weights))
    return float(mean), standard_error(deviation, array.size)
