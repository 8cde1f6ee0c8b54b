"""Architectures against transformers: logits of small random checkpoints, long prompts, every executor."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.model import Model, load_model
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import u32
from lltool.gguf.reader import open_gguf
from lltool.gguf.source import Model as Source
from lltool.gguf.source import Tensor
from lltool.gguf.writer import write_gguf
from tests.derived_checkpoints import DERIVED, make_with_original
from tests.rwkv7_checkpoint import rwkv7_logits
from tests.tiny_checkpoints import DEEPSEEK_YARN, FAMILIES, LONGROPE, MIXTURES, YARN, rope

EXECUTORS = ["reference", "cpu"]
TOKENS = 300

# Two float32 computations of the same sums in another order, as a part of the logits' spread.
TOLERANCE = 1e-4

GEMMA_LINEAR: dict[str, Any] = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
    }
}

OLDER = ("llama", "llama3", "mistral", "qwen2", "qwen3", "gemma3", *MIXTURES)  # whose cases are written out
SHORT = {"rope_parameters": LONGROPE["rope_parameters"] | {"original_max_position_embeddings": 512}}

# name: (family of tiny_checkpoints or derived_checkpoints, config beyond it)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, all heads, biases": (
        "llama",
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama, one key head, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 32}),
    "llama 3.1 rope": ("llama3-rope", {}),
    "llama, linear rope": ("llama-linear", {}),
    "llama, yarn": ("llama-yarn", {}),
    "llama, yarn without truncation": (
        "llama-yarn",
        {"rope_parameters": YARN["rope_parameters"] | {"truncate": False}},
    ),
    "llama, dynamic rope, large base": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 3580165449.0}},
    ),
    "mistral, window 64": ("mistral", {}),
    "mistral, last layers slide": (
        "mistral",
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, untied, yarn": ("qwen2-yarn", {}),
    "qwen2, yarn with its own magnitude": (
        "qwen2-yarn",
        {"rope_parameters": YARN["rope_parameters"] | {"attention_factor": 0.7, "beta_fast": 16.0, "beta_slow": 2.0}},
    ),
    "llama, yarn with scales of both kinds": (
        "llama-yarn",
        {"rope_parameters": YARN["rope_parameters"] | {"mscale": 0.7, "mscale_all_dim": 1.3}},
    ),
    "qwen2, last layers slide": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1, "tie_word_embeddings": False},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, untied": ("qwen3", {"tie_word_embeddings": False}),
    "mixtral, window 64": ("mixtral", {}),
    "mixtral, one expert of a token, three heads": (
        "mixtral",
        {"num_experts_per_tok": 1, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3},
    ),
    "qwen2 with experts": ("qwen2moe", {}),
    "qwen3 with experts": ("qwen3moe", {}),
    "qwen3, all experts of a token": ("qwen3moe", {"num_experts": 3, "tie_word_embeddings": True}),
    "olmoe": ("olmoe", {}),
    "granite with experts": ("granitemoe", {}),
    "glm 4.5": ("glm4moe", {}),
    "glm 4.5, plain heads, one group": (
        "glm4moe",
        {"use_qk_norm": False, "attention_bias": False, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    ),
    "dots1": ("dots1", {}),
    "phi 3.5 moe, window 64": ("phimoe", {}),
    "phi 3.5 moe, longrope, no biases": (
        "phimoe",
        {
            "attention_bias": False,
            "lm_head_bias": False,
            "sliding_window": None,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.01, 1.02, 1.1, 1.2, 1.3, 1.4, 1.5],
                "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 9.0, 9.5, 9.9],
                "short_mscale": 1.3,
                "long_mscale": 1.3,
                "original_max_position_embeddings": 512,
            },
        },
    ),
    "llama 4, chunks of 70": ("llama4", {}),
    "llama 4, two experts in all layers, chunks of 64": (
        "llama4",
        {"interleave_moe_layer_step": 1, "num_experts_per_tok": 2, "attention_chunk_size": 64},
    ),
    "ministral 3, other magnitudes": (
        "ministral3",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=128,
            mscale=0.8,
            mscale_all_dim=1.2,
            llama_4_scaling_beta=0.1,
        ),
    ),
    "deepseek v2 lite, yarn": ("deepseek2", {}),
    "deepseek v2, best groups, all heads": (
        "deepseek2",
        {
            "q_lora_rank": 24,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            **rope("default"),
        },
    ),
    "deepseek v2, other magnitudes": (
        "deepseek2",
        {"rope_parameters": DEEPSEEK_YARN["rope_parameters"] | {"mscale": 0.9, "mscale_all_dim": 1.4}},
    ),
    "deepseek v2, magnitude of rotated dimensions alone": ("deepseek2", YARN),
    "deepseek v3": ("deepseek3", {}),
    "glm 4.7 flash": ("glm4-moe-lite", {}),
    "deepseek v3, queries of the hidden state, dense layers": (
        "deepseek3",
        {"q_lora_rank": None, "first_k_dense_replace": 2, "norm_topk_prob": False},
    ),
    "kimi k2 (one group, more heads, yarn)": (
        "deepseek3",
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "n_group": 1,
            "topk_group": 1,
            **rope(
                "yarn",
                factor=32.0,
                original_max_position_embeddings=64,
                beta_fast=1.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
            ),
        },
    ),
    "ernie 4.5 with experts": ("ernie4_5-moe", {}),
    "gpt-oss, window 64": ("gpt-oss", {}),
    "gpt-oss, first layer full": (
        "gpt-oss",
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "qwen3-next": ("qwen3next", {}),
    "qwen3-next, other sizes of keys and values": (
        "qwen3next",
        {
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 24,
            "linear_value_head_dim": 40,
            "linear_conv_kernel_dim": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "qwen3.5 with experts": ("qwen35moe", {}),
    "qwen3.5, yarn, heads of six": (
        "qwen35",
        {"head_dim": 24, "rope_parameters": YARN["rope_parameters"] | {"partial_rotary_factor": 0.5}},
    ),
    "gemma3, window 64": ("gemma3", {}),
    "gemma3, linear rope, own scale": ("gemma3", {"query_pre_attn_scalar": 20, **GEMMA_LINEAR}),
    **{family: (family, {}) for family in (*FAMILIES, *DERIVED) if not set(OLDER) & {family, family.partition("-")[0]}},
    "yi (large base, other width of groups)": ("llama", {"num_key_value_heads": 1, **rope("default", rope_theta=5e6)}),
    "granite, biases": ("granite", {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 1.0}),
    "olmo, not clamped": ("olmo", {"clip_qkv": None}),
    "phi4, short factors": ("phi4-longrope", {"original_max_position_embeddings": 512, **SHORT}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "exaone4, no window": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 5}),
    "gptneox, one after the other": ("gptneox", {"use_parallel_residual": False}),
    "gptneox, no biases of attention": ("gptneox", {"attention_bias": False}),
    "cohere, no norms of heads": ("cohere", {"use_qk_norm": False}),
    "nemotron, biases": ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    "stablelm, norms of heads": ("stablelm", {"qk_layernorm": True}),
    "mpt, eight heads": ("mpt", {"hidden_size": 64, "num_attention_heads": 8}),
    "falcon, all heads": ("falcon", {"multi_query": False}),
    "falcon h1, factors, norm after the gate": (
        "falcon-h1",
        {
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.5,
            "key_multiplier": 0.7,
            "attention_in_multiplier": 1.2,
            "attention_out_multiplier": 0.8,
            "ssm_in_multiplier": 1.3,
            "ssm_out_multiplier": 0.6,
            "mlp_multipliers": [0.9, 1.1],
            "ssm_multipliers": [0.8, 0.9, 1.1, 1.2, 0.7],
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
        },
    ),
    "jamba, one layer with attention and one with experts": (
        "jamba",
        {"num_hidden_layers": 3, "expert_layer_period": 4, "expert_layer_offset": 2},
    ),
    "mamba2, one group": ("mamba2", {"n_groups": 1}),
    "nemotron 3 (experts of another width, groups)": (
        "nemotron-h-moe",
        {"moe_latent_size": 32, "n_group": 3, "topk_group": 2, "norm_topk_prob": False},
    ),
    "rwkv7": ("rwkv7", {}),
    "rwkv7, heads of 64": ("rwkv7", {"hidden_size": 128, "head_dim": 64, "norm_eps": 1e-5, "num_hidden_layers": 2}),
    "granite hybrid without experts, biases": (
        "granitehybrid",
        {"num_local_experts": 0, "attention_bias": True, "tie_word_embeddings": True},
    ),
}


def make_case(case: str, folder: Path, **changes: Any) -> tuple[Path, NDArray[np.float32]]:
    """A case's model as F32 GGUF in an empty folder, and the original's logits (T, V) of `prompt()`.

    `changes` are config values other than the case's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from lltool.quant.convert.conversion import convert

    family, overrides = CASES[case]
    original = make_with_original(family, folder, **(overrides | changes))
    path = convert(folder, folder / "model.gguf", outtype="f32")
    if family == "rwkv7":
        return path, rwkv7_logits(original, prompt())
    oracle = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    with torch.no_grad():
        logits = oracle(torch.tensor(prompt()[None])).logits[0].numpy()
    return path, logits


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, NDArray[np.float32]]]:
    """`make_case` by the case's name, once for all tests."""
    return cache(lambda case: make_case(case, tmp_path_factory.mktemp("checkpoint")))


