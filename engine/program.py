"""Programs: what a model computes, as a flat list of operations.

An architecture is a Python function over symbolic tensors. It runs once, at load, against a `Tracer` and leaves a
`Program`. The number of tokens is a run-time argument, so one Program serves prompt and decode, and every executor
runs the same one. Shapes in this file: T tokens of the batch, R rows of it that want logits, H heads, KvH key/value
heads, Hd head dim.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Weight:
    """A tensor of the model file as it lies there: `data` is (rows, row_bytes) uint8, usually a mapped view.

    Vectors (norms, biases) are F32 always.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))


@dataclass(frozen=True)
class Buffer:
    """An activation of `width` float32 a row; one row a token, or, in the head, a row that wants logits."""

    id: int
    width: int


@dataclass(frozen=True)
class Embed:
    """out[t] = weight[token[t]] * scale."""

    out: Buffer
    weight: str
    scale: float = 1.0


@dataclass(frozen=True)
class Norm:
    """RMS norm of each of `groups` equal parts of a row: out = x / sqrt(mean(x²) + eps) * weight."""

    x: Buffer
    out: Buffer
    weight: str
    eps: float
    groups: int = 1


@dataclass(frozen=True)
class Linear:
    """outs[i] = x @ weights[i].T + biases[i] (+ residual, with one weight): several weights share one read of x."""

    x: Buffer
    outs: tuple[Buffer, ...]
    weights: tuple[str, ...]
    biases: tuple[str | None, ...]
    residual: Buffer | None = None


@dataclass(frozen=True)
class Rope:
    """Rotary position: pairs of each head of x turn by position * frequencies[i], and are scaled by `magnitude`.

    Pair i is (2i, 2i + 1) when `interleaved`, else (i, i + len(frequencies)). Dimensions past the last pair stay.
    """

    x: Buffer
    out: Buffer
    head_dim: int
    frequencies: tuple[float, ...]
    magnitude: float
    interleaved: bool


@dataclass(frozen=True)
class Attention:
    """Stores k and v of the batch in the cache of `layer`, then out = softmax(scale * q @ Kᵀ) @ V, causal.

    `window` > 0: a query at position p sees keys at positions > p - window. `softcap` > 0: cap * tanh(score / cap).
    `sinks`, one a head, are scores of a key that every query sees and that has no value.
    """

    q: Buffer
    k: Buffer
    v: Buffer
    out: Buffer
    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: str | None = None


@dataclass(frozen=True)
class Gated:
    """out = activation(gate) * up."""

    gate: Buffer
    up: Buffer
    out: Buffer
    activation: Activation


@dataclass(frozen=True)
class Add:
    """out = x + y."""

    x: Buffer
    y: Buffer
    out: Buffer


@dataclass(frozen=True)
class Scale:
    """out = x * factor."""

    x: Buffer
    out: Buffer
    factor: float


@dataclass(frozen=True)
class Softcap:
    """out = cap * tanh(x / cap)."""

    x: Buffer
    out: Buffer
    cap: float


@dataclass(frozen=True)
class Select:
    """out[r] = x[row r of those that want logits]: where the head begins. Head operations run on blocks of rows."""

    x: Buffer
    out: Buffer


@dataclass(frozen=True)
class Observe:
    """Adds the square of each element of x, row by row, to sums that the executor keeps (engine/observe.py).

    `weights` are those of the linear that reads x next.
    """

    x: Buffer
    weights: tuple[str, ...]


Op = Embed | Norm | Linear | Rope | Attention | Gated | Add | Scale | Softcap | Select | Observe

# Operations whose output may take the place of an input: element i of the output needs only element i of the inputs.
ELEMENTWISE = (Norm, Rope, Gated, Add, Scale, Softcap)


def inputs(op: Op) -> tuple[Buffer, ...]:
    match op:
        case Embed():
            return ()
        case Linear():
            return (op.x,) if op.residual is None else (op.x, op.residual)
        case Attention():
            return (op.q, op.k, op.v)
        case Gated():
            return (op.gate, op.up)
        case Add():
            return (op.x, op.y)
        case _:
            return (op.x,)


def outputs(op: Op) -> tuple[Buffer, ...]:
    match op:
        case Linear():
            return op.outs
        case Observe():
            return ()
        case _:
            return (op.out,)


@dataclass(frozen=True)
class Program:
    """A traced model.

    `ops[:head]` run over the T tokens of a batch, `ops[head:]` (a Select first) over blocks of the rows that want
    logits. `offsets[buffer.id]` is the buffer's place in an arena of `arena_width` floats a row; `logits` is the last
    buffer.
    """

    ops: tuple[Op, ...]
    head: int
    weights: Mapping[str, Weight]
    offsets: tuple[int, ...]
    arena_width: int
    logits: Buffer


# Stored as plain integers (or doubles, or a helper format of dot products): no matrix is made of these.
NOT_MULTIPLIED = frozenset(
    {GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64, GGMLType.Q8_1, GGMLType.Q8_K}
)


