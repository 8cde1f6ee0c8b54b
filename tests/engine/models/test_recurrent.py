"""The sizes of mixers and the layers with attention, as metadata states them."""

from typing import Any

import numpy as np
import pytest

from lltool.engine.models.recurrent import Mixer, Recurrent, read_heads, read_recurrent
from lltool.gguf.architecture_keys import ArchitectureKeys
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, boolean, u32

SIZES = {"ssm.conv_kernel": 4, "ssm.inner_size": 96, "ssm.state_size": 16, "ssm.time_step_rank": 6}


def keys(values: dict[str, Value]) -> ArchitectureKeys:
    return ArchitectureKeys({f"any.{key}": value for key, value in values.items()}, "any")


def sizes(**changes: int) -> dict[str, Value]:
    return {key: u32(value) for key, value in (SIZES | {f"ssm.{key}": x for key, x in changes.items()}).items()}


def test_sizes_of_mixers() -> None:
    assert read_recurrent(keys({}), "none") is None
    short = read_recurrent(keys({"shortconv.l_cache": u32(3)}), "short convolution")
    assert short == Recurrent("short convolution", 3)
    assert read_recurrent(keys(sizes()), "mamba") == Recurrent("mamba", 4, 96, 16, 6)
    normed = read_recurrent(keys(sizes() | {"ssm.dt_b_c_rms": boolean(True)}), "mamba")
    assert normed == Recurrent("mamba", 4, 96, 16, 6, plain_norms=True)
    assert read_recurrent(keys(sizes(group_count=3)), "mamba2") == Recurrent("mamba2", 4, 96, 16, 6, 3)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mamba", {"conv_kernel": 1}, "conv_kernel: found 1, wanted an integer from 2"),
        ("mamba", {"conv_kernel": 65}, "conv_kernel: found 65, wanted at most 64"),
        ("mamba2", {"time_step_rank": 7}, "time_step_rank: found 7, wanted a divisor of the 96 values"),
        ("mamba2", {"group_count": 4}, "group_count: found 4, wanted a divisor of the 6 heads"),
    ],
)
def test_sizes_that_do_not_fit(kind: Mixer, changes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_recurrent(keys(sizes(**changes)), kind)


def heads(counts: Any) -> dict[str, Value]:
    return {"attention.head_count": u32(6), "attention.head_count_kv": counts}


def int32s(*counts: int) -> Value:
    return array(ValueType.INT32, np.array(counts, np.int32))


def test_layers_with_attention() -> None:
    assert read_heads(keys(heads(int32s(0, 3, 0))), 3, "stated") == (6, 3, (False, True, False))
    assert read_heads(keys(heads(int32s(0, 0, 0))), 3, "stated") == (6, 6, (False, False, False))
    assert read_heads(keys(heads(u32(3))), 3, "stated") == (6, 3, (True, True, True))
    assert read_heads(keys(heads(int32s(3, 3, 3))), 3, "all") == (6, 3, (True, True, True))
    assert read_heads(keys({"attention.head_count": u32(0)}), 2, "none") == (1, 1, (False, False))
    for counts in (int32s(0, 3), int32s(0, -1, 3), int32s(0, 2, 3), boolean(True)):
        with pytest.raises(InputError, match=r"any\.attention\.head_count_kv"):
            read_heads(keys(heads(counts)), 3, "stated")
