"""Llama 1 to 3, and what computes the same: Mistral, Yi, SmolLM."""

from typing import Any

from lltool.gguf.families.config import Config
from lltool.gguf.families.family import Family, Keys, Row, describe_sizes, restore_sizes
from lltool.gguf.families.rope import ROPE_TYPES, describe_rope, read_rope, restore_rope
from lltool.gguf.families.stored import Stored
from lltool.gguf.metadata import u32

ROWS = (
    Row("token_embd.weight", "model.embed_tokens.weight"),
    Row("blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight"),
    Row("blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight", "query pairs"),
    Row("blk.{}.attn_q.bias", "model.layers.{}.self_attn.q_proj.bias", "query pairs", optional=True),
    Row("blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight", "key pairs"),
    Row("blk.{}.attn_k.bias", "model.layers.{}.self_attn.k_proj.bias", "key pairs", optional=True),
    Row("blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight"),
    Row("blk.{}.attn_v.bias", "model.layers.{}.self_attn.v_proj.bias", optional=True),
    Row("blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight"),
    Row("blk.{}.attn_output.bias", "model.layers.{}.self_attn.o_proj.bias", optional=True),
    Row("blk.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight"),
    Row("blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight"),
    Row("blk.{}.ffn_gate.bias", "model.layers.{}.mlp.gate_proj.bias", optional=True),
    Row("blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight"),
    Row("blk.{}.ffn_up.bias", "model.layers.{}.mlp.up_proj.bias", optional=True),
    Row("blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight"),
    Row("blk.{}.ffn_down.bias", "model.layers.{}.mlp.down_proj.bias", optional=True),
    Row("output_norm.weight", "model.norm.weight"),
    Row("output.weight", "lm_head.weight"),
)


def describe(config: Config) -> Keys:
    config.expect("hidden_act", "silu")
    keys = describe_sizes(config)
    keys |= describe_rope(config, read_rope(config, ROPE_TYPES))
    keys["rope.dimension_count"] = u32(config.values["head_dim"])
    # The tensors tell whether there are biases.
    config.expect("attention_bias", True, False)
    config.expect("mlp_bias", True, False)
    window = config.get("sliding_window")
    if window is not None:
        config.expect("architectures", ["MistralForCausalLM"])
        keys["attention.sliding_window"] = u32(config.integer("sliding_window"))
    return keys


def restore(stored: Stored) -> dict[str, Any]:
    config = restore_sizes(stored) | {"hidden_act": "silu"}
    config |= restore_rope(stored)
    if stored.keys.get("attention.sliding_window"):
        window = stored.integer("attention.sliding_window")
        return config | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    config["attention_bias"] = "blk.0.attn_q.bias" in stored.names
    config["mlp_bias"] = "blk.0.ffn_up.bias" in stored.names
    return config | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


SIZES_7B = {"num_attention_heads": 32, "num_hidden_layers": 32, "hidden_size": 4096, "rms_norm_eps": 1e-6}

LLAMA = Family(
    architecture="llama",
    models=("LlamaForCausalLM", "LLaMAForCausalLM"),
    rows=ROWS,
    defaults={**SIZES_7B, "intermediate_size": 11008, "max_position_embeddings": 2048, "tie_word_embeddings": False},
    describe=describe,
    restore=restore,
)

MISTRAL = Family(
    architecture="llama",
    models=("MistralForCausalLM",),
    rows=ROWS,
    defaults={
        **SIZES_7B,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    describe=describe,
    restore=restore,
)
