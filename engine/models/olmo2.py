"""OLMo 2 and EXAONE 4: blocks that norm only the outputs of attention and MLP."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding, mlp
from lltool.engine.models.heads import head
from lltool.engine.models.norms import normed
from lltool.engine.operations.elementwise import add
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = g.end_block(embedding(g, config))
    for layer in range(config.layers):
        x = add(g, x, normed(g, config, attention(g, config, layer, x), f"blk.{layer}.post_attention_norm"))
        x = add(g, x, normed(g, config, mlp(g, config, layer, x), f"blk.{layer}.post_ffw_norm"))
        g.end_block(x)
    head(g, config, x)
