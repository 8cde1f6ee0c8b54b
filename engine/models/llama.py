"""Llama and models like it, also with experts or latent attention, ModernBERT and T5's encoder: pre-norm blocks."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import embedding
from lltool.engine.models.experts import feed_forward
from lltool.engine.models.heads import head
from lltool.engine.models.latent_attention import self_attention
from lltool.engine.models.norms import normed
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = g.end_block(embedding(g, config))
    for layer in range(config.layers):
        name, bare = config.block(layer), layer == 0 and config.traits.bare_first_layer
        h = x if bare else normed(g, config, x, f"{name}attn_norm")
        x = self_attention(g, config, layer, h, residual=x)
        h = normed(g, config, x, f"{name}{config.traits.ffn_norm}")
        x = feed_forward(g, config, layer, h, residual=x)
        g.end_block(x)
    head(g, config, x)
