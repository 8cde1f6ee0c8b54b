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


def norm_heads(g: Tracer, config: ModelConfig, name: str, *parts: Buffer) -> tuple[Buffer, ...]:
    """The norms of queries, and of keys after them, if the architecture has them: of each head or of all."""
    match config.traits.head_norms:
        case "none":
            return parts
        case "if stored" if f"{name}attn_q_norm.weight" not in g.weights:
            return parts
    kinds = ("q", config.heads), ("k", config.kv_heads)
    return tuple(
        _norm_heads(g, config, part, f"{name}attn_{kind}_norm", heads)
        for part, (kind, heads) in zip(parts, kinds, strict=False)
    )


def _norm_heads(g: Tracer, config: ModelConfig, x: Buffer, name: str, heads: int) -> Buffer:
    weight = g.weights.get(f"{name}.weight")
    if weight is not None and weight.shape == (heads, config.head_dim):  # each head has a weight of its own
        x = layer_norm(g, x, None, config.norm_eps, heads)
        return multiply(g, x, weight.name, weight.shape)
    whole = weight is not None and weight.shape == (x.width,) and heads > 1
    return normed(g, config, x, name, 1 if whole else heads)


# Llama 4's large model, known by its number of experts, has none.
_WITHOUT_NORMS = 128


def plain_head_norms(g: Tracer, config: ModelConfig, *parts: Buffer) -> tuple[Buffer, ...]:
    """RMS norms without weights, of each head of queries, and of keys after them."""
    if config.mixture and config.mixture.routing.experts == _WITHOUT_NORMS:
        return parts
    return tuple(norm(g, part, None, config.norm_eps, part.width // config.head_dim) for part in parts)
