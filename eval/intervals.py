"""How sure a mean or a share is."""

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.959963984540054  # of the normal distribution, 95 % lie within so many standard deviations


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share, which stays within 0 and 1 (Wilson 1927)."""
    share, z2 = successes / trials, Z95**2
    middle = share + z2 / (2 * trials)
    half = Z95 * sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return (middle - half) / (1 + z2 / trials), (middle + half) / (1 + z2 / trials)


def mean_error(values: ArrayLike) -> tuple[float, float]:
    """The mean and its standard error, which is NaN for a single value."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1) / sqrt(array.size)) if array.size > 1 else float("nan")
