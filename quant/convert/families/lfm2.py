"""LFM2: short convolutions between two gates, and attention in some layers."""

from typing import Any

from lltool.quant.convert.families.changes import Squeeze
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    GROUPED_QUERY,
    RMS_EPSILON,
    Expected,
    HeadDim,
    Heads,
    Integer,
    Keys,
    Setting,
)
from lltool.quant.convert.families.mixed_layers import ATTENDS, LayerHeads, attending, not_attending, only
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer


class _LayerKinds(Setting):
    """The layers with attention, as a list of kinds, or in older files of numbers; by default, all."""

    def describe(self, config: Config) -> Keys:
        layers = config.integer("num_hidden_layers")
        kinds, numbers = config.get("layer_types"), config.get("full_attn_idxs")
        if kinds is None:
            numbers = list(range(layers)) if numbers is None else numbers
            fine = isinstance(numbers, list) and all(type(n) is int and 0 <= n < layers for n in numbers)
            config.require("full_attn_idxs", fine, f"numbers of the {layers} layers")
            kinds = ["full_attention" if number in numbers else "conv" for number in range(layers)]
        fine = isinstance(kinds, list) and len(kinds) == layers
        fine = fine and all(kind in ("full_attention", "conv") for kind in kinds)
        config.require("layer_types", fine, f"full_attention or conv for each of {layers} layers")
        config.derive(ATTENDS, [kind != "conv" for kind in kinds])
        return {}


class _Restored(Setting):
    """The list of layers that the list of heads says."""

    def describe(self, config: Config) -> Keys:
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"layer_types": ["full_attention" if attends else "conv" for attends in config[ATTENDS]]}


class _Width(Setting):
    """The width inside the MLP, which transformers takes two thirds of, scales and rounds up unless told not to."""

    def describe(self, config: Config) -> Keys:
        stated = config.integer("block_ff_dim", config.integer("intermediate_size"))
        factor, multiple = config.get("block_ffn_dim_multiplier"), config.integer("block_multiple_of")
        if config.get("block_auto_adjust_ff_dim"):
            stated = int(2 * stated / 3)
            if factor is not None:
                stated = int(config.number("block_ffn_dim_multiplier") * stated)
                stated = multiple * -(-stated // multiple)
        config.derive("intermediate_size", stated)
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"block_auto_adjust_ff_dim": False}


class _Tied(Setting):
    """LFM2's own name of the key about tied weights."""

    def describe(self, config: Config) -> Keys:
        if config.get("tie_embedding") is not None:
            config.expect("tie_embedding", True, False)
            config.derive("tie_word_embeddings", config.get("tie_embedding"))
        return {}


_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_output": "self_attn.out_proj",
}
_MLP = {
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
_LAYER = "model.layers.{}."

SETTINGS: tuple[Setting, ...] = (
    _Tied(),
    _LayerKinds(),
    *(LayerHeads() if isinstance(row, Heads) else row for row in GROUPED_QUERY),
    RMS_EPSILON,
    HeadDim(),
    Rope(ROPE_TYPES),
    Integer("conv_L_cache", "shortconv.l_cache"),
    Expected("conv_bias", False),
    _Restored(),
)
"""Those that LFM2 has with experts too."""

LFM2 = Family(
    architecture="lfm2",
    models=("Lfm2ForCausalLM", "LFM2ForCausalLM", "Lfm2Model"),
    model_types=("lfm2",),
    rows=decoder(
        (
            *layer({"attn_norm": "operator_norm"}),
            *only(attending, layer(_ATTENTION)),
            *only(
                not_attending,
                (
                    Row(
                        "blk.{}.shortconv.in_proj.weight", _LAYER + "conv.in_proj.weight", ("3 * hidden_size", "width")
                    ),
                    Row(
                        "blk.{}.shortconv.conv.weight",
                        _LAYER + "conv.conv.weight",
                        ("width", "1", "conv_L_cache"),
                        Squeeze(1),
                    ),
                    Row("blk.{}.shortconv.out_proj.weight", _LAYER + "conv.out_proj.weight", ("width", "width")),
                ),
            ),
            *layer(_MLP),
        ),
        norm="model.embedding_norm",
        norm_name="token_embd_norm",
    ),
    settings=(_Width(), *SETTINGS),
    spelling={"rms_norm_eps": "norm_eps", "head_dim": ""},
    defaults={
        "vocab_size": 65536,
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "tie_word_embeddings": True,
    },
)
