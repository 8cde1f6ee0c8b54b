"""The reference executor: each operation in a few lines of numpy.

It is slow, and it is the definition of the operations: the other executors must agree with it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch, CacheType
from lltool.engine.compare import compare_rows
from lltool.engine.observe import Observation
from lltool.engine.program import (
    Activation,
    Add,
    Attention,
    Buffer,
    Embed,
    Gated,
    Linear,
    Norm,
    Observe,
    Op,
    Program,
    Rope,
    Scale,
    Select,
    Softcap,
)
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode, encode

Floats = NDArray[Any]  # of the executor's dtype


def silu(x: Floats) -> Floats:
    out: Floats = x * (0.5 + 0.5 * np.tanh(0.5 * x))  # sigmoid as a tanh, which does not overflow
    return out


def gelu_tanh(x: Floats) -> Floats:
    out: Floats = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return out


ACTIVATIONS: dict[Activation, Callable[[Floats], Floats]] = {"silu": silu, "gelu_tanh": gelu_tanh}


class ReferenceExecutor:
    """Runs a Program in `dtype`, one operation at a time, with weights decoded on first use and kept.

    Keys and values are rounded as a cache of those types rounds them, each head's by itself.
    """

    head_rows = 64

    def __init__(
        self,
        program: Program,
        pages: int,
        *,
        dtype: type[np.floating] = np.float32,
        cache_type_k: CacheType = "f32",
        cache_type_v: CacheType = "f32",
    ) -> None:
        self._program = program
        self._dtype = np.dtype(dtype)
        self._cache_types = (cache_type_k, cache_type_v)
        self._weights: dict[str, NDArray[np.float32]] = {}
        # Keyed by place in the arena, so that a plan which gives a place away too early shows here too.
        self._arena: dict[int, Floats] = {}
        layers = [op for op in program.ops if isinstance(op, Attention)]
        shapes = {op.layer: (pages * PAGE, op.kv_heads, op.head_dim) for op in layers}
        self._k = {layer: np.zeros(shape, dtype) for layer, shape in shapes.items()}
        self._v = {layer: np.zeros(shape, dtype) for layer, shape in shapes.items()}
        self._batch: Batch | None = None
        self._observations: dict[Observe, Observation] = {}

    def run(self, batch: Batch) -> None:
        self._batch = batch
        for op in self._program.ops[: self._program.head]:
            self._compute(op, batch, batch.outputs)

    def logits(self, start: int, stop: int) -> NDArray[np.float32]:
        assert self._batch is not None, "logits before a run"
        assert stop - start <= self.head_rows
        for op in self._program.ops[self._program.head :]:
            self._compute(op, self._batch, self._batch.outputs[start:stop])
        return self._get(self._program.logits).astype(np.float32, copy=False)

    def score(self, start: int, targets: NDArray[np.int32]) -> NDArray[np.float64]:
        scores = np.empty(len(targets), np.float64)
        for first in range(0, len(targets), self.head_rows):
            wanted = targets[first : first + self.head_rows]
            x = self.logits(start + first, start + first + len(wanted)).astype(np.float64)
            x -= x.max(axis=1, keepdims=True)
            scores[first : first + len(wanted)] = x[np.arange(len(wanted)), wanted] - np.log(np.exp(x).sum(axis=1))
        return scores

    def compare(self, start: int, base: NDArray[np.float32], targets: NDArray[np.int32]) -> NDArray[np.float64]:
        return compare_rows(base, self.logits(start, start + len(targets)), targets)

    def take_observations(self) -> dict[str, Observation]:
        taken = {name: seen for op, seen in self._observations.items() for name in op.weights}
        self._observations = {}
        return taken

    def copy_page(self, source: int, target: int) -> None:
        for cache in (*self._k.values(), *self._v.values()):
            cache[target * PAGE : (target + 1) * PAGE] = cache[source * PAGE : (source + 1) * PAGE]

    def _compute(self, op: Op, batch: Batch, selected: NDArray[np.int32]) -> None:
        match op:
            case Embed():
                self._set(op.out, self._decode_rows(op.weight, batch.tokens) * op.scale)
            case Norm():
                x = self._get(op.x).reshape(-1, op.groups, op.x.width // op.groups)  # (T, groups, n)
                mean = np.mean(x * x, axis=-1, keepdims=True)
                self._set(op.out, (x / np.sqrt(mean + op.eps) * self._weight(op.weight)).reshape(-1, op.out.width))
            case Linear():
                self._linear(op)
            case Rope():
                self._set(op.out, _rotate(self._get(op.x), batch.positions, op))
            case Attention():
                self._attention(op, batch)
            case Gated():
                self._set(op.out, ACTIVATIONS[op.activation](self._get(op.gate)) * self._get(op.up))
            case Add():
                self._set(op.out, self._get(op.x) + self._get(op.y))
            case Scale():
                self._set(op.out, self._get(op.x) * op.factor)
            case Softcap():
                self._set(op.out, op.cap * np.tanh(self._get(op.x) / op.cap))
            case Select():
                self._set(op.out, self._get(op.x)[selected])
            case Observe():
                self._observe(op)

    def _observe(self, op: Observe) -> None:
        x = self._get(op.x)
        before = self._observations.get(op, Observation(np.zeros(op.x.width), 0))
        sums = before.sums + np.square(x, dtype=np.float64).sum(axis=0)
        self._observations[op] = Observation(sums, before.rows + len(x))

    def _linear(self, op: Linear) -> None:
        x = self._get(op.x)
        residual = 0 if op.residual is None else self._get(op.residual)
        for out, weight, bias in zip(op.outs, op.weights, op.biases, strict=True):
            y = x @ self._weight(weight).T
            self._set(out, y + (0 if bias is None else self._weight(bias)) + residual)

    def _attention(self, op: Attention, batch: Batch) -> None:
        tokens = len(batch.tokens)
        q = self._get(op.q).reshape(tokens, op.heads, op.head_dim)
        rows = batch.tables[batch.sequences, batch.positions // PAGE] * PAGE + batch.positions % PAGE  # (T,)
        for cache, x, kind in zip((self._k, self._v), (op.k, op.v), self._cache_types, strict=True):
            cache[op.layer][rows] = _round(self._get(x).reshape(tokens, op.kv_heads, op.head_dim), kind)

        out = np.empty_like(q)
        for sequence in np.unique(batch.sequences):
            mine = batch.sequences == sequence
            positions = batch.positions[mine]
            seen = np.arange(positions.max() + 1)
            rows = batch.tables[sequence, seen // PAGE] * PAGE + seen % PAGE
            k = self._k[op.layer][rows].repeat(op.heads // op.kv_heads, axis=1)  # (n, H, Hd)
            v = self._v[op.layer][rows].repeat(op.heads // op.kv_heads, axis=1)
            scores = np.einsum("thd,nhd->htn", q[mine], k, optimize=True) * op.scale
            if op.softcap:
                scores = op.softcap * np.tanh(scores / op.softcap)
            distance = positions[:, None] - seen  # (T, n)
            hidden = (distance < 0) | (distance >= op.window if op.window else False)
            scores = np.where(hidden, -np.inf, scores)
            if op.sinks:
                sinks = np.broadcast_to(self._weight(op.sinks)[:, None, None], (*scores.shape[:2], 1))
                scores = np.concatenate([scores, sinks], axis=-1)  # (H, T, n + 1)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            out[mine] = np.einsum("htn,nhd->thd", weights[..., : len(seen)], v, optimize=True)
        self._set(op.out, out.reshape(tokens, op.out.width))

    def _get(self, buffer: Buffer) -> Floats:
        return self._arena[self._program.offsets[buffer.id]]

    def _set(self, buffer: Buffer, value: Floats) -> None:
        assert value.shape[1] == buffer.width
        self._arena[self._program.offsets[buffer.id]] = value.astype(self._dtype, copy=False)

    def _weight(self, name: str) -> Floats:
        """The decoded weight: a vector, or a matrix (rows, columns)."""
        if name not in self._weights:
            weight = self._program.weights[name]
            self._weights[name] = decode(weight.data, weight.type).reshape(weight.shape)
        return self._weights[name].astype(self._dtype, copy=False)

    def _decode_rows(self, name: str, rows: NDArray[np.int32]) -> Floats:
        weight = self._program.weights[name]
        return decode(weight.data[rows], weight.type).astype(self._dtype, copy=False)


def _round(x: Floats, kind: CacheType) -> Floats:
    """The values x (T, KvH, Hd) as a cache of that type gives them back; f32 stands for the executor's own type."""
    if kind == "f32":
        return x
    type = GGMLType[kind.upper()]
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float32)
    return decode(encode(rows, type), type).reshape(x.shape)


def _rotate(x: Floats, positions: NDArray[np.int32], op: Rope) -> Floats:
    heads = x.reshape(len(x), -1, op.head_dim)  # (T, H, Hd)
    pairs = len(op.frequencies)
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if op.interleaved else (slice(pairs), slice(pairs, 2 * pairs))
    )
    angles = (positions[:, None] * np.array(op.frequencies))[:, None, :]  # (T, 1, pairs), float64
    cos, sin = np.cos(angles) * op.magnitude, np.sin(angles) * op.magnitude
    out = heads.copy()
    out[:, :, first] = heads[:, :, first] * cos - heads[:, :, second] * sin
    out[:, :, second] = heads[:, :, first] * sin + heads[:, :, second] * cos
    return out.reshape(x.shape)
