"""Gemma 2 and 3, GLM 4: blocks that norm the outputs of attention and MLP again before they add them."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding, mlp
from lltool.engine.models.heads import head
from lltool.engine.models.norms import normed
from lltool.engine.operations.elementwise import add
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = g.end_block(embedding(g, config))
    for layer in range(config.layers):
        h = normed(g, config, x, f"blk.{layer}.attn_norm")
        h = attention(g, config, layer, h)
        x = add(g, x, normed(g, config, h, f"blk.{layer}.post_attention_norm"))
        h = normed(g, config, x, f"blk.{layer}.ffn_norm")
        h = mlp(g, config, layer, h)
        x = add(g, x, normed(g, config, h, f"blk.{layer}.post_ffw_norm"))
        g.end_block(x)
    head(g, config, x)
