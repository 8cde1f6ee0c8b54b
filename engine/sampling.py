"""Choosing the next token from its logits."""

from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError

_BLOCK = 64  # logits whose maximum is taken first when looking for the largest ones


@dataclass
class Sampler:
    """llama.cpp's default chain: top-k, top-p, min-p, temperature, and a seeded draw.

    `temperature` 0 takes the most probable token. `top_k` 0, `top_p` 1 and `min_p` 0 switch that step off. Without a
    `seed` each sampler draws differently.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0, 1e6), ("top_k", 0, 1 << 31), ("top_p", 0, 1), ("min_p", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} {value}, wanted a number from {low} to {high:g}")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed {self.seed}, wanted a number of at least 0")
        self._random = np.random.default_rng(self.seed)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """A token id for logits (V,). Raises InputError when they are not finite."""
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise InputError(f"the logit of token {best} is {logits[best]}: the model's weights are damaged")
        if self.temperature == 0:
            return best
        ids = self.candidates(logits)
        weights = np.exp((logits[ids].astype(np.float64) - logits[best]) / self.temperature)
        cumulative = weights.cumsum()
        return int(ids[np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")])

    def candidates(self, logits: NDArray[np.float32]) -> NDArray[np.intp]:
        """The ids that top-k, top-p and min-p leave, most probable first, of equal ones the lowest id first."""
        top = logits.max()
        if 0 < self.top_k < len(logits):
            ids = largest(logits, self.top_k)
            total = np.exp(logits[ids].astype(np.float64) - top).sum()
        else:
            # Top-p and min-p both keep a head of the sorted list, so only what min-p leaves has to be sorted.
            total = np.exp(logits - top).sum(dtype=np.float64)
            floor = top + log(self.min_p) if self.min_p > 0 else -np.inf
            ids = _sort(logits, np.flatnonzero(logits >= floor))
        weights = np.exp(logits[ids].astype(np.float64) - top)
        before = weights.cumsum() - weights
        keep = ((before < self.top_p * total) | (self.top_p == 1)) & (weights >= self.min_p)
        keep[0] = True
        kept: NDArray[np.intp] = ids[keep]
        return kept


def largest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The ids of the `count` largest logits, largest first, of equal ones the lowest id first.

    At least `count` logits reach the count-th largest maximum of a block, so only those that do are sorted; that takes
    a fifth of the time of partitioning all of a large vocabulary.
    """
    blocks = len(logits) // _BLOCK
    if count >= blocks:
        return _sort(logits, np.arange(len(logits)))[:count]
    maxima = logits[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
    threshold = np.partition(maxima, blocks - count)[blocks - count]
    return _sort(logits, np.flatnonzero(logits >= threshold))[:count]


def _sort(logits: NDArray[np.float32], ids: NDArray[np.intp]) -> NDArray[np.intp]:
    """`ids`, which ascend, by falling logit."""
    order = np.argsort(-logits[ids], kind="stable")
    found: NDArray[np.intp] = ids[order]
    return found
