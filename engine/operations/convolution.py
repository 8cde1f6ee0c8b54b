"""Convolutions over the tokens of a sequence, column by column."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lltool.engine.operations.elementwise import ACTIVATIONS
from lltool.engine.program import Buffer, Operation, Tracer
from lltool.engine.reference.context import Context
from lltool.engine.state import Slot


@dataclass(frozen=True)
class Convolution(Operation):
    """out[t] = activation(bias + the sum over k of weight[:, k] * x[t - taps + 1 + k]), where x is 0 before a text.

    The weight is (width, taps), the bias (width,). A sequence keeps its last taps - 1 inputs.
    """

    x: Buffer
    out: Buffer
    weight: str
    taps: int
    bias: str | None = None
    activation: Literal["silu"] | None = None

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {self.weight: (self.x.width, self.taps)}
        if self.bias is not None:
            shapes[self.bias] = (self.x.width,)
        return shapes

    @property
    def state(self) -> tuple[Slot]:
        return (Slot(self.weight, (self.taps - 1, self.x.width)),)

    def reference(self, run: Context) -> None:
        x, weight = run[self.x], run.weight(self.weight)
        out = np.empty_like(x)
        for rows, (past,) in run.sequences(self.state[0]):
            inputs = np.concatenate([past, x[rows]])
            windows = np.lib.stride_tricks.sliding_window_view(inputs, self.taps, axis=0)  # (T, width, taps)
            out[rows] = (windows * weight).sum(axis=2)
            past[:] = inputs[len(inputs) - len(past) :]
        if self.bias is not None:
            out += run.weight(self.bias)
        run[self.out] = out if self.activation is None else ACTIVATIONS[self.activation](out)


def convolution(g: Tracer, x: Buffer, weight: str, taps: int, activation: Literal["silu"] | None = None) -> Buffer:
    """Adds a bias if the file has one (NAME.bias for NAME.weight)."""
    bias = weight.removesuffix("weight") + "bias"
    return g.add(Convolution(x, g.like(x), weight, taps, bias if bias in g.weights else None, activation)).out
