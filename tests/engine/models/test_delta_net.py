"""The sizes of gated delta nets and the layers that have one, as metadata states them."""

from typing import Any

import numpy as np
import pytest

from lltool.engine.models.delta_net import DeltaNet, read_delta_net
from lltool.gguf.architecture_keys import ArchitectureKeys
from lltool.gguf.errors import InputError
from lltool.gguf.metadata import Value, ValueType, array, u32

SIZES = {"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.group_count": 2, "ssm.time_step_rank": 6, "ssm.inner_size": 72}


def read(layers: int, **changes: Value | int) -> DeltaNet | None:
    numbers: dict[str, Any] = {**SIZES, **{key.replace("__", "."): value for key, value in changes.items()}}
    values = {f"x.{key}": value if isinstance(value, Value) else u32(value) for key, value in numbers.items()}
    return read_delta_net(ArchitectureKeys(values, "x"), "tiled", layers)


def flags(*linear: bool) -> Value:
    return array(ValueType.BOOL, np.array(linear))


def test_sizes_and_layers() -> None:
    net = read(6)
    assert net == DeltaNet(4, 2, 8, 6, 12, (True, True, True, False, True, True), "tiled")
    assert (net.keys, net.values) == (16, 72)
    every_second = read(4, full_attention_interval=2)
    assert every_second is not None
    assert every_second.layers == (True, False, True, False)
    assert read_delta_net(ArchitectureKeys({}, "x"), None, 4) is None


def test_flags_may_go_on_to_layers_that_do_not_run() -> None:
    """As llama.cpp's converter writes them for files with such layers; they count more than a period."""
    net = read(2, attention__recurrent_layers=flags(False, True, False), full_attention_interval=4)
    assert net is not None
    assert net.layers == (False, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssm__time_step_rank": 5}, "x.ssm.time_step_rank: found 5, wanted a multiple of the 2 heads of keys"),
        ({"ssm__inner_size": 71}, "x.ssm.inner_size: found 71, wanted a multiple of the 6 heads of values"),
        ({"ssm__time_step_rank": 2**17, "ssm__inner_size": 2**17}, "wanted at most 65536"),
        ({"attention__recurrent_layers": flags(True)}, "wanted a flag for each of 4 layers"),
        ({"attention__recurrent_layers": 3}, "wanted a flag for each of 4 layers"),
        ({"ssm__conv_kernel": 0}, "x.ssm.conv_kernel: found 0, wanted an integer from 1"),
        ({"ssm__conv_kernel": 1}, "x.ssm.conv_kernel: found 1, wanted 2 to 64"),
    ],
)
def test_what_is_absurd_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(4, **changes)
