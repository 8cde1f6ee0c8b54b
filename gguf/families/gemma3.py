"""Gemma 3, text: norms after the sublayers too, heads normed, five of six layers with a sliding window."""

import math
from typing import Any

import numpy as np

from lltool.gguf.families.config import Config
from lltool.gguf.families.family import Family, Keys, Row, describe_sizes, restore_sizes
from lltool.gguf.families.rope import describe_rope, read_rope, restore_rope
from lltool.gguf.families.stored import Stored
from lltool.gguf.metadata import ValueType, array, f32, u32

_PERIOD = 6  # the layers that see all, in files that do not say
_LOCAL_BASE = 10000.0

ROWS = (
    Row("token_embd.weight", "model.embed_tokens.weight"),
    Row("blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight", "plus one"),
    Row("blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight"),
    Row("blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight"),
    Row("blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight"),
    Row("blk.{}.attn_q_norm.weight", "model.layers.{}.self_attn.q_norm.weight", "plus one"),
    Row("blk.{}.attn_k_norm.weight", "model.layers.{}.self_attn.k_norm.weight", "plus one"),
    Row("blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight"),
    Row("blk.{}.post_attention_norm.weight", "model.layers.{}.post_attention_layernorm.weight", "plus one"),
    Row("blk.{}.ffn_norm.weight", "model.layers.{}.pre_feedforward_layernorm.weight", "plus one"),
    Row("blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight"),
    Row("blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight"),
    Row("blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight"),
    Row("blk.{}.post_ffw_norm.weight", "model.layers.{}.post_feedforward_layernorm.weight", "plus one"),
    Row("output_norm.weight", "model.norm.weight", "plus one"),
    Row("output.weight", "lm_head.weight"),
)


def describe(config: Config) -> Keys:
    config.expect("hidden_activation", "gelu_pytorch_tanh")
    config.expect("hidden_act", "gelu_pytorch_tanh")
    config.expect("attention_bias", False)
    config.expect("use_bidirectional_attention", False)
    config.expect("attn_logit_softcapping")
    keys = describe_sizes(config)
    head_dim, scaled_dim = config.values["head_dim"], config.number("query_pre_attn_scalar")
    keys |= {"attention.key_length": u32(head_dim), "attention.value_length": u32(head_dim)}
    if scaled_dim != head_dim:
        keys["attention.scale"] = f32(1 / math.sqrt(scaled_dim))
    if config.get("final_logit_softcapping"):
        keys["final_logit_softcapping"] = f32(config.number("final_logit_softcapping"))
    keys |= describe_rope(config, read_rope(config, ("default", "linear")))
    local = read_rope(config, ("default",), "sliding_attention")["rope_theta"]
    if local != _LOCAL_BASE:
        keys["rope.freq_base_swa"] = f32(local)
    return keys | _describe_windows(config)


def _describe_windows(config: Config) -> Keys:
    layers = config.integer("num_hidden_layers")
    period = config.integer("sliding_window_pattern", config.get("_sliding_window_pattern", _PERIOD))
    slides = config.sliding_layers(layers) or [(layer + 1) % period != 0 for layer in range(layers)]
    keys = {"attention.sliding_window": u32(config.integer("sliding_window"))}
    if slides != [(layer + 1) % _PERIOD != 0 for layer in range(layers)]:
        keys["attention.sliding_window_pattern"] = array(ValueType.BOOL, np.array(slides))
    return keys


def restore(stored: Stored) -> dict[str, Any]:
    config = restore_sizes(stored) | {"hidden_activation": "gelu_pytorch_tanh"}
    layers = config["num_hidden_layers"]
    # Gemma 3 27B (62 layers) scales by width a head, without a key that says so.
    scaled_dim = config["hidden_size"] / config["num_attention_heads"] if layers == 62 else config["head_dim"]
    if "attention.scale" in stored.keys:
        scale = stored.number("attention.scale")
        stored.require("attention.scale", scale <= 1, "at most 1")
        scaled_dim = scale**-2
    capping = "final_logit_softcapping"
    return config | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": round(scaled_dim),
        "sliding_window": stored.integer("attention.sliding_window"),
        "layer_types": stored.layer_types(layers, _PERIOD),
        **restore_rope(stored),
        "rope_local_base_freq": stored.number("rope.freq_base_swa", _LOCAL_BASE),
        capping: stored.number(capping) if stored.keys.get(capping) else None,
        "attn_logit_softcapping": None,
    }


GEMMA3 = Family(
    architecture="gemma3",
    models=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    rows=ROWS,
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    describe=describe,
    restore=restore,
    prefixes={
        "language_model.model.": "model.",
        "model.language_model.": "model.",
        "language_model.lm_head.": "lm_head.",
    },
    ignored=("rotary_emb.inv_freq", "vision_tower.", "multi_modal_projector."),
)
