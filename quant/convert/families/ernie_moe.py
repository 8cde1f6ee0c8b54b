"""ERNIE 4.5 with experts: dense layers first, experts in every n-th layer, and shared ones."""

from dataclasses import replace
from typing import Any

from lltool.gguf.metadata import u32
from lltool.quant.convert.families import llama
from lltool.quant.convert.families.changes import SAME, Squeeze
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, Count, Experts, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.glm4_moe import dense_rows, shared_rows
from lltool.quant.convert.families.keys import DECODER, Fixed, Integer, Keys, Setting
from lltool.quant.convert.families.qwen_moe import replace_mlp
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored

_MLP, _HIDDEN = "model.layers.{}.mlp.", "moe_intermediate_size"


def _is_mixed(config: Any, layer: int) -> bool:
    return bool(layer >= config["moe_layer_start_index"] and (layer + 1) % config["moe_layer_interval"] == 0)


class _Layers(Setting):
    """The layers with experts, and the width of the shared ones together."""

    def describe(self, config: Config) -> Keys:
        layers, end = config.values["num_hidden_layers"], config.get("moe_layer_end_index", -1)
        all_to_the_end = type(end) is int and (end == -1 or end >= layers - 1)
        config.require("moe_layer_end_index", all_to_the_end, f"at least {layers - 1}, the last layer")
        width = config.values["moe_num_shared_experts"] * config.values[_HIDDEN]
        return {"expert_shared_feed_forward_length": u32(width)} if width else {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"moe_layer_end_index": config["num_hidden_layers"] - 1}


ERNIE_MOE = Family(
    architecture="ernie4_5-moe",
    models=("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoeModel"),
    model_types=("ernie4_5_moe",),
    rows=replace_mlp(
        tuple(replace(row, change=SAME) for row in llama.ROWS if not row.when),
        *dense_rows(lambda config, layer: not _is_mixed(config, layer)),
        router_row(_MLP + "gate.weight", _is_mixed),
        Row(
            "blk.{}.exp_probs_b.bias",
            _MLP + "moe_statics.e_score_correction_bias",
            ("1", COUNT),
            Squeeze(0),
            layers=_is_mixed,
        ),
        *single_rows(_MLP + "experts.{expert}.{part}.weight", _HIDDEN, layers=_is_mixed),
        *stacked_rows(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", _HIDDEN, _is_mixed),
        *shared_rows(f"{_HIDDEN} * moe_num_shared_experts", _is_mixed, when="moe_num_shared_experts"),
    ),
    defaults={
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
        "tie_word_embeddings": True,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        Fixed("use_bias", False),
        Fixed("moe_norm_min", 1e-12),
        *DECODER,
        Rope(("default", "linear")),
        Experts("moe_num_experts", "num_experts", used="moe_k"),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        Integer("moe_layer_interval", "interleave_moe_layer_step"),
        Count("moe_layer_start_index", "leading_dense_block_count"),
        Count("moe_num_shared_experts", "expert_shared_count"),
        _Layers(),
    ),
)