def prompt() -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, 300, TOKENS)


def load(path: Path, executor: str, **options: Any) -> Model:
    return load_model(path, executor=executor, precision="f32", **options)


def difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """The largest difference of two arrays of logits, as a part of their spread."""
    return float(np.abs(found - wanted).max() / np.ptp(wanted))


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    assert difference(found, wanted) < TOLERANCE


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES)
def test_logits_of_a_prompt(checkpoint: Any, case: str, executor: str) -> None:
    path, wanted = checkpoint(case)
    with load(path, executor) as model:
        logits = model.forward([(model.new_sequence(), prompt(), "all")]).all()
    assert_close(logits, wanted)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES)
def test_logits_token_by_token(checkpoint: Any, case: str, executor: str) -> None:
    path, wanted = checkpoint(case)
    with load(path, executor) as model:
        sequence = model.new_sequence()
        logits = np.stack([model.evaluate(sequence, [token]) for token in prompt()])
    assert_close(logits, wanted)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("case", CASES)
def test_logits_of_several_sequences(checkpoint: Any, case: str, executor: str) -> None:
    """Four sequences in turns of other lengths; a fork of one, and the one, shortened, continue beside each other."""
    path, wanted = checkpoint(case)
    text = prompt()
    with load(path, executor, sequences=5, context=TOKENS) as model:
        sequences = [model.new_sequence() for _ in range(4)]
        for turn in ((1, 70, 33, 130), (90, 1, 65, 2), (40, 80, 1, 100)):
            before = [sequence.length for sequence in sequences]
            pieces = [(s, text[s.length : s.length + n], "all") for s, n in zip(sequences, turn, strict=True)]
            found = model.forward(pieces).all()
            rows = [wanted[start : start + n] for start, n in zip(before, turn, strict=True)]
            assert_close(found, np.concatenate(rows))
            if sequences[0].length < 100:
                sequences[0].checkpoint()  # to which a state of fixed size goes back
        fork, length = sequences[0].fork(), sequences[0].length
        start = length - 20 - sequences[0].truncate(length - 20)  # of a state of fixed size, its last checkpoint
        assert start == sequences[0].length > 0
        pieces = [(fork, text[length : length + 50], "all"), (sequences[0], text[start : length + 50], "all")]
        expected = np.concatenate([wanted[length : length + 50], wanted[start : length + 50]])
        assert_close(model.forward(pieces).all(), expected)


