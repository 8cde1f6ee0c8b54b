"""Scans of state-space models: a state decays, takes up what a token adds, and is read by a product with the token.

All numbers that a step depends on come from the token itself. For a text's first token, the state is 0.
"""

from dataclasses import dataclass

import numpy as np

from lltool.engine.program import Buffer, Operation, Tracer
from lltool.engine.reference.context import Context, Floats
from lltool.engine.state import Slot


@dataclass(frozen=True)
class SelectiveScan(Operation):
    """out = h @ c + d * x with h = h * exp(step * a) + (step * x) ⊗ b and step = softplus(dt), token after token.

    `x` and `dt` are (T, width), `b` and `c` (T, states); the weights are `a` (width, states) and `d` (width,), and the
    state h is (width, states). Source: Gu and Dao 2023 (Mamba), algorithm 2.
    """

    x: Buffer
    dt: Buffer
    b: Buffer
    c: Buffer
    out: Buffer
    a: str
    d: str

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.a: (self.x.width, self.b.width), self.d: (self.x.width,)}

    @property
    def state(self) -> tuple[Slot]:
        return (Slot(self.a, (self.x.width, self.b.width)),)

    def reference(self, run: Context) -> None:
        x, b, c, a, d = run[self.x], run[self.b], run[self.c], run.weight(self.a), run.weight(self.d)
        step = softplus(run[self.dt])
        out = np.empty_like(x)
        for rows, (h,) in run.sequences(*self.state):
            for t in rows:
                h *= np.exp(step[t][:, None] * a)
                h += (step[t] * x[t])[:, None] * b[t]
                out[t] = h @ c[t] + d * x[t]
        run[self.out] = out


@dataclass(frozen=True)
class Scan(Operation):
    """out = h @ c + d * x with h = h * exp(step * a) + (step * x) ⊗ b and step = softplus(dt + dt_bias), for each head.

    `xbc` has x (heads, columns) of each token, then b and c (groups, states), which consecutive heads share; `dt` is
    (T, heads). The weights `a` and `d` (heads, 1) and `dt_bias` (heads,) are numbers of a head, whose state h is
    (columns, states). Source: Dao and Gu 2024 (Mamba-2), section 7.
    """

    xbc: Buffer
    dt: Buffer
    out: Buffer
    groups: int
    a: str
    d: str
    dt_bias: str

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        heads = self.dt.width
        return {self.a: (heads, 1), self.d: (heads, 1), self.dt_bias: (heads,)}

    @property
    def states(self) -> int:
        return (self.xbc.width - self.out.width) // (2 * self.groups)

    @property
    def state(self) -> tuple[Slot]:
        heads = self.dt.width
        return (Slot(self.a, (heads, self.out.width // heads, self.states)),)

    def reference(self, run: Context) -> None:
        heads, shared = self.dt.width, (self.groups, self.states)
        ends = np.cumsum([self.out.width, self.groups * self.states])
        x, b, c = np.split(run[self.xbc], ends, axis=1)
        x = x.reshape(len(x), heads, -1)
        b, c = (part.reshape(-1, *shared).repeat(heads // self.groups, axis=1) for part in (b, c))  # (T, heads, states)
        step = softplus(run[self.dt] + run.weight(self.dt_bias))
        decay = np.exp(step * run.weight(self.a)[:, 0])
        out = np.empty_like(x)
        for rows, (h,) in run.sequences(*self.state):
            for t in rows:
                h *= decay[t][:, None, None]
                h += (step[t][:, None] * x[t])[..., None] * b[t][:, None]
                out[t] = np.einsum("hps,hs->hp", h, c[t])
        run[self.out] = (out + run.weight(self.d) * x).reshape(len(x), -1)


def softplus(x: Floats) -> Floats:
    out: Floats = np.logaddexp(0, x)
    return out


def selective_scan(g: Tracer, x: Buffer, dt: Buffer, b: Buffer, c: Buffer, a: str, d: str) -> Buffer:
    return g.add(SelectiveScan(x, dt, b, c, g.like(x), a, d)).out


def scan(g: Tracer, xbc: Buffer, dt: Buffer, width: int, groups: int, a: str, d: str, dt_bias: str) -> Buffer:
    """`width` is that of x and of the output."""
    return g.add(Scan(xbc, dt, g.buffer(width, xbc.rows), groups, a, d, dt_bias)).out
