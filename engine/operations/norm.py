"""Norms."""

from dataclasses import dataclass

import numpy as np

from lltool.engine.program import Buffer, Operation, Tracer
from lltool.engine.reference.context import Context


@dataclass(frozen=True)
class Norm(Operation):
    """RMS norm of each of `groups` equal parts of a row: out = x / sqrt(mean(x²) + eps) * weight."""

    in_place = True

    x: Buffer
    out: Buffer
    weight: str | None
    eps: float
    groups: int = 1

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {} if self.weight is None else {self.weight: (self.x.width // self.groups,)}

    def reference(self, run: Context) -> None:
        x = run[self.x].reshape(-1, self.groups, self.x.width // self.groups)  # (T, groups, n)
        out = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
        run[self.out] = (out if self.weight is None else out * run.weight(self.weight)).reshape(-1, self.out.width)


@dataclass(frozen=True)
class LayerNorm(Operation):
    """Layer norm of each of `groups` equal parts of a row: out = (x - mean) / sqrt(variance + eps) * weight + bias."""

    in_place = True

    x: Buffer
    out: Buffer
    weight: str | None
    bias: str | None
    eps: float
    groups: int = 1

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (self.x.width // self.groups,) for name in (self.weight, self.bias) if name is not None}

    def reference(self, run: Context) -> None:
        x = run[self.x].reshape(-1, self.groups, self.x.width // self.groups)  # (T, groups, n)
        x = x - x.mean(axis=-1, keepdims=True)
        out = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
        if self.weight is not None:
            out = out * run.weight(self.weight)
        if self.bias is not None:
            out = out + run.weight(self.bias)
        run[self.out] = out.reshape(-1, self.out.width)


def norm(g: Tracer, x: Buffer, weight: str | None, eps: float, groups: int = 1) -> Buffer:
    return g.add(Norm(x, g.like(x), weight, eps, groups)).out


def layer_norm(
    g: Tracer, x: Buffer, weight: str | None, eps: float, groups: int = 1, bias: str | None = None
) -> Buffer:
    return g.add(LayerNorm(x, g.like(x), weight, bias, eps, groups)).out
