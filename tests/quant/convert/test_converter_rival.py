"""Files of all architectures beside those of llama.cpp's converter: the same tensors and keys, or the reason why not.

LLAMA_CPP_TREE names llama.cpp's source tree, which is in llama-cpp-python's source distribution (vendor/llama.cpp).
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.gguf.reader import GGUFFile, open_gguf
from lltool.gguf.source import Tensor
from lltool.quant.convert.conversion import convert
from tests.derived_checkpoints import make_with_original
from tests.engine.models.test_architectures import CASES

pytestmark = [pytest.mark.rival, pytest.mark.slow]

_DEFAULT = "the default of llama.cpp, which is stated here"
_IMPLIED = "follows from other keys"
_WINDOW = "llama.cpp does not read windows of this architecture"
_CONSTANT = "the converter writes what published models have, whatever the config says"

# Keys that only our files have, that only theirs have, and that have other values; with the reason.
OURS = {
    "attention.head_count_kv": _IMPLIED,
    "attention.layer_norm_rms_epsilon": "llama.cpp reads this one",
    "feed_forward_length": _IMPLIED,
    "context_length": "the converter passes over the name that the config has for it",
    "vocab_size": "the converter writes it for some architectures",
    "rope.freq_base": _DEFAULT,
    "rope.dimension_count": _IMPLIED,
    "expert_gating_func": _DEFAULT,
    "attention.sliding_window": _WINDOW,
    "attention.sliding_window_pattern": "llama.cpp has the pattern of published models",
    "attention.scale": "the converter passes over query_pre_attn_scalar",
    "attention.temperature_length": "llama.cpp has that of published models",
    "attention.temperature_scale": "llama.cpp has that of published models",
    "expert_weights_norm": "the converter writes it where the config names a scoring function",
    "full_attention_interval": _DEFAULT,
    "expert_group_count": "the converter passes over the name that the config has for it",
    "expert_group_used_count": "the converter passes over the name that the config has for it",
    "rope.scaling.attn_factor": "the converter passes over mscale, and writes attention_factor where nothing reads it",
}
THEIRS = {
    "full_attention_interval": _DEFAULT,
    "rope.freq_base": "no layer has rotary positions",
    "rope.dimension_count": "no layer has rotary positions",
    "expert_count": "there are none",
    "expert_used_count": "there are none",
    "expert_shared_feed_forward_length": "there are no experts",
    "attention.layer_norm_epsilon": "llama.cpp reads the other one (qwen)",
    "attention.key_length": _IMPLIED,
    "attention.value_length": _IMPLIED,
    "attention.layer_norm_rms_epsilon": "the architecture has no such norm",
    "nextn_predict_layers": "layers that predict further tokens are left out",
    "residual_scale": "it is 1",
    "rope.freq_base_swa": _DEFAULT,
    "rope.scaling.type": "there is no scaling, or it is in a tensor",
    "rope.scaling.factor": "it is in a tensor",
    "rope.scaling.original_context_length": "there is no scaling, or it is in a tensor",
    "rope.scaling.yarn_attn_factor": "nothing in llama.cpp reads it",
}
VALUES = {
    "attention.value_length": "the converter writes a head's size, which nothing reads (kimi-linear)",
    "leading_dense_block_count": "the converter does not read mlp_layer_types",
    "block_count": "layers that predict further tokens are left out",
    "context_length": _CONSTANT,
    "feed_forward_length": _CONSTANT,
    "expert_shared_feed_forward_length": "the converter divides by the number of key heads",
}
TENSORS = {"rope_freqs.weight": "a scaling of positions that llama.cpp has no keys for"}

_UNKNOWN = "is not supported"
_NORMS = "Unprocessed norms"
_ROTARY = "KeyError: 'rotary_pct'"  # which transformers now writes in another place

FAILS = {
    "ministral": _UNKNOWN,
    "gptj": _UNKNOWN,
    "mpt": _UNKNOWN,
    "mpt, eight heads": _UNKNOWN,
    "stablelm-12b": _NORMS,
    "stablelm, norms of heads": _NORMS,
    "cohere2": _ROTARY,
    "gptneox": _ROTARY,
    "gptneox, one after the other": _ROTARY,
    "gptneox, no biases of attention": _ROTARY,
    "gpt2": "KeyError: 'n_ctx'",
    "falcon": "is invalid for input of size",  # one key head
    "baichuan": "maximum recursion depth exceeded",
    "baichuan2": "maximum recursion depth exceeded",
    "phi 3.5 moe, window 64": _UNKNOWN,
    "phi 3.5 moe, longrope, no biases": _UNKNOWN,
    "exaone": "KeyError: 'activation_function'",
    "kimi-linear": "Can not map tensor 'model.layers.0.block_sparse_moe",  # as transformers names it
    "minimax-m2": "could not find any of: ['rotary_dim']",
    "hunyuan-moe": "KeyError: 'moe_intermediate_size'",
    "helium": _UNKNOWN,
    "cwm": _UNKNOWN,
    "gemma3n": "only supports 4 altup inputs",
    "gemma2, no caps": "required argument is not a float",
}


# The converter does not find the layers with attention in what transformers writes today, and says that there are none.
WITHOUT_ATTENTION = ("granite4", "granitehybrid", "granite hybrid without experts, biases")

# The converter goes by a key that transformers' config class adds to every model.
TAKEN_FOR_EXPERTS = ("nemotron-h", "nemotron-h-published")

# Multiplied by a factor, in another order.
ROUNDED = ("falcon h1, factors, norm after the gate",)


@pytest.fixture(scope="module")
def tree() -> str:
    return os.environ.get("LLAMA_CPP_TREE") or pytest.skip("LLAMA_CPP_TREE does not name llama.cpp's source tree")


def hyper_parameters(file: GGUFFile) -> dict[str, Any]:
    prefix = str(file.metadata["general.architecture"].data) + "."
    return {key.removeprefix(prefix): value.data for key, value in file.metadata.items() if key.startswith(prefix)}


def is_same(ours: Tensor, theirs: Tensor, *, is_rounded: bool) -> bool:
    """Vectors may be written as matrices of one row; a vocabulary that is left out has fewer rows."""
    rows = min(ours.rows, theirs.rows) if "embd" in ours.name else ours.rows
    if (ours.type, ours.columns) != (theirs.type, theirs.columns) or rows not in (ours.rows, theirs.rows):
        return False
    mine, other = (tensor.data()[:rows].view(np.float32) for tensor in (ours, theirs))
    if is_rounded or ours.name.endswith("ssm_a"):  # minus an exponential, which libraries round in other ways
        return np.allclose(mine, other, rtol=2**-22, atol=0)
    return np.array_equal(mine, other)


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_that_of_llama_cpp(tree: str, case: str, tmp_path: Path) -> None:
    family, overrides = CASES[case]
    make_with_original(family, tmp_path, **overrides)
    script = Path(__file__).parents[2] / "convert_hf_to_gguf.py"
    command = [sys.executable, str(script), tree, str(tmp_path), str(tmp_path / "theirs.gguf")]
    if case.startswith(("qwen3-next", "qwen3.5", "qwen35")):
        command.append("--no-mtp")  # it wants the layers that predict further tokens, which these checkpoints lack
    done = subprocess.run(command, capture_output=True, text=True)
    if case in FAILS:
        assert FAILS[case] in done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    path = convert(tmp_path, tmp_path / "ours.gguf", outtype="f32")
    with open_gguf(path) as ours, open_gguf(tmp_path / "theirs.gguf") as theirs:
        if case in TAKEN_FOR_EXPERTS:
            assert theirs.metadata["general.architecture"].data == f"{ours.metadata['general.architecture'].data}_moe"
            return
        mine, other = hyper_parameters(ours), hyper_parameters(theirs)
        if case in WITHOUT_ATTENTION:
            assert not np.any(other["attention.head_count_kv"])
            return
        assert ours.metadata["general.architecture"] == theirs.metadata["general.architecture"]
        assert mine.keys() - other.keys() <= OURS.keys()
        assert other.keys() - mine.keys() <= THEIRS.keys()
        differing = {key for key in mine.keys() & other.keys() if not np.array_equal(mine[key], other[key])}
        assert differing <= VALUES.keys()
        tensors = {tensor.name: tensor for tensor in theirs.tensors}
        assert {tensor.name for tensor in ours.tensors} ^ tensors.keys() <= TENSORS.keys()
        common = [tensor for tensor in ours.tensors if tensor.name in tensors]
        is_rounded = case in ROUNDED
        assert [each.name for each in common if not is_same(each, tensors[each.name], is_rounded=is_rounded)] == []
