"""Kimi Linear: Kimi delta attention in most layers, latent attention without positions in the others, and experts."""

from dataclasses import replace
from typing import Any

import numpy as np

from lltool.gguf.metadata import ValueType, array, u32
from lltool.quant.convert.families.changes import NEGATIVE_EXP, SAME
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.deepseek import LATENT_ATTENTION, DenseFirst, LatentHeads
from lltool.quant.convert.families.experts import COUNT, SCALED_SIGMOID, Experts, router_row, single_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.glm4_moe import dense_rows, shared_rows
from lltool.quant.convert.families.keys import RMS_EPSILON, Expected, Fixed, Integer, Keys, Layers, Setting, Unused
from lltool.quant.convert.families.mixed_layers import ATTENDS, attending, not_attending, only
from lltool.quant.convert.families.rows import Row, layers_before, layers_from
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder

_LAYER = "model.layers.{}."
_ATTENTION, _EXPERTS = f"{_LAYER}self_attn.", f"{_LAYER}block_sparse_moe."
_SIZES = {
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
_KINDS = ("linear_attention", "full_attention")
_INNER, _HIDDEN = "linear_num_heads * linear_head_dim", "moe_intermediate_size"
_DENSE, _MIXED = layers_before("first_k_dense_replace"), layers_from("first_k_dense_replace")


def _matrix(gguf: str, name: str, rows: str, columns: str = "width") -> Row:
    return Row(f"blk.{{}}.{gguf}.weight", f"{_ATTENTION}{name}.weight", (rows, columns))


DELTA_ATTENTION = (
    *(_matrix(f"attn_{part}", f"{part}_proj", _INNER) for part in "qkv"),
    *(
        Row(
            f"blk.{{}}.ssm_conv1d_{part}.weight",
            f"{_ATTENTION}{part}_conv1d.weight",
            (_INNER, "1", "linear_conv_kernel_dim"),
        )
        for part in "qkv"
    ),
    _matrix("ssm_f_a", "f_a_proj", "linear_head_dim"),
    _matrix("ssm_f_b", "f_b_proj", _INNER, "linear_head_dim"),
    _matrix("ssm_beta", "b_proj", "linear_num_heads"),
    Row("blk.{}.ssm_a", f"{_ATTENTION}A_log", ("1", "1", "linear_num_heads", "1"), NEGATIVE_EXP),
    Row("blk.{}.ssm_dt.bias", f"{_ATTENTION}dt_bias", (_INNER,), SAME),
    _matrix("ssm_g_a", "g_a_proj", "linear_head_dim"),
    _matrix("ssm_g_b", "g_b_proj", _INNER, "linear_head_dim"),
    Row("blk.{}.ssm_norm.weight", f"{_ATTENTION}o_norm.weight", ("linear_head_dim",)),
    _matrix("attn_output", "o_proj", "width", _INNER),
)


def _complete(config: Config) -> None:
    """Takes the sizes out of linear_attn_config, where published configs have them, and numbers of layers from 1 on."""
    layers, parts = config.integer("num_hidden_layers"), config.get("linear_attn_config") or {}
    config.require("linear_attn_config", isinstance(parts, dict), "an object")
    for name, key in _SIZES.items():
        if name in parts:
            config.derive(key, parts[name])
    kinds = config.get("layer_types")
    if kinds is None and "full_attn_layers" in parts:
        full = parts["full_attn_layers"]
        fine = isinstance(full, list) and parts.get("kda_layers") == [n for n in range(1, layers + 1) if n not in full]
        config.require("linear_attn_config", fine, f"each of {layers} layers in full_attn_layers or in kda_layers")
        kinds = [_KINDS[number + 1 in full] for number in range(layers)]
    if kinds is None:
        kinds = [_KINDS[number > 0 and number % 4 == 0] for number in range(layers)]
    fine = isinstance(kinds, list) and len(kinds) == layers and all(kind in _KINDS for kind in kinds)
    config.require("layer_types", fine, f"{' or '.join(_KINDS)} for each of {layers} layers")
    config.require("layer_types", len(set(kinds)) == 2, "layers of both kinds")
    config.derive("layer_types", kinds)
    config.derive(ATTENDS, [kind == _KINDS[1] for kind in kinds])
    if config.get("mlp_layer_types") is None:
        dense = config.get("first_k_dense_replace", 1)
        config.require("first_k_dense_replace", type(dense) is int and 0 <= dense <= layers, f"up to {layers} layers")
        config.derive("mlp_layer_types", ["dense"] * dense + ["sparse"] * (layers - dense))


class _Heads(LatentHeads):
    """The heads, of which layers without latent attention have none for keys; no dimension is rotated."""

    def describe(self, config: Config) -> Keys:
        counts = np.array(config.values[ATTENDS], np.int32)
        rotated = {"rope.dimension_count": u32(config.integer("qk_rope_head_dim"))}
        return super().describe(config) | rotated | {"attention.head_count_kv": array(ValueType.INT32, counts)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        layers, counts = config["num_hidden_layers"], stored.keys.get("attention.head_count_kv")
        fine = isinstance(counts, list) and len(counts) == layers and set(counts) == {0, 1}
        stored.require("attention.head_count_kv", fine, f"0 or 1 for each of {layers} layers, and both")
        attends = [count == 1 for count in counts or ()]
        return super().restore(stored, config) | {ATTENDS: attends, "layer_types": [_KINDS[flag] for flag in attends]}


class _Delta(Setting):
    """The sizes of delta attention, which has as many heads as latent attention."""

    def describe(self, config: Config) -> Keys:
        heads = config.values["num_attention_heads"]
        config.require("linear_num_heads", config.integer("linear_num_heads") == heads, f"{heads}, as latent attention")
        taps, dim = config.integer("linear_conv_kernel_dim"), config.integer("linear_head_dim")
        return {"ssm.conv_kernel": u32(taps), "kda.head_dim": u32(dim)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {
            "linear_num_heads": config["num_attention_heads"],
            "linear_head_dim": stored.integer("kda.head_dim"),
            "linear_conv_kernel_dim": stored.integer("ssm.conv_kernel"),
        }


# transformers names the MLP of layers without experts like the experts when it saves a checkpoint.
_SAVED = tuple(
    replace(row, checkpoint=row.checkpoint.replace(".mlp.", ".block_sparse_moe.")) for row in dense_rows(_DENSE)
)
_SHARED = shared_rows(f"{_HIDDEN} * n_shared_experts", _MIXED, when="n_shared_experts")

KIMI_LINEAR = Family(
    architecture="kimi-linear",
    models=("KimiLinearForCausalLM", "KimiLinearModel"),
    model_types=("kimi_linear",),
    rows=decoder(
        (
            Row("blk.{}.attn_norm.weight", f"{_LAYER}input_layernorm.weight", ("width",)),
            *only(not_attending, DELTA_ATTENTION),
            *only(attending, LATENT_ATTENTION),
            Row("blk.{}.ffn_norm.weight", f"{_LAYER}post_attention_layernorm.weight", ("width",)),
            *dense_rows(_DENSE),
            *_SAVED,
            router_row(f"{_EXPERTS}gate.weight", _MIXED),
            Row("blk.{}.exp_probs_b.bias", f"{_EXPERTS}gate.e_score_correction_bias", (COUNT,), layers=_MIXED),
            *single_rows(f"{_EXPERTS}experts.{{expert}}.{{part}}.weight", _HIDDEN, ("w1", "w3", "w2"), _MIXED),
            *(replace(row, checkpoint=row.checkpoint.replace(".mlp.", ".block_sparse_moe.")) for row in _SHARED),
        )
    ),
    prepare=_complete,
    settings=(
        Fixed("hidden_act", "silu"),
        Fixed("attention_bias", False),
        Layers(),
        Integer("max_position_embeddings", "context_length"),
        Integer("hidden_size", "embedding_length"),
        Integer("intermediate_size", "feed_forward_length"),
        RMS_EPSILON,
        _Heads(),
        _Delta(),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        DenseFirst(),
        *(Experts("n_routed_experts") if isinstance(row, Experts) else row for row in SCALED_SIGMOID),
        Fixed("norm_topk_prob", True),
        Expected("moe_router_activation_func", "sigmoid"),
        Expected("moe_layer_freq", 1),
        Expected("mla_use_nope", True),
        Expected("num_nextn_predict_layers", 0),
        Unused("use_grouped_topk", "linear_attn_config", "rope_theta", "rope_scaling"),
    ),
    spelling={
        "max_position_embeddings": "model_max_length",
        "norm_topk_prob": "moe_renormalize",
        "n_group": "num_expert_group",
        "n_routed_experts": "num_experts",
        "num_experts_per_tok": "num_experts_per_token",
        "n_shared_experts": "num_shared_experts",
    },
    defaults={
        "vocab_size": 163840,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
        "num_hidden_layers": 27,
        "num_attention_heads": 32,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.446,
        "norm_topk_prob": True,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "linear_head_dim": 128,
        "linear_num_heads": 32,
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 1048576,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
)
