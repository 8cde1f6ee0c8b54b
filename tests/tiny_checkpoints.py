"""Tiny random Hugging Face checkpoints, one a family: transformers' own models, every parameter random.

Nothing is downloaded. Norm weights and biases are random too: at their initial ones and zeros, mistakes would not show.
"""

from pathlib import Path
from typing import Any

from tests.tiny_gemma import GEMMA, NEWER
from tests.tiny_recurrent import RECURRENT
from tests.tiny_tokenizers import TOKENIZERS

COMMON: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def rope(type: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": type, "rope_theta": 10000.0, **values}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=128)
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)

GPT_OSS_ROPE = rope(
    "yarn", factor=8.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=1.0, truncate=False
)

EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
DEEPSEEK_ROUTING: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}

LINEAR = ("qwen3next", "qwen35", "qwen35moe")
"""Families with gated delta nets; tests of their tensors are in tests/quant/convert/test_linear_attention.py."""

LINEAR_ATTENTION: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

# Three heads, of which a key has 24 dimensions without and 8 with positions; a value has 20.
LATENT_HEADS: dict[str, Any] = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 56,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}
DEEPSEEK_YARN = rope(
    "yarn", factor=8.0, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=0.707, beta_slow=1.0
)

# The families with experts; rows as in FAMILIES.
MIXTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2moe": (
        "Qwen2MoeForCausalLM",
        "qwen2",
        EXPERTS | {"shared_expert_intermediate_size": 40, "num_attention_heads": 8, "num_key_value_heads": 2},
    ),
    "qwen3moe": ("Qwen3MoeForCausalLM", "qwen2", EXPERTS | {"norm_topk_prob": True, "head_dim": 32}),
    "mixtral": (
        "MixtralForCausalLM",
        "llama3",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48, "sliding_window": 64},
    ),
    "olmoe": ("OlmoeForCausalLM", "llama3", {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 48}),
    "granitemoe": (
        "GraniteMoeSharedForCausalLM",
        "llama3",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 48,
            "shared_intermediate_size": 40,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 5.0,
            "tie_word_embeddings": True,
        },
    ),
    "glm4moe": (
        "Glm4MoeForCausalLM",
        "qwen2",
        DEEPSEEK_ROUTING | {"attention_bias": True, "use_qk_norm": True, "head_dim": 24},
    ),
    "dots1": ("Dots1ForCausalLM", "qwen2", DEEPSEEK_ROUTING | {"head_dim": 32}),
    "deepseek2": (
        "DeepseekV2ForCausalLM",
        "qwen2",
        LATENT_HEADS
        | {"q_lora_rank": None, "num_experts_per_tok": 3, "moe_intermediate_size": 48, **DEEPSEEK_YARN}
        | {"n_routed_experts": 8, "n_shared_experts": 2, "routed_scaling_factor": 1.5, "first_k_dense_replace": 1},
    ),
    "deepseek3": ("DeepseekV3ForCausalLM", "llama3", LATENT_HEADS | DEEPSEEK_ROUTING | {"q_lora_rank": 40}),
    "glm4-moe-lite": (
        "Glm4MoeLiteForCausalLM",
        "llama3",
        LATENT_HEADS
        | {key: value for key, value in DEEPSEEK_ROUTING.items() if key != "first_k_dense_replace"}
        | {"q_lora_rank": 40, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "phimoe": (
        "PhimoeForCausalLM",
        "spm-json",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48, "attention_bias": True}
        | {"lm_head_bias": True, "sliding_window": 64},
    ),
    "llama4": (
        "Llama4ForCausalLM",
        "llama3",
        {
            "num_local_experts": 4,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "num_hidden_layers": 5,
            "interleave_moe_layer_step": 2,
            "head_dim": 32,
            "attention_chunk_size": 70,
            "attn_scale": 0.3,
            "floor_scale": 50,
        },
    ),
    "ernie4_5-moe": (
        "Ernie4_5_MoeForCausalLM",
        "spm-json",
        {
            "moe_num_experts": 6,
            "moe_k": 2,
            "moe_intermediate_size": 48,
            "moe_layer_start_index": 1,
            "moe_layer_interval": 2,
            "moe_layer_end_index": 3,
            "num_hidden_layers": 4,
        },
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "llama3",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "sliding_window": 64,
            **GPT_OSS_ROPE,
        },
    ),
    "qwen3next": (
        "Qwen3NextForCausalLM",
        "qwen2",
        LINEAR_ATTENTION | EXPERTS | {"shared_expert_intermediate_size": 40},
    ),
    "qwen35moe": (
        "Qwen3_5MoeForCausalLM",
        "qwen2",
        LINEAR_ATTENTION | EXPERTS | {"shared_expert_intermediate_size": 40, "tie_word_embeddings": True},
    ),
}