@dataclass
class Tracer:
    """Records operations. Weight names are the file's; a missing or misshapen one is an error where it is asked for."""

    weights: Mapping[str, Weight]
    ops: list[Op] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def embed(self, weight: str, vocab: int, width: int, scale: float = 1.0) -> Buffer:
        self._take(weight, (vocab, width))
        out = self._buffer(width)
        self.ops.append(Embed(out, weight, scale))
        return out

    def norm(self, x: Buffer, weight: str, eps: float, groups: int = 1) -> Buffer:
        self._take(weight, (x.width // groups,))
        out = self._buffer(x.width)
        self.ops.append(Norm(x, out, weight, eps, groups))
        return out

    def linear(
        self, x: Buffer, weights: Sequence[str], widths: Sequence[int], residual: Buffer | None = None
    ) -> tuple[Buffer, ...]:
        """One output of `widths[i]` a weight. A bias is added where the file has one (NAME.bias beside NAME.weight)."""
        biases: list[str | None] = []
        for name, width in zip(weights, widths, strict=True):
            self._take(name, (width, x.width))
            bias = name.removesuffix("weight") + "bias"
            biases.append(bias if bias in self.weights else None)
            if bias in self.weights:
                self._take(bias, (width,))
        outs = tuple(self._buffer(width) for width in widths)
        self.ops.append(Linear(x, outs, tuple(weights), tuple(biases), residual))
        return outs

    def rope(
        self, x: Buffer, head_dim: int, frequencies: tuple[float, ...], magnitude: float, interleaved: bool
    ) -> Buffer:
        out = self._buffer(x.width)
        self.ops.append(Rope(x, out, head_dim, frequencies, magnitude, interleaved))
        return out

    def attention(
        self,
        q: Buffer,
        k: Buffer,
        v: Buffer,
        *,
        layer: int,
        head_dim: int,
        scale: float,
        window: int,
        softcap: float,
        sinks: str | None = None,
    ) -> Buffer:
        out = self._buffer(q.width)
        heads, kv_heads = q.width // head_dim, k.width // head_dim
        if sinks is not None:
            self._take(sinks, (heads,))
        self.ops.append(Attention(q, k, v, out, layer, heads, kv_heads, head_dim, scale, window, softcap, sinks))
        return out

    def gated(self, gate: Buffer, up: Buffer, activation: Activation) -> Buffer:
        out = self._buffer(gate.width)
        self.ops.append(Gated(gate, up, out, activation))
        return out

    def add(self, x: Buffer, y: Buffer) -> Buffer:
        out = self._buffer(x.width)
        self.ops.append(Add(x, y, out))
        return out

    def scale(self, x: Buffer, factor: float) -> Buffer:
        out = self._buffer(x.width)
        self.ops.append(Scale(x, out, factor))
        return out

    def softcap(self, x: Buffer, cap: float) -> Buffer:
        out = self._buffer(x.width)
        self.ops.append(Softcap(x, out, cap))
        return out

    def select(self, x: Buffer) -> Buffer:
        out = self._buffer(x.width)
        self.ops.append(Select(x, out))
        return out

    def constants(self, weight: str, count: int) -> NDArray[np.float64]:
        """The values of a small float32 tensor that the trace itself computes with."""
        self._take(weight, (count,))
        assert self.weights[weight].type == GGMLType.F32
        return self.weights[weight].data.reshape(-1).view(np.float32).astype(np.float64)

    def finish(self) -> Program:
        """Closes the trace; the last operation's output is the logits. Every weight must have found its use."""
        unused = sorted(self.weights.keys() - self.used)
        if unused:
            names = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
            raise InputError(f"tensors that this architecture has no use for: {names}")
        heads = [i for i, op in enumerate(self.ops) if isinstance(op, Select)]
        assert len(heads) == 1, "an architecture selects the rows that want logits once"
        logits = outputs(self.ops[-1])[0]
        offsets, width = _plan(self.ops, len(self.buffers), logits)
        return Program(tuple(self.ops), heads[0], self.weights, offsets, width, logits)

    def _buffer(self, width: int) -> Buffer:
        self.buffers.append(Buffer(len(self.buffers), width))
        return self.buffers[-1]

    def _take(self, name: str, shape: tuple[int, ...]) -> None:
        """Checks a weight off."""
        weight = self.weights.get(name)
        if weight is None:
            raise InputError(f"{name}: tensor missing, wanted one of shape {shape}")
        if weight.shape != shape:
            raise InputError(f"{name}: shape {weight.shape}, wanted {shape}")
        if weight.type in NOT_MULTIPLIED:
            raise InputError(
                f"{name}: {weight.type.name} is not a type to compute with, wanted floats or a quantized type"
            )
        self.used.add(name)


def _plan(ops: list[Op], count: int, logits: Buffer) -> tuple[tuple[int, ...], int]:
    """Gives each buffer an offset, reusing the place of one of the same width that is no longer needed.

    Logits, and what a Scale or Softcap makes logits of, are not in the arena (offset -1): executors keep them in a
    block of their own. What Select reads keeps its place to the end, because the head runs once a block of rows.
    """
    last_use = {b.id: i for i, op in enumerate(ops) for b in inputs(op)}
    last_use |= {op.x.id: len(ops) for op in ops if isinstance(op, Select)}
    outside = {logits.id}
    for op in reversed(ops):
        if isinstance(op, Scale | Softcap) and op.out.id in outside:
            outside.add(op.x.id)

    offsets = [-1] * count
    free: dict[int, list[int]] = {}
    end = 0
    for i, op in enumerate(ops):
        dead = {b.id: b for b in inputs(op) if last_use[b.id] == i and b.id not in outside}
        if isinstance(op, ELEMENTWISE):  # its output may take an input's place
            _release(free, offsets, dead.values())
        for b in outputs(op):
            if b.id in outside:
                continue
            if free.get(b.width):
                offsets[b.id] = free[b.width].pop()
            else:
                offsets[b.id], end = end, end + (b.width + 15) // 16 * 16
        if not isinstance(op, ELEMENTWISE):
            _release(free, offsets, dead.values())
        _release(free, offsets, [b for b in outputs(op) if b.id not in last_use and b.id not in outside])
    return tuple(offsets), end


def _release(free: dict[int, list[int]], offsets: list[int], buffers: Iterable[Buffer]) -> None:
    for b in buffers:
        free.setdefault(b.width, []).append(offsets[b.id])
