"""The table of operations that a device has kernels for, and the launches that each one takes."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lltool.engine.gpu.device import integer
from lltool.engine.gpu.recorder import Recorder
from lltool.engine.operations.attention import Attention
from lltool.engine.operations.concatenate import Concatenate
from lltool.engine.operations.elementwise import (
    Activate,
    Add,
    AddVector,
    Clamp,
    Gated,
    Multiply,
    Product,
    Scale,
    ScaleByPosition,
    Softcap,
    Xielu,
)
from lltool.engine.operations.embed import Embed, EmbedPositions, EmbedTypes
from lltool.engine.operations.experts import Combine, ExpertLinear, Route, SharedGate, Weigh
from lltool.engine.operations.linear import HeadLinear, Linear
from lltool.engine.operations.norm import LayerNorm, Norm
from lltool.engine.operations.rope import Rope
from lltool.engine.operations.select import Select
from lltool.engine.operations.split import Split
from lltool.engine.program import Buffer, Operation, Rows
from lltool.gguf.errors import InputError

_NORM_ITEMS = 64  # work items that share a row, as kernels/elementwise.h has them
_CACHE_TYPES = {"f32": 0, "f16": 1, "bf16": 2}
_SCORINGS = {"softmax": 0, "sigmoid": 1, "sparsemixer": 2}
MOST_VALUE_DIM = 640  # what kernels/attention.h has sums for


def _embed(to: Recorder, op: Embed | EmbedPositions | EmbedTypes) -> None:
    """The host decodes the rows and copies them: tables of embeddings stay in its memory."""
    to.launches.append(lambda: to.embed(op))


def _norm(to: Recorder, op: Norm) -> None:
    unit = op.x.width // op.groups
    weight, eps = to.vector(op.weight), np.float32(op.eps)
    places = (integer(to.place(op.x)), integer(to.place(op.out)))
    to.launch("rms_norm", [to.rows(op.x) * op.groups], [_NORM_ITEMS], *weight, *places, integer(unit), eps)


def _layer_norm(to: Recorder, op: LayerNorm) -> None:
    unit = op.x.width // op.groups
    vectors, places = (*to.vector(op.weight), *to.vector(op.bias)), (to.place(op.x), to.place(op.out), unit)
    groups = [to.rows(op.x) * op.groups]
    to.launch("layer_norm", groups, [_NORM_ITEMS], *vectors, *map(integer, places), np.float32(op.eps))


def _linear(to: Recorder, op: Linear) -> None:
    residual = -1 if op.residual is None else to.place(op.residual)
    product = to.product(to.place(op.x), op.x.width, to.rows(op.x), op.x.width)
    for out, weight, bias, part in zip(op.outs, op.weights, op.biases, op.parts, strict=True):
        vector = None if bias is None else (bias, part)
        product.launch(weight, vector, to.place(out), out.width, part.start, out.width, residual=residual)


def _head_linear(to: Recorder, op: HeadLinear) -> None:
    x_width, out_width = op.x.width // op.heads, op.out.width // op.heads
    rest = x_width - op.columns
    rows = out_width - rest
    for head in range(op.heads):
        x, out = to.place(op.x) + head * x_width, to.place(op.out) + head * out_width
        product = to.product(x, op.x.width, to.rows(op.x), op.columns)
        product.launch(op.weight, None, out, op.out.width, head * rows, rows)
        if rest:
            to.copy(x + op.columns, op.x.width, out + rows, op.out.width, rest, to.rows(op.x))


def _experts(to: Recorder, op: ExpertLinear) -> None:
    each = op.chosen.width
    tokens = to.rows(op.chosen)
    is_assigned = op.x.rows is Rows.ASSIGNMENT
    product = to.product(to.place(op.x), op.x.width, tokens * each if is_assigned else tokens, op.x.width)
    shared = 1 if is_assigned else each
    for out, weight, bias, part in zip(op.outs, op.weights, op.biases, op.parts, strict=True):
        vector = None if bias is None else (bias, slice(None))
        place, chosen = to.place(out), to.place(op.chosen)
        product.launch_experts(weight, vector, place, out.width, chosen, tokens * each, shared, part)


def _route(to: Recorder, op: Route) -> None:
    routing, (chosen, weights) = op.routing, op.outs
    tokens = to.rows(op.logits)
    numbers = (to.place(op.logits), to.place(chosen), to.place(weights), routing.experts, routing.used)
    kinds = (_SCORINGS[routing.scoring], int(routing.normalized))
    groups = (routing.groups, routing.groups_used, routing.counted, tokens)
    to.each(
        "route",
        tokens,
        to.scratch("order", to.most(op.logits) * routing.experts * 4),
        *to.vector(op.bias),
        *to.vector(op.scales),
        *map(integer, (*numbers, *kinds)),
        np.float32(routing.factor),
        *map(integer, groups),
    )


def _weigh(to: Recorder, op: Weigh) -> None:
    n = to.rows(op.x) * op.chosen.width * op.out.width
    places = (to.place(op.x), to.place(op.weights), to.place(op.out), op.out.width, op.chosen.width, n)
    to.each("weigh", n, *map(integer, places))


def _combine(to: Recorder, op: Combine) -> None:
    n = to.rows(op.out) * op.out.width
    optional = (-1 if buffer is None else to.place(buffer) for buffer in (op.weights, op.residual))
    numbers = (to.place(op.x), *optional, to.place(op.out), op.out.width, op.chosen.width, n)
    to.each("combine", n, *map(integer, numbers))


def _shared_gate(to: Recorder, op: SharedGate) -> None:
    weight, _ = to.vector(op.weight)
    numbers = (to.place(op.x), to.place(op.h), to.place(op.out), op.x.width, op.h.width)
    to.launch("shared_gate", [to.rows(op.x)], [_NORM_ITEMS], weight, *map(integer, numbers))


def _rope(to: Recorder, op: Rope) -> None:
    pairs = len(op.frequencies)
    n = to.rows(op.x) * (op.x.width // op.head_dim) * -(-op.head_dim // 2)
    turns = to.state.turns_of(op.frequencies, op.magnitude)
    numbers = (to.place(op.x), to.place(op.out), op.head_dim, pairs, op.first, int(op.interleaved), op.x.width, n)
    to.each("rope", n, turns, *map(integer, numbers))


def _attention(to: Recorder, op: Attention) -> None:
    if op.value_dim > MOST_VALUE_DIM:
        raise InputError(f"layer {op.layer}: values of {op.value_dim}; the kernel takes at most {MOST_VALUE_DIM}")
    if op.bias is not None:
        raise InputError(
            f"layer {op.layer}: attention has a bias by distance, for which there is no GPU kernel; use -ngl 0"
        )
    keys, values = to.cache.keys[op.layer], to.cache.values[op.layer]
    is_shared = op.v == op.k
    key_type, value_type = (_CACHE_TYPES[kind] for kind in to.cache.types)
    places = to.state.of_tokens
    stored = [(op.k, keys, key_type)] if is_shared else [(op.k, keys, key_type), (op.v, values, value_type)]
    for buffer, memory, kind in stored if op.stores else ():
        n = to.rows(buffer) * buffer.width
        to.each("store", n, memory, places["places"], *map(integer, (to.place(buffer), buffer.width, kind, n)))
    before, after = (-1 if reach is None else reach for reach in op.reach)
    stride = op.head_dim if is_shared else op.value_dim
    sinks, has_sinks = to.vector(op.sinks)
    slopes, has_slopes = (None, integer(0)) if op.slopes is None else (to.constant(op.slopes), integer(1))
    sizes = (op.heads, op.kv_heads, op.head_dim, op.value_dim, stride, key_type, key_type if is_shared else value_type)
    to.launch(
        "attend",
        [op.heads, to.rows(op.q)],
        [64, 1],
        keys,
        values,
        *(places[name] for name in ("positions", "starts", "ends")),
        to.state.tables,
        sinks,
        slopes,
        has_sinks,
        has_slopes,
        *map(integer, (to.place(op.q), to.place(op.out), *sizes)),
        np.float32(op.scale),
        np.float32(op.softcap),
        *map(integer, (before, after, op.chunk)),
    )


def _one(to: Recorder, name: str, x: Buffer, out: Buffer, *constants: float) -> None:
    n = to.rows(out) * out.width * out.each
    numbers = [np.float32(value) for value in (*constants, 0.0, 0.0, 0.0)[:3]]
    to.each(name, n, *map(integer, (to.place(x), to.place(out), n)), *numbers)


def _two(to: Recorder, name: str, x: Buffer, y: Buffer, out: Buffer) -> None:
    n = to.rows(out) * out.width * out.each
    to.each(name, n, *map(integer, (to.place(x), to.place(y), to.place(out), n)))


def _with_vector(to: Recorder, name: str, op: AddVector | Multiply) -> None:
    weight, _ = to.vector(op.weight)
    n = to.rows(op.out) * op.out.width * op.out.each
    to.each(name, n, weight, *map(integer, (to.place(op.x), to.place(op.out), op.x.width, n)))


def _scale_by_position(to: Recorder, op: ScaleByPosition) -> None:
    factors = to.state.factors_of(op.factor, op.length, op.offset)
    n = to.rows(op.out) * op.out.width
    to.each("scale_rows", n, factors, *map(integer, (to.place(op.x), to.place(op.out), op.x.width, n)))


def _split(to: Recorder, op: Split) -> None:
    first, part = 0, op.x.width // op.groups
    for out in op.outs:
        width = out.width // op.groups
        to.copy(to.place(op.x) + first, part, to.place(out), width, width, to.rows(op.x) * op.x.each * op.groups)
        first += width


def _concatenate(to: Recorder, op: Concatenate) -> None:
    first = 0
    for x in (op.x, op.y):
        to.copy(to.place(x), x.width, to.place(op.out) + first, op.out.width, x.width, to.rows(x) * x.each)
        first += x.width


def _select(to: Recorder, op: Select) -> None:
    n = to.rows(op.out) * op.out.width
    numbers = [integer(value) for value in (to.place(op.x), to.place(op.out), op.out.width, n)]
    if op.mean:
        sequences = to.state.of_tokens["sequences"]
        to.each("select_means", n, to.state.selected, sequences, integer(to.tokens), *numbers)
    else:
        to.each("select_rows", n, to.state.selected, *numbers)


# Each function takes an operation of its class.
KERNELS: dict[type[Operation], Callable[[Recorder, Any], None]] = {
    Embed: _embed,
    EmbedPositions: _embed,
    EmbedTypes: _embed,
    Norm: _norm,
    LayerNorm: _layer_norm,
    Linear: _linear,
    HeadLinear: _head_linear,
    Concatenate: _concatenate,
    Route: _route,
    ExpertLinear: _experts,
    Weigh: _weigh,
    Combine: _combine,
    SharedGate: _shared_gate,
    Rope: _rope,
    Attention: _attention,
    Split: _split,
    Gated: lambda to, op: _two(to, f"gated_{op.activation}", op.gate, op.up, op.out),
    Activate: lambda to, op: _one(to, f"activate_{op.activation}", op.x, op.out),
    Xielu: lambda to, op: _one(to, "xielu", op.x, op.out, op.positive, op.negative, op.slope),
    Clamp: lambda to, op: _one(to, "clamp_values", op.x, op.out, op.limit),
    Multiply: lambda to, op: _with_vector(to, "multiply", op),
    AddVector: lambda to, op: _with_vector(to, "add_vector", op),
    Product: lambda to, op: _two(to, "product", op.x, op.y, op.out),
    Add: lambda to, op: _two(to, "add", op.x, op.y, op.out),
    Scale: lambda to, op: _one(to, "scale_values", op.x, op.out, op.factor),
    ScaleByPosition: _scale_by_position,
    Softcap: lambda to, op: _one(to, "softcap", op.x, op.out, op.cap),
    Select: _select,
}
