"""Rows of tests/tiny_checkpoints.py for the families with convolutions or scans."""

from typing import Any

# The steps of a prompt are not bounded from below, as in the model's original code.
_NEMOTRON: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "mamba_num_heads": 6,
    "mamba_head_dim": 32,
    "ssm_state_size": 10,
    "n_groups": 2,
    "chunk_size": 32,
    "time_step_min": 1e-30,
    "layer_norm_epsilon": 1e-5,
}

# The families with convolutions or scans; rows as in FAMILIES.
RECURRENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lfm2": (
        "Lfm2ForCausalLM",
        "qwen2",
        {
            "num_hidden_layers": 5,
            "layer_types": ["conv", "full_attention", "conv", "conv", "full_attention"],
            "intermediate_size": 150,
            "block_multiple_of": 8,
            "norm_eps": 1e-5,
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        "qwen2",
        {"hidden_size": 40, "intermediate_size": 80, "state_size": 6, "conv_kernel": 3},
    ),
    "falcon-mamba": ("FalconMambaForCausalLM", "qwen2", {"hidden_size": 40, "intermediate_size": 80, "state_size": 6}),
    "mamba2": (
        "Mamba2ForCausalLM",
        "qwen2",
        {"hidden_size": 48, "num_heads": 6, "head_dim": 16, "state_size": 12, "n_groups": 2, "chunk_size": 32},
    ),
    "jamba": (
        "JambaForCausalLM",
        "llama3",
        {
            "hidden_size": 48,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "mamba_d_state": 6,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "intermediate_size": 40,
        },
    ),
    "falcon-h1": (
        "FalconH1ForCausalLM",
        "llama3",
        {"head_dim": 24, "mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_n_groups": 2, "mamba_d_state": 12},
    ),
    "granitehybrid": (
        "GraniteMoeHybridForCausalLM",
        "llama3",
        {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 48,
            "shared_intermediate_size": 40,
            "mamba_n_heads": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 12,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 5.0,
        },
    ),
    "lfm2moe": (
        "Lfm2MoeForCausalLM",
        "qwen2",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "norm_eps": 1e-5,
        },
    ),
    "nemotron-h": (
        "NemotronHForCausalLM",
        "llama3",
        {
            **_NEMOTRON,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
            "mlp_hidden_act": "relu2",
        },
    ),
    "nemotron-h-moe": (
        "NemotronHForCausalLM",
        "llama3",
        {
            **_NEMOTRON,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"],
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "moe_shared_expert_intermediate_size": 56,
            "routed_scaling_factor": 1.5,
        },
    ),
    "kimi-linear": (
        "KimiLinearForCausalLM",
        "llama3",
        {
            "hidden_size": 48,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "kv_lora_rank": 56,
            "q_lora_rank": None,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 8,
            "v_head_dim": 20,
            "linear_head_dim": 16,
            "linear_num_heads": 3,
            "layer_types": [*["linear_attention", "full_attention"] * 2, "linear_attention"],
            "mlp_layer_types": ["dense", *["sparse"] * 4],
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.5,
        },
    ),
}
