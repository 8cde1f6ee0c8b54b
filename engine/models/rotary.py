"""Frequencies of rotary position embeddings, and their scaling for contexts longer than the trained one.

Sources: Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN, sections 3.2 to 3.4), Llama 3.1 (factors stored as a tensor).
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lltool.engine.program import Tracer

Scaling = Literal["none", "linear", "yarn"]


@dataclass(frozen=True)
class Rotary:
    """Rotates pair i of the first `dims` of a head by position * base^(-2i / dims), before scaling."""

    base: float
    dims: int
    scaling: Scaling = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0  # YaRN's magnitude is divided by 1 + log_multiplier * ln(factor)
    exact: bool = False  # whether the range of blended pairs is not rounded to whole pairs

    @property
    def magnitude(self) -> float:
        """The factor that the rotated values are multiplied by."""
        if self.scaling == "yarn" and self.factor > 1:
            log = math.log(self.factor)
            return self.attention_factor * (1 + 0.1 * log) / (1 + self.log_multiplier * log)
        return self.attention_factor

    def frequencies(self, divisors: NDArray[np.float64] | None = None) -> tuple[float, ...]:
        """The frequencies (dims / 2,) in radians per position; `divisors` are the file's `rope_freqs`."""
        pairs = np.arange(self.dims // 2, dtype=np.float64)
        frequencies = self.base ** (-2 * pairs / self.dims)
        if divisors is not None:
            frequencies /= divisors
        if self.scaling == "linear":
            frequencies /= self.factor
        if self.scaling == "yarn":
            slow, fast = self._turning_pair(self.beta_slow), self._turning_pair(self.beta_fast)
            if not self.exact:
                fast, slow = math.floor(fast), math.ceil(slow)
            first, last = max(0, fast), min(self.dims - 1, slow)
            stretched = np.clip((pairs - first) / max(0.001, last - first), 0, 1)
            frequencies = frequencies * (1 - stretched) + frequencies / self.factor * stretched
        return tuple(frequencies.tolist())

    def _turning_pair(self, turns: float) -> float:
        """The (fractional) index of the pair that makes `turns` full turns over the original context."""
        return self.dims * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.base))


def stored_divisors(g: Tracer, rotary: Rotary, context: int) -> NDArray[np.float64] | None:
    """The divisors (dims / 2,) of frequencies, if the file has them: of Llama 3.1, or the two sets of LongRoPE.

    As in llama.cpp, the context that a model is loaded with decides between LongRoPE's sets, not the text's length.
    """
    pairs = rotary.dims // 2
    if "rope_factors_long.weight" in g.weights:
        short, long = (g.constants(f"rope_factors_{kind}.weight", pairs) for kind in ("short", "long"))
        return long if context > rotary.original_context else short
    return g.constants("rope_freqs.weight", pairs) if "rope_freqs.weight" in g.weights else None
