"""Qwen3-Next and Qwen 3.5: pre-norm blocks, of which most have a gated delta net in the place of attention."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding, project
from lltool.engine.models.experts import feed_forward
from lltool.engine.models.heads import head
from lltool.engine.models.norms import normed
from lltool.engine.operations.convolution import convolution
from lltool.engine.operations.delta import gated_delta
from lltool.engine.operations.elementwise import gated
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import norm
from lltool.engine.operations.split import split
from lltool.engine.program import Buffer, Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    assert config.delta_net is not None
    x = embedding(g, config)
    for layer in range(config.layers):
        h = normed(g, config, x, f"blk.{layer}.attn_norm")
        x = (delta_net if config.delta_net.layers[layer] else attention)(g, config, layer, h, residual=x)
        h = normed(g, config, x, f"blk.{layer}.{config.traits.ffn_norm}")
        x = feed_forward(g, config, layer, h, residual=x)
    head(g, config, x)


def delta_net(g: Tracer, config: ModelConfig, layer: int, x: Buffer, residual: Buffer) -> Buffer:
    """A gated delta net of the normed x; adds `residual`."""
    name, net = f"blk.{layer}.", config.delta_net
    assert net is not None
    is_fused = f"{name}ssm_ba.weight" in g.weights  # the head's strengths and decays, for one head of keys at a time
    parts, widths = (
        (["ssm_ba"], [2 * net.value_heads]) if is_fused else (["ssm_beta", "ssm_alpha"], [net.value_heads] * 2)
    )
    names = [f"{name}{part}.weight" for part in ("attn_qkv", "attn_gate", *parts)]
    qkv, gate, *rest = linear(g, x, names, [2 * net.keys + net.values, net.values, *widths])
    beta, alpha = split(g, rest[0], [net.value_heads] * 2, net.key_heads) if is_fused else rest
    out = gated_delta(
        g,
        convolution(g, qkv, f"{name}ssm_conv1d.weight", net.taps, "silu"),
        beta,
        alpha,
        rate=f"{name}ssm_a",
        bias=f"{name}ssm_dt.bias",
        layer=layer,
        key_heads=net.key_heads,
        key_dim=net.key_dim,
        tiled=net.order == "tiled",
    )
    out = norm(g, out, f"{name}ssm_norm.weight", config.norm_eps, net.value_heads)
    return project(g, config, gated(g, gate, out, "silu"), f"{name}ssm_out.weight", residual)
