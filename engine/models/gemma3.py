"""Gemma 3: what attention and MLP give is normed again before it is added."""

from lltool.engine.blocks import attention, gated_mlp, head
from lltool.engine.config import ModelConfig
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = g.embed("token_embd.weight", config.vocab, config.width, config.embedding_scale)
    for layer in range(config.layers):
        h = g.norm(x, f"blk.{layer}.attn_norm.weight", config.norm_eps)
        h = attention(g, config, layer, h)
        x = g.add(x, g.norm(h, f"blk.{layer}.post_attention_norm.weight", config.norm_eps))
        h = g.norm(x, f"blk.{layer}.ffn_norm.weight", config.norm_eps)
        h = gated_mlp(g, config, layer, h)
        x = g.add(x, g.norm(h, f"blk.{layer}.post_ffw_norm.weight", config.norm_eps))
    head(g, config, x)
