"""Calls of the native executor that are right, for tests that change them: a program with every operation once."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lltool.engine.cpu import _native

LOGITS = (-1, 40)

SETTINGS: dict[str, Any] = {
    "isa": "scalar",
    "decode": [[]],
    "batch": [[], []],
    "poll": 0,
    "max_batch": 4,
    "head_rows": 2,
    "arena_width": 1024,
    "vocabulary": 40,
    "pages": 2,
    "slots": 3,
    "int8": True,
    "k_type": 1,
    "v_type": 8,
    "deterministic": False,
}


def int32(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


def weight(rows: int, row_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Zero codes and scales, or float32 zeros."""
    return np.zeros((rows, row_bytes), np.uint8)


Call = tuple[str, list[Any], dict[str, Any]]


@dataclass(frozen=True)
class Made:
    """An argument of a native class, which is made when it is passed."""

    kind: type
    named: dict[str, Any]


def product(out: tuple[int, int], type: int, data: Any, bias: Any = None) -> Made:
    return Made(_native.Product, {"out": out, "type": type, "data": data, "bias": bias})


def factors(adapter: int, inputs: int, rank: int, outputs: int, experts: int = 1, output: int = 0) -> Made:
    """The factors of an adapter of a rank of at most 16."""
    data = {"down": weight(inputs * experts, 32), "up": weight(rank * experts, 2 * outputs)}
    return Made(_native.Factors, {"adapter": adapter, "factor": 0.5, "output": output, "type": 1, **data})


def function(name: str, factor: float = 0.0) -> Made:
    """A function that needs no weights."""
    return Made(_native.Function, {"name": name, "vector": None, "factor": factor, "unit": 1})


def rms(width: int, eps: float = 1e-5) -> Made:
    weight = np.ones(width, np.float32)
    return Made(_native.Function, {"name": "rms_norm", "vector": weight, "factor": eps, "unit": width})


def made(value: Any) -> Any:
    """The value with all that it holds made."""
    if isinstance(value, Made):
        return value.kind(**value.named)
    return [made(item) for item in value] if isinstance(value, list) else value


