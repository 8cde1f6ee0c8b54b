"""The files of all architectures in llama.cpp: it loads them, and computes the same logits.

Where it does not, `DIFFERENT` says why, and with which config it does; both are tested. transformers is the oracle of
what is right.
"""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from tests.engine.models.test_architectures import CASES, difference, load, make_case, prompt
from tests.libllama import MISSING, find_library, logits_of
from tests.tiny_checkpoints import YARN

pytestmark = [pytest.mark.rival, pytest.mark.slow]

# Most cases differ by 1e-6. llama.cpp looks GELU up in a table with half precision.
TOLERANCE = 5e-4

_WINDOW = ("llama.cpp does not read the sliding window of this architecture", {"sliding_window": None})
_SCALE = ("llama.cpp does not read the scale of attention (attention.scale)", {"query_pre_attn_scalar": 32})
_POSITIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_ALIBI = ("llama.cpp takes the kind of positions from the number of layers, 32 or 40", {"num_hidden_layers": 32})
_RAMP = ("llama.cpp truncates the range of YaRN's ramp to whole numbers", _POSITIONS)
_LITE = ("llama.cpp knows models whose queries are not compressed by their number of layers", {"q_lora_rank": 24})
_MAGNITUDES = ("llama.cpp has one multiplier for the magnitudes of scores and of rotated dimensions", None)
_GELU = (
    "llama.cpp looks GELU up in half precision; tests/engine/models/test_gemma.py has an oracle that does so",
    None,
)
_CHUNKS = (
    "llama.cpp has chunks of 8192 and tempers from there on",
    {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1},
)
_OLMO3_POSITIONS = {
    "rope_parameters": {
        "full_attention": YARN["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
}

# case: (what llama.cpp does otherwise, values of the config with which it computes the same)
DIFFERENT: dict[str, tuple[str, dict[str, Any] | None]] = {
    "mistral, window 64": _WINDOW,
    "mistral, last layers slide": (_WINDOW[0], {"layer_types": ["full_attention"] * 3}),
    "qwen2, last layers slide": (_WINDOW[0], {"use_sliding_window": False}),
    "mixtral, window 64": _WINDOW,
    "mixtral, one expert of a token, three heads": _WINDOW,
    "cwm": (_WINDOW[0], {"layer_types": ["full_attention"] * 3}),
    "ministral": (_WINDOW[0], {"layer_types": ["full_attention"] * 3}),
    "phi3": _WINDOW,
    "starcoder2": _WINDOW,
    "gpt-oss, window 64": _RAMP,
    "gpt-oss, first layer full": _RAMP,
    "gemma3, linear rope, own scale": _SCALE,
    "gemma2": _SCALE,
    "gemma2, no caps": (
        "llama.cpp caps scores at 50 and logits at 30 where the file names no caps",
        {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "olmo3": ("llama.cpp has one base for the positions of all layers", _OLMO3_POSITIONS),
    "baichuan": _ALIBI,
    "baichuan2": _ALIBI,
    "olmoe": ("llama.cpp wants as many heads of keys as of queries", {"num_key_value_heads": 4}),
    "dots1": ("llama.cpp wants heads that fill the width", {"head_dim": 16, "num_key_value_heads": 4}),
    "exaone4": ("llama.cpp knows windows by the number of layers, 64, and wants heads that fill the width", None),
    "exaone4, no window": ("llama.cpp wants heads that fill the width", {"head_dim": 16}),
    "ernie 4.5 with experts": (
        "llama.cpp wants experts in all layers from the first of them on",
        {"moe_layer_interval": 1},
    ),
    "cohere": ("llama.cpp reads norms of heads from 64 layers on", {"use_qk_norm": False}),
    "gptj": ("llama.cpp does not have this architecture", None),
    "phi 3.5 moe, window 64": ("llama.cpp routes Phi 3.5 by a softmax, and has no windows", None),
    "phi 3.5 moe, longrope, no biases": ("llama.cpp wants a bias of the output", None),
    "llama 4, chunks of 70": _CHUNKS,
    "llama 4, two experts in all layers, chunks of 64": _CHUNKS,
    "deepseek v2 lite, yarn": _LITE,
    "deepseek v3, queries of the hidden state, dense layers": _LITE,
    "deepseek v2, best groups, all heads": (
        "llama.cpp adds the best two experts of a group where DeepSeek V2 takes the best",
        {"n_group": 1, "topk_group": 1},
    ),
    "deepseek v2, other magnitudes": _MAGNITUDES,
    "deepseek v2, magnitude of rotated dimensions alone": _MAGNITUDES,
    "kimi k2 (one group, more heads, yarn)": (
        "llama.cpp reads yarn_beta_fast of Grok and Mistral 3 alone",
        {"rope_parameters": YARN["rope_parameters"] | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "qwen3-next, other sizes of keys and values": (
        "llama.cpp wants keys and values of one width",
        {"linear_key_head_dim": 16, "linear_value_head_dim": 16},
    ),
    "qwen3.5, yarn, heads of six": ("llama.cpp ends the process: its sections of positions are fixed", None),
    "rwkv7": (
        "llama.cpp ends the process where heads are not of 64",
        {"hidden_size": 192, "head_dim": 64, "norm_eps": 1e-5},
    ),
    "gemma3n": ("llama.cpp has 20 layers with keys of their own, and other constants", None),
    "gemma4": _GELU,
    "gemma4-moe": _GELU,
    "gptneox, no biases of attention": ("llama.cpp wants biases", {"attention_bias": True}),
}

ENDS_THE_PROCESS = ("qwen3.5, yarn, heads of six", "rwkv7")


@pytest.fixture(scope="module")
def llama() -> ctypes.CDLL:
    return find_library() or pytest.skip(MISSING)


def difference_from(llama: ctypes.CDLL, path: Path) -> float | None:
    """The difference of llama.cpp's logits; None if it does not load the file."""
    theirs = logits_of(llama, path, prompt())
    if theirs is None:
        return None
    with load(path, "cpu") as model:
        return difference(theirs, model.forward([(model.new_sequence(), prompt(), "all")]).all())


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_same(llama: ctypes.CDLL, case: str, tmp_path: Path) -> None:
    changes: dict[str, Any] | None = {}
    if case in DIFFERENT:
        _, changes = DIFFERENT[case]
    if case in DIFFERENT and case not in ENDS_THE_PROCESS:
        found = difference_from(llama, make_case(case, tmp_path / "as it is")[0])
        assert found is None or found > TOLERANCE
    if changes is not None:
        found = difference_from(llama, make_case(case, tmp_path / "changed", **changes)[0])
        assert found is not None
        assert found < TOLERANCE
