"""The config.json of published mixtures of experts and of models that read images, as far as the text model goes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lltool.gguf.errors import InputError
from lltool.quant.convert.conversion import plan_conversion
from lltool.quant.convert.families.registry import find_family
from tests.tiny_checkpoints import make_checkpoint

_DEEPSEEK_YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {**_DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "q_lora_rank": None,
    "rope_scaling": {**_DEEPSEEK_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "vocab_size": 102400,
}
_KIMI = {
    "model_type": "kimi_k2",
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**_DEEPSEEK_YARN, "beta_fast": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "vocab_size": 163840,
}
_SCOUT_ROPE = {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0, "rope_type": "llama3"}
_SCOUT: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "boi_token_index": 200080,
    "text_config": {
        "attention_bias": False,
        "attention_chunk_size": 8192,
        "for_llm_compressor": False,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "model_type": "llama4_text",
        "no_rope_layers": [],
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**_SCOUT_ROPE, "original_max_position_embeddings": 8192},
        "rope_theta": 500000.0,
        "use_qk_norm": True,
        "vocab_size": 202048,
    },
    "vision_config": {"hidden_size": 1408},
}
_MINISTRAL: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 262144,
        "model_type": "ministral3",
        "num_attention_heads": 32,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "rope_parameters": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 16.0,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16384,
            "rope_theta": 1000000.0,
            "rope_type": "yarn",
        },
        "sliding_window": None,
        "vocab_size": 131072,
    },
    "vision_config": {"model_type": "pixtral"},
}
_SMALL: dict[str, Any] = {
    **_MINISTRAL,
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "vocab_size": 131072,
    },
}

CONFIGS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "DeepSeek V3": (
        _V3,
        "deepseek2",
        {
            "attention.key_length": 576,
            "attention.key_length_mla": 192,
            "attention.q_lora_rank": 1536,
            "rope.scaling.yarn_log_multiplier": pytest.approx(0.1),
            "rope.scaling.yarn_beta_fast": 32.0,
            "expert_group_used_count": 4,
            "expert_gating_func": 2,
        },
    ),
    "DeepSeek V2 Lite": (
        {**{key: value for key, value in _V3.items() if key != "num_nextn_predict_layers"}, **_LITE},
        "deepseek2",
        {"rope.scaling.yarn_log_multiplier": pytest.approx(0.0707), "leading_dense_block_count": 1},
    ),
    "Kimi K2": ({**_V3, **_KIMI}, "deepseek2", {"expert_count": 384, "attention.head_count": 64}),
    "Llama 4 Scout": (_SCOUT, "llama4", {"expert_feed_forward_length": 8192, "feed_forward_length": 16384}),
    "Ministral 3 8B": (
        _MINISTRAL,
        "mistral3",
        {"attention.temperature_scale": pytest.approx(0.1), "rope.scaling.yarn_log_multiplier": 1.0},
    ),
    "Mistral Small 3.1": (_SMALL, "llama", {"attention.key_length": 128, "block_count": 40}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_of_published_models(name: str) -> None:
    values, architecture, wanted = CONFIGS[name]
    family, config = find_family(values, "config.json")
    assert family.architecture == architecture
    keys = family.describe(config)
    assert {key: keys[key].data for key in wanted} == wanted
    assert config.unknown() == []
    assert config.notes == []
    assert "rope.scaling.attn_factor" not in keys


def test_llama_4_stretches_slow_pairs_alone() -> None:
    """Its two factors are equal: pairs that turn at least once in 8192 positions are as they are, others 16 times."""
    family, config = find_family(_SCOUT, "config.json")
    family.describe(config)
    turns = 8192 * 500000.0 ** (-np.arange(0, 128, 2) / 128) / (2 * np.pi)
    np.testing.assert_allclose(config.constants["rope_freqs.weight"], np.where(turns >= 1, 1, 16))


@pytest.mark.parametrize("family", ["ministral3", "mistral"])
def test_the_text_model_of_one_that_reads_images(family: str, tmp_path: Path) -> None:
    """Its tensors have a prefix, and the kind of the text model decides which of the two it is."""
    text, folder = make_checkpoint(family, tmp_path / "text"), tmp_path / "images"
    folder.mkdir()
    for file in text.iterdir():
        if "token" in file.name:
            (folder / file.name).symlink_to(file)
    tensors = load_file(text / "model.safetensors")
    renamed = {"language_model." + name: values for name, values in tensors.items()}
    save_file(renamed | {"vision_tower.ln_pre.weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    inner = json.loads((text / "config.json").read_text())
    outer = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": inner}
    (folder / "config.json").write_text(json.dumps(outer))
    plain, found = plan_conversion(text).model, plan_conversion(folder)
    assert [t.name for t in found.model.tensors] == [t.name for t in plain.tensors]
    for key in ("general.architecture", f"{plain.metadata['general.architecture'].data}.attention.key_length"):
        assert found.model.metadata.get(key) == plain.metadata.get(key)
    assert found.notes == ["1 tensors are not weights of the text model and are left out"]


def test_glm_4_7_flash_has_the_shape_of_deepseek_v3(tmp_path: Path) -> None:
    """Its class in transformers takes over the attention and the routing, and lists the kinds of layers."""
    folder = make_checkpoint("deepseek3", tmp_path)
    plain = plan_conversion(folder).model
    config = json.loads((folder / "config.json").read_text())
    del config["first_k_dense_replace"]
    config |= {"architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite"}
    (folder / "config.json").write_text(json.dumps(config | {"mlp_layer_types": ["dense", "sparse", "sparse"]}))
    found = plan_conversion(folder)
    assert [(t.name, t.shape) for t in found.model.tensors] == [(t.name, t.shape) for t in plain.tensors]
    keys = {key for key in plain.metadata if key.startswith("deepseek2.")}
    assert {key: found.model.metadata[key] for key in keys} == {key: plain.metadata[key] for key in keys}
    (folder / "config.json").write_text(json.dumps(config | {"mlp_layer_types": ["dense", "sparse", "dense"]}))
    with pytest.raises(InputError, match=r"mlp_layer_types: found .*, wanted 3 items, dense before sparse"):
        plan_conversion(folder)