def whole_program() -> list[Call]:
    """Calls with every operation once, and every way to ask for results."""
    x, n, q, k, v, h, up = (0, 64), (64, 64), (128, 64), (192, 32), (224, 32), (256, 64), (320, 64)
    q4_0, q8_0 = weight(64, 36), weight(32, 68)
    bias, sinks, common = (np.ones(size, np.float32) for size in (64, 2, 32))
    embedding = np.ones((50, 64), np.float32).view(np.uint8)
    qkv = [[product(q, 2, q4_0, bias)], [product(k, 8, q8_0)], [product(v, 8, q8_0)]]
    rope = {"head_dim": 32, "frequencies": [1.0, 0.1], "magnitude": 1.0}
    heads = {"layer": 0, "heads": 2, "kv_heads": 1, "head_dim": 32, "scale": 0.2, "window": 0, "softcap": 0.0}
    biases = np.ones(2 * (1 + 2 + _native.BIAS_PADDING), np.float32)  # of distances from -1 to 1, and more
    vectors = {"sinks": sinks, "slopes": sinks, "common_key": common, "biases": biases}
    adds: list[tuple[str, dict[str, Any]]] = [
        ("embed", {"out": x, "type": 0, "data": embedding, "scale": 0.5, "by": "token"}),
        ("low_rank_embed", {"out": x, "updates": [factors(1, 50, 3, 64)]}),
        ("function", {"function": rms(64), "x": x, "y": None, "out": n, "group": -1}),
        ("linear", {"x": n, "groups": qkv, "residual": None, "norm": rms(64)}),
        ("rope", {"x": q, "out": q, **rope, "interleaved": True, "group": 0}),
        ("rope", {"x": k, "out": k, **rope, "interleaved": False, "group": 1}),
        (
            "attention",
            {
                "q": q,
                "k": k,
                "v": v,
                "out": h,
                **heads,
                **vectors,
                "groups": (1, 2),
            },
        ),
        ("scale_by_position", {"x": h, "out": h, "factor": 0.1, "length": 2, "offset": 1, "group": -1}),
        ("concatenate", {"x": k, "y": v, "out": up}),
        ("head_linear", {"x": up, "out": (976, 32), "type": 8, "data": weight(32, 34), "heads": 2, "columns": 32}),
        ("attention", {"q": q, "k": k, "v": None, "out": h, **heads, "layer": 1, "chunk": 2, "groups": (-1, -1)}),
        ("attention", {"q": q, "k": k, "v": v, "out": h, **heads, "stores": False, "groups": (-1, -1)}),
        *streams(h, n),
        ("observe", {"x": h, "chosen": None, "assigned": False}),
        *mixture(h, x),
        *recurrent(h),
        ("linear", {"x": h, "groups": [[product(up, 0, weight(64, 256))]], "residual": x, "norm": None}),
        ("function", {"function": function("silu"), "x": up, "y": x, "out": up, "group": 0}),
        ("function", {"function": function("softcap", 30.0), "x": up, "y": None, "out": up, "group": -1}),
        (
            "low_rank",
            {"x": h, "outs": [up, x], "updates": [factors(0, 64, 16, 64), factors(1, 64, 2, 64, output=1)]}
            | {"chosen": None, "assigned": False},
        ),
        ("select", {"x": up, "out": h}),
        ("linear", {"x": h, "groups": [[product(LOGITS, 2, weight(40, 36))]], "residual": None, "norm": None}),
        ("function", {"function": function("scale", 2.0), "x": LOGITS, "y": None, "out": LOGITS, "group": 0}),
        ("finish", {}),
    ]
    uses: list[tuple[str, list[Any]]] = [
        (
            "run",
            [
                int32(0, 49, 3),
                int32(0, 1, 0),
                int32(0, 0, 1),
                np.array([[0], [1]], np.int32),
                int32(0, 1, 2),
                int32(2, 0),
                None,
                np.array([[0.5, 0], [1, 2]], np.float32),
            ],
        ),
        ("logits", [1, 3]),
        ("score", [0, int32(1, 2, 3), np.empty(3)]),
        ("compare", [0, np.ones((2, 40), np.float32), int32(0, 39), np.empty((2, 7))]),
        ("take_sums", [0, np.empty((1, 64)), np.empty(1, np.int64)]),
        ("take_sums", [1, np.empty((4, 32)), np.empty(4, np.int64)]),
        ("take_times", []),
        ("copy_page", [0, 1]),
        ("copy_slot", [0, 1]),
        ("run", [int32(7), int32(1), int32(0), np.array([[1]], np.int32), int32(0), int32(1)]),
        ("logits", [0, 1]),
    ]
    return [(name, [], named) for name, named in adds] + [(name, arguments, {}) for name, arguments in uses]


