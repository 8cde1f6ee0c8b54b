"""Latent attention: the cache holds a vector that all heads share, and that a matrix of each head would expand.

Source: DeepSeek V2 (2024, section 2.1). The matrices that would expand keys and values are applied to queries and
results (absorbed, as the paper calls it), so that nothing is expanded.
"""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, project
from lltool.engine.operations.attention import attend
from lltool.engine.operations.concatenate import concatenate
from lltool.engine.operations.elementwise import scale_by_position
from lltool.engine.operations.linear import head_linear, linear
from lltool.engine.operations.norm import norm
from lltool.engine.operations.rope import rope
from lltool.engine.program import Buffer, Tracer

_EPS = 1e-6  # of the norms inside, which DeepSeek's classes do not read from the config


def self_attention(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer) -> Buffer:
    """The model's kind of attention: latent, or of heads with keys and values of their own."""
    return (attention if config.latent is None else latent_attention)(g, config, layer, x, residual)


def latent_attention(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer | None = None) -> Buffer:
    """Latent self-attention of the normed x; adds `residual`."""
    name, latent, rotary = f"blk.{layer}.", config.latent, config.rotary
    assert latent is not None
    heads, shared_dim, plain = config.heads, latent.shared_dim, latent.key_dim - latent.shared_dim
    frequencies, magnitude, pairs = rotary.frequencies(), rotary.magnitude, config.traits.interleaved_rope
    first, shared = f"{name}attn_{'q_a' if latent.query_rank else 'q'}.weight", f"{name}attn_kv_a_mqa.weight"
    width = latent.query_rank or heads * latent.key_dim
    q, vector, key = linear(g, x, [first, shared, shared], [width, latent.rank, shared_dim])
    if latent.query_rank:
        q = norm(g, q, f"{name}attn_q_a_norm.weight", _EPS)
        (q,) = linear(g, q, [f"{name}attn_q_b.weight"], [heads * latent.key_dim])
    if config.rotated[layer]:
        q = rope(g, q, latent.key_dim, frequencies, magnitude, pairs, first=plain)
        key = rope(g, key, shared_dim, frequencies, magnitude, pairs)
    if (temper := config.temper) is not None:
        q = scale_by_position(g, q, temper.factor, temper.length, temper.offset)
    q = head_linear(g, q, f"{name}attn_k_b.weight", heads, plain, latent.rank)
    vector = norm(g, vector, f"{name}attn_kv_a_norm.weight", _EPS)
    cached = concatenate(g, vector, key)
    out = attend(
        g,
        q,
        cached,
        cached,
        layer=layer,
        head_dim=cached.width,
        scale=config.attention_scale,
        window=0,
        softcap=0.0,
        value_dim=latent.rank,
    )
    out = head_linear(g, out, f"{name}attn_v_b.weight", heads, latent.rank, latent.value_dim)
    return project(g, config, out, f"{name}attn_output.weight", residual)
