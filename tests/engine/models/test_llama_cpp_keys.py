"""Files with the keys that llama.cpp's converter writes for some architectures, beside those that ours writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.gguf.metadata import ValueType, array, boolean, u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model as Source
from lltool.gguf.writer import write_gguf
from tests.engine.models.test_architectures import assert_close, load, make_case, prompt

LLAMA_CPP_KEYS: dict[str, dict[str, Any]] = {
    "granite4": {
        **{f"granite.ssm.{key}": u32(4) for key in ("conv_kernel", "state_size", "group_count", "inner_size")},
        "granite.ssm.time_step_rank": u32(6),
        "granite.expert_shared_feed_forward_length": u32(72),
        "granite.rope.scaling.finetuned": boolean(True),
        "granite.attention.head_count_kv": array(ValueType.INT32, np.array([1, 1, 1], np.int32)),
    },
    "kimi-linear": {"kimi-linear.attention.value_length": u32(8)},
    "nemotron-h-moe": {"nemotron_h_moe.attention.layer_norm_rms_epsilon": None},
}


@pytest.mark.parametrize("case", LLAMA_CPP_KEYS)
def test_keys_as_llama_cpp_writes_them(case: str, tmp_path: Path) -> None:
    """Keys that its converter adds, leaves out, or gives other values, without effect on what it computes."""
    path, wanted = make_case(case, tmp_path / "own")
    with open_gguf(path) as file:
        keys = {key: value for key, value in (file.metadata | LLAMA_CPP_KEYS[case]).items() if value is not None}
        write_gguf(tmp_path / "m.gguf", Source(keys, list(file.tensors)))
    with load(tmp_path / "m.gguf", "cpu") as model:
        assert_close(model.forward([(model.new_sequence(), prompt(), "all")]).all(), wanted)
