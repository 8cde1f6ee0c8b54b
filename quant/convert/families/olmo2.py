"""OLMo 2 and 3, EXAONE 4: norms after attention and MLP, and of queries and keys."""

from typing import Any

import numpy as np

from lltool.gguf.metadata import ValueType, array, f32, u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    DECODER,
    Expected,
    Fixed,
    HeadDim,
    Keys,
    Setting,
    describe_windows,
)
from lltool.quant.convert.families.llama import SIZES_7B
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope, read_rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

_PLAIN_ROPE = ("default", "linear", "dynamic")
_AFTER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OLMO2 = Family(
    architecture="olmo2",
    models=("Olmo2ForCausalLM", "Olmo2Model"),
    model_types=("olmo2",),
    rows=decoder(layer(_AFTER, shapes={"attn_q_norm": ("queries",), "attn_k_norm": ("keys",)})),
    settings=(Fixed("hidden_act", "silu"), *DECODER, Rope(_PLAIN_ROPE), Expected("attention_bias", False)),
    restores=lambda stored: not stored.keys.get("attention.sliding_window"),
    defaults={
        **SIZES_7B,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
)


class _Olmo3Windows(Setting):
    """The window of all layers but every fourth, and the rotary base of those with it, which is not scaled."""

    def describe(self, config: Config) -> Keys:
        layers, base = config.values["num_hidden_layers"], read_rope(config, ROPE_TYPES, "full_attention")["rope_theta"]
        config.derive("rope_local_base_freq", base)
        local = read_rope(config, ("default",), "sliding_attention")["rope_theta"]
        slides = config.sliding_layers(layers) or [(layer + 1) % 4 != 0 for layer in range(layers)]
        return {
            "rope.freq_base_swa": f32(local),
            "attention.sliding_window": u32(config.integer("sliding_window")),
            "attention.sliding_window_pattern": array(ValueType.BOOL, np.array(slides)),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        full = {"rope_type": "default", "rope_theta": config["rope_theta"], **(config.pop("rope_scaling") or {})}
        base = stored.number("rope.freq_base_swa", config.pop("rope_theta"))
        local = {"rope_type": "default", "rope_theta": base}
        return {
            "rope_parameters": {"full_attention": full, "sliding_attention": local},
            "sliding_window": stored.integer("attention.sliding_window"),
            "layer_types": stored.layer_types(config["num_hidden_layers"], 4),
        }


OLMO3 = Family(
    architecture="olmo2",
    models=("Olmo3ForCausalLM", "Olmo3Model"),
    model_types=("olmo3",),
    rows=OLMO2.rows,
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER,
        Rope(("default", "linear", "yarn"), "full_attention"),
        _Olmo3Windows(),
        Expected("attention_bias", False),
    ),
    defaults={**OLMO2.defaults, "rope_theta": 500000.0, "sliding_window": 4096},
)


class _Exaone4Windows(Setting):
    """Every fourth layer has full attention, without positions; without a window, all layers have both."""

    def describe(self, config: Config) -> Keys:
        layers, pattern = config.values["num_hidden_layers"], config.get("sliding_window_pattern")
        slides = config.sliding_layers(layers)
        if config.get("sliding_window") is None:
            return {}
        if slides is None:
            config.require("sliding_window_pattern", pattern in (4, "LLLG"), "4 or LLLG")
            slides = [(layer + 1) % 4 != 0 for layer in range(layers)]
        return describe_windows(config, slides)

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        if not stored.keys.get("attention.sliding_window"):
            return {"sliding_window": None, "layer_types": ["full_attention"] * config["num_hidden_layers"]}
        window = stored.integer("attention.sliding_window")
        return {"sliding_window": window, "layer_types": stored.layer_types(config["num_hidden_layers"], 4)}


EXAONE4 = Family(
    architecture="exaone4",
    models=("Exaone4ForCausalLM", "Exaone4Model"),
    model_types=("exaone4",),
    rows=decoder(layer(_AFTER)),
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER[:-1],
        HeadDim(always=True),
        Rope(ROPE_TYPES),
        _Exaone4Windows(),
        Expected("attention_bias", False),
    ),
    defaults={
        **SIZES_7B,
        "num_key_value_heads": 32,
        "intermediate_size": 16384,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "tie_word_embeddings": False,
    },
)

FAMILIES = (OLMO2, OLMO3, EXAONE4)
