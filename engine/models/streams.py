"""The residual streams of AltUp that a model's metadata describes (Gemma 3n)."""

import math
from dataclasses import dataclass

from lltool.gguf.architecture_keys import ArchitectureKeys

# Of files that do not state it: 95 % of the values become 0, in the first ten layers.
_DEVIATIONS, _SPARSE_LAYERS = 1.6448533535003662, 10


@dataclass(frozen=True)
class Streams:
    """`count` streams, of which blocks run on number `active`.

    `deviations` are, of each layer, how many standard deviations from the mean a gate must lie to count; -inf: all do.
    """

    count: int
    active: int
    deviations: tuple[float, ...]


def read_streams(keys: ArchitectureKeys, layers: int) -> Streams:
    """Raises InputError if a value is absurd."""
    count = keys.integer("altup.num_inputs", 4, minimum=2)
    keys.expect("altup.num_inputs", count <= 64, "at most 64")
    active = keys.integer("altup.active_idx", 0, minimum=0)
    keys.expect("altup.active_idx", active < count, f"less than the {count} streams")
    key = "activation_sparsity_scale"
    deviations = [_DEVIATIONS if layer < _SPARSE_LAYERS else -math.inf for layer in range(layers)]
    if key in keys.values:
        deviations = keys.numbers(key, layers, or_minus_infinity=True)
    return Streams(count, active, tuple(deviations))
