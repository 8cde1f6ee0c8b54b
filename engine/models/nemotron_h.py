"""Nemotron-H: each block is a scan, attention, or an MLP, after a norm of its own."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding
from lltool.engine.models.experts import feed_forward
from lltool.engine.models.heads import head
from lltool.engine.models.mixers import mix
from lltool.engine.models.norms import normed
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = g.end_block(embedding(g, config))
    for layer in range(config.layers):
        other = feed_forward if config.mlps[layer] else mix
        h = normed(g, config, x, f"blk.{layer}.attn_norm")
        x = (attention if config.attends[layer] else other)(g, config, layer, h, residual=x)
        g.end_block(x)
    head(g, config, x)
