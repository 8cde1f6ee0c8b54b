"""What attention adds to scores by the distance of a key from its query.

Source: Raffel et al. 2020 (T5, section 2.1); the buckets are those of its code, in both directions.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DistanceBias:
    """A tensor `weight` (buckets, H) of biases; distances from `furthest` on are in the last bucket of their direction.

    Of each direction's buckets, the first half have one distance each, and the others' widths grow exponentially.
    """

    weight: str
    buckets: int
    furthest: int

    def buckets_of(self, distances: NDArray[np.integer]) -> NDArray[np.int64]:
        """The bucket of each distance, position of the key - position of the query."""
        half = self.buckets // 2
        exact = half // 2
        far = np.maximum(np.abs(distances), 1).astype(np.float32) / np.float32(exact)
        steps = np.log(far) / np.float32(math.log(self.furthest / exact)) * np.float32(half - exact)
        large = np.minimum(exact + np.maximum(steps, 0).astype(np.int64), half - 1)
        found: NDArray[np.int64] = np.where(np.abs(distances) < exact, np.abs(distances), large)
        return found + half * (distances > 0)
