"""Kimi Linear: pre-norm blocks of Kimi delta attention or of latent attention without positions."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import embedding, project
from lltool.engine.models.experts import feed_forward
from lltool.engine.models.heads import head
from lltool.engine.models.latent_attention import latent_attention
from lltool.engine.models.norms import normed
from lltool.engine.operations.concatenate import concatenate
from lltool.engine.operations.convolution import convolution
from lltool.engine.operations.delta import gated_delta
from lltool.engine.operations.elementwise import gated
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import norm
from lltool.engine.program import Buffer, Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = g.end_block(embedding(g, config))
    for layer in range(config.layers):
        h = normed(g, config, x, f"blk.{layer}.attn_norm")
        x = (latent_attention if config.attends[layer] else delta_attention)(g, config, layer, h, residual=x)
        x = feed_forward(g, config, layer, normed(g, config, x, f"blk.{layer}.ffn_norm"), residual=x)
        g.end_block(x)
    head(g, config, x)


def delta_attention(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer) -> Buffer:
    """Kimi delta attention of the normed x, whose decays and gate come from narrow vectors; adds `residual`."""
    name, net = f"blk.{layer}.", config.delta_net
    assert net is not None
    parts = ("attn_q", "attn_k", "attn_v", "ssm_f_a", "ssm_g_a", "ssm_beta")
    widths = [net.keys, net.keys, net.values, net.key_dim, net.key_dim, net.value_heads]
    q, k, v, decay, gate, beta = linear(g, x, [f"{name}{part}.weight" for part in parts], widths)
    q, k, v = (
        convolution(g, part, f"{name}ssm_conv1d_{letter}.weight", net.taps, "silu")
        for part, letter in zip((q, k, v), "qkv", strict=True)
    )
    (alpha,) = linear(g, decay, [f"{name}ssm_f_b.weight"], [net.keys])
    (gate,) = linear(g, gate, [f"{name}ssm_g_b.weight"], [net.values])
    out = gated_delta(
        g,
        concatenate(g, concatenate(g, q, k), v),
        beta,
        alpha,
        rate=f"{name}ssm_a",
        bias=f"{name}ssm_dt.bias",
        layer=layer,
        key_heads=net.key_heads,
        key_dim=net.key_dim,
    )
    out = norm(g, out, f"{name}ssm_norm.weight", config.norm_eps, net.value_heads)
    return project(g, config, gated(g, gate, out, "sigmoid"), f"{name}attn_output.weight", residual)
