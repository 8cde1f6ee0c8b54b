"""OLMo 2 and EXAONE 4: blocks that norm only the outputs of attention and MLP."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding, mlp, normed
from lltool.engine.models.heads import head
from lltool.engine.operations.elementwise import add
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = embedding(g, config)
    for layer in range(config.layers):
        x = add(g, x, normed(g, config, attention(g, config, layer, x), f"blk.{layer}.post_attention_norm"))
        x = add(g, x, normed(g, config, mlp(g, config, layer, x), f"blk.{layer}.post_ffw_norm"))
    head(g, config, x)
