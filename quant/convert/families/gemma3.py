"""Gemma 3 (text): norms also after the sublayers and on heads, and a sliding window in five of six layers."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import ValueType, array, f32, u32
from lltool.quant.convert.families.changes import ADD_ONE
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.encoder_settings import NO_EXPORT, SentencePooling
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    GROUPED_QUERY,
    RMS_EPSILON,
    Expected,
    Fixed,
    HeadDim,
    Keys,
    Setting,
    Softcap,
)
from lltool.quant.convert.families.rope import Rope, read_rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

_LOCAL_BASE = 10000.0

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
NORMS = {name: ADD_ONE for name in NAMES if name.endswith("norm")}


@dataclass(frozen=True)
class Scale(Setting):
    """The attention scale, by the number of dimensions whose root divides the scores.

    Engines know one model by its number of layers: its default scale uses width / heads.
    """

    wide_layers: int

    def describe(self, config: Config) -> Keys:
        scaled_dim = config.number("query_pre_attn_scalar", None, *SCALES)
        if scaled_dim != config.values["head_dim"] or config.values["num_hidden_layers"] == self.wide_layers:
            return {"attention.scale": f32(1 / math.sqrt(scaled_dim))}
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        is_wide = config["num_hidden_layers"] == self.wide_layers
        scaled_dim = config["hidden_size"] / config["num_attention_heads"] if is_wide else config["head_dim"]
        if "attention.scale" in stored.keys:
            scale = stored.number("attention.scale")
            stored.require("attention.scale", scale <= 1, "at most 1")
            scaled_dim = scale**-2
        return {"query_pre_attn_scalar": round(scaled_dim)}


@dataclass(frozen=True)
class LocalRope(Setting):
    """The rotary base of layers with the sliding window, which is written unless it is `implied`."""

    implied: float | None = _LOCAL_BASE

    def describe(self, config: Config) -> Keys:
        local = read_rope(config, ("default",), "sliding_attention")["rope_theta"]
        return {} if local == self.implied else {"rope.freq_base_swa": f32(local)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"rope_local_base_freq": stored.number("rope.freq_base_swa", _LOCAL_BASE)}


class Activation(Setting):
    """The activation, which stands under one key; another in hidden_act has no effect."""

    def describe(self, config: Config) -> Keys:
        config.expect("hidden_activation", "gelu_pytorch_tanh")
        if config.get("hidden_act") != "gelu_pytorch_tanh":
            config.ignore("Gemma 3", "hidden_act")
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"hidden_activation": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class Windows(Setting):
    """The sliding window of all layers but every `period`th, or of those that layer_types names.

    The file states which they are if they are others, or `always`.
    """

    period: int
    always: bool = False

    def describe(self, config: Config) -> Keys:
        layers = config.integer("num_hidden_layers")
        period = config.integer("sliding_window_pattern", self.period)
        slides = config.sliding_layers(layers) or [(layer + 1) % period != 0 for layer in range(layers)]
        keys = {"attention.sliding_window": u32(config.integer("sliding_window"))}
        if self.always or slides != [(layer + 1) % self.period != 0 for layer in range(layers)]:
            keys["attention.sliding_window_pattern"] = array(ValueType.BOOL, np.array(slides))
        return keys

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        window = stored.integer("attention.sliding_window")
        return {
            "sliding_window": window,
            "layer_types": stored.layer_types(config["num_hidden_layers"], self.period),
        }


SETTINGS: tuple[Setting, ...] = (
    Activation(),
    Expected("attention_bias", False),
    Fixed("attn_logit_softcapping", None),
    *GROUPED_QUERY,
    RMS_EPSILON,
    HeadDim(always=True),
    Scale(62),
    Softcap("final_logit_softcapping", "final_logit_softcapping"),
    Rope(("default", "linear"), "full_attention"),
    LocalRope(),
    Windows(6),
)

GEMMA3 = Family(
    architecture="gemma3",
    models=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma3TextModel", "Gemma3Model"),
    model_types=("gemma3_text", "gemma3"),
    rows=decoder(layer(NAMES, changes=NORMS), norm_change=ADD_ONE),
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
    settings=(*SETTINGS, Expected("use_bidirectional_attention", False)),
    prefixes={
        "language_model.model.": "model.",
        "model.language_model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "language_model.": "model.",
    },
    ignored=(*IGNORED, "vision_tower.", "multi_modal_projector."),
)

GEMMA_EMBEDDING = replace(
    GEMMA3,
    architecture="gemma-embedding",
    models=("Gemma3TextModel",),
    model_types=("gemma3_text",),
    only="use_bidirectional_attention",
    rows=GEMMA3.rows[:-1],
    settings=(*SETTINGS, Expected("use_bidirectional_attention", True), SentencePooling(dense=True)),
    no_export=NO_EXPORT,
)
"""EmbeddingGemma. Both transformers and the file state the whole window, of which half lies on each side."""
