"""Phi 3.5 MoE: layer norms, biases of attention, LongRoPE, and two experts that a sparse mixer chooses."""

from dataclasses import dataclass
from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import f32
from lltool.quant.convert.families.config import Config, is_between
from lltool.quant.convert.families.experts import Experts, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import GROUPED_QUERY, RMS_EPSILON, ByTensor, Expected, Fixed, HeadDim, Keys
from lltool.quant.convert.families.llama import SIZES_7B
from lltool.quant.convert.families.phi import Window
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import LLAMA_NAMES, decoder, layer, reorder

_MLP = "model.layers.{}.block_sparse_moe."
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MSCALES = ("short_mscale", "long_mscale")
_NAMES = reorder(LLAMA_NAMES, without=("attn_q_norm", "attn_k_norm", "ffn_gate", "ffn_up", "ffn_down"))


@dataclass(frozen=True)
class _Rope(Rope):
    """LongRoPE whose config states the magnitude, which must be the same for short and long texts."""

    def describe(self, config: Config) -> Keys:
        keys = super().describe(config)
        parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if parameters.get("rope_type", parameters.get("type", "default")) == "default":
            return keys
        short, long = (parameters.get(key) for key in _MSCALES)
        fine = short == long and is_between(short, *SCALES)
        config.require("rope_scaling", fine, f"the same number {' and '.join(_MSCALES)} in it")
        return keys | {"rope.scaling.attn_factor": f32(float(str(short)))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = super().restore(stored, config)
        if not found["rope_scaling"]:
            return found
        scaling = dict(found["rope_scaling"])
        magnitude = scaling.pop("attention_factor", 1.0)
        scaling["original_max_position_embeddings"] = found["original_max_position_embeddings"]
        return found | {"rope_scaling": scaling | dict.fromkeys(_MSCALES, magnitude)}


PHI_MOE = Family(
    architecture="phimoe",
    models=("PhimoeForCausalLM", "PhiMoEForCausalLM", "PhimoeModel"),
    model_types=("phimoe",),
    rows=decoder(
        (
            *layer(
                _NAMES,
                biases=dict.fromkeys(_ATTENTION, "attention_bias") | {"attn_norm": "always", "ffn_norm": "always"},
            ),
            router_row(_MLP + "gate.weight"),
            *single_rows(_MLP + "experts.{expert}.{part}.weight", "hidden", ("w1", "w3", "w2")),
            *stacked_rows(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", "hidden"),
        ),
        norm_bias="always",
        head_bias="lm_head_bias",
    ),
    defaults={
        **SIZES_7B,
        "intermediate_size": 6400,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_experts_per_tok": 2,
        "num_local_experts": 16,
        "router_jitter_noise": 0.01,
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        Fixed("router_jitter_noise", 0.01),
        Expected("input_jitter_noise", 0.0),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("lm_head_bias", "output.bias"),
        *GROUPED_QUERY,
        RMS_EPSILON,
        HeadDim(),
        _Rope(("default", "longrope"), dims=True),
        Window(),
        Experts("num_local_experts", "num_experts"),
        Fixed("num_experts_per_tok", 2),
    ),
)
