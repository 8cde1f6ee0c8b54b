"""The blocks of all architectures; the config, the file's tensors and arguments choose their variants."""

from typing import cast

from lltool.engine.config import ModelConfig
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
    xielu,
)
from lltool.engine.operations.embed import embed, embed_positions, embed_types
from lltool.engine.operations.linear import linear
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
    name = f"blk.{layer}."
    head_dim, window = config.head_dim, config.windows[layer]
    names = [f"{name}attn_q.weight", f"{name}attn_k.weight", f"{name}attn_v.weight"]
    queries = config.heads * head_dim
    q_width = 2 * queries if config.traits.gates_attention else queries  # each head's queries, then its gate
    widths = [q_width, config.kv_heads * head_dim, config.kv_heads * config.value_dim]
    if (fused := f"{name}attn_qkv.weight") in g.weights:
        names = [fused] * 3
    q, k, v = linear(g, x, names, widths)
    q, *gate = split(g, q, [queries] * 2, config.heads) if config.traits.gates_attention else (q,)
    if config.clamp:
        q, k, v = (clamp(g, part, config.clamp) for part in (q, k, v))
    if not config.traits.norms_after_rope:
        q, k = norm_heads(g, config, name, q, k)
    if config.rotated[layer]:
        rotary = config.local_rotary if window else config.rotary
        frequencies = rotary.frequencies(stored_divisors(g, rotary, config.context))
        q = rope(g, q, head_dim, frequencies, rotary.magnitude, config.traits.interleaved_rope)
        k = rope(g, k, head_dim, frequencies, rotary.magnitude, config.traits.interleaved_rope)
        if config.traits.plain_head_norms:
            q, k = plain_head_norms(g, config, q, k)
    if config.traits.norms_after_rope:
        q, k = norm_heads(g, config, name, q, k)
    if (temper := config.temper) and (config.traits.tempered == "all" or not config.rotated[layer]):
        q = scale_by_position(g, q, temper.factor, temper.length, temper.offset)
    out = attend(
        g,
        q,
        k,
        v,
        layer=layer,
        head_dim=head_dim,
        scale=config.attention_scale,
        window=0 if config.traits.is_chunked else window,
        softcap=config.attention_softcap,
        sinks=f"{name}attn_sinks.weight" if config.traits.sinks else None,
        slopes=config.slopes,
        chunk=window if config.traits.is_chunked else 0,
        causal=config.is_causal,
    )
    if gate:
        out = gated(g, gate[0], out, "sigmoid")
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
