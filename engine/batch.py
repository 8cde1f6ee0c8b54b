"""What an executor computes in one call: tokens of one or several sequences, and where their keys and values lie."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lltool.engine.observe import Observation

PAGE = 64  # tokens in a page of the cache

Precision = Literal["int8", "f32"]  # of the products with quantized weights
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]  # how the cache holds keys, or values


@dataclass(frozen=True)
class Batch:
    """T tokens of S sequences; R of them want logits. All arrays are int32 and C-contiguous.

    The key and value of a token at position p are stored in row p % PAGE of page `tables[sequence, p // PAGE]`. A query
    sees what is stored at positions up to its own, so earlier tokens of a sequence stand in the batch or in the cache.
    """

    tokens: NDArray[np.int32]  # (T,)
    positions: NDArray[np.int32]  # (T,)
    sequences: NDArray[np.int32]  # (T,) rows of `tables`
    tables: NDArray[np.int32]  # (S, pages) page ids of each sequence in order, padded with 0
    outputs: NDArray[np.int32]  # (R,) rows of the batch that want logits, ascending


class Executor(Protocol):
    """Runs a Program over batches and owns the cache's pages. All memory is taken when it is made."""

    head_rows: int  # the most rows of logits in one call

    def run(self, batch: Batch) -> None:
        """Runs the body, which stores the batch's keys and values."""

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        """Logits (stop - start, V) of the last batch's outputs [start, stop); a view that the next call overwrites."""

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """Natural logarithm of the probability that output row start + i gives to the token targets[i]."""

    def compare(self, start: int, base: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        """Output rows [start, start + n), n <= head_rows, against another model's logits (n, V): `compare_rows`."""

    def take_observations(self) -> dict[str, Observation]:
        """What the Program's observers have summed up, by weight; they begin anew."""

    def copy_page(self, source: int, target: int) -> None:
        """Copies the keys and values of all layers."""
