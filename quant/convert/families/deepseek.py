"""DeepSeek V2 and V3, and Kimi K2, which has V3's shape: latent attention, and experts beside shared ones."""

import math
from dataclasses import dataclass, replace
from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import f32, u32
from lltool.quant.convert.families.changes import Chain, Each, Fold, Split, Transpose
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import (
    COUNT,
    SCALED_SIGMOID,
    Count,
    Experts,
    Gating,
    Groups,
    router_row,
    single_rows,
    stacked_rows,
)
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.glm4_moe import NoFurtherLayers, dense_rows, shared_rows
from lltool.quant.convert.families.keys import (
    RMS_EPSILON,
    Expected,
    Fixed,
    Integer,
    Keys,
    Layers,
    Number,
    Setting,
    Unused,
)
from lltool.quant.convert.families.rope import Rope, yarn_attention, yarn_magnitude
from lltool.quant.convert.families.rows import Row, layers_before, layers_from
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder

_LAYER = "model.layers.{}."
_ATTENTION, _MLP = _LAYER + "self_attn.", _LAYER + "mlp."
_HEADS, _RANK, _HIDDEN = "num_attention_heads", "kv_lora_rank", "moe_intermediate_size"
_QUERIES = f"{_HEADS} * qk_nope_head_dim + {_HEADS} * qk_rope_head_dim"
_DENSE, _MIXED = layers_before("first_k_dense_replace"), layers_from("first_k_dense_replace")

# Of each head, the rows that make its key and those that make its value. Queries are multiplied with the former, whose
# rows become columns for that.
_EXPAND = Chain(
    Split(("qk_nope_head_dim", "v_head_dim"), _HEADS), Each((Chain(Fold(_HEADS), Transpose()), Fold(_HEADS)))
)

LATENT_ATTENTION = (
    Row("blk.{}.attn_q.weight", _ATTENTION + "q_proj.weight", (_QUERIES, "width"), when="not q_lora_rank"),
    Row("blk.{}.attn_q_a.weight", _ATTENTION + "q_a_proj.weight", ("q_lora_rank", "width"), when="q_lora_rank"),
    Row("blk.{}.attn_q_a_norm.weight", _ATTENTION + "q_a_layernorm.weight", ("q_lora_rank",), when="q_lora_rank"),
    Row("blk.{}.attn_q_b.weight", _ATTENTION + "q_b_proj.weight", (_QUERIES, "q_lora_rank"), when="q_lora_rank"),
    Row(
        "blk.{}.attn_kv_a_mqa.weight",
        _ATTENTION + "kv_a_proj_with_mqa.weight",
        (f"{_RANK} + qk_rope_head_dim", "width"),
    ),
    Row("blk.{}.attn_kv_a_norm.weight", _ATTENTION + "kv_a_layernorm.weight", (_RANK,)),
    Row(
        ("blk.{}.attn_k_b.weight", "blk.{}.attn_v_b.weight"),
        _ATTENTION + "kv_b_proj.weight",
        (f"{_HEADS} * qk_nope_head_dim + {_HEADS} * v_head_dim", _RANK),
        _EXPAND,
    ),
    Row("blk.{}.attn_output.weight", _ATTENTION + "o_proj.weight", ("width", f"{_HEADS} * v_head_dim")),
)


