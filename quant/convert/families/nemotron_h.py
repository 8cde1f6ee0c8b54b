"""Nemotron-H and Nemotron 3: each layer is Mamba 2, attention without positions, or an MLP, which may be of experts.

transformers bounds the steps of a prompt from below by time_step_min; NVIDIA's own code and llama.cpp do not.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import ValueType, array, boolean, f32, u32
from lltool.quant.convert.families.changes import Stack
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, STACKS, Count, Experts, Groups, Truth, router_row
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import Expected, Fixed, HeadDim, Integer, Keys, Layers, Number, Setting, Unused
from lltool.quant.convert.families.llama import PAIRS
from lltool.quant.convert.families.mamba import INNER, NO_LIMITS, RANK, describe_scan, mamba2_rows, restore_scan
from lltool.quant.convert.families.mixed_layers import ATTENDS, LayerHeads, only
from lltool.quant.convert.families.rows import LayerSet, Row, layers_listed
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

_KINDS = "_kinds"
"""A derived key: the kind of each layer, in transformers' words."""

_OF_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_OF_WORDS = {word: word for word in _OF_LETTERS.values()} | {"mamba": "linear_attention", "attention": "full_attention"}
_EXPERT, _SHARED, _LATENT = "moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size"


def _stated(values: Mapping[str, Any]) -> Any:
    """The list of layers, or the string with a letter for each of them, of older configs."""
    return next((values[key] for key in ("layers_block_type", "hybrid_override_pattern") if values.get(key)), None)


def _has_experts(values: Mapping[str, Any]) -> bool:
    found = _stated(values)
    return "E" in found if isinstance(found, str) else isinstance(found, list) and "moe" in found


def _find_layers(config: Config) -> None:
    """Derives the kinds of the layers, and their number, which a config need not state."""
    stated = _stated(config.values)
    words: Any = list(map(_OF_LETTERS.get, stated)) if isinstance(stated, str) else stated
    fine = isinstance(words, list) and len(words) > 0 and all(isinstance(word, str) for word in words)
    key = "hybrid_override_pattern" if isinstance(stated, str) else "layers_block_type"
    wanted = f"{', '.join(_OF_WORDS)} for each layer"
    config.require(key, fine and all(word in _OF_WORDS for word in words), wanted)
    kinds = [_OF_WORDS[word] for word in words]
    config.require(key, not {"mlp", "moe"} <= set(kinds), "either mlp or moe: no file of llama.cpp's has both")
    config.require(key, "full_attention" in kinds, "a layer with attention")
    config.derive(_KINDS, kinds)
    config.derive(ATTENDS, [kind == "full_attention" for kind in kinds])
    config.derive("num_hidden_layers", len(kinds))
    config.read.update(("layers_block_type", "hybrid_override_pattern"))


class _Positions(Setting):
    """llama.cpp's switch for rotary positions, which this model does not have."""

    def describe(self, config: Config) -> Keys:
        return {"rope.scaling.finetuned": boolean(False)}


