"""Rows of tests/tiny_checkpoints.py for Gemma 3n and Gemma 4, and for mixtures that came with them."""

from typing import Any

# Three sliding layers and a full one, then three layers that share the keys of the third and the fourth.
_LAYERS: dict[str, Any] = {
    "num_hidden_layers": 7,
    "layer_types": [
        *(["sliding_attention"] * 3),
        "full_attention",
        *(["sliding_attention"] * 2),
        "full_attention",
    ],
    "num_kv_shared_layers": 3,
    "sliding_window": 64,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 384,
    "final_logit_softcapping": 30.0,
}

GEMMA: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3n": (
        "Gemma3nForCausalLM",
        "gemma",
        _LAYERS
        | {
            "altup_num_inputs": 3,
            "laurel_rank": 6,
            "activation_sparsity_pattern": [0.95, 0.7, 0.0, 0.3, 0.0, 0.0, 0.0],
        },
    ),
    "gemma4": ("Gemma4ForCausalLM", "gemma", _LAYERS | {"global_head_dim": 40, "use_double_wide_mlp": True}),
    "gemma4-moe": (
        "Gemma4ForCausalLM",
        "gemma",
        _LAYERS
        | {
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "num_global_key_value_heads": 2,
            "global_head_dim": 40,
            "attention_k_eq_v": True,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 40,
        },
    ),
}

_ROUTED: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 48}

NEWER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minimax-m2": (
        "MiniMaxM2ForCausalLM",
        "qwen2",
        _ROUTED
        | {"num_local_experts": 8, "num_experts_per_tok": 3}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "hunyuan-moe": ("HunYuanMoEV1ForCausalLM", "qwen2", _ROUTED | {"num_experts": 8, "moe_topk": 3}),
    "solar-open": (
        "SolarOpenForCausalLM",
        "qwen2",
        {"head_dim": 24, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
        | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5},
    ),
    "helium": ("HeliumForCausalLM", "llama3", {"head_dim": 16}),
    "cwm": (
        "CwmForCausalLM",
        "llama3",
        {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
}