def test_blocks_that_predict_further_tokens_do_not_run(checkpoint: Any, tmp_path: Path) -> None:
    """As llama.cpp's converter writes GLM 4.5: its blocks count all, of which the last are not in the trunk."""
    path, wanted = checkpoint("glm 4.5")
    extra = np.zeros((64, 128), np.float32).view(np.uint8)
    with open_gguf(path) as file:
        tensors = [
            *file.tensors,
            Tensor("blk.3.nextn.eh_proj.weight", GGMLType.F32, (64, 128), lambda start, stop: extra[start:stop]),
        ]
        keys = {"glm4moe.block_count": u32(4), "glm4moe.nextn_predict_layers": u32(1)}
        write_gguf(tmp_path / "m.gguf", Source({**file.metadata, **keys}, tensors))
        write_gguf(tmp_path / "all.gguf", Source({**file.metadata, "glm4moe.block_count": u32(4)}, tensors))
    with load(tmp_path / "m.gguf", "cpu") as model:
        assert model.config.layers == 3
        assert_close(model.forward([(model.new_sequence(), prompt(), "all")]).all(), wanted)
    with pytest.raises(InputError, match=r"blk\.3\.attn_norm\.weight: tensor missing"):
        load(tmp_path / "all.gguf", "cpu")


@pytest.mark.parametrize("case", ["qwen3", "gemma3, window 64", "olmo2", "lfm2"])
def test_norms_of_heads_that_an_architecture_always_has_must_be_there(
    checkpoint: Any, case: str, tmp_path: Path
) -> None:
    path, _ = checkpoint(case)
    with open_gguf(path) as file:
        tensors = [tensor for tensor in file.tensors if "blk.1.attn_q_norm" not in tensor.name]
        write_gguf(tmp_path / "m.gguf", Source(file.metadata, tensors))
    with pytest.raises(InputError, match=r"blk\.1\.attn_q_norm\.weight: tensor missing"):
        load(tmp_path / "m.gguf", "cpu")


