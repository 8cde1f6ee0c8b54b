"""Products with matrices of weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lltool.engine.program import Buffer, Calls, Cost, Operation, Program, Tracer, Weight
from lltool.engine.reference.context import Context
from lltool.gguf.ggml_types import LAYOUT
from lltool.quant.codec import decode


@dataclass(frozen=True)
class Linear(Operation):
    """outs[i] = x @ weights[i].T + biases[i] (+ residual, only with one weight). The weights share one read of x.

    A weight that is named several times is a fused one: its outputs take its rows in turn.
    """

    x: Buffer
    outs: tuple[Buffer, ...]
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    residual: Buffer | None = None

    @cached_property
    def parts(self) -> tuple[slice, ...]:
        """The rows of its weight, and the elements of its bias, that each output takes."""
        ends: dict[str, int] = {}
        parts = []
        for out, weight in zip(self.outs, self.weights, strict=True):
            first = ends.get(weight, 0)
            ends[weight] = first + out.width
            parts.append(slice(first, ends[weight]))
        return tuple(parts)

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for part, weight, bias in zip(self.parts, self.weights, self.biases, strict=True):
            shapes[weight] = (part.stop, self.x.width)
            if bias is not None:
                shapes[bias] = (part.stop,)
        return shapes

    @property
    def multiplied(self) -> dict[str, Buffer]:
        return dict.fromkeys(self.weights, self.x)

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        rows, cost = calls.rows[self.rows], Cost()
        for weight in (weights[name] for name in dict.fromkeys(self.weights)):
            products = float(weight.rows * weight.columns * sum(rows))
            is_float = LAYOUT[weight.type].block == 1
            cost += Cost(len(rows) * weight.data.nbytes, 0 if is_float else products, products if is_float else 0)
        return cost

    def mean_bias(self, out: Buffer, program: Program) -> NDArray[np.float64] | None:
        index = self.outs.index(out)
        bias = self.biases[index]
        if bias is None:
            return None
        weight = program.weights[bias]
        return decode(weight.data, weight.type).reshape(-1)[self.parts[index]].astype(np.float64)

    def reference(self, run: Context) -> None:
        x = run[self.x]
        residual = 0 if self.residual is None else run[self.residual]
        for out, part, weight, bias in zip(self.outs, self.parts, self.weights, self.biases, strict=True):
            y = x @ run.weight(weight)[part].T
            run[out] = y + (0 if bias is None else run.weight(bias)[part]) + residual


@dataclass(frozen=True)
class HeadLinear(Operation):
    """Each head has a matrix of its own: out[h] is x[h][:columns] @ weight[h].T, followed by the rest of x[h].

    The weight is a stack (heads, out, columns).
    """

    x: Buffer
    out: Buffer
    weight: str
    heads: int
    columns: int

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        rest = self.x.width // self.heads - self.columns
        return {self.weight: (self.heads, self.out.width // self.heads - rest, self.columns)}

    @property
    def multiplied(self) -> dict[str, Buffer]:
        return {self.weight: self.x}

    @property
    def multiplied_part(self) -> tuple[int, int]:
        return self.x.width // self.heads, self.columns

    def cost(self, calls: Calls, weights: Mapping[str, Weight]) -> Cost:
        rows, weight = calls.rows[self.rows], weights[self.weight]
        products = float(weight.rows * weight.columns * sum(rows))
        is_float = LAYOUT[weight.type].block == 1
        return Cost(len(rows) * weight.data.nbytes, 0 if is_float else products, products if is_float else 0)

    def reference(self, run: Context) -> None:
        x = run[self.x].reshape(-1, self.heads, self.x.width // self.heads)
        made = np.einsum("thc,hrc->thr", x[..., : self.columns], run.weight(self.weight), optimize=True)
        run[self.out] = np.concatenate([made, x[..., self.columns :]], axis=-1).reshape(-1, self.out.width)


def head_linear(g: Tracer, x: Buffer, weight: str, heads: int, columns: int, rows: int) -> Buffer:
    """Multiplies the first `columns` of each head with its matrix of `rows` rows."""
    width = x.width + heads * (rows - columns)
    return g.add(HeadLinear(x, g.buffer(width, x.rows), weight, heads, columns)).out


def linear(
    g: Tracer, x: Buffer, weights: Sequence[str], widths: Sequence[int], residual: Buffer | None = None
) -> tuple[Buffer, ...]:
    """Gives weight i an output of `widths[i]`; adds a bias if the file has one (NAME.bias for NAME.weight)."""
    names = [name.removesuffix("weight") + "bias" for name in weights]
    biases = tuple(name if name in g.weights else None for name in names)
    outs = tuple(g.buffer(width, x.rows) for width in widths)
    return g.add(Linear(x, outs, tuple(weights), biases, residual)).outs
