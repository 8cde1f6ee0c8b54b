"""Gemma 1 and 2: norms of 1 + weight, a scaled embedding; Gemma 2 with soft caps and a window in every other layer."""

from typing import Any

from lltool.quant.convert.families.changes import ADD_ONE
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.gemma3 import NAMES, NORMS, Activation, Scale, Windows
from lltool.quant.convert.families.keys import (
    DECODER,
    GROUPED_QUERY,
    RMS_EPSILON,
    Expected,
    HeadDim,
    Keys,
    Setting,
    Softcap,
)
from lltool.quant.convert.families.llama import NAMES as LLAMA_NAMES
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer, reorder


class _Activation(Setting):
    """The tanh approximation of GELU, with which all Gemma models were trained; early configs name another."""

    def describe(self, config: Config) -> Keys:
        config.expect("hidden_activation", "gelu_pytorch_tanh")
        config.expect("hidden_act", "gelu_pytorch_tanh", "gelu")
        if config.get("hidden_act") == "gelu" and not config.get("hidden_activation"):
            config.notes.append(
                "config.json says hidden_act gelu, as early Gemma configs do by mistake; the tanh approximation is used"
            )
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"hidden_act": "gelu_pytorch_tanh"}


_ROPE = Rope(("default", "linear"))
_COMMON = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "tie_word_embeddings": True}

GEMMA = Family(
    architecture="gemma",
    models=("GemmaForCausalLM", "GemmaModel"),
    model_types=("gemma",),
    rows=decoder(layer(LLAMA_NAMES, changes={"attn_norm": ADD_ONE, "ffn_norm": ADD_ONE}), norm_change=ADD_ONE),
    settings=(
        _Activation(),
        Expected("attention_bias", False),
        Expected("use_bidirectional_attention", False),
        *DECODER[:-1],
        HeadDim(always=True),
        _ROPE,
    ),
    defaults={
        **_COMMON,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "head_dim": 256,
        "intermediate_size": 24576,
    },
)

GEMMA2 = Family(
    architecture="gemma2",
    models=("Gemma2ForCausalLM", "Gemma2Model"),
    model_types=("gemma2",),
    rows=decoder(
        layer(
            reorder(NAMES, without=("attn_q_norm", "attn_k_norm")),
            changes={name: change for name, change in NORMS.items() if name not in ("attn_q_norm", "attn_k_norm")},
        ),
        norm_change=ADD_ONE,
    ),
    settings=(
        Activation(),
        Expected("attention_bias", False),
        Expected("use_bidirectional_attention", False),
        *GROUPED_QUERY,
        RMS_EPSILON,
        HeadDim(always=True),
        Scale(46),
        Softcap("attn_logit_softcapping", "attn_logit_softcapping"),
        Softcap("final_logit_softcapping", "final_logit_softcapping"),
        _ROPE,
        Windows(2),
    ),
    defaults={
        **_COMMON,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "head_dim": 256,
        "intermediate_size": 9216,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    },
)

FAMILIES = (GEMMA, GEMMA2)