def test_llama_4_has_chunks_of_8192_without_a_key(checkpoint: Any, tmp_path: Path) -> None:
    """As llama.cpp's converter writes it. A window of 0 means that all layers see all keys, with positions."""
    path, _ = checkpoint("llama 4, chunks of 70")
    for value, windows in ((None, (8192, 8192, 8192, 0, 8192)), (0, (0,) * 5)):
        with open_gguf(path) as file:
            keys = {**file.metadata, "llama4.attention.sliding_window": u32(0)}
            if value is None:
                del keys["llama4.attention.sliding_window"]
            write_gguf(tmp_path / "m.gguf", Source(keys, list(file.tensors)))
        with load(tmp_path / "m.gguf", "reference") as model:
            assert model.config.windows == windows
            assert model.config.rotated == tuple(value == 0 or window > 0 for window in windows)


def test_baichuan_13b(tmp_path: Path) -> None:
    """It is known by its 40 layers: ALiBi and no rotary positions. The oracle is Llama with a mask."""
    import torch
    from transformers import AutoModelForCausalLM

    from lltool.quant.convert.conversion import convert

    sizes = {"num_hidden_layers": 40, "num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}
    original = make_with_original("baichuan", tmp_path, **sizes)
    oracle = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32, attn_implementation="eager")
    oracle.model.rotary_emb.inv_freq[:] = 0
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    slopes = torch.tensor([2**-4.0, 2**-8.0, 2**-2.0])[:, None, None]
    mask = torch.where(distance < 0, -torch.inf, -slopes * distance)[None]
    with torch.no_grad():
        wanted = oracle(torch.tensor(prompt()[None]), attention_mask=mask).logits[0].numpy()
    with load(convert(tmp_path, tmp_path / "m.gguf", outtype="f32"), "cpu") as model:
        assert_close(model.forward([(model.new_sequence(), prompt(), "all")]).all(), wanted)
