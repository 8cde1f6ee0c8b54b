"""Gemma 4: blocks of Gemma 3, some with experts beside the MLP, that read an input of each layer."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.blocks import attention, embedding, mlp
from lltool.engine.models.experts import experts
from lltool.engine.models.heads import head
from lltool.engine.models.layer_inputs import gated_input, layer_inputs
from lltool.engine.models.norms import normed
from lltool.engine.operations.elementwise import add, multiply, scale
from lltool.engine.operations.norm import norm
from lltool.engine.program import Buffer, Tracer


def trace(g: Tracer, config: ModelConfig) -> None:
    x = embedding(g, config)
    inputs = layer_inputs(g, config, x)
    g.end_block(x)
    for layer in range(config.layers):
        name = f"blk.{layer}."
        h = attention(g, config, layer, normed(g, config, x, f"{name}attn_norm"))
        x = add(g, x, normed(g, config, h, f"{name}post_attention_norm"))
        h = mlp(g, config, layer, normed(g, config, x, f"{name}ffn_norm"))
        if f"{name}ffn_gate_inp.weight" in g.weights:
            h = add(g, normed(g, config, h, f"{name}post_ffw_norm_1"), _experts(g, config, layer, x))
        x = add(g, x, normed(g, config, h, f"{name}post_ffw_norm"))
        if inputs:
            x = add(g, x, gated_input(g, config, layer, x, inputs[layer]))
        if (factor := f"{name}layer_output_scale.weight") in g.weights:
            x = scale(g, x, float(g.constants(factor, 1)[0]))
        g.end_block(x)
    head(g, config, x)


def _experts(g: Tracer, config: ModelConfig, layer: int, x: Buffer) -> Buffer:
    """The experts of a layer, whose router has a norm of its own."""
    name = f"blk.{layer}."
    routed = scale(g, norm(g, x, None, config.norm_eps), config.width**-0.5)
    routed = multiply(g, routed, f"{name}ffn_gate_inp.scale", (config.width,))
    h = experts(g, config, layer, normed(g, config, x, f"{name}pre_ffw_norm_2"), routed=routed)
    return normed(g, config, h, f"{name}post_ffw_norm_2")