class _Widths(Setting):
    """The width inside the MLP of each layer that is one, and 0 for the others."""

    def __init__(self, key: str, kind: str) -> None:
        self.key, self.kind = key, kind

    def describe(self, config: Config) -> Keys:
        width = config.integer(self.key)
        widths = [width if kind == self.kind else 0 for kind in config.values[_KINDS]]
        return {"feed_forward_length": array(ValueType.INT32, np.array(widths, np.int32))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        layers, key = config["num_hidden_layers"], "feed_forward_length"
        found = stored.keys.get(key)
        fine = isinstance(found, list) and len(found) == layers and all(type(width) is int for width in found)
        distinct = sorted(set(found or ()) - {0}) if fine else []
        stored.require(key, len(distinct) == 1, f"for each of {layers} layers, 0 or the same number")
        words = ["full_attention" if attends else "linear_attention" for attends in config[ATTENDS]]
        kinds = [self.kind if width else word for width, word in zip(found or (), words, strict=True)]
        return {_KINDS: kinds, "layers_block_type": kinds, self.key: distinct[0]}


class _Scan(Setting):
    """The sizes of the scan."""

    def describe(self, config: Config) -> Keys:
        heads, groups = config.integer("mamba_num_heads"), config.integer("n_groups")
        config.require("n_groups", heads % groups == 0, f"a divisor of the {heads} heads")
        return describe_scan(config, heads * config.integer("mamba_head_dim"), heads, groups)

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = restore_scan(stored)
        stored.require("ssm.inner_size", found[INNER] % found[RANK] == 0, f"a multiple of the {found[RANK]} heads")
        return found | {"mamba_num_heads": found[RANK], "mamba_head_dim": found[INNER] // found[RANK]}


class _Epsilon(Number):
    """The number that norms add, under both names: llama.cpp requires the other one."""

    def describe(self, config: Config) -> Keys:
        keys = super().describe(config)
        return keys | {"attention.layer_norm_epsilon": f32(config.number(self.key))}


class _Latent(Setting):
    """The width that experts work in, if it is not the model's."""

    def describe(self, config: Config) -> Keys:
        width = config.get(_LATENT)
        config.derive("_expert_width", config.values["hidden_size"] if width is None else config.integer(_LATENT))
        return {} if width is None else {_LATENT: u32(width)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        width = stored.integer(_LATENT) if stored.keys.get(_LATENT) else None
        return {_LATENT: width, "_expert_width": width or config["hidden_size"]}


_BASE = "backbone.layers.{}."
_MIXER = f"{_BASE}mixer."
_ATTENTION = {"attn_" + {"o": "output"}.get(part, part): f"mixer.{part}_proj" for part in "qkvo"}


def _rows(*mlp: Row) -> tuple[Row, ...]:
    scan, attends = layers_listed(_KINDS, "linear_attention"), layers_listed(_KINDS, "full_attention")
    rows = (
        *layer({"attn_norm": "norm"}, base=_BASE),
        *only(scan, mamba2_rows(_MIXER)),
        *only(attends, layer(_ATTENTION, base=_BASE, changes=PAIRS)),  # as llama.cpp has them
        *mlp,
    )
    return decoder(rows, embedding="backbone.embeddings", norm="backbone.norm_f")


def _mlp_rows(layers: LayerSet, module: str, end: str, hidden: str) -> tuple[Row, ...]:
    return (
        Row(f"blk.{{}}.ffn_up{end}.weight", f"{module}up_proj.weight", (hidden, "width"), layers=layers),
        Row(f"blk.{{}}.ffn_down{end}.weight", f"{module}down_proj.weight", ("width", hidden), layers=layers),
    )


_MOE = layers_listed(_KINDS, "moe")
_SHAPES = {"up": (_EXPERT, "_expert_width"), "down": ("_expert_width", _EXPERT)}
_LATENT_ROWS = (
    Row("blk.{}.ffn_latent_down.weight", f"{_MIXER}fc1_latent_proj.weight", (_LATENT, "width"), when=_LATENT),
    Row("blk.{}.ffn_latent_up.weight", f"{_MIXER}fc2_latent_proj.weight", ("width", _LATENT), when=_LATENT),
)
_MIXED = (
    router_row(f"{_MIXER}gate.weight", _MOE),
    Row("blk.{}.exp_probs_b.bias", f"{_MIXER}gate.e_score_correction_bias", (COUNT,), layers=_MOE),
    *only(_MOE, _LATENT_ROWS),
    *(
        Row(stack, f"{_MIXER}experts.{{expert}}.{part}_proj.weight", shape, Stack(COUNT), layers=_MOE, experts=COUNT)
        for stack, (part, shape) in zip(STACKS[1:], _SHAPES.items(), strict=True)
    ),
    *_mlp_rows(_MOE, f"{_MIXER}shared_experts.", "_shexp", _SHARED),
)

_COMMON: tuple[Setting, ...] = (
    Fixed("mlp_hidden_act", "relu2"),
    Fixed("mamba_hidden_act", "silu"),
    Layers(),
    Integer("max_position_embeddings", "context_length"),
    Integer("hidden_size", "embedding_length"),
    LayerHeads(),
    _Epsilon("rms_norm_eps", "attention.layer_norm_rms_epsilon", high=1.0),
    HeadDim(always=True),
    _Positions(),
    _Scan(),
    *(Expected(key, False) for key in ("mamba_proj_bias", "use_bias", "attention_bias", "mlp_bias")),
    Expected("use_conv_bias", True),
    Expected("time_step_limit", *NO_LIMITS),
    Expected("sliding_window", None),
    Unused("expand", "chunk_size", "mamba_ssm_cache_dtype", "num_logits_to_keep", "use_mamba_kernels"),
    Unused("time_step_floor", "time_step_min", "time_step_max", "time_step_rank", "moe_shared_expert_overlap"),
    Unused("residual_in_fp32", "rescale_prenorm_residual", "partial_rotary_factor", "rope_theta"),
    Unused("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern"),
)
_WITHOUT_EXPERTS = Unused(
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", _EXPERT, _SHARED, _LATENT),
    *("n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor"),
)
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "intermediate_size": 21504,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "tie_word_embeddings": False,
}

NEMOTRON_H = Family(
    architecture="nemotron_h",
    models=("NemotronHForCausalLM", "NemotronHModel"),
    model_types=("nemotron_h",),
    rows=_rows(*_mlp_rows(layers_listed(_KINDS, "mlp"), _MIXER, "", "hidden")),
    settings=(*_COMMON, _Widths("intermediate_size", "mlp"), _WITHOUT_EXPERTS),
    spelling={"rms_norm_eps": "layer_norm_epsilon", "state_size": "ssm_state_size"},
    prefixes={"model.": "backbone."},
    base="backbone.",
    predictors="mtp.",
    prepare=_find_layers,
    defaults=_DEFAULTS,
)
NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    architecture="nemotron_h_moe",
    rows=_rows(*_MIXED),
    only=_has_experts,
    settings=(
        *_COMMON,
        _Widths(_EXPERT, "moe"),
        Experts("n_routed_experts", "num_local_experts"),
        Integer(_EXPERT, "expert_feed_forward_length"),
        Integer(_SHARED, "expert_shared_feed_forward_length"),
        Expected("n_shared_experts", 1),
        Count("n_shared_experts", "expert_shared_count"),
        Groups(),
        Truth("norm_topk_prob", "expert_weights_norm"),
        Number("routed_scaling_factor", "expert_weights_scale", *SCALES),
        _Latent(),
        Unused("intermediate_size"),
    ),
    defaults=_DEFAULTS
    | {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        _EXPERT: 7688,
        _SHARED: 7688,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
)

FAMILIES = (NEMOTRON_H_MOE, NEMOTRON_H)  # one with experts has the other's classes