def mixture(h: tuple[int, int], residual: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """Calls that route rows of 64 to two of four experts with 32 hidden values, in places from 384 on."""
    logits, chosen, weights = (384, 4), (388, 2), (390, 2)
    gate, up, down, out = (392, 64), (456, 64), (520, 128), (648, 64)
    first = [product(gate, 2, weight(128, 36), np.ones(128, np.float32)), product(up, 8, weight(128, 68))]
    each = dict.fromkeys(("bias", "scales"), np.ones(4, np.float32))
    scores = {"scoring": "sigmoid", "normalized": True, "factor": 2.0, "groups": 2, "groups_used": 1, "counted": 2}
    return [
        ("linear", {"x": h, "groups": [[product(logits, 0, weight(4, 256))]], "residual": None, "norm": None}),
        ("route", {"logits": logits, "chosen": chosen, "weights": weights, **scores, **each}),
        (
            "experts",
            {
                "x": h,
                "assigned": False,
                "chosen": chosen,
                "products": first,
                "activation": function("silu"),
                "out": gate,
            },
        ),
        (
            "low_rank",
            {"x": h, "outs": [gate], "updates": [factors(1, 64, 4, 32, 4)], "chosen": chosen, "assigned": False},
        ),
        ("observe", {"x": gate, "chosen": chosen, "assigned": True}),
        (
            "experts",
            {
                "x": gate,
                "assigned": True,
                "chosen": chosen,
                "products": [product(down, 0, weight(256, 128))],
                "activation": None,
                "out": None,
            },
        ),
        ("weigh", {"x": h, "chosen": chosen, "weights": weights, "out": down}),
        ("combine", {"x": down, "chosen": chosen, "weights": weights, "out": out, "residual": residual}),
        ("shared_gate", {"x": out, "h": h, "out": out, "weight": np.ones(64, np.float32)}),
    ]


def streams(x: tuple[int, int], out: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """Calls that mix and scale two streams of 32 columns in rows of 64, with coefficients at 1008."""
    shares = (1008, 2)
    ones = Made(_native.Function, {"name": "sparsify", "vector": np.ones(64, np.float32), "factor": 1.0, "unit": 64})
    sizes = {"outer": 2, "inner": 1, "shift": 1.0}
    return [
        ("linear", {"x": x, "groups": [[product(shares, 0, weight(2, 256))]], "residual": None, "norm": None}),
        ("mix_streams", {"y": x, "z": (192, 32), "coefficients": shares, "out": out, **sizes}),
        ("match_magnitude", {"x": x, "y": (192, 32), "out": out, "streams": 2, "least": 1e-5}),
        ("function", {"function": ones, "x": out, "y": None, "out": out, "group": -1}),
    ]


def recurrent(h: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """Calls with every operation that keeps a state of fixed size, and what they need, in places from 720 on."""
    out, taps, bias = (720, 64), np.ones((4, 64), np.float32), np.ones(64, np.float32)
    b, scanned, narrow = (784, 16), (800, 64), (864, 32)
    heads = np.ones(16, np.float32)
    parts, made = [(896, 2), (898, 62)], (960, 16)
    sizes = {"key_heads": 1, "key_dim": 24, "tiled": True, "rate": bias[:2], "bias": bias[:2]}
    return [
        ("convolution", {"x": h, "out": out, "weight": taps, "bias": bias, "silu": True}),
        ("linear", {"x": h, "groups": [[product(b, 0, weight(16, 256))]], "residual": None, "norm": None}),
        (
            "selective_scan",
            {"x": out, "dt": h, "b": b, "c": b, "out": scanned, "a": np.ones((16, 64), np.float32), "d": bias},
        ),
        ("scan", {"xbc": scanned, "dt": b, "out": narrow, "groups": 4, "a": heads, "d": heads, "dt_bias": heads}),
        ("split", {"x": h, "outs": parts, "groups": 2}),
        ("gated_delta", {"qkv": out, "beta": parts[0], "alpha": parts[0], "out": made, **sizes}),
        ("token_shift", {"x": out, "outs": [scanned], "weight": taps[:1]}),
        (
            "time_mix",
            {
                **dict.fromkeys(("r", "w", "k", "v", "a", "first", "mix"), scanned),
                **dict.fromkeys(("k_k", "k_a", "r_k"), bias),
                "out": out,
                "bonus": h,
                "heads": 4,
            },
        ),
    ]


def call(executor: _native.Executor, name: str, arguments: list[Any], named: dict[str, Any]) -> Any:
    return getattr(executor, name)(*arguments, **{key: made(value) for key, value in named.items()})


def make(**changes: Any) -> _native.Executor:
    return _native.Executor(**SETTINGS | changes)


def build(upto: str = "finish") -> _native.Executor:
    """An executor after the first call of `upto`."""
    executor = make()
    for step in whole_program():
        call(executor, *step)
        if step[0] == upto:
            break
    return executor
