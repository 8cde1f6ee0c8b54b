"""Operations on each element of their inputs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lltool.engine.program import Buffer, Operation, Tracer
from lltool.engine.reference.context import Context, Floats

Activation = Literal["silu", "gelu_tanh", "gelu", "swiglu_oai", "sigmoid"]
"""Of a gate, whose result is multiplied."""

PlainActivation = Literal["gelu_tanh", "gelu", "relu", "relu_squared", "tanh", "sigmoid"]
"""Of a layer without a gate."""


def sigmoid(x: Floats) -> Floats:
    out: Floats = 0.5 + 0.5 * np.tanh(0.5 * x)  # a tanh does not overflow
    return out


def silu(x: Floats) -> Floats:
    out: Floats = x * sigmoid(x)
    return out


def gelu_tanh(x: Floats) -> Floats:
    out: Floats = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return out


def gelu(x: Floats) -> Floats:
    tails = np.vectorize(math.erfc, otypes=[np.float64])
    out: Floats = (0.5 * x * tails(-x / math.sqrt(2))).astype(x.dtype)
    return out


def relu_squared(x: Floats) -> Floats:
    return np.square(np.maximum(x, 0))


def relu(x: Floats) -> Floats:
    out: Floats = np.maximum(x, 0)
    return out


def tanh(x: Floats) -> Floats:
    out: Floats = np.tanh(x)
    return out


def swiglu_oai(gate: Floats, up: Floats) -> Floats:
    """gpt-oss's: both sides are clamped to 7, the sigmoid is steeper, and 1 is added to `up`."""
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    out: Floats = gate * (0.5 + 0.5 * np.tanh(0.5 * 1.702 * gate)) * (up + 1)
    return out


ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "silu": silu,
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu": relu,
    "relu_squared": relu_squared,
    "sigmoid": sigmoid,
    "tanh": tanh,
}


@dataclass(frozen=True)
class Gated(Operation):
    """out = activation(gate) * up; of gpt-oss's activation, see `swiglu_oai`."""

    in_place = True

    gate: Buffer
    up: Buffer
    out: Buffer
    activation: Activation

    @property
    def title(self) -> str:
        return self.activation

    def reference(self, run: Context) -> None:
        gate, up = run[self.gate], run[self.up]
        run[self.out] = (
            swiglu_oai(gate, up) if self.activation == "swiglu_oai" else ACTIVATIONS[self.activation](gate) * up
        )


@dataclass(frozen=True)
class Activate(Operation):
    """out = activation(x)."""

    in_place = True

    x: Buffer
    out: Buffer
    activation: PlainActivation

    @property
    def title(self) -> str:
        return self.activation

    def reference(self, run: Context) -> None:
        run[self.out] = ACTIVATIONS[self.activation](run[self.x])


@dataclass(frozen=True)
class Xielu(Operation):
    """out = positive * x² + slope * x for x > 0, else negative * (expm1(min(x, -1e-6)) - x) + slope * x.

    Source: Huang and Schlag 2024 (xIELU).
    """

    in_place = True

    x: Buffer
    out: Buffer
    positive: float
    negative: float
    slope: float

    def reference(self, run: Context) -> None:
        x = run[self.x]
        curve = np.where(x > 0, self.positive * x * x, self.negative * (np.expm1(np.minimum(x, -1e-6)) - x))
        run[self.out] = curve + self.slope * x


@dataclass(frozen=True)
class Sparsify(Operation):
    """out = max(x - (mean + deviations * standard deviation), 0), over each row.

    Of normally distributed values, a share of Φ(deviations) becomes 0 (Gemma 3n).
    """

    in_place = True

    x: Buffer
    out: Buffer
    deviations: float

    def reference(self, run: Context) -> None:
        x = run[self.x]
        cutoff = x.mean(axis=1, keepdims=True) + self.deviations * x.std(axis=1, keepdims=True)
        run[self.out] = np.maximum(x - cutoff, 0)


@dataclass(frozen=True)
class Clamp(Operation):
    """out = min(max(x, -limit), limit)."""

    in_place = True

    x: Buffer
    out: Buffer
    limit: float

    def reference(self, run: Context) -> None:
        run[self.out] = np.clip(run[self.x], -self.limit, self.limit)


