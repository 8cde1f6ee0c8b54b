"""Which type each tensor gets when the file may have so many bytes: the cheapest choice, exactly.

A multiple-choice knapsack. Tensor sizes of a model have a large common divisor, so the table of dynamic programming,
one entry a number of units of bytes, is small enough to solve it without approximation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

# Entries of the table; a model whose sizes have a smaller common divisor is rounded up to budget / 2^18 bytes a tensor.
_MOST_UNITS = 1 << 18


@dataclass(frozen=True)
class Candidate:
    """What a tensor can become: `bytes` in the file, and the `cost` that is to be small in sum."""

    bytes: int
    cost: float


def allocate(tensors: Sequence[Sequence[Candidate]], budget: int) -> list[int] | None:
    """The index of the candidate for each tensor: least total cost in at most `budget` bytes; None if nothing fits."""
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

    best = np.zeros(units + 1)  # the least cost of the tensors so far in at most so many units
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
