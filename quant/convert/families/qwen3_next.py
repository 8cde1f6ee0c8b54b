"""Qwen3-Next and Qwen 3.5: gated delta nets in three of four layers, attention with a gate in the others."""

from dataclasses import replace
from typing import Any

import numpy as np

from lltool.gguf.metadata import ValueType, array
from lltool.quant.convert.families import qwen2
from lltool.quant.convert.families.changes import ADD_ONE
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import Experts
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    DECODER,
    Fixed,
    HeadDim,
    Integer,
    Keys,
    Setting,
    Unused,
)
from lltool.quant.convert.families.linear_attention import ATTENTION, GROUPED_NET, TILED_NET, LinearAttention
from lltool.quant.convert.families.qwen_moe import EXPERTS, SHARED
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder

_BASE = "model.layers.{}."
_SECTIONS = [11, 11, 10]  # of an image's positions: transformers' default


def _rows(net: tuple[Row, ...], mlp: tuple[Row, ...]) -> tuple[Row, ...]:
    first = Row("blk.{}.attn_norm.weight", f"{_BASE}input_layernorm.weight", ("width",), ADD_ONE)
    second = Row("blk.{}.post_attention_norm.weight", f"{_BASE}post_attention_layernorm.weight", ("width",), ADD_ONE)
    return decoder((first, *ATTENTION, *net, second, *mlp), norm_change=ADD_ONE)


_DENSE = tuple(row for row in qwen2.ROWS if row.checkpoint.startswith(f"{_BASE}mlp."))
_MIXED = (*EXPERTS, *SHARED)


class _Sections(Setting):
    """How many pairs turn with each axis of an image's positions; in a text, the axes agree."""

    def describe(self, config: Config) -> Keys:
        sections = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("mrope_section", _SECTIONS)
        fine = isinstance(sections, list) and len(sections) <= 4 and all(type(n) is int and n >= 0 for n in sections)
        config.require("rope_parameters", fine, "up to four numbers in mrope_section")
        four = np.array([*sections, 0, 0, 0, 0][:4], np.int32)
        return {"rope.dimension_sections": array(ValueType.INT32, four)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = stored.keys.get("rope.dimension_sections", _SECTIONS)
        if not isinstance(found, list) or [n for n in found if n] == _SECTIONS:
            return {}
        scaling = config["rope_scaling"] or {"rope_type": "default"}
        return {"rope_scaling": {**scaling, "mrope_section": [n for n in found if n]}}


_MIXTURE: tuple[Setting, ...] = (
    Experts("num_experts"),
    Integer("moe_intermediate_size", "expert_feed_forward_length"),
    Integer("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
)
_COMMON: tuple[Setting, ...] = (
    Fixed("hidden_act", "silu"),
    Fixed("attention_bias", False),
    *DECODER,
    HeadDim(always=True),
    Rope(("default", "linear", "yarn"), dims=True, partial=True),
    LinearAttention(),
    Unused("attn_output_gate", "mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"),
)
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}

QWEN3_NEXT = Family(
    architecture="qwen3next",
    models=("Qwen3NextForCausalLM", "Qwen3NextModel"),
    model_types=("qwen3_next",),
    rows=_rows(GROUPED_NET, _MIXED),
    defaults={
        **_DEFAULTS,
        **_EXPERTS,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
    },
    settings=(
        *_COMMON,
        *_MIXTURE,
        Fixed("norm_topk_prob", True),
        Fixed("decoder_sparse_step", 1),
        Fixed("mlp_only_layers", []),
    ),
    prefixes={"model.mtp.": "mtp."},
    predictors="mtp.",
)

QWEN35 = Family(
    architecture="qwen35",
    models=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5TextModel", "Qwen3_5Model"),
    model_types=("qwen3_5_text", "qwen3_5"),
    rows=_rows(TILED_NET, _DENSE),
    defaults={
        **_DEFAULTS,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
    },
    settings=(*_COMMON, _Sections()),
    prefixes={
        "model.mtp.": "mtp.",
        "model.language_model.": "model.",
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "language_model.": "model.",
    },
    ignored=(*IGNORED, "visual."),
    predictors="mtp.",
)

QWEN35_MOE = replace(
    QWEN35,
    architecture="qwen35moe",
    models=(
        *("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        *("Qwen3_5MoeTextModel", "Qwen3_5MoeModel"),
    ),
    model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
    rows=_rows(TILED_NET, _MIXED),
    defaults={**_DEFAULTS, **_EXPERTS, "num_hidden_layers": 40, "num_experts": 256, "num_experts_per_tok": 8},
    settings=(
        *(s for s in _COMMON if not (isinstance(s, Integer) and s.key == "intermediate_size")),
        _Sections(),
        *_MIXTURE,
    ),
)

FAMILIES = (QWEN3_NEXT, QWEN35, QWEN35_MOE)
