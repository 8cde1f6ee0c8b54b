"""The batch that an executor computes in one call."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PAGE = 64  # tokens in a page of the cache

Precision = Literal["int8", "f32"]  # of products with quantized weights
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]  # how the cache holds keys, or values


@dataclass(frozen=True)
class Batch:
    """T tokens of S sequences, R of them with logits. All arrays are int32 and C-contiguous.

    The key and value of a token at position p are stored in row p % PAGE of page `tables[sequence, p // PAGE]`. A query
    sees what is stored at positions up to its own, so the earlier tokens of its sequence must be in the batch or in the
    cache. A program whose attention is not causal takes whole texts: the tokens of a sequence follow one another from
    position 0 to its end.
    """

    tokens: NDArray[np.int32]  # (T,)
    positions: NDArray[np.int32]  # (T,)
    sequences: NDArray[np.int32]  # (T,) rows of `tables`
    tables: NDArray[np.int32]  # (S, pages) page ids of each sequence in order, padded with 0
    outputs: NDArray[np.int32]  # (R,) rows of the batch whose logits are computed, ascending
    # (S,) the slot of each sequence, which holds its state before the batch and then its state after it; (0,) if the
    # program has no slots. Before position 0, the state is zero whatever the slot holds.
    slots: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    types: NDArray[np.int32] | None = None  # (T,) the types of tokens; None: all are of the first type
    scales: NDArray[np.float32] | None = None  # (S, adapters) of a program that has adapters

    @property
    def token_types(self) -> NDArray[np.int32]:
        return np.zeros_like(self.tokens) if self.types is None else self.types
