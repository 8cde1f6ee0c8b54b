"""GGUF keys for config.json of published models, abridged to the keys that matter; none of them is unknown."""

from typing import Any

import pytest

from lltool.gguf.errors import InputError
from lltool.quant.convert.families.registry import find_family

LLAMA3_SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

# name: (config.json, some of the expected keys)
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama 2 7B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        {"rope.freq_base": 10000.0, "attention.head_count_kv": 32, "context_length": 4096},
    ),
    "Llama 3.2 1B": (
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_scaling": LLAMA3_SCALING,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        },
        {"rope.freq_base": 500000.0, "rope.dimension_count": 64, "attention.head_count_kv": 8},
    ),
    "SmolLM2 135M": (
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pad_token_id": 2,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        },
        {"rope.freq_base": 100000.0, "block_count": 30, "attention.head_count_kv": 3, "rope.dimension_count": 64},
    ),
    "Mistral Nemo": (
        {
            "architectures": ["MistralForCausalLM"],
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 5120,
            "intermediate_size": 14336,
            "max_position_embeddings": 1024000,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
        },
        {"attention.key_length": 128, "attention.value_length": 128, "context_length": 1024000},
    ),
    "Mistral 7B v0.1": (
        {
            "architectures": ["MistralForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
        {"attention.sliding_window": 4096},
    ),
    "Qwen2.5 7B": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_position_embeddings": 131072,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "use_mrope": False,
            "use_sliding_window": False,
        },
        {"attention.head_count": 28, "attention.head_count_kv": 4},
    ),
    "Qwen3 0.6B": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        {"attention.key_length": 128, "rope.freq_base": 1000000.0},
    ),
    "Gemma 3 4B": (  # missing keys have the config class's defaults
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "eos_token_id": [1, 106],
            "image_token_index": 262144,
            "mm_tokens_per_image": 256,
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 1152},
        },
        {
            "attention.head_count": 8,
            "attention.head_count_kv": 4,
            "attention.key_length": 256,
            "attention.sliding_window": 1024,
            "rope.freq_base": 1000000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "context_length": 131072,
        },
    ),
    "Gemma 3 27B": (
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {
                "head_dim": 128,
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_attention_heads": 32,
                "num_hidden_layers": 62,
                "num_key_value_heads": 16,
                "query_pre_attn_scalar": 168,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        },
        {"attention.key_length": 128, "attention.scale": pytest.approx(168**-0.5), "block_count": 62},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_of_published_models(name: str) -> None:
    values, wanted = CONFIGS[name]
    family, config = find_family(values, "config.json")
    keys = family.describe(config)
    assert {key: keys[key].data for key in wanted} == wanted
    assert config.unknown() == []
    assert ("attention.sliding_window" in keys) == ("Gemma" in name or "v0.1" in name)
    assert "attention.sliding_window_pattern" not in keys
    assert ("rope_freqs.weight" in config.constants) == (values.get("rope_scaling") == LLAMA3_SCALING)


def test_longrope_scaling_is_refused() -> None:
    for type in ("longrope", "su"):
        values = CONFIGS["Llama 2 7B"][0] | {"rope_scaling": {"type": type, "factor": 2.0}}
        family, config = find_family(values, "config.json")
        with pytest.raises(InputError, match=f"rope scaling '{type}' is not supported"):
            family.describe(config)


def test_dynamic_scaling_has_no_effect_up_to_the_trained_length() -> None:
    values = CONFIGS["Llama 2 7B"][0] | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    family, config = find_family(values, "config.json")
    plain_family, plain = find_family(CONFIGS["Llama 2 7B"][0], "config.json")
    assert family.describe(config) == plain_family.describe(plain)
    assert config.notes == [
        "dynamic rope scaling is left out: it changes nothing up to 4096 tokens, "
        "which is the context length of the file"
    ]
