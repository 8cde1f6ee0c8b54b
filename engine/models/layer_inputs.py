"""What each layer of Gemma 3n and Gemma 4 reads of the tokens, beside the residual stream."""

from lltool.engine.config import ModelConfig
from lltool.engine.models.norms import normed
from lltool.engine.operations.elementwise import add, gated, scale
from lltool.engine.operations.embed import embed
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import norm
from lltool.engine.operations.split import split
from lltool.engine.program import Buffer, Tracer


def layer_inputs(g: Tracer, config: ModelConfig, x: Buffer) -> tuple[Buffer, ...]:
    """A buffer for each layer: the token's embedding for it, and a projection of x. Empty if the model has none."""
    if not config.input_width:
        return ()
    total = config.layers * config.input_width
    tokens = embed(g, "per_layer_token_embd.weight", config.vocab, total, config.input_width**0.5)
    (projected,) = linear(g, x, ["per_layer_model_proj.weight"], [total])
    projected = scale(g, projected, config.width**-0.5)
    projected = norm(g, projected, "per_layer_proj_norm.weight", config.norm_eps, config.layers)
    return split(g, scale(g, add(g, projected, tokens), 2**-0.5), [config.input_width] * config.layers)


def gated_input(g: Tracer, config: ModelConfig, layer: int, x: Buffer, tokens: Buffer) -> Buffer:
    """The layer's input `tokens`, gated by x, as a state of the model's width."""
    name = f"blk.{layer}."
    (gate,) = linear(g, x, [f"{name}inp_gate.weight"], [config.input_width])
    (out,) = linear(g, gated(g, gate, tokens, "gelu_tanh"), [f"{name}proj.weight"], [config.width])
    return normed(g, config, out, f"{name}post_norm")
