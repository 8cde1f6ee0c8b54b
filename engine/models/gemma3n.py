"""Gemma 3n: a block runs on one of several streams (AltUp), beside a projection of low rank (Laurel).

Sources: Baykal et al. 2023 (AltUp), Menghani et al. 2024 (LAuReL).
"""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding, mlp
from lltool.engine.models.heads import head
from lltool.engine.models.layer_inputs import gated_input, layer_inputs
from lltool.engine.models.norms import normed
from lltool.engine.operations.concatenate import concatenate
from lltool.engine.operations.elementwise import activate, add, multiply, scale
from lltool.engine.operations.linear import head_linear, linear
from lltool.engine.operations.split import split
from lltool.engine.operations.streams import match_magnitude, mix_streams
from lltool.engine.program import Buffer, Tracer

_LEAST = 1e-5  # mean square of a stream that is scaled


def trace(g: Tracer, config: ModelConfig) -> None:
    assert config.streams is not None
    count, active = config.streams.count, config.streams.active
    x = embedding(g, config)
    inputs = layer_inputs(g, config, x)
    others = head_linear(g, _join(g, [x] * (count - 1)), "altup_proj.weight", count - 1, config.width, config.width)
    streams = g.end_block(concatenate(g, x, match_magnitude(g, others, x, _LEAST)))
    for layer in range(config.layers):
        name = f"blk.{layer}."
        mode = _router(g, config, layer, _split(g, config, streams)[active])
        (coefficients,) = linear(g, mode, [f"{name}altup_predict_coef.weight"], [count * count])
        predicted = mix_streams(g, streams, streams, coefficients, count, count)
        before = _split(g, config, predicted)[active]
        after = _block(g, config, layer, before)
        (coefficients,) = linear(g, _router(g, config, layer, after), [f"{name}altup_correct_coef.weight"], [count])
        change = add(g, after, scale(g, before, -1.0))
        parts = _split(g, config, mix_streams(g, predicted, change, coefficients, count, 1, shift=1.0))
        first = multiply(g, parts[active], f"{name}altup_correct_scale.weight", (config.width,))
        first = gated_input(g, config, layer, first, inputs[layer])
        streams = g.end_block(_join(g, [parts[0], *(add(g, part, first) for part in parts[1:])]))
    head(g, config, _merge(g, config, streams))


def _block(g: Tracer, config: ModelConfig, layer: int, x: Buffer) -> Buffer:
    """Attention beside Laurel, and the MLP."""
    name = f"blk.{layer}."
    h = normed(g, config, x, f"{name}attn_norm")
    left = g.weights.get(f"{name}laurel_l.weight")
    (low,) = linear(g, h, [f"{name}laurel_l.weight"], [left.rows if left else 1])
    (laurel,) = linear(g, low, [f"{name}laurel_r.weight"], [config.width])
    laurel = add(g, h, normed(g, config, laurel, f"{name}laurel_post_norm"))
    attended = add(g, x, normed(g, config, attention(g, config, layer, h), f"{name}post_attention_norm"))
    x = scale(g, add(g, attended, laurel), 2**-0.5)
    h = mlp(g, config, layer, normed(g, config, x, f"{name}ffn_norm"))
    return add(g, x, normed(g, config, h, f"{name}post_ffw_norm"))


def _router(g: Tracer, config: ModelConfig, layer: int, x: Buffer) -> Buffer:
    """Numbers between -1 and 1 that choose how streams are mixed."""
    assert config.streams is not None
    name = f"blk.{layer}.altup_router"
    (mode,) = linear(
        g, scale(g, normed(g, config, x, f"{name}_norm"), 1 / config.width), [f"{name}.weight"], [config.streams.count]
    )
    return activate(g, mode, "tanh")


def _merge(g: Tracer, config: ModelConfig, streams: Buffer) -> Buffer:
    """The mean of the first stream and projections of the others."""
    first, *others = _split(g, config, streams)
    count = len(others)
    made = head_linear(g, _join(g, others), "altup_unembd_proj.weight", count, config.width, config.width)
    for part in _split(g, config, match_magnitude(g, made, first, _LEAST)):
        first = add(g, first, part)
    return scale(g, first, 1 / (count + 1))


def _split(g: Tracer, config: ModelConfig, streams: Buffer) -> tuple[Buffer, ...]:
    count = streams.width // config.width
    return split(g, streams, [config.width] * count) if count > 1 else (streams,)


def _join(g: Tracer, parts: list[Buffer]) -> Buffer:
    joined = parts[0]
    for part in parts[1:]:
        joined = concatenate(g, joined, part)
    return joined
