"""GLM 4.5 and dots.llm1: dense layers first, then experts chosen as in DeepSeek V3 beside shared ones."""

from dataclasses import replace
from typing import Any

from lltool.gguf.metadata import u32
from lltool.quant.convert.families import qwen2, qwen3
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, SCALED_SIGMOID, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, ByTensor, Fixed, HeadDim, Integer, Keys, Setting
from lltool.quant.convert.families.qwen_moe import replace_mlp
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import LayerSet, Row, all_layers, layers_before, layers_from
from lltool.quant.convert.families.stored import Stored

_MLP, _HIDDEN = "model.layers.{}.mlp.", "moe_intermediate_size"
_SHARED = f"{_HIDDEN} * n_shared_experts"
_DENSE, _MIXED = layers_before("first_k_dense_replace"), layers_from("first_k_dense_replace")


def dense_rows(layers: LayerSet) -> tuple[Row, ...]:
    """Llama's MLP in some layers."""
    wanted = [row for row in qwen2.ROWS if row.checkpoint.startswith(_MLP) and row.targets[0].endswith("weight")]
    return tuple(replace(row, layers=layers) for row in wanted)


def shared_rows(size: str, layers: LayerSet, when: str = "") -> tuple[Row, ...]:
    """The MLP that all tokens pass through."""
    shapes = {"gate": (size, "width"), "up": (size, "width"), "down": ("width", size)}
    return tuple(
        Row(
            f"blk.{{}}.ffn_{part}_shexp.weight",
            f"{_MLP}shared_experts.{part}_proj.weight",
            shape,
            when=when,
            layers=layers,
        )
        for part, shape in shapes.items()
    )


_EXPERTS = (
    *dense_rows(_DENSE),
    router_row(_MLP + "gate.weight", _MIXED),
    Row("blk.{}.exp_probs_b.bias", _MLP + "gate.e_score_correction_bias", (COUNT,), layers=_MIXED),
    *single_rows(_MLP + "experts.{expert}.{part}.weight", _HIDDEN, layers=_MIXED),
    *stacked_rows(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", _HIDDEN, _MIXED),
    *shared_rows(_SHARED, _MIXED, when="n_shared_experts"),
)


class NoFurtherLayers(Setting):
    """Layers that predict further tokens, which files do not have."""

    def describe(self, config: Config) -> Keys:
        config.read.add("num_nextn_predict_layers")
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"num_nextn_predict_layers": 0}


def _optional_norms(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Qwen 3's table with the names of GLM: the norm before the MLP, and norms of heads in some models only."""
    changed = []
    for row in rows:
        (target,) = row.targets
        if target == "blk.{}.ffn_norm.weight":
            row = replace(row, gguf="blk.{}.post_attention_norm.weight")
        if target.endswith(("q_norm.weight", "k_norm.weight")):
            row = replace(row, when="use_qk_norm")
        if not target.endswith("attn_output.bias"):
            changed.append(row)
    return tuple(changed)


class _SharedWidth(Setting):
    """A width inside dense layers, of which there are none; files state one."""

    def describe(self, config: Config) -> Keys:
        config.derive("intermediate_size", config.integer("intermediate_size", config.integer(_HIDDEN)))
        return {"feed_forward_length": u32(config.values["intermediate_size"])}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"intermediate_size": stored.integer("feed_forward_length")}


GLM4_MOE = Family(
    architecture="glm4moe",
    models=("Glm4MoeForCausalLM", "Glm4MoeModel"),
    model_types=("glm4_moe",),
    rows=replace_mlp(_optional_norms(qwen3.QWEN3.rows), *_EXPERTS),
    further="num_nextn_predict_layers",
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("use_qk_norm", "blk.0.attn_q_norm.weight"),
        *DECODER,
        HeadDim(always=True),
        Rope(("default", "linear", "yarn"), dims=True, partial=True),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        *SCALED_SIGMOID,
        NoFurtherLayers(),
    ),
)


_NOT_OF_SOLAR = ("intermediate_size", "first_k_dense_replace", "num_nextn_predict_layers")
SOLAR_OPEN = replace(
    GLM4_MOE,
    models=("SolarOpenForCausalLM", "SolarOpenModel"),
    model_types=("solar_open",),
    rows=replace_mlp(
        tuple(row for row in _optional_norms(qwen2.ROWS) if row.targets[0].endswith("weight")),
        *(replace(row, layers=all_layers) for row in _EXPERTS if row.layers is _MIXED),
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        Fixed("attention_bias", False),
        *DECODER[:3],
        _SharedWidth(),
        *DECODER[4:],
        HeadDim(always=True),
        Rope(("default", "linear", "yarn"), dims=True, partial=True),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        *SCALED_SIGMOID,
    ),
    defaults={
        **{key: value for key, value in GLM4_MOE.defaults.items() if key not in _NOT_OF_SOLAR},
        "hidden_size": 4096,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "head_dim": 128,
        "rope_theta": 1e6,
        "partial_rotary_factor": 1.0,
        "moe_intermediate_size": 1280,
    },
    restores=lambda stored: not stored.keys.get("leading_dense_block_count"),
)
"""Without dense layers, norms of heads and biases."""


class _FullAttention(Setting):
    """No layer may have a sliding window, which files of the architecture cannot express."""

    def describe(self, config: Config) -> Keys:
        layers = config.values["num_hidden_layers"]
        slides = config.sliding_layers(layers)
        first = config.get("max_window_layers", layers)
        has_window = config.get("sliding_window") is not None
        slides = [type(first) is int and layer >= first for layer in range(layers)] if slides is None else slides
        config.require("sliding_window", not (has_window and any(slides)), "layers with full attention only")
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"sliding_window": None}


DOTS1 = Family(
    architecture="dots1",
    models=("Dots1ForCausalLM", "Dots1Model"),
    model_types=("dots1",),
    rows=replace_mlp(tuple(row for row in qwen3.QWEN3.rows if row.targets[0].endswith("weight")), *_EXPERTS),
    defaults={
        "hidden_size": 4608,
        "intermediate_size": 10944,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "sliding_window": 4096,
        "max_window_layers": 62,
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        Fixed("attention_bias", False),
        *DECODER,
        HeadDim(always=True),
        Rope(("default", "linear", "yarn")),
        _FullAttention(),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        *SCALED_SIGMOID,
    ),
)
