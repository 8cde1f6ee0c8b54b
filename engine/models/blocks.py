"""The blocks of all architectures; the config, the file's tensors and arguments choose their variants."""

from typing import cast

import numpy as np
from numpy.typing import NDArray

from lltool.engine.config import ModelConfig
from lltool.engine.operations.attention import attend
from lltool.engine.operations.elementwise import (
    Activation,
    PlainActivation,
    activate,
    add,
    clamp,
    gated,
    multiply,
    scale,
    xielu,
)
from lltool.engine.operations.embed import embed, embed_positions, embed_types
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import layer_norm, norm
from lltool.engine.operations.rope import rope
from lltool.engine.program import Buffer, Tracer


def embedding(g: Tracer, config: ModelConfig) -> Buffer:
    """The embedding of the tokens, with those of their types and positions, and its norm, if the file has them."""
    x = embed(g, "token_embd.weight", config.vocab, config.width, config.embedding_scale)
    if (types := g.weights.get("token_types.weight")) is not None:
        x = add(g, x, embed_types(g, types.name, types.rows, config.width))
    if "position_embd.weight" in g.weights:
        x = add(g, x, embed_positions(g, "position_embd.weight", config.context_length, config.width))
    return normed(g, config, x, "token_embd_norm") if "token_embd_norm.weight" in g.weights else x


def normed(g: Tracer, config: ModelConfig, x: Buffer, name: str, groups: int = 1) -> Buffer:
    """The architecture's kind of norm; a layer norm without a tensor in the file has no weight."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    if config.traits.norm == "rms":
        return norm(g, x, weight, config.norm_eps, groups)
    stored, stored_bias = (tensor if tensor in g.weights else None for tensor in (weight, bias))
    return layer_norm(g, x, stored, config.norm_eps, groups, stored_bias)


def attention(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None) -> Buffer:
    """Grouped-query self-attention of x with the layer's window and positions; adds `residual`."""
    name = f"blk.{layer}."
    head_dim, window = config.head_dim, config.windows[layer]
    names = [f"{name}attn_q.weight", f"{name}attn_k.weight", f"{name}attn_v.weight"]
    widths = [config.heads * head_dim, config.kv_heads * head_dim, config.kv_heads * config.value_dim]
    if (fused := f"{name}attn_qkv.weight") in g.weights:
        names = [fused] * 3
    q, k, v = linear(g, x, names, widths)
    if config.clamp:
        q, k, v = (clamp(g, part, config.clamp) for part in (q, k, v))
    if not config.traits.norms_after_rope:
        q, k = _head_norms(g, config, name, q, k)
    if config.rotated[layer]:
        rotary = config.local_rotary if window else config.rotary
        frequencies = rotary.frequencies(_divisors(g, config, rotary.dims // 2))
        q = rope(g, q, head_dim, frequencies, rotary.magnitude, config.traits.interleaved_rope)
        k = rope(g, k, head_dim, frequencies, rotary.magnitude, config.traits.interleaved_rope)
    if config.traits.norms_after_rope:
        q, k = _head_norms(g, config, name, q, k)
    out = attend(
        g,
        q,
        k,
        v,
        layer=layer,
        head_dim=head_dim,
        scale=config.attention_scale,
        window=window,
        softcap=config.attention_softcap,
        sinks=f"{name}attn_sinks.weight" if config.traits.sinks else None,
        slopes=config.slopes,
        causal=config.is_causal,
    )
    return project(g, config, out, f"{name}attn_output.weight", residual)


def mlp(
    g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None, shared: int = 0
) -> Buffer:
    """down(activation(gate(x)) * up(x)) of the normed x, or down(activation(up(x))); adds `residual`.

    With `shared`, the width of a shared expert, it has that expert's tensors."""
    name, end, width = f"blk.{layer}.", "_shexp.weight" if shared else ".weight", shared or config.ff_width
    if config.traits.is_gated:
        names = [f"{name}ffn_gate{end}", f"{name}ffn_up{end}"]
        if names[0] not in g.weights:  # the gate is fused with what it multiplies
            names = [names[1]] * 2
        gate, up = linear(g, x, names, [width] * 2)
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


def _head_norms(g: Tracer, config: ModelConfig, name: str, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """The norms of queries and keys, if the architecture has them: of each head or of all, as their weights say."""
    if not config.traits.head_norms or f"{name}attn_q_norm.weight" not in g.weights:
        return q, k
    return (
        _norm_heads(g, config, q, f"{name}attn_q_norm", config.heads),
        _norm_heads(g, config, k, f"{name}attn_k_norm", config.kv_heads),
    )


def _norm_heads(g: Tracer, config: ModelConfig, x: Buffer, name: str, heads: int) -> Buffer:
    weight = g.weights.get(f"{name}.weight")
    if weight is not None and weight.shape == (heads, config.head_dim):  # each head has a weight of its own
        x = layer_norm(g, x, None, config.norm_eps, heads)
        return multiply(g, x, weight.name, weight.shape)
    whole = weight is not None and weight.shape == (x.width,) and heads > 1
    return normed(g, config, x, name, 1 if whole else heads)


def _divisors(g: Tracer, config: ModelConfig, pairs: int) -> NDArray[np.float64] | None:
    """The divisors (pairs,) of rotary frequencies, if the file has them: of Llama 3.1, or the two sets of LongRoPE.

    As in llama.cpp, the context that a model is loaded with decides between LongRoPE's sets, not the text's length.
    """
    if "rope_factors_long.weight" in g.weights:
        short, long = (g.constants(f"rope_factors_{kind}.weight", pairs) for kind in ("short", "long"))
        return long if config.context > config.rotary.original_context else short
    return g.constants("rope_freqs.weight", pairs) if "rope_freqs.weight" in g.weights else None
