"""Rotary positions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.engine.program import Buffer, Operation, Program, Tracer
from lltool.engine.reference.context import Context, Floats

# The mean of a rotated bias is over this many positions: it keeps slowly rotating pairs, and is near 0 for fast ones.
POSITIONS = 4096


@dataclass(frozen=True)
class Rope(Operation):
    """Rotary position: rotates pair i of each head of x by position * frequencies[i] and scales it by `magnitude`.

    Pair i is (2i, 2i + 1) when `interleaved`, else (i, i + len(frequencies)), counted from dimension `first` of the
    head. The remaining dimensions are unchanged.
    """

    in_place = True

    x: Buffer
    out: Buffer
    head_dim: int
    frequencies: tuple[float, ...]
    magnitude: float
    interleaved: bool
    first: int = 0

    def mean_bias(self, out: Buffer, program: Program) -> NDArray[np.float64] | None:
        bias = program.mean_bias(self.x)
        if bias is None:
            return None
        half = np.array(self.frequencies) * (POSITIONS / 2)  # the angle at the middle
        turns = np.exp(1j * half) * np.sinc(half / np.pi)
        return self._rotate(bias.reshape(-1, self.head_dim), turns).reshape(-1)

    def reference(self, run: Context) -> None:
        x = run[self.x]
        angles = (run.batch.positions[:, None] * np.array(self.frequencies))[:, None, :]  # (T, 1, pairs), float64
        run[self.out] = self._rotate(x.reshape(len(x), -1, self.head_dim), np.exp(1j * angles)).reshape(x.shape)

    def _rotate(self, heads: Floats, turns: NDArray[np.complex128]) -> Floats:
        """Multiplies the pairs of heads (..., H, Hd), as complex numbers, by `turns` (..., pairs) and the magnitude."""
        pairs = len(self.frequencies)
        begin, end = self.first, self.first + 2 * pairs
        first, second = (
            (slice(begin, end, 2), slice(begin + 1, end, 2))
            if self.interleaved
            else (slice(begin, begin + pairs), slice(begin + pairs, end))
        )
        out: Floats = heads.copy()
        x, y = heads[..., first], heads[..., second]
        cos, sin = turns.real * self.magnitude, turns.imag * self.magnitude
        out[..., first] = x * cos - y * sin
        out[..., second] = x * sin + y * cos
        return out


def rope(
    g: Tracer,
    x: Buffer,
    head_dim: int,
    frequencies: tuple[float, ...],
    magnitude: float,
    interleaved: bool,
    first: int = 0,
) -> Buffer:
    return g.add(Rope(x, g.like(x), head_dim, frequencies, magnitude, interleaved, first)).out