@dataclass(frozen=True)
class Multiply(Operation):
    """out = x * weight, in each row."""

    in_place = True

    x: Buffer
    out: Buffer
    weight: str
    shape: tuple[int, ...]  # of the weight, which has a value for each column

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.weight: self.shape}

    def reference(self, run: Context) -> None:
        run[self.out] = run[self.x] * run.weight(self.weight).reshape(-1)


@dataclass(frozen=True)
class AddVector(Operation):
    """out = x + weight, in each row."""

    in_place = True

    x: Buffer
    out: Buffer
    weight: str

    @property
    def title(self) -> str:
        return "add"

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.weight: (self.x.width,)}

    def reference(self, run: Context) -> None:
        run[self.out] = run[self.x] + run.weight(self.weight)


@dataclass(frozen=True)
class Product(Operation):
    """out = x * y, element by element."""

    in_place = True

    x: Buffer
    y: Buffer
    out: Buffer

    def reference(self, run: Context) -> None:
        run[self.out] = run[self.x] * run[self.y]


@dataclass(frozen=True)
class Add(Operation):
    """out = x + y."""

    in_place = True

    x: Buffer
    y: Buffer
    out: Buffer

    def reference(self, run: Context) -> None:
        run[self.out] = run[self.x] + run[self.y]


@dataclass(frozen=True)
class Scale(Operation):
    """out = x * factor."""

    in_place = True

    x: Buffer
    out: Buffer
    factor: float

    def reference(self, run: Context) -> None:
        run[self.out] = run[self.x] * self.factor


@dataclass(frozen=True)
class ScaleByPosition(Operation):
    """out = x * (1 + factor * ln(1 + floor((position + offset) / length))): queries of long texts grow.

    Source: Nakanishi 2025 (scalable softmax), as Llama 4 and Ministral 3 use it.
    """

    in_place = True

    x: Buffer
    out: Buffer
    factor: float
    length: int
    offset: int = 0

    def reference(self, run: Context) -> None:
        passed = (run.batch.positions.astype(np.int64) + self.offset) // self.length
        run[self.out] = run[self.x] * (1 + self.factor * np.log1p(passed))[:, None]


@dataclass(frozen=True)
class Softcap(Operation):
    """out = cap * tanh(x / cap)."""

    in_place = True

    x: Buffer
    out: Buffer
    cap: float

    def reference(self, run: Context) -> None:
        run[self.out] = self.cap * np.tanh(run[self.x] / self.cap)


def gated(g: Tracer, gate: Buffer, up: Buffer, activation: Activation) -> Buffer:
    return g.add(Gated(gate, up, g.like(gate), activation)).out


def activate(g: Tracer, x: Buffer, activation: PlainActivation) -> Buffer:
    return g.add(Activate(x, g.like(x), activation)).out


def xielu(g: Tracer, x: Buffer, positive: float, negative: float, slope: float) -> Buffer:
    return g.add(Xielu(x, g.like(x), positive, negative, slope)).out


def sparsify(g: Tracer, x: Buffer, deviations: float) -> Buffer:
    return g.add(Sparsify(x, g.like(x), deviations)).out


def clamp(g: Tracer, x: Buffer, limit: float) -> Buffer:
    return g.add(Clamp(x, g.like(x), limit)).out


def multiply(g: Tracer, x: Buffer, weight: str, shape: tuple[int, ...]) -> Buffer:
    return g.add(Multiply(x, g.like(x), weight, shape)).out


def add_vector(g: Tracer, x: Buffer, weight: str) -> Buffer:
    return g.add(AddVector(x, g.like(x), weight)).out


def product(g: Tracer, x: Buffer, y: Buffer) -> Buffer:
    return g.add(Product(x, y, g.like(x))).out


def add(g: Tracer, x: Buffer, y: Buffer) -> Buffer:
    return g.add(Add(x, y, g.like(x))).out


def scale(g: Tracer, x: Buffer, factor: float) -> Buffer:
    return g.add(Scale(x, g.like(x), factor)).out


def scale_by_position(g: Tracer, x: Buffer, factor: float, length: int, offset: int = 0) -> Buffer:
    return g.add(ScaleByPosition(x, g.like(x), factor, length, offset)).out


def softcap(g: Tracer, x: Buffer, cap: float) -> Buffer:
    return g.add(Softcap(x, g.like(x), cap)).out
