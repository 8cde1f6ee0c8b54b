"""The exact choice of a type for each tensor that minimizes the total cost within a budget of bytes.

This is a multiple-choice knapsack problem. The tensor sizes of a model have a large common divisor; with that as unit,
the table of the dynamic programming is small enough for an exact solution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

# The most entries of the table; with a smaller common divisor, each size is rounded up to a multiple of budget / 2^18.
_MOST_UNITS = 1 << 18


@dataclass(frozen=True)
class TypeOption:
    """A type that a tensor can get: its `bytes` in the file, and its `cost`, whose sum over tensors is minimized."""

    bytes: int
    cost: float


def allocate(tensors: Sequence[Sequence[TypeOption]], budget: int) -> list[int] | None:
    """The index of the chosen candidate of each tensor, for the least total cost in at most `budget` bytes.

    Returns None if even the smallest candidates do not fit.
    """
    least = [min(candidate.bytes for candidate in candidates) for candidates in tensors]
    room = budget - sum(least)
    if room < 0:
        return None
    extra = [
        [candidate.bytes - low for candidate in candidates] for candidates, low in zip(tensors, least, strict=True)
    ]
    room = min(room, sum(map(max, extra)))
    unit = max(gcd(*(size for sizes in extra for size in sizes)), -(-room // _MOST_UNITS), 1)
    units = room // unit

    best = np.zeros(units + 1)  # best[u]: the least cost of the tensors so far within u units
    taken = np.empty((len(tensors), units + 1), np.uint8)
    for row, (candidates, sizes) in enumerate(zip(tensors, extra, strict=True)):
        before, best = best, np.full(units + 1, np.inf)
        for index, candidate in enumerate(candidates):
            size = -(-sizes[index] // unit)
            if size > units:
                continue
            total = before[: units + 1 - size] + candidate.cost
            better = total < best[size:]
            best[size:][better] = total[better]
            taken[row, size:][better] = index

    choice: list[int] = []
    left = units
    for row in range(len(tensors) - 1, -1, -1):
        index = int(taken[row, left])
        choice.append(index)
        left -= -(-extra[row][index] // unit)
    return choice[::-1]
