"""The sizes of latent attention that a model's metadata describes."""

import math
from dataclasses import dataclass, replace

from lltool.engine.models.rotary import Rotary
from lltool.gguf.architecture_keys import SCALES, ArchitectureKeys
from lltool.gguf.errors import InputError

_OF_OLD_FILES = "older files keep attn_k_b and attn_v_b as one tensor, attn_kv_b; convert the model again"


@dataclass(frozen=True)
class Latent:
    """All heads share a vector of `rank` numbers and a rotated key; each head expands the vector to a key and a value.

    Queries come from a vector of `query_rank` numbers, or if that is 0, from the hidden state.
    """

    rank: int
    query_rank: int
    key_dim: int  # of a head's query and of its key, expanded and rotated parts together
    shared_dim: int  # of the part of a key that heads share, which has the rotary positions if there are any
    value_dim: int  # of a head's expanded value
    scale: float  # of scores


def read_latent(
    keys: ArchitectureKeys, rotary: Rotary, cached_dim: int, kv_heads: int, *, states_values: bool
) -> tuple[Latent, Rotary]:
    """`cached_dim` and `kv_heads` are the file's sizes of what the cache holds. Raises InputError if they are absurd.

    Unless a file `states_values`, its size of values is of another kind and means nothing.

    YaRN's magnitude scales the scores of whole heads here, not the rotated part alone. Source: DeepSeek's code; the key
    is a tenth of mscale_all_dim, and llama.cpp reads it in the same way.
    """
    if "attention.key_length_mla" not in keys.values:
        raise InputError(f"{keys.prefix}attention.key_length_mla: missing; {_OF_OLD_FILES}")
    rank, key_dim = keys.integer("attention.kv_lora_rank"), keys.integer("attention.key_length_mla")
    shared = keys.integer("rope.dimension_count", rotary.dims)
    wanted = rank + shared
    keys.expect("attention.key_length", cached_dim == wanted, f"{wanted}, kv_lora_rank and the rotated dimensions")
    keys.expect("attention.key_length_mla", key_dim > shared, f"more than the {shared} rotated dimensions")
    values = keys.integer("attention.value_length", rank)
    keys.expect("attention.value_length", values == rank or not states_values, f"{rank}, as kv_lora_rank")
    keys.expect("attention.head_count_kv", kv_heads == 1, "1, because all heads share what is cached")
    scale = 1 / math.sqrt(key_dim)
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0, *SCALES)
    if multiplier and rotary.scaling == "yarn" and rotary.factor > 1:
        scale *= (1 + multiplier * math.log(rotary.factor)) ** 2
        rotary = replace(rotary, log_multiplier=0.1)
    query_rank = keys.integer("attention.q_lora_rank", 0, minimum=0)
    return Latent(rank, query_rank, key_dim, shared, keys.integer("attention.value_length_mla"), scale), rotary
