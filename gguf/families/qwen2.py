"""Qwen 2 and 2.5: Llama's blocks with biases on q, k and v, and a sliding window for some of the layers."""

from typing import Any

import numpy as np

from lltool.gguf.families import llama
from lltool.gguf.families.config import Config
from lltool.gguf.families.family import Family, Keys, Row, describe_sizes, restore_sizes
from lltool.gguf.families.rope import describe_rope, read_rope, restore_rope
from lltool.gguf.families.stored import Stored
from lltool.gguf.metadata import ValueType, array, u32

ROPE_TYPES = ("default", "linear", "yarn")


# Llama's rows without its pairs: this architecture rotates i and i + half in GGUF files too.
BIASES = ("blk.{}.attn_q.bias", "blk.{}.attn_k.bias", "blk.{}.attn_v.bias")
ROWS = tuple(Row(row.gguf, row.checkpoint) for row in llama.ROWS if row.gguf.endswith("weight") or row.gguf in BIASES)


def describe(config: Config) -> Keys:
    config.expect("hidden_act", "silu")
    config.expect("use_mrope", False)
    return describe_sizes(config) | describe_rope(config, read_rope(config, ROPE_TYPES)) | describe_windows(config)


def describe_windows(config: Config) -> Keys:
    """A window in the layers from max_window_layers on, or in those that layer_types names."""
    layers, window = config.integer("num_hidden_layers"), config.get("sliding_window")
    first = config.get("max_window_layers", 28)
    slides = config.sliding_layers(layers)
    if not config.get("use_sliding_window", False):
        window = None
    if slides is None:
        config.require("max_window_layers", type(first) is int, "an integer")
        slides = [layer >= first for layer in range(layers)]
    if not any(slides) or window is None:
        return {}
    keys = {"attention.sliding_window": u32(config.integer("sliding_window"))}
    if not all(slides):
        keys["attention.sliding_window_pattern"] = array(ValueType.BOOL, np.array(slides))
    return keys


def restore(stored: Stored) -> dict[str, Any]:
    config = restore_sizes(stored)
    config |= restore_windows(stored, config["num_hidden_layers"]) | restore_rope(stored) | {"hidden_act": "silu"}
    return config | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def restore_windows(stored: Stored, layers: int) -> dict[str, Any]:
    if not stored.keys.get("attention.sliding_window"):
        return {"use_sliding_window": False}
    window = stored.integer("attention.sliding_window")
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": stored.layer_types(layers)}


QWEN2 = Family(
    architecture="qwen2",
    models=("Qwen2ForCausalLM",),
    rows=ROWS,
    defaults={
        **llama.SIZES_7B,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    describe=describe,
    restore=restore,
)
