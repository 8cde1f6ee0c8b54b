"""The blocks of all architectures; the config, the file's tensors and arguments choose their variants."""

import math
from typing import cast

from lltool.engine.config import ModelConfig
from lltool.engine.models.attended import distance_bias, keys_of_an_earlier_layer
from lltool.engine.models.norms import norm_heads, normed, plain_head_norms
from lltool.engine.models.rotary import stored_divisors
from lltool.engine.operations.attention import attend
from lltool.engine.operations.elementwise import (
    Activation,
    PlainActivation,
    activate,
    add,
    clamp,
    gated,
    scale,
    scale_by_position,
    sparsify,
    xielu,
)
from lltool.engine.operations.embed import embed, embed_positions, embed_types
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import norm
from lltool.engine.operations.rope import rope
from lltool.engine.operations.split import split
from lltool.engine.program import Buffer, Tracer


def embedding(g: Tracer, config: ModelConfig) -> Buffer:
    """The embedding of the tokens, with those of their types and positions, and its norm, if the file has them."""
    x = embed(g, "token_embd.weight", config.vocab, config.width, config.embedding_scale)
    if (types := g.weights.get("token_types.weight")) is not None:
        x = add(g, x, embed_types(g, types.name, types.rows, config.width))
    if "position_embd.weight" in g.weights:
        x = add(g, x, embed_positions(g, "position_embd.weight", config.context_length, config.width))
    has_norm = "token_embd_norm.weight" in g.weights and config.traits.output_norm != "token_embd_norm"
    return normed(g, config, x, "token_embd_norm") if has_norm else x


def attention(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None) -> Buffer:
    """Grouped-query self-attention of x with the layer's window and positions; adds `residual`."""
    config, traits = config.of_layer(layer), config.traits
    name, head_dim, window = config.block(layer), config.head_dim, config.windows[layer]
    earlier = keys_of_an_earlier_layer(g, config, layer)
    q, *kv = _project_queries(g, config, name, x, alone=earlier is not None)
    queries = config.heads * head_dim
    q, *gate = split(g, q, [queries] * 2, config.heads) if traits.gates_attention else (q,)
    if config.clamp:
        q, *kv = (clamp(g, part, config.clamp) for part in (q, *kv))
    parts: tuple[Buffer, ...] = (q, *kv[:1])
    if not traits.norms_after_rope:
        parts = norm_heads(g, config, name, *parts)
    if config.rotated[layer]:
        rotary = config.local_rotary if window else config.rotary
        divisors = stored_divisors(g, rotary, config.context) if rotary is config.rotary else None
        turns = rotary.frequencies(divisors), rotary.magnitude, traits.interleaved_rope
        parts = tuple(rope(g, part, head_dim, *turns) for part in parts)
        if traits.plain_head_norms:
            parts = plain_head_norms(g, config, *parts)
    if traits.norms_after_rope:
        parts = norm_heads(g, config, name, *parts)
    q = parts[0]
    if (temper := config.temper) and (traits.tempered == "all" or not config.rotated[layer]):
        q = scale_by_position(g, q, temper.factor, temper.length, temper.offset)
    if earlier is not None:
        k, v = earlier.k, earlier.v
    else:
        k, v = parts[1], norm(g, kv[1], None, config.norm_eps, config.kv_heads) if traits.plain_value_norms else kv[1]
    out = attend(
        g,
        q,
        k,
        v,
        layer=layer if earlier is None else earlier.layer,
        head_dim=head_dim,
        scale=config.attention_scale,
        window=0 if traits.is_chunked else window,
        softcap=config.attention_softcap,
        sinks=f"{name}attn_sinks.weight" if traits.sinks else None,
        slopes=config.slopes,
        chunk=window if traits.is_chunked else 0,
        causal=config.is_causal,
        bias=distance_bias(g, config, name),
        stores=earlier is None,
    )
    if gate:
        out = gated(g, gate[0], out, "sigmoid")
    return project(g, config, out, f"{name}{traits.attention_output}.weight", residual)


def _project_queries(g: Tracer, config: ModelConfig, name: str, x: Buffer, *, alone: bool) -> tuple[Buffer, ...]:
    """Queries, keys and values of x; or, `alone`, queries. Some layers' values are their keys before norms."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    q_width = 2 * queries if config.traits.gates_attention else queries  # each head's queries, then its gate
    names = [f"{name}attn_q.weight", f"{name}attn_k.weight", f"{name}attn_v.weight"]
    widths = [q_width, keys, config.kv_heads * config.value_dim]
    if (fused := f"{name}attn_qkv.weight") in g.weights:
        names = [fused] * 3
    if alone:
        g.pass_over(*names[1:], f"{name}attn_k_norm.weight")
        return linear(g, x, names[:1], widths[:1])
    if config.traits.values_of_keys and names[2] not in g.weights:
        q, k = linear(g, x, names[:2], widths[:2])
        return q, k, k
    return linear(g, x, names, widths)


def mlp(
    g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None, shared: int = 0
) -> Buffer:
    """down(activation(gate(x)) * up(x)) of the normed x, or down(activation(up(x))); adds `residual`.

    With `shared`, the width of a shared expert, it has that expert's tensors."""
    name, end, width = (
        config.block(layer),
        "_shexp.weight" if shared else ".weight",
        shared or config.of_layer(layer).ff_width,
    )
    if config.traits.is_gated:
        names = [f"{name}ffn_gate{end}", f"{name}ffn_up{end}"]
        if names[0] not in g.weights:  # the gate is fused with what it multiplies
            names = [names[1]] * 2
        gate, up = linear(g, x, names, [width] * 2)
        if config.streams and (deviations := config.streams.deviations[layer]) > -math.inf:
            gate = sparsify(g, gate, deviations)
        hidden = gated(g, gate, up, cast(Activation, config.traits.activation))
    else:
        (up,) = linear(g, x, [f"{name}ffn_up{end}"], [width])
        if config.traits.activation == "xielu":
            hidden = xielu(g, up, *config.xielu[layer])
        else:
            hidden = activate(g, up, cast(PlainActivation, config.traits.activation))
    return project(g, config, hidden, f"{name}ffn_down{end}", residual)


def project(g: Tracer, config: ModelConfig, x: Buffer, weight: str, residual: Buffer | None) -> Buffer:
    """x @ weight, scaled as what a block adds; adds `residual`."""
    if config.residual_scale == 1:
        return linear(g, x, [weight], [config.width], residual)[0]
    out = scale(g, linear(g, x, [weight], [config.width])[0], config.residual_scale)
    return out if residual is None else add(g, residual, out)
