"""Granite 4 hybrid: Mamba 2 or attention without positions in each layer, with or without experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import boolean, u32
from lltool.quant.convert.families.changes import Split
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, STACKS, Experts, router_row, split_stack
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    RMS_EPSILON,
    Expected,
    Fixed,
    HeadDim,
    Integer,
    Keys,
    Layers,
    Number,
    Setting,
    Unused,
)
from lltool.quant.convert.families.llama import BIASES, BLOCKS, NAMES, PAIRS, SIZES_7B
from lltool.quant.convert.families.llama_kin import GRANITE
from lltool.quant.convert.families.mamba import INNER, NO_LIMITS, RANK, describe_scan, mamba2_rows, restore_scan
from lltool.quant.convert.families.mixed_layers import ATTENDS, LayerHeads, attending, not_attending, only
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

_WIDTH, _EXPERTS = "shared_intermediate_size", "num_local_experts"
_MOE, _SHARED = "model.layers.{}.block_sparse_moe.", "model.layers.{}.shared_mlp."
_KINDS = {"mamba": False, "linear_attention": False, "attention": True, "full_attention": True}
_ATTENDING = tuple(kind for kind, attends in _KINDS.items() if attends)


def _mlp_rows(end: str, when: str) -> tuple[Row, ...]:
    """The MLP that all tokens pass through: the shared expert, or the only one."""
    inputs = (f"blk.{{}}.ffn_gate{end}.weight", f"blk.{{}}.ffn_up{end}.weight")
    return (
        Row(inputs, _SHARED + "input_linear.weight", (f"2 * {_WIDTH}", "width"), Split((_WIDTH, _WIDTH)), when=when),
        Row(f"blk.{{}}.ffn_down{end}.weight", _SHARED + "output_linear.weight", ("width", _WIDTH), when=when),
    )


_ROUTED = (
    router_row(_MOE + "router.layer.weight"),
    Row(
        STACKS[:2],
        _MOE + "input_linear.weight",
        (COUNT, "2 * intermediate_size", "width"),
        split_stack("hidden", "hidden"),
    ),
    Row(STACKS[2], _MOE + "output_linear.weight", (COUNT, "width", "hidden")),
)


def _has_scans(values: Mapping[str, Any]) -> bool:
    """Whether some layers have a scan, which they all have if a config does not name their kinds."""
    kinds = values.get("layer_types")
    return not isinstance(kinds, list) or any(_KINDS.get(kind) is False for kind in kinds if isinstance(kind, str))


class _Kinds(Setting):
    """The layers with attention; the others have the scan."""

    def describe(self, config: Config) -> Keys:
        layers, kinds = config.integer("num_hidden_layers"), config.get("layer_types")
        kinds = ["mamba"] * layers if kinds is None else kinds
        fine = isinstance(kinds, list) and len(kinds) == layers and all(kind in tuple(_KINDS) for kind in kinds)
        config.require("layer_types", fine, f"mamba or attention for each of {layers} layers")
        attends = [_KINDS[kind] for kind in kinds]
        config.require("layer_types", any(attends), "a layer with attention")
        config.derive(ATTENDS, attends)
        return {"rope.scaling.finetuned": boolean(False)}  # llama.cpp's switch for rotary positions

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        stated = stored.keys.get("rope.scaling.finetuned", True)
        stored.require("rope.scaling.finetuned", stated is False, "false; no config.json can express positions")
        return {}


class _RestoredKinds(Setting):
    """The list of layers that the list of heads says."""

    def describe(self, config: Config) -> Keys:
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        kinds = ["full_attention" if attends else "linear_attention" for attends in config[ATTENDS]]
        return {"layer_types": kinds}


class _Widths(Setting):
    """The experts, and the widths inside them and inside the MLP that all tokens pass through."""

    def __init__(self) -> None:
        self.experts = Experts(_EXPERTS)

    def describe(self, config: Config) -> Keys:
        shared = u32(config.integer(_WIDTH))
        if not config.get(_EXPERTS):
            return {"feed_forward_length": shared}
        hidden = {"feed_forward_length": u32(config.integer("intermediate_size"))}
        return {**hidden, **self.experts.describe(config), "expert_shared_feed_forward_length": shared}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        hidden = {"intermediate_size": stored.integer("feed_forward_length")}
        if not stored.keys.get("expert_count"):
            return hidden | {_WIDTH: hidden["intermediate_size"], _EXPERTS: 0, "num_experts_per_tok": 0}
        shared = stored.integer("expert_shared_feed_forward_length")
        return hidden | self.experts.restore(stored, config) | {_WIDTH: shared}


class _Scan(Setting):
    """The sizes of the scan."""

    def describe(self, config: Config) -> Keys:
        heads, groups = config.integer("num_heads"), config.integer("n_groups")
        inner = config.integer("mamba_expand") * config.values["hidden_size"]
        config.require("mamba_expand", config.values["mamba_expand"] == 2, "2, all that llama.cpp reads")
        config.require("num_heads", inner % heads == 0, f"a divisor of {inner}")
        config.require("n_groups", heads % groups == 0, f"a divisor of the {heads} heads")
        config.expect("mamba_d_head", "auto", inner // heads)
        return describe_scan(config, inner, heads, groups)

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = restore_scan(stored)
        stored.require("ssm.inner_size", found[INNER] == 2 * config["hidden_size"], "twice embedding_length")
        stored.require("ssm.inner_size", found[INNER] % found[RANK] == 0, f"a multiple of the {found[RANK]} heads")
        return found | {"num_heads": found[RANK], "mamba_expand": 2, "mamba_d_head": found[INNER] // found[RANK]}


class _Bias(Setting):
    """Whether the matrices of attention have biases, as the tensors say."""

    def describe(self, config: Config) -> Keys:
        config.expect("attention_bias", True, False)
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"attention_bias": any(name.endswith("attn_q.bias") for name in stored.names)}


_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")

GRANITE_HYBRID = Family(
    architecture="granitehybrid",
    models=("GraniteMoeHybridForCausalLM", "GraniteMoeHybridModel"),
    model_types=("granitemoehybrid",),
    only=_has_scans,
    rows=decoder(
        (
            *layer({"attn_norm": NAMES["attn_norm"]}),
            *only(attending, layer({name: NAMES[name] for name in _ATTENTION}, changes=PAIRS, biases=BIASES)),
            *only(not_attending, mamba2_rows("model.layers.{}.mamba.")),
            *layer({"ffn_norm": NAMES["ffn_norm"]}),
            *(replace(row, when=_EXPERTS) for row in _ROUTED),
            *_mlp_rows("_shexp", _EXPERTS),
            *_mlp_rows("", f"not {_EXPERTS}"),
        )
    ),
    settings=(
        _Kinds(),
        Fixed("hidden_act", "silu"),
        Layers(),
        Integer("max_position_embeddings", "context_length"),
        Integer("hidden_size", "embedding_length"),
        _Widths(),
        LayerHeads(),
        RMS_EPSILON,
        HeadDim(),
        _Scan(),
        _Bias(),
        Number("embedding_multiplier", "embedding_scale", *SCALES),
        Number("residual_multiplier", "residual_scale", *SCALES),
        Number("attention_multiplier", "attention.scale", *SCALES),
        Number("logits_scaling", "logit_scale", *SCALES),
        Expected("position_embedding_type", "nope"),
        Expected("use_conv_bias", True),
        Expected("mamba_proj_bias", False),
        Expected("time_step_limit", *NO_LIMITS),
        Unused("rope_theta", "rope_scaling", "rope_parameters", "mamba_chunk_size", "normalization_function"),
        Unused("init_method", "layers_block_type"),
        _RestoredKinds(),
    ),
    spelling={
        "state_size": "mamba_d_state",
        "conv_kernel": "mamba_d_conv",
        "n_groups": "mamba_n_groups",
        "num_heads": "mamba_n_heads",
        "use_conv_bias": "mamba_conv_bias",
        "head_dim": "",
    },
    defaults={
        **SIZES_7B,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        _WIDTH: 1024,
        "num_heads": 128,
        "n_groups": 1,
        "state_size": 256,
        "conv_kernel": 4,
        "mamba_expand": 2,
        "use_conv_bias": True,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
        "tie_word_embeddings": False,
    },
)


class _AllAttend(Setting):
    """Attention with rotary positions in all layers."""

    def describe(self, config: Config) -> Keys:
        layers, kinds = config.values["num_hidden_layers"], config.get("layer_types")
        fine = isinstance(kinds, list) and len(kinds) == layers and all(kind in _ATTENDING for kind in kinds)
        config.require("layer_types", fine, f"mamba or attention for each of {layers} layers")
        rotates = config.get("position_embedding_type") == "rope"
        config.require("position_embedding_type", rotates, "rope, where no layer has a scan")
        return {}


# Granite 4 without scans, which is Granite with other names; export gives Granite.
GRANITE4 = replace(
    GRANITE,
    models=GRANITE_HYBRID.models,
    model_types=GRANITE_HYBRID.model_types,
    rows=decoder(
        (
            *layer({"attn_norm": NAMES["attn_norm"]}),
            *layer({name: NAMES[name] for name in _ATTENTION}, changes=PAIRS, biases=BIASES),
            *layer({"ffn_norm": NAMES["ffn_norm"]}),
            *_mlp_rows("", ""),
        )
    ),
    settings=(
        *(
            Integer(_WIDTH, row.gguf) if isinstance(row, Integer) and row.key == "intermediate_size" else row
            for row in BLOCKS
        ),
        *(row for row in GRANITE.settings if isinstance(row, Number)),
        _Bias(),
        _AllAttend(),
        Expected(_EXPERTS, 0),
        Unused("intermediate_size", "num_experts_per_tok", "normalization_function", "init_method"),
        Unused("mamba_d_state", "mamba_d_conv", "mamba_n_groups", "mamba_n_heads", "mamba_d_head", "mamba_expand"),
        Unused("mamba_conv_bias", "mamba_proj_bias", "mamba_chunk_size", "time_step_limit", "layers_block_type"),
        Unused("time_step_min", "time_step_max"),
    ),
    defaults={**GRANITE.defaults, _WIDTH: 1024, _EXPERTS: 8, "position_embedding_type": None},
    restores=lambda stored: False,
)
