"""The table of operations that the native executor has a kernel for, and how each one is added to it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.cpu import _native
from lltool.engine.cpu.fuse import AnyNorm
from lltool.engine.cpu.target import Target
from lltool.engine.operations.attention import BLOCK_TYPES, Attention
from lltool.engine.operations.concatenate import Concatenate
from lltool.engine.operations.convolution import Convolution
from lltool.engine.operations.delta import GatedDelta
from lltool.engine.operations.distance_bias import DistanceBias
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
    Sparsify,
    Xielu,
)
from lltool.engine.operations.embed import Embed, EmbedPositions, EmbedTypes
from lltool.engine.operations.experts import Combine, ExpertLinear, Route, SharedGate, Weigh
from lltool.engine.operations.linear import HeadLinear, Linear
from lltool.engine.operations.low_rank import LowRank, LowRankEmbed, Update
from lltool.engine.operations.norm import LayerNorm, Norm
from lltool.engine.operations.observe import Observe
from lltool.engine.operations.rope import Rope
from lltool.engine.operations.rwkv import TimeMix, TokenShift
from lltool.engine.operations.scan import Scan, SelectiveScan
from lltool.engine.operations.select import Select
from lltool.engine.operations.split import Split
from lltool.engine.operations.streams import MatchMagnitude, MixStreams
from lltool.engine.program import Operation, Rows
from lltool.gguf.errors import InputError

_XIELU_UNIT = 64  # columns of one call: a thread must compute them together


def _embed(to: Target, op: Embed) -> None:
    type, data = to.matrix(op.weight)
    to.native.embed(out=to.place(op.out), type=type, data=data, scale=op.scale)


def _embed_positions(to: Target, op: EmbedPositions) -> None:
    type, data = to.matrix(op.weight)
    to.native.embed(out=to.place(op.out), type=type, data=data, scale=1.0, by="position")


def _embed_types(to: Target, op: EmbedTypes) -> None:
    type, data = to.matrix(op.weight)
    to.native.embed(out=to.place(op.out), type=type, data=data, scale=1.0, by="type")


def _norm(to: Target, op: AnyNorm) -> None:
    to.native.function(function=_norm_function(to, op), x=to.place(op.x), out=to.place(op.out), group=to.group)


def _norm_function(to: Target, op: AnyNorm) -> _native.Function:
    unit = op.x.width // op.groups
    weight = np.ones(unit, np.float32) if op.weight is None else to.vector(op.weight)
    if isinstance(op, Norm):
        return _native.Function(name="rms_norm", vector=weight, factor=op.eps, unit=unit)
    bias = np.zeros(unit, np.float32) if op.bias is None else to.vector(op.bias)
    return _native.Function(name="layer_norm", vector=np.concatenate([weight, bias]), factor=op.eps, unit=unit)


def _linear(to: Target, op: Linear) -> None:
    parts = list(zip(op.outs, op.weights, op.biases, op.parts, strict=True))
    norm = to.fused.norm
    to.native.linear(
        x=to.place(norm.x if norm else op.x),
        groups=[[to.product(*parts[index]) for index in group] for group in to.fused.groups],
        residual=to.place(op.residual) if op.residual else None,
        norm=_norm_function(to, norm) if norm else None,
    )


def _head_linear(to: Target, op: HeadLinear) -> None:
    type, data = to.matrix(op.weight)
    to.native.head_linear(
        x=to.place(op.x), out=to.place(op.out), type=type, data=data, heads=op.heads, columns=op.columns
    )


def _factors(to: Target, update: Update) -> _native.Factors:
    down, up = (to.program.weights[name] for name in (update.down, update.up))
    more = -down.columns % _native.LOW_RANK_UNIT * down.data.shape[1] // down.columns
    return _native.Factors(
        adapter=update.adapter,
        factor=update.factor,
        output=update.output,
        type=int(down.type),
        down=np.pad(down.data, ((0, 0), (0, more))) if more else down.data,
        up=up.data,
    )


def _low_rank(to: Target, op: LowRank) -> None:
    to.native.low_rank(
        x=to.place(op.x),
        outs=[to.place(out) for out in op.outs],
        updates=[_factors(to, update) for update in op.updates],
        chosen=None if op.chosen is None else to.place(op.chosen),
        assigned=op.x.rows is Rows.ASSIGNMENT,
    )


def _low_rank_embed(to: Target, op: LowRankEmbed) -> None:
    to.native.low_rank_embed(out=to.place(op.outs[0]), updates=[_factors(to, update) for update in op.updates])


def _concatenate(to: Target, op: Concatenate) -> None:
    to.native.concatenate(**to.arguments(op))


def _route(to: Target, op: Route) -> None:
    routing, (chosen, weights) = op.routing, op.outs
    to.native.route(
        logits=to.place(op.logits),
        chosen=to.place(chosen),
        weights=to.place(weights),
        scoring=routing.scoring,
        normalized=routing.normalized,
        factor=routing.factor,
        groups=routing.groups,
        groups_used=routing.groups_used,
        counted=routing.counted,
        bias=to.vector(op.bias) if op.bias else None,
        scales=to.vector(op.scales) if op.scales else None,
    )


def _experts(to: Target, op: ExpertLinear) -> None:
    activation = to.fused.activation
    to.native.experts(
        x=to.place(op.x),
        assigned=op.x.rows is Rows.ASSIGNMENT,
        chosen=to.place(op.chosen),
        products=[
            to.product(*each[:3], of=each[3]) for each in zip(op.outs, op.weights, op.biases, op.parts, strict=True)
        ],
        activation=_native.Function(name=activation.activation) if activation else None,
        out=to.place(activation.out) if activation else None,
    )


def _weigh(to: Target, op: Weigh) -> None:
    to.native.weigh(**to.arguments(op))


def _combine(to: Target, op: Combine) -> None:
    to.native.combine(**to.arguments(op))


def _shared_gate(to: Target, op: SharedGate) -> None:
    to.native.shared_gate(**to.arguments(op) | {"weight": to.vector(op.weight)})


def _rope(to: Target, op: Rope) -> None:
    to.native.rope(**to.arguments(op), group=to.group)


def _attention(to: Target, op: Attention) -> None:
    is_shared = op.v == op.k
    widest = max(op.head_dim, op.value_dim)
    if widest > _native.MAX_HEAD_DIM or op.heads // op.kv_heads > _native.MAX_GROUP:
        raise InputError(
            f"layer {op.layer}: {op.heads} heads of {widest} on {op.kv_heads} key/value heads; the kernels take "
            f"heads of at most {_native.MAX_HEAD_DIM}, and at most {_native.MAX_GROUP} per key/value head"
        )
    types = to.cache_types[:1] * 2 if is_shared else to.cache_types
    for dim, type in zip((op.head_dim, op.value_dim), types, strict=True):
        if type in BLOCK_TYPES and dim % 32:
            wanted = "a cache of type q8_0 or q4_0 needs a multiple of 32"
            raise InputError(f"layer {op.layer}: heads of {dim}; {wanted}")
    common = op.common_key(to.program, to.cache_types[0])
    arguments = to.arguments(op) | {
        "biases": _biases(to, op.bias) if op.bias else None,
        "v": None if is_shared else to.place(op.v),
        "sinks": to.vector(op.sinks) if op.sinks else None,
        "slopes": None if op.slopes is None else np.array(op.slopes, np.float32),
        "common_key": None if common is None else common.reshape(-1),
        "groups": to.fused.stores,
    }
    del arguments["bias"]
    to.native.attention(**arguments)


def _biases(to: Target, bias: DistanceBias) -> NDArray[np.float32]:
    """The bias of each head and distance, (H * distances,), and more of the outermost at both ends."""
    reach = bias.furthest + _native.BIAS_PADDING
    distances = np.arange(-reach, reach + 1 + _native.BIAS_PADDING)
    table = to.vector(bias.weight).reshape(bias.buckets, -1)
    return np.ascontiguousarray(table[bias.buckets_of(distances)].T).reshape(-1)


def _convolution(to: Target, op: Convolution) -> None:
    taps = to.vector(op.weight).reshape(op.x.width, op.taps)
    to.native.convolution(
        x=to.place(op.x),
        out=to.place(op.out),
        weight=np.ascontiguousarray(taps.T),
        bias=to.vector(op.bias) if op.bias else None,
        silu=op.activation == "silu",
    )


def _selective_scan(to: Target, op: SelectiveScan) -> None:
    a = to.vector(op.a).reshape(op.x.width, op.b.width)
    to.native.selective_scan(**to.arguments(op) | {"a": np.ascontiguousarray(a.T), "d": to.vector(op.d)})


def _scan(to: Target, op: Scan) -> None:
    to.native.scan(**to.arguments(op) | {name: to.vector(getattr(op, name)) for name in ("a", "d", "dt_bias")})


def _gated_delta(to: Target, op: GatedDelta) -> None:
    if op.key_dim > _native.MAX_DELTA_DIM:
        raise InputError(f"layer {op.layer}: keys of {op.key_dim}; the kernel takes at most {_native.MAX_DELTA_DIM}")
    arguments = to.arguments(op) | {"rate": to.vector(op.rate), "bias": to.vector(op.bias)}
    del arguments["layer"]
    to.native.gated_delta(**arguments)


def _token_shift(to: Target, op: TokenShift) -> None:
    weight = to.vector(op.weight).reshape(len(op.outs), op.x.width)
    to.native.token_shift(x=to.place(op.x), outs=[to.place(out) for out in op.outs], weight=weight)


def _time_mix(to: Target, op: TimeMix) -> None:
    if op.dim > _native.MAX_DELTA_DIM:
        raise InputError(f"heads of {op.dim}; the kernel takes at most {_native.MAX_DELTA_DIM}")
    out, bonus = map(to.place, op.outs)
    arguments = to.arguments(op) | {name: to.vector(getattr(op, name)) for name in ("k_k", "k_a", "r_k")}
    del arguments["outs"]
    to.native.time_mix(**arguments, out=out, bonus=bonus)


def _split(to: Target, op: Split) -> None:
    to.native.split(x=to.place(op.x), outs=[to.place(out) for out in op.outs], groups=op.groups)


def _gated(to: Target, op: Gated) -> None:
    function = _native.Function(name=op.activation)
    to.native.function(function=function, x=to.place(op.gate), y=to.place(op.up), out=to.place(op.out), group=to.group)


def _function(
    to: Target, op: Activate | AddVector | Clamp | Multiply | Sparsify | Xielu, function: _native.Function
) -> None:
    to.native.function(function=function, x=to.place(op.x), out=to.place(op.out), group=to.group)


def _activate(to: Target, op: Activate) -> None:
    _function(to, op, _native.Function(name=f"activate_{op.activation}"))


def _xielu(to: Target, op: Xielu) -> None:
    unit = math.gcd(op.x.width, _XIELU_UNIT)
    scales = np.repeat(np.array([op.positive, op.negative], np.float32), unit)
    _function(to, op, _native.Function(name="xielu", vector=scales, factor=op.slope, unit=unit))


def _sparsify(to: Target, op: Sparsify) -> None:
    width = op.x.width
    _function(
        to, op, _native.Function(name="sparsify", vector=np.ones(width, np.float32), factor=op.deviations, unit=width)
    )


def _mix_streams(to: Target, op: MixStreams) -> None:
    to.native.mix_streams(**to.arguments(op))


def _match_magnitude(to: Target, op: MatchMagnitude) -> None:
    to.native.match_magnitude(**to.arguments(op))


def _clamp(to: Target, op: Clamp) -> None:
    _function(to, op, _native.Function(name="clamp", factor=op.limit))


def _multiply(to: Target, op: Multiply) -> None:
    _function(to, op, _native.Function(name="multiply", vector=to.vector(op.weight), unit=op.x.width))


def _add_vector(to: Target, op: AddVector) -> None:
    _function(to, op, _native.Function(name="add_vector", vector=to.vector(op.weight), unit=op.x.width))


def _product(to: Target, op: Product) -> None:
    to.native.function(function=_native.Function(name="product"), **to.arguments(op), group=to.group)


def _add(to: Target, op: Add) -> None:
    to.native.function(function=_native.Function(name="add"), **to.arguments(op), group=to.group)


def _scale(to: Target, op: Scale) -> None:
    function = _native.Function(name="scale", factor=op.factor)
    to.native.function(function=function, x=to.place(op.x), out=to.place(op.out), group=to.group)


def _scale_by_position(to: Target, op: ScaleByPosition) -> None:
    to.native.scale_by_position(**to.arguments(op), group=to.group)


def _softcap(to: Target, op: Softcap) -> None:
    function = _native.Function(name="softcap", factor=op.cap)
    to.native.function(function=function, x=to.place(op.x), out=to.place(op.out), group=to.group)


def _select(to: Target, op: Select) -> None:
    to.native.select(**to.arguments(op))


def _observe(to: Target, op: Observe) -> None:
    chosen = None if op.chosen is None else to.place(op.chosen)
    to.native.observe(x=to.place(op.x), chosen=chosen, assigned=op.x.rows is Rows.ASSIGNMENT)
    to.observers.append(op)


# Each function takes an operation of its class.
KERNELS: dict[type[Operation], Callable[[Target, Any], None]] = {
    Embed: _embed,
    EmbedPositions: _embed_positions,
    EmbedTypes: _embed_types,
    Norm: _norm,
    LayerNorm: _norm,
    Linear: _linear,
    HeadLinear: _head_linear,
    LowRank: _low_rank,
    LowRankEmbed: _low_rank_embed,
    Concatenate: _concatenate,
    Route: _route,
    ExpertLinear: _experts,
    Weigh: _weigh,
    Combine: _combine,
    SharedGate: _shared_gate,
    Rope: _rope,
    Attention: _attention,
    Convolution: _convolution,
    SelectiveScan: _selective_scan,
    Scan: _scan,
    GatedDelta: _gated_delta,
    TokenShift: _token_shift,
    TimeMix: _time_mix,
    Split: _split,
    Gated: _gated,
    Activate: _activate,
    Xielu: _xielu,
    Clamp: _clamp,
    Sparsify: _sparsify,
    Multiply: _multiply,
    AddVector: _add_vector,
    Product: _product,
    Add: _add,
    Scale: _scale,
    ScaleByPosition: _scale_by_position,
    Softcap: _softcap,
    Select: _select,
    MixStreams: _mix_streams,
    MatchMagnitude: _match_magnitude,
    Observe: _observe,
}