# Three heads, of which one or two are read by all: numbers that are no powers of two.
ODD_HEADS: dict[str, Any] = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
FULL_ODD_HEADS = {"hidden_size": 48, "num_attention_heads": 3}
_PHI3_ROPE = rope("default", partial_rotary_factor=0.75)
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 128,
    **rope(
        "longrope",
        partial_rotary_factor=0.75,
        short_factor=[1.0, 1.01, 1.02, 1.1, 1.2, 1.3],
        long_factor=[1.0, 1.5, 2.0, 4.0, 8.0, 9.0],
        original_max_position_embeddings=128,
    ),
}

# family: transformers' model class, tokenizer, config beyond COMMON
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama3", {}),
    "llama3-rope": ("LlamaForCausalLM", "llama3", {"tie_word_embeddings": True, **LLAMA3}),
    "llama-linear": ("LlamaForCausalLM", "spm", rope("linear", factor=4.0)),
    "llama-yarn": ("LlamaForCausalLM", "llama3", YARN),
    "mistral": ("MistralForCausalLM", "spm", {"sliding_window": 64}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2ForCausalLM", "qwen2", YARN),
    "qwen3": ("Qwen3ForCausalLM", "qwen2", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma3": (
        "Gemma3ForCausalLM",
        "gemma",
        {"num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64},
    ),
    "ministral": (
        "MinistralForCausalLM",
        "qwen2",
        {
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "head_dim": 32,
        },
    ),
    "ministral3": (
        "Ministral3ForCausalLM",
        "qwen2",
        {
            "head_dim": 32,
            **rope(
                "yarn",
                factor=16.0,
                original_max_position_embeddings=64,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.2,
            ),
        },
    ),
    "arcee": ("ArceeForCausalLM", "llama3", {**ODD_HEADS, "head_dim": 16, **YARN}),
    "granite": (
        "GraniteForCausalLM",
        "qwen2",
        {
            **ODD_HEADS,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.3,
            "logits_scaling": 8.0,
        },
    ),
    "smollm3": ("SmolLM3ForCausalLM", "llama3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "seed-oss": ("SeedOssForCausalLM", "qwen2", {"head_dim": 32, "residual_dropout": 0.0}),
    "apertus": ("ApertusForCausalLM", "qwen2", {**ODD_HEADS, **LLAMA3}),
    "ernie4-5": ("Ernie4_5ForCausalLM", "qwen2", {"head_dim": 32}),
    "hunyuan-dense": ("HunYuanDenseV1ForCausalLM", "qwen2", {"head_dim": 32}),
    "phi3": ("Phi3ForCausalLM", "qwen2", {**ODD_HEADS, "sliding_window": 64, **_PHI3_ROPE}),
    "phi4-longrope": ("Phi3ForCausalLM", "qwen2", {"tie_word_embeddings": True, **LONGROPE}),
    "phi2": ("PhiForCausalLM", "qwen2", {"num_key_value_heads": 4}),
    "gemma": ("GemmaForCausalLM", "gemma", {"head_dim": 32}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "gemma",
        {"num_hidden_layers": 5, "head_dim": 32, "query_pre_attn_scalar": 20, "sliding_window": 64},
    ),
    "stablelm": ("StableLmForCausalLM", "qwen2", {"use_qkv_bias": True}),
    "stablelm-12b": ("StableLmForCausalLM", "qwen2", {"use_parallel_residual": True, "qk_layernorm": True}),
    "olmo": ("OlmoForCausalLM", "qwen2", {**ODD_HEADS, "clip_qkv": 1.5}),
    "olmo2": ("Olmo2ForCausalLM", "qwen2", ODD_HEADS),
    "olmo3": (
        "Olmo3ForCausalLM",
        "qwen2",
        {
            "num_hidden_layers": 5,
            "sliding_window": 64,
            "rope_parameters": {
                "full_attention": YARN["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "exaone4": ("Exaone4ForCausalLM", "qwen2", {"num_hidden_layers": 5, "head_dim": 32, "sliding_window": 64}),
    "nemotron": ("NemotronForCausalLM", "qwen2", {"norm_eps": 1e-5}),
    "starcoder2": ("Starcoder2ForCausalLM", "qwen2", {"sliding_window": 64}),
    "cohere": ("CohereForCausalLM", "qwen2", {"use_qk_norm": True, "logit_scale": 0.25}),
    "cohere2": ("Cohere2ForCausalLM", "qwen2", {"num_hidden_layers": 5, "sliding_window": 64, "logit_scale": 0.25}),
    "glm": ("GlmForCausalLM", "qwen2", {"head_dim": 16}),
    "glm4": ("Glm4ForCausalLM", "qwen2", {"head_dim": 16}),
    "gpt2": ("GPT2LMHeadModel", "qwen2", {"n_inner": 128}),
    "starcoder": ("GPTBigCodeForCausalLM", "qwen2", {"n_inner": 128}),
    "gptj": ("GPTJForCausalLM", "qwen2", {"n_inner": 128, "rotary_dim": 8}),
    "gptneox": ("GPTNeoXForCausalLM", "qwen2", FULL_ODD_HEADS),
    "falcon": ("FalconForCausalLM", "qwen2", {"max_position_embeddings": 512}),
    "falcon-40b": ("FalconForCausalLM", "qwen2", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "FalconForCausalLM",
        "qwen2",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "mpt": ("MptForCausalLM", "qwen2", {**FULL_ODD_HEADS, "max_seq_len": 512, "attn_config": {"clip_qkv": 2.0}}),
    "bloom": ("BloomForCausalLM", "qwen2", {**FULL_ODD_HEADS, "seq_length": 512}),
    "qwen35": ("Qwen3_5ForCausalLM", "qwen2", LINEAR_ATTENTION),
    **MIXTURES,
    **GEMMA,
    **NEWER,
    **RECURRENT,
}


def make_checkpoint(
    family: str, folder: Path, *, tokenizer: str | None = None, dtype: str = "float32", seed: int = 0, **overrides: Any
) -> Path:
    """Writes a checkpoint of `family` (a key of FAMILIES) in `folder` and returns it.

    `overrides` are config values as transformers' config class takes them; `tokenizer` is a key of TOKENIZERS.
    """
    import torch
    import transformers

    model_class, default_tokenizer, settings = FAMILIES[family]
    special = TOKENIZERS[tokenizer or default_tokenizer](folder)
    cls = getattr(transformers, model_class)
    defaults = cls.config_class()  # knows which of the common keys its models have
    common = {key: value for key, value in COMMON.items() if hasattr(defaults, key)}
    config = cls.config_class(**(common | settings | special | overrides))
    torch.manual_seed(seed)
    model = cls(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.0 if adds_one(family) else 1.0))
            elif name.endswith("scale"):
                parameter.copy_(torch.randn_like(parameter) * 0.2 + 1)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            elif name.endswith("A_log"):  # so that some states last for many tokens
                parameter.copy_(torch.randn_like(parameter) * 1.5 - 2)
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.3 / parameter.shape[-1] ** 0.5)
        if family in GEMMA:  # scores are not scaled: larger queries would make a maximum of the softmax
            for name, parameter in model.named_parameters():
                if name.endswith("q_norm.weight"):
                    parameter.mul_(0.3)
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):
                buffer.copy_(torch.randn_like(buffer) * 0.2)
            elif name.endswith("layer_scalar"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def adds_one(family: str) -> bool:
    """Whether the model multiplies by 1 + the weight of a norm."""
    return family.startswith(("gemma", "nemotron", *LINEAR)) and not family.startswith(("gemma3n", "gemma4"))
