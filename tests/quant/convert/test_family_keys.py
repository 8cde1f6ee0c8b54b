"""The keys of each family's files, as llama.cpp's converter writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lltool.quant.convert.conversion import plan_conversion

# Keys by family, as llama.cpp's converter writes them.
KEYS: dict[str, dict[str, Any]] = {
    "lfm2": {
        "lfm2.block_count": 5,
        "lfm2.context_length": 512,
        "lfm2.embedding_length": 64,
        "lfm2.feed_forward_length": 104,  # two thirds of 150, rounded up to a multiple of 8
        "lfm2.attention.head_count": 4,
        "lfm2.attention.head_count_kv": [0, 2, 0, 0, 2],
        "lfm2.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "lfm2.rope.freq_base": 1000000.0,
        "lfm2.shortconv.l_cache": 3,
    },
    "falcon-mamba": {
        "mamba.context_length": 1 << 20,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.ssm.conv_kernel": 4,
        "mamba.ssm.inner_size": 80,
        "mamba.ssm.state_size": 6,
        "mamba.ssm.time_step_rank": 3,
        "mamba.ssm.dt_b_c_rms": True,
    },
    "mamba": {"mamba.ssm.conv_kernel": 3, "mamba.ssm.dt_b_c_rms": False},
    "mamba2": {
        "mamba2.ssm.conv_kernel": 4,
        "mamba2.ssm.inner_size": 96,
        "mamba2.ssm.state_size": 12,
        "mamba2.ssm.time_step_rank": 6,
        "mamba2.ssm.group_count": 2,
        "mamba2.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
    },
    "jamba": {
        "jamba.attention.head_count_kv": [0, 1, 0, 0, 1],
        "jamba.ssm.inner_size": 96,
        "jamba.ssm.time_step_rank": 3,
        "jamba.expert_count": 4,
        "jamba.expert_used_count": 2,
        "jamba.feed_forward_length": 40,
    },
    "kimi-linear": {
        "kimi-linear.block_count": 5,
        "kimi-linear.attention.head_count": 3,
        "kimi-linear.attention.head_count_kv": [0, 1, 0, 1, 0],
        "kimi-linear.kda.head_dim": 16,
        "kimi-linear.ssm.conv_kernel": 4,
        "kimi-linear.rope.dimension_count": 8,
        "kimi-linear.attention.kv_lora_rank": 56,
        "kimi-linear.attention.key_length": 64,
        "kimi-linear.attention.key_length_mla": 32,
        "kimi-linear.attention.value_length_mla": 20,
        "kimi-linear.expert_gating_func": 2,
        "kimi-linear.expert_shared_count": 2,
        "kimi-linear.leading_dense_block_count": 1,
    },
    "nemotron-h": {
        "nemotron_h.block_count": 5,
        "nemotron_h.attention.head_count_kv": [0, 0, 1, 0, 0],
        "nemotron_h.feed_forward_length": [0, 128, 0, 128, 0],
        "nemotron_h.attention.layer_norm_epsilon": pytest.approx(1e-5),
        "nemotron_h.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "nemotron_h.attention.key_length": 24,
        "nemotron_h.rope.scaling.finetuned": False,
        "nemotron_h.ssm.inner_size": 192,
        "nemotron_h.ssm.group_count": 2,
        "nemotron_h.ssm.time_step_rank": 6,
    },
    "nemotron-h-moe": {
        "nemotron_h_moe.feed_forward_length": [0, 40, 0, 40, 0],
        "nemotron_h_moe.expert_feed_forward_length": 40,
        "nemotron_h_moe.expert_shared_feed_forward_length": 56,
        "nemotron_h_moe.expert_shared_count": 1,
        "nemotron_h_moe.expert_weights_norm": True,
        "nemotron_h_moe.expert_weights_scale": 1.5,
        "nemotron_h_moe.expert_group_count": 1,
    },
    "llama": {
        "llama.block_count": 3,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 16,
        "llama.vocab_size": 384,
        "general.architecture": "llama",
        "general.file_type": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.add_bos_token": True,
    },
    "llama-linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
    "llama-yarn": {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 128},
    "mistral": {"llama.attention.sliding_window": 64, "tokenizer.ggml.model": "llama"},
    "qwen2-yarn": {"qwen2.rope.scaling.type": "yarn", "tokenizer.ggml.pre": "qwen2"},
    "qwen3": {"qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32},
    "qwen35": {
        "qwen35.ssm.conv_kernel": 4,
        "qwen35.ssm.state_size": 16,
        "qwen35.ssm.group_count": 3,
        "qwen35.ssm.time_step_rank": 6,
        "qwen35.ssm.inner_size": 96,
        "qwen35.full_attention_interval": 4,
        "qwen35.attention.recurrent_layers": pytest.approx([True, True, True, False]),
        "qwen35.attention.key_length": 32,
        "qwen35.rope.dimension_count": 8,
        "qwen35.rope.dimension_sections": pytest.approx([11, 11, 10, 0]),
    },
    "gemma3": {
        "gemma3.attention.sliding_window": 64,
        "gemma3.attention.key_length": 32,
        "gemma3.rope.freq_base": 1e6,
        "tokenizer.ggml.add_space_prefix": False,
    },
    "granite": {
        "granite.attention.scale": pytest.approx(0.2),
        "granite.embedding_scale": 12.0,
        "granite.residual_scale": pytest.approx(0.3),
        "granite.logit_scale": 8.0,
        "granite.rope.dimension_count": 16,
    },
    "smollm3": {"smollm3.rope.freq_base": 2e6, "smollm3.rope.dimension_count": 16},
    "seed-oss": {"seed_oss.attention.key_length": 32, "seed_oss.attention.head_count_kv": 2},
    "apertus": {"apertus.rope.dimension_count": 16, "apertus.attention.head_count": 3},
    "ernie4-5": {"ernie4_5.attention.value_length": 32, "ernie4_5.rope.freq_base": 5e5},
    "hunyuan-dense": {"hunyuan-dense.attention.key_length": 32},
    "phi3": {"phi3.rope.dimension_count": 12, "phi3.attention.sliding_window": 64},
    "phi4-longrope": {
        "phi3.attention.sliding_window": 0,
        "phi3.rope.scaling.original_context_length": 128,
        "phi3.rope.scaling.attn_factor": pytest.approx((1 + np.log(4) / np.log(128)) ** 0.5),
    },
    "phi2": {"phi2.rope.dimension_count": 8, "phi2.attention.layer_norm_epsilon": pytest.approx(1e-5)},
    "gemma": {"gemma.attention.key_length": 32, "gemma.attention.layer_norm_rms_epsilon": pytest.approx(1e-5)},
    "gemma2": {
        "gemma2.attn_logit_softcapping": 50.0,
        "gemma2.final_logit_softcapping": 30.0,
        "gemma2.attention.sliding_window": 64,
    },
    "stablelm": {"stablelm.use_parallel_residual": False, "stablelm.rope.dimension_count": 4},
    "stablelm-12b": {"stablelm.use_parallel_residual": True},
    "olmo": {"olmo.attention.clamp_kqv": 1.5, "olmo.attention.layer_norm_epsilon": pytest.approx(1e-5)},
    "olmo2": {"olmo2.attention.layer_norm_rms_epsilon": pytest.approx(1e-5)},
    "olmo3": {
        "olmo2.attention.sliding_window": 64,
        "olmo2.attention.sliding_window_pattern": pytest.approx([True, True, True, False, True]),
        "olmo2.rope.scaling.type": "yarn",
    },
    "exaone4": {
        "exaone4.attention.sliding_window": 64,
        "exaone4.attention.sliding_window_pattern": pytest.approx([True, True, True, False, True]),
    },
    "nemotron": {"nemotron.rope.dimension_count": 8, "nemotron.attention.layer_norm_epsilon": pytest.approx(1e-5)},
    "starcoder2": {"starcoder2.attention.layer_norm_epsilon": pytest.approx(1e-5)},
    "cohere": {"command-r.logit_scale": 0.25, "command-r.rope.scaling.type": "none"},
    "cohere2": {"cohere2.logit_scale": 0.25, "cohere2.attention.sliding_window": 64},
    "glm": {"chatglm.rope.dimension_count": 8, "chatglm.attention.head_count_kv": 2},
    "glm4": {"glm4.rope.dimension_count": 8},
    "gpt2": {"gpt2.context_length": 512, "gpt2.embedding_length": 64, "gpt2.feed_forward_length": 128},
    "starcoder": {"starcoder.attention.head_count_kv": 1},
    "gptj": {"gptj.rope.dimension_count": 8},
    "gptneox": {"gptneox.use_parallel_residual": True, "gptneox.rope.dimension_count": 4},
    "falcon": {"falcon.attention.head_count_kv": 1, "falcon.tensor_data_layout": "jploski"},
    "falcon-40b": {"falcon.attention.head_count_kv": 2, "falcon.feed_forward_length": 256},
    "mpt": {"mpt.attention.max_alibi_bias": 8.0, "mpt.attention.clamp_kqv": 2.0},
    "bloom": {"bloom.context_length": 512, "bloom.feed_forward_length": 192},
}


@pytest.mark.parametrize("family", KEYS)
def test_keys(family: str, checkpoint: Callable[[str], Path]) -> None:
    metadata = plan_conversion(checkpoint(family)).model.metadata
    found = {key: metadata[key].data for key in KEYS[family]}
    assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()} == KEYS[family]


def test_llama3_divisors(checkpoint: Callable[[str], Path]) -> None:
    """The plain frequencies divided by rope_freqs equal those that transformers computes."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = checkpoint("llama3-rope")
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(folder), None)
    tensors = {tensor.name: tensor for tensor in plan_conversion(folder).model.tensors}
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / tensors["rope_freqs.weight"].data().view(np.float32)[0], wanted, rtol=1e-6)
