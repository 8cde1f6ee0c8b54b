"""Blocks that architectures are made of. Variation is in the config and in arguments."""

import numpy as np
from numpy.typing import NDArray

from lltool.engine.config import ModelConfig
from lltool.engine.program import Buffer, Tracer


def attention(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None) -> Buffer:
    """Self-attention of the normed x, grouped-query, with the layer's window and rotary; `residual` is added."""
    name = f"blk.{layer}."
    head_dim, window = config.head_dim, config.windows[layer]
    q_width, kv_width = config.heads * head_dim, config.kv_heads * head_dim
    q, k, v = g.linear(
        x, [f"{name}attn_q.weight", f"{name}attn_k.weight", f"{name}attn_v.weight"], [q_width, kv_width, kv_width]
    )
    if config.traits.head_norms:
        q = g.norm(q, f"{name}attn_q_norm.weight", config.norm_eps, groups=config.heads)
        k = g.norm(k, f"{name}attn_k_norm.weight", config.norm_eps, groups=config.kv_heads)
    rotary = config.local_rotary if window else config.rotary
    frequencies = rotary.frequencies(_divisors(g, rotary.dims // 2))
    q = g.rope(q, head_dim, frequencies, rotary.magnitude, config.traits.interleaved_rope)
    k = g.rope(k, head_dim, frequencies, rotary.magnitude, config.traits.interleaved_rope)
    out = g.attention(
        q,
        k,
        v,
        layer=layer,
        head_dim=head_dim,
        scale=config.attention_scale,
        window=window,
        softcap=config.attention_softcap,
    )
    return g.linear(out, [f"{name}attn_output.weight"], [config.width], residual)[0]


def gated_mlp(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None) -> Buffer:
    """down(activation(gate(x)) * up(x)) of the normed x; `residual` is added."""
    name = f"blk.{layer}."
    gate, up = g.linear(x, [f"{name}ffn_gate.weight", f"{name}ffn_up.weight"], [config.ff_width] * 2)
    hidden = g.gated(gate, up, config.traits.activation)
    return g.linear(hidden, [f"{name}ffn_down.weight"], [config.width], residual)[0]


def head(g: Tracer, config: ModelConfig, x: Buffer) -> Buffer:
    """Logits of the rows that want them. Without an output matrix, the embedding serves (tied weights)."""
    x = g.norm(g.select(x), "output_norm.weight", config.norm_eps)
    matrix = "output.weight" if "output.weight" in g.weights else "token_embd.weight"
    (logits,) = g.linear(x, [matrix], [config.vocab])
    return g.softcap(logits, config.logit_softcap) if config.logit_softcap else logits


def _divisors(g: Tracer, pairs: int) -> NDArray[np.float64] | None:
    """The factors (pairs,) by which Llama 3.1 stretches its rotary, where the file has them."""
    return g.constants("rope_freqs.weight", pairs) if "rope_freqs.weight" in g.weights else None
