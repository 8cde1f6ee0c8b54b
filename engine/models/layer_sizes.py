"""The sizes of models whose layers differ: heads, the widths of heads and of the MLP, and whose keys a layer reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from lltool.gguf.architecture_keys import ArchitectureKeys


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of one layer. It attends to the keys and values of layer `keys_of`, its own unless it shares."""

    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    value_dim: int
    ff_width: int
    keys_of: int


def read_layer_sizes(keys: ArchitectureKeys, layers: int, width: int, windows: Sequence[int]) -> tuple[LayerSizes, ...]:
    """Layers with a sliding window may have heads of another width; the last layers may share earlier ones' keys.

    A layer shares with the last of its kind, with or without a window, that has keys of its own. Raises InputError for
    sizes that do not fit each other.
    """
    heads = keys.integers("attention.head_count", layers, 0)
    keys.expect("attention.head_count", min(heads) > 0, "an integer from 1 for each layer")
    kv_heads = keys.integers("attention.head_count_kv", layers, heads[0])
    fits = all(kv > 0 and each % kv == 0 for each, kv in zip(heads, kv_heads, strict=True))
    keys.expect("attention.head_count_kv", fits, "a divisor of each layer's heads")
    key = keys.integer("attention.key_length", width // heads[0])
    value = keys.integer("attention.value_length", key)
    local = keys.integer("attention.key_length_swa", key), keys.integer("attention.value_length_swa", value)
    ff_widths = keys.integers("feed_forward_length", layers, 0)
    keys.expect("feed_forward_length", min(ff_widths) > 0, "an integer from 1 for each layer")
    shared = keys.integer("attention.shared_kv_layers", 0, minimum=0)
    keys.expect("attention.shared_kv_layers", shared < layers, f"fewer than the {layers} layers")
    owners = range(layers - shared)
    found = []
    for layer in range(layers):
        same = [owner for owner in owners if (windows[owner] > 0) == (windows[layer] > 0)]
        keys.expect("attention.shared_kv_layers", bool(same), "an earlier layer of each kind with keys of its own")
        dims = local if windows[layer] else (key, value)
        own = layer if layer < len(owners) else same[-1]
        found.append(LayerSizes(heads[layer], kv_heads[layer], *dims, ff_widths[layer], own))
    for layer, sizes in enumerate(found):
        same_keys = found[sizes.keys_of].kv_heads == sizes.kv_heads
        keys.expect("attention.head_count_kv", same_keys, f"as many in layer {layer} as in layer {sizes.keys_of}")
    return tuple(found)
