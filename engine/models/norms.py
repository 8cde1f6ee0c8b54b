"""The norms of blocks, and those of the heads of queries and keys."""

from lltool.engine.config import ModelConfig
from lltool.engine.operations.elementwise import multiply
from lltool.engine.operations.norm import layer_norm, norm
from lltool.engine.program import Buffer, Tracer


def normed(g: Tracer, config: ModelConfig, x: Buffer, name: str, groups: int = 1) -> Buffer:
    """The architecture's kind of norm; a layer norm without a tensor in the file has no weight."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    if config.traits.norm == "rms":
        return norm(g, x, weight, config.norm_eps, groups)
    stored, stored_bias = (tensor if tensor in g.weights else None for tensor in (weight, bias))
    return layer_norm(g, x, stored, config.norm_eps, groups, stored_bias)


def norm_heads(g: Tracer, config: ModelConfig, name: str, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """The norms of queries and keys, if the architecture has them: of each head or of all, as their weights say."""
    match config.traits.head_norms:
        case "none":
            return q, k
        case "if stored" if f"{name}attn_q_norm.weight" not in g.weights:
            return q, k
    return (
        _norm_heads(g, config, q, f"{name}attn_q_norm", config.heads),
        _norm_heads(g, config, k, f"{name}attn_k_norm", config.kv_heads),
    )


def _norm_heads(g: Tracer, config: ModelConfig, x: Buffer, name: str, heads: int) -> Buffer:
    weight = g.weights.get(f"{name}.weight")
    if weight is not None and weight.shape == (heads, config.head_dim):  # each head has a weight of its own
        x = layer_norm(g, x, None, config.norm_eps, heads)
        return multiply(g, x, weight.name, weight.shape)
    whole = weight is not None and weight.shape == (x.width,) and heads > 1
    return normed(g, config, x, name, 1 if whole else heads)