class LatentHeads(Setting):
    """The heads of latent attention, of which the file has the sizes in the cache and those of a head's own."""

    def describe(self, config: Config) -> Keys:
        heads = config.integer(_HEADS)
        same = config.get("num_key_value_heads", heads) == heads
        config.require("num_key_value_heads", same, f"{heads}, as num_attention_heads")
        rank, plain, rotated = (config.integer(key) for key in (_RANK, "qk_nope_head_dim", "qk_rope_head_dim"))
        config.require("qk_rope_head_dim", rotated % 2 == 0, "an even number: rotary positions rotate pairs")
        config.derive("head_dim", rotated)  # which transformers derives in the same way
        config.read.add("qk_head_dim")
        query_rank = config.get("q_lora_rank")
        keys = {"attention.q_lora_rank": u32(config.integer("q_lora_rank"))} if query_rank is not None else {}
        return keys | {
            "attention.head_count": u32(heads),
            "attention.head_count_kv": u32(1),
            "attention.kv_lora_rank": u32(rank),
            "attention.key_length": u32(rank + rotated),
            "attention.value_length": u32(rank),
            "attention.key_length_mla": u32(plain + rotated),
            "attention.value_length_mla": u32(config.integer("v_head_dim")),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        heads, rotated = stored.integer("attention.head_count"), stored.integer("rope.dimension_count")
        key_dim = stored.integer("attention.key_length_mla")
        stored.require("attention.key_length_mla", key_dim > rotated, f"more than {rotated} rotated dimensions")
        return {
            _HEADS: heads,
            "num_key_value_heads": heads,
            "head_dim": rotated,
            _RANK: stored.integer("attention.kv_lora_rank"),
            "q_lora_rank": stored.integer("attention.q_lora_rank") if "attention.q_lora_rank" in stored.keys else None,
            "qk_nope_head_dim": key_dim - rotated,
            "qk_rope_head_dim": rotated,
            "v_head_dim": stored.integer("attention.value_length_mla"),
        }


@dataclass(frozen=True)
class LatentRope(Rope):
    """Rotary positions whose YaRN also scales the scores of whole heads, by the square of a magnitude.

    The file has a tenth of mscale_all_dim, the factor of the magnitude's logarithm, and readers then leave out YaRN's
    own magnitude of rotated dimensions.
    """

    def describe(self, config: Config) -> Keys:
        keys = super().describe(config)
        parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
        of_all = parameters.get("mscale_all_dim")
        if parameters.get("rope_type", parameters.get("type")) != "yarn" or not of_all:
            return keys
        config.require("rope_parameters", parameters.get("truncate", True) is True, "no truncate in it")
        keys["rope.scaling.yarn_log_multiplier"] = f32(0.1 * of_all)
        keys.pop("rope.scaling.attn_factor", None)
        magnitude = yarn_attention(parameters) or yarn_magnitude(parameters["factor"])
        if not math.isclose(magnitude, 1):
            keys["rope.scaling.attn_factor"] = f32(magnitude)
            config.notes.append("YaRN's mscale is not mscale_all_dim; llama.cpp assumes that they are equal")
        return keys

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = super().restore(stored, config)
        if not stored.keys.get("rope.scaling.yarn_log_multiplier") or not found["rope_scaling"]:
            return found
        scaling = dict(found["rope_scaling"])
        scaling["mscale_all_dim"] = 10 * stored.number("rope.scaling.yarn_log_multiplier")
        scaling["attention_factor"] = stored.number("rope.scaling.attn_factor", 1.0)
        return found | {"rope_scaling": scaling}


def _rows(*routing: Row) -> tuple[Row, ...]:
    return decoder(
        (
            Row("blk.{}.attn_norm.weight", _LAYER + "input_layernorm.weight", ("width",)),
            *LATENT_ATTENTION,
            Row("blk.{}.ffn_norm.weight", _LAYER + "post_attention_layernorm.weight", ("width",)),
            *dense_rows(_DENSE),
            router_row(_MLP + "gate.weight", _MIXED),
            *routing,
            *single_rows(_MLP + "experts.{expert}.{part}.weight", _HIDDEN, layers=_MIXED),
            *stacked_rows(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", _HIDDEN, _MIXED),
            *shared_rows(f"{_HIDDEN} * n_shared_experts", _MIXED, when="n_shared_experts"),
        )
    )


SIZES: tuple[Setting, ...] = (
    Fixed("hidden_act", "silu"),
    Fixed("attention_bias", False),
    Layers(),
    Integer("max_position_embeddings", "context_length"),
    Integer("hidden_size", "embedding_length"),
    Integer("intermediate_size", "feed_forward_length"),
    RMS_EPSILON,
    LatentHeads(),
    LatentRope(("default", "yarn"), dims=True),
    Integer(_HIDDEN, "expert_feed_forward_length"),
    Expected("moe_layer_freq", 1),
    Unused("ep_size", "aux_loss_alpha", "seq_aux"),  # of training
)
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


class _BestGroups(Setting):
    """DeepSeek V2's groups: of the greedy method there are none."""

    def describe(self, config: Config) -> Keys:
        config.expect("topk_method", "greedy", "group_limited_greedy")
        config.read.update(("n_group", "topk_group"))
        return Groups().describe(config) if config.get("topk_method") == "group_limited_greedy" else {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = Groups().restore(stored, config)
        return found | {"topk_method": "group_limited_greedy" if found["n_group"] > 1 else "greedy"}


DEEPSEEK2 = Family(
    architecture="deepseek2",
    models=("DeepseekV2ForCausalLM", "DeepseekV2Model"),
    model_types=("deepseek_v2",),
    rows=_rows(),
    defaults={
        **_LATENT,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "moe_intermediate_size": 1407,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "topk_method": "greedy",
    },
    settings=(
        *SIZES,
        Fixed("mlp_bias", False),
        Experts("n_routed_experts", "num_experts"),
        Gating(1),
        _BestGroups(),
        Expected("scoring_func", "softmax"),
        Expected("norm_topk_prob", False),
        Number("routed_scaling_factor", "expert_weights_scale", *SCALES),
        Count("n_shared_experts", "expert_shared_count"),
        Count("first_k_dense_replace", "leading_dense_block_count"),
    ),
    restores=lambda stored: stored.keys.get("expert_gating_func", 1) == 1,
)


class DenseFirst(Setting):
    """The kind of each layer as a list, of which the dense ones must come first. transformers reads nothing else."""

    def describe(self, config: Config) -> Keys:
        layers = config.values["num_hidden_layers"]
        kinds = config.get("mlp_layer_types", ["dense", *["sparse"] * (layers - 1)])
        dense = kinds.count("dense") if isinstance(kinds, list) else -1
        wanted = ["dense"] * dense + ["sparse"] * (layers - dense)
        config.require("mlp_layer_types", dense >= 0 and kinds == wanted, f"{layers} items, dense before sparse")
        stated = config.get("first_k_dense_replace", dense)
        config.require("first_k_dense_replace", stated == dense, f"{dense}, as transformers has it")
        config.derive("first_k_dense_replace", dense)
        return {}


DEEPSEEK3 = Family(
    architecture="deepseek2",
    models=("DeepseekV3ForCausalLM", "DeepseekV3Model"),
    model_types=("deepseek_v3", "kimi_k2"),
    rows=_rows(Row("blk.{}.exp_probs_b.bias", _MLP + "gate.e_score_correction_bias", (COUNT,), layers=_MIXED)),
    further="num_nextn_predict_layers",
    defaults={
        **_LATENT,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
    },
    settings=(
        *SIZES,
        Expected("rope_interleave", True),
        *SCALED_SIGMOID,
        Expected("scoring_func", "sigmoid"),
        Expected("topk_method", "noaux_tc"),
        NoFurtherLayers(),
    ),
)

_NOT_IN_LITE = ("first_k_dense_replace", "num_nextn_predict_layers")

# GLM 4.7 Flash; export gives DeepSeek V3, which computes the same.
GLM4_LITE = replace(
    DEEPSEEK3,
    models=("Glm4MoeLiteForCausalLM", "Glm4MoeLiteModel"),
    model_types=("glm4_moe_lite",),
    defaults={
        **{key: value for key, value in DEEPSEEK3.defaults.items() if key not in _NOT_IN_LITE},
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1536,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.8,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
    },
    settings=(*SIZES, DenseFirst(), *DEEPSEEK3.settings[len(SIZES) :]),
    restores=lambda stored: False,
)
