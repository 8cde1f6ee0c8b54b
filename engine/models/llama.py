"""Llama and its kin (Mistral, Yi, SmolLM, Qwen2, Qwen3): pre-norm blocks."""

from lltool.engine.blocks import attention, gated_mlp, head
from lltool.engine.config import ModelConfig
from lltool.engine.program import Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = g.embed("token_embd.weight", config.vocab, config.width, config.embedding_scale)
    for layer in range(config.layers):
        h = g.norm(x, f"blk.{layer}.attn_norm.weight", config.norm_eps)
        x = attention(g, config, layer, h, residual=x)
        h = g.norm(x, f"blk.{layer}.ffn_norm.weight", config.norm_eps)
        x = gated_mlp(g, config, layer, h, residual=x)
    head(g, config, x)
