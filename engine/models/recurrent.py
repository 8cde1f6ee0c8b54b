"""The mixers of tokens, other than attention, that a model's metadata describes, and which layers have which."""

from dataclasses import dataclass, replace
from typing import Literal

from lltool.gguf.architecture_keys import ArchitectureKeys

Mixer = Literal["none", "short convolution", "mamba", "mamba2"]
"""What an architecture has beside or instead of attention."""

Attends = Literal["all", "stated", "none"]
"""The layers with attention: all, those with key/value heads in the file's list, or none."""


@dataclass(frozen=True)
class Recurrent:
    """The sizes of a mixer: `taps` of its convolution, and of a scan the rows that it computes and their states.

    `rank` is the width that steps are projected from (mamba), or the number of heads (mamba2).
    """

    kind: Mixer
    taps: int
    inner: int = 0
    states: int = 0
    rank: int = 0
    groups: int = 1
    plain_norms: bool = False  # steps, b and c are normed without weights


def read_recurrent(keys: ArchitectureKeys, kind: Mixer) -> Recurrent | None:
    """Raises InputError for sizes that do not fit each other."""
    if kind == "none":
        return None
    if kind == "short convolution":
        return Recurrent(kind, _taps(keys, "shortconv.l_cache"))
    found = Recurrent(
        kind,
        _taps(keys, "ssm.conv_kernel"),
        inner=keys.integer("ssm.inner_size"),
        states=keys.integer("ssm.state_size"),
        rank=keys.integer("ssm.time_step_rank"),
    )
    if kind == "mamba":
        return replace(found, plain_norms=keys.flag("ssm.dt_b_c_rms", False))
    groups, heads = keys.integer("ssm.group_count", 1), found.rank
    keys.expect("ssm.time_step_rank", found.inner % heads == 0, f"a divisor of the {found.inner} values inside")
    keys.expect("ssm.group_count", heads % groups == 0, f"a divisor of the {heads} heads")
    return replace(found, groups=groups)


def _taps(keys: ArchitectureKeys, key: str) -> int:
    taps = keys.integer(key, minimum=2)
    keys.expect(key, taps <= 64, "at most 64")
    return taps


def read_heads(keys: ArchitectureKeys, layers: int, attends: Attends) -> tuple[int, int, tuple[bool, ...]]:
    """The heads of queries, those of keys and values, and whether each layer has attention.

    A list of key/value heads has 0 for a layer without attention. Raises InputError if other numbers differ.
    """
    if attends == "none":
        for key in ("attention.head_count", "attention.head_count_kv"):
            keys.integer(key, 0, minimum=0)
        return 1, 1, (False,) * layers
    heads = keys.integer("attention.head_count")
    if attends == "all":
        return heads, keys.integer("attention.head_count_kv", heads), (True,) * layers
    counts = keys.integers("attention.head_count_kv", layers, heads)
    distinct = sorted(set(counts) - {0})
    keys.expect("attention.head_count_kv", len(distinct) <= 1, "one number for all layers with attention, or 0")
    return heads, distinct[0] if distinct else heads, tuple(count > 0 for count in counts)
