"""Ministral 3: Llama's blocks, whose queries grow with the position."""

import math
from dataclasses import dataclass
from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import f32
from lltool.quant.convert.families import llama
from lltool.quant.convert.families.config import Config, is_between
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, Expected, Fixed, HeadDim, Keys
from lltool.quant.convert.families.rope import Rope, yarn_attention, yarn_magnitude
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

_SCALE, _MULTIPLIER, _FACTOR = "attention.temperature_scale", "rope.scaling.yarn_log_multiplier", "attn_factor"
_BETA = "llama_4_scaling_beta"


@dataclass(frozen=True)
class _Rope(Rope):
    """YaRN, and the growth of queries for each original context that a position has passed.

    With mscale_all_dim, readers divide YaRN's magnitude by that of the key.
    """

    def describe(self, config: Config) -> Keys:
        parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
        keys, beta = super().describe(config), parameters.get(_BETA)
        config.require("rope_parameters", beta == 0 or is_between(beta, *SCALES), f"a number {_BETA} in it")
        if beta:
            keys[_SCALE] = f32(beta)
        if of_all := parameters.get("mscale_all_dim"):
            keys[_MULTIPLIER] = f32(of_all)
            keys.pop(f"rope.scaling.{_FACTOR}", None)
            implied = yarn_magnitude(parameters["factor"]) / yarn_magnitude(parameters["factor"], of_all)
            magnitude = yarn_attention(parameters) or yarn_magnitude(parameters["factor"])
            if not math.isclose(magnitude, implied):
                keys[f"rope.scaling.{_FACTOR}"] = f32(magnitude / implied)
        return keys

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = super().restore(stored, config)
        stored.require("rope.scaling.type", bool(found["rope_scaling"]), "yarn")
        scaling = dict(found["rope_scaling"])
        scaling[_BETA] = stored.number(_SCALE) if stored.keys.get(_SCALE) else 0.0
        if stored.keys.get(_MULTIPLIER):
            factor, of_all = scaling["factor"], stored.number(_MULTIPLIER)
            scaling["mscale_all_dim"] = of_all
            implied = yarn_magnitude(factor) / yarn_magnitude(factor, of_all)
            scaling["attention_factor"] = implied * stored.number(f"rope.scaling.{_FACTOR}", 1.0)
        return found | {"rope_scaling": scaling}


MINISTRAL3 = Family(
    architecture="mistral3",
    models=("Ministral3ForCausalLM", "Ministral3Model", llama.WITH_IMAGES),
    model_types=("ministral3",),
    rows=decoder(layer(llama.NAMES, changes=llama.PAIRS)),
    defaults={
        **llama.SIZES_7B,
        "intermediate_size": 14336,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            _BETA: 0.1,
        },
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER,
        HeadDim(always=True),
        _Rope(("yarn",), dims=True),
        Expected("sliding_window"),
    ),
    prefixes=llama.IN_IMAGE_MODELS,
    ignored=llama.IMAGE_PARTS,
)
