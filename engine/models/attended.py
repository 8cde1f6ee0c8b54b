"""What attention takes from other layers: keys and values, and T5's bias by distance."""

from lltool.engine.config import ModelConfig
from lltool.engine.operations.attention import Attention
from lltool.engine.operations.distance_bias import DistanceBias
from lltool.engine.program import Tracer


def keys_of_an_earlier_layer(g: Tracer, config: ModelConfig, layer: int) -> Attention | None:
    """The attention whose keys and values the layer reads; None if it has its own."""
    source = config.layer_sizes[layer].keys_of if config.layer_sizes else layer
    if source == layer:
        return None
    return next(op for op in g.ops if isinstance(op, Attention) and op.layer == source)


def distance_bias(g: Tracer, config: ModelConfig, name: str) -> DistanceBias | None:
    """T5's bias of scores: that of the layer or, if it has none, of the first."""
    if not config.bias_buckets:
        return None
    own = f"{name}attn_rel_b.weight"
    return DistanceBias(own if own in g.weights else f"{config.block(0)}attn_rel_b.weight", config.bias_buckets, 128)
