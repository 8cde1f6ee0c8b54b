"""The gated delta nets that a model's metadata describes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lltool.gguf.architecture_keys import ArchitectureKeys

HeadOrder = Literal["grouped", "tiled"]
"""Where heads of values share a head of keys: whether they are neighbours, or as many heads apart as keys have."""

_PERIOD = 4  # every 4th layer has attention if a file does not say otherwise
MOST_HEADS, MOST_TAPS = 1 << 16, 64


@dataclass(frozen=True)
class DeltaNet:
    """The sizes of a model's gated delta nets, and for each layer whether it has one."""

    taps: int  # of the convolution
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    layers: tuple[bool, ...]
    order: HeadOrder

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.value_dim


def read_kimi_delta(keys: ArchitectureKeys, heads: int, attends: tuple[bool, ...]) -> DeltaNet:
    """Kimi's delta attention, which has one size of heads. Raises InputError if a value is absurd."""
    taps, dim = keys.integer("ssm.conv_kernel"), keys.integer("kda.head_dim")
    keys.expect("ssm.conv_kernel", 2 <= taps <= MOST_TAPS, f"2 to {MOST_TAPS}")
    keys.expect("attention.head_count", heads <= MOST_HEADS, f"at most {MOST_HEADS}")
    return DeltaNet(taps, heads, dim, heads, dim, tuple(not flag for flag in attends), "grouped")


def read_delta_net(keys: ArchitectureKeys, order: HeadOrder | None, layers: int) -> DeltaNet | None:
    """None for an architecture without them. Raises InputError if a value is absurd."""
    if order is None:
        return None
    key_heads, heads = keys.integer("ssm.group_count"), keys.integer("ssm.time_step_rank")
    taps, inner = keys.integer("ssm.conv_kernel"), keys.integer("ssm.inner_size")
    keys.expect("ssm.conv_kernel", 2 <= taps <= MOST_TAPS, f"2 to {MOST_TAPS}")
    keys.expect("ssm.time_step_rank", heads % key_heads == 0, f"a multiple of the {key_heads} heads of keys")
    keys.expect("ssm.time_step_rank", heads <= MOST_HEADS, f"at most {MOST_HEADS}")
    keys.expect("ssm.inner_size", inner % heads == 0, f"a multiple of the {heads} heads of values")
    period = keys.integer("full_attention_interval", _PERIOD)
    flags = keys.raw("attention.recurrent_layers")
    if flags is None:
        flags = np.array([(layer + 1) % period != 0 for layer in range(layers)])
    fine = isinstance(flags, np.ndarray) and len(flags) >= layers  # it may have those of layers that do not run
    keys.expect("attention.recurrent_layers", fine, f"a flag for each of {layers} layers")
    return DeltaNet(
        taps=taps,
        key_heads=key_heads,
        key_dim=keys.integer("ssm.state_size"),
        value_heads=heads,
        value_dim=inner // heads,
        layers=tuple(bool(flag) for flag in flags[:layers]),
        order=order,
    )
