"""Several residual streams side by side in one row, which a block predicts and corrects together.

Source: Baykal et al. 2023 (AltUp), as Gemma 3n has it.
"""

from dataclasses import dataclass

import numpy as np

from lltool.engine.program import Buffer, Operation, Tracer
from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class MixStreams(Operation):
    """out[j] = y[j] + the sum over i of (coefficients[j, i] + shift) * z[i].

    A row of y and out has `outer` streams, one of z has `inner` streams, and one of the coefficients (outer, inner)
    numbers.
    """

    y: Buffer
    z: Buffer
    coefficients: Buffer
    out: Buffer
    outer: int
    inner: int
    shift: float = 0.0

    def reference(self, run: Context) -> None:
        width = self.out.width // self.outer
        z = run[self.z].reshape(-1, self.inner, width)
        by = run[self.coefficients].reshape(-1, self.outer, self.inner) + self.shift
        run[self.out] = run[self.y] + np.einsum("tji,tiw->tjw", by, z, optimize=True).reshape(-1, self.out.width)


@dataclass(frozen=True)
class MatchMagnitude(Operation):
    """Each of `streams` parts of x, times sqrt(mean(y²) / max(mean(part²), least))."""

    x: Buffer
    y: Buffer
    out: Buffer
    streams: int
    least: float

    def reference(self, run: Context) -> None:
        x, y = run[self.x].reshape(-1, self.streams, self.y.width), run[self.y]
        found = np.maximum(np.mean(x * x, axis=2, keepdims=True), self.least)
        run[self.out] = (x * np.sqrt(np.mean(y * y, axis=1)[:, None, None] / found)).reshape(-1, self.out.width)


def mix_streams(
    g: Tracer, y: Buffer, z: Buffer, coefficients: Buffer, outer: int, inner: int, shift: float = 0.0
) -> Buffer:
    return g.add(MixStreams(y, z, coefficients, g.like(y), outer, inner, shift)).out


def match_magnitude(g: Tracer, x: Buffer, y: Buffer, least: float) -> Buffer:
    return g.add(MatchMagnitude(x, y, g.like(x), x.width // y.width, least)).out
