"""BERT and encoders like it: blocks that norm the sum of their input and their output."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding, mlp
from lltool.engine.models.heads import head
from lltool.engine.models.norms import normed
from lltool.engine.operations.elementwise import add
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = embedding(g, config)
    for layer in range(config.layers):
        name = f"blk.{layer}"
        h = normed(g, config, attention(g, config, layer, x, residual=x), f"{name}.attn_output_norm")
        if f"{name}.attn_norm_2.weight" in g.weights:  # of Jina's models for code
            h = normed(g, config, add(g, h, x), f"{name}.attn_norm_2")
        x = normed(g, config, mlp(g, config, layer, h, residual=h), f"{name}.layer_output_norm")
    head(g, config, x)
