"""Models with a mixer beside attention or instead of it, in all layers or in some: Mamba, Jamba, LFM2, Falcon-H1."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding
from lltool.engine.models.experts import feed_forward
from lltool.engine.models.heads import head
from lltool.engine.models.mixers import mix
from lltool.engine.models.norms import normed
from lltool.engine.operations.norm import norm
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = embedding(g, config)
    in_all = config.traits.attends == "all"  # attention and the mixer read the same
    for layer in range(config.layers):
        h = normed(g, config, x, f"blk.{layer}.attn_norm")
        if config.attends[layer]:
            x = attention(g, config, layer, h, residual=x)
        if in_all or not config.attends[layer]:
            x = mix(g, config, layer, h, residual=x)
        if config.traits.has_mlp:
            plain = f"blk.{layer}.ffn_norm"  # llama.cpp's converter leaves .weight out in Falcon-H1
            h = norm(g, x, plain, config.norm_eps) if plain in g.weights else normed(g, config, x, plain)
            x = feed_forward(g, config, layer, h, residual=x)
    head(g, config, x)
