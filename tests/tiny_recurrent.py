"""Rows of tests/tiny_checkpoints.py for the families with convolutions or scans."""

from typing import Any

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
}
