"""GPT-J, GPT-NeoX, Falcon, Phi 2, Cohere: attention and MLP read the same x, and both are added to it.

A block may have a norm for each of the two, or one for both. A config may say that they follow one another after all.
"""

from lltool.engine.config import ModelConfig
from lltool.engine.models import llama
from lltool.engine.models.blocks import attention, embedding, mlp
from lltool.engine.models.heads import head
from lltool.engine.models.norms import normed
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    if not config.is_parallel:
        return llama.trace(g, config)
    x = g.end_block(embedding(g, config))
    for layer in range(config.layers):
        name = f"blk.{layer}."
        own = next((norm for norm in ("ffn_norm", "attn_norm_2") if f"{name}{norm}.weight" in g.weights), None)
        shared = normed(g, config, x, f"{name}attn_norm")
        # Falcon's second norm is that of attention, the others' that of the MLP.
        to_attention = normed(g, config, x, f"{name}{own}") if own == "attn_norm_2" else shared
        to_mlp = normed(g, config, x, f"{name}{own}") if own == "ffn_norm" else shared
        x = mlp(g, config, layer, to_mlp, residual=attention(g, config, layer, to_attention, residual=x))
        g.end_block(x)
    head(g, config, x)
