"""The sizes of RWKV 7's time mixing that a model's metadata describes."""

from dataclasses import dataclass

from lltool.gguf.architecture_keys import ArchitectureKeys


@dataclass(frozen=True)
class TimeMixing:
    """The heads, and the widths between the two matrices that make decays, rates, shares of values and the gate."""

    heads: int
    decay_rank: int
    rate_rank: int
    value_rank: int
    gate_rank: int


def read_time_mixing(keys: ArchitectureKeys, width: int) -> TimeMixing:
    """Raises InputError if a value is absurd."""
    dim = keys.integer("wkv.head_size")
    keys.expect("wkv.head_size", width % dim == 0, f"a divisor of the width, {width}")
    keys.expect("token_shift_count", keys.integer("token_shift_count", 2) == 2, "2")
    kinds = ("decay", "iclr", "value_residual_mix", "gate")
    return TimeMixing(width // dim, *(keys.integer(f"attention.{kind}_lora_rank") for kind in kinds))
