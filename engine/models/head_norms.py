"""Norms of heads that have no weights."""

from lltool.engine.config import ModelConfig
from lltool.engine.operations.norm import norm
from lltool.engine.program import Buffer, Tracer

# Llama 4's large model, known by its number of experts, has none.
_WITHOUT_NORMS = 128


def plain_head_norms(g: Tracer, config: ModelConfig, q: Buffer, k: Buffer) -> tuple[Buffer, Buffer]:
    """RMS norms without weights, of each head of queries and keys."""
    if config.mixture and config.mixture.routing.experts == _WITHOUT_NORMS:
        return q, k
    return norm(g, q, None, config.norm_eps, config.heads), norm(g, k, None, config.norm_eps, config.kv_heads)
