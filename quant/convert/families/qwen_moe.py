"""Qwen 2 and 3 with experts; Qwen 2 also has one that all tokens pass through, with a gate of its own."""

from dataclasses import replace
from typing import Any

from lltool.quant.convert.families import qwen2, qwen3
from lltool.quant.convert.families.changes import Squeeze
from lltool.quant.convert.families.experts import Experts, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import ByTensor, Expected, Fixed, HeadDim, Integer
from lltool.quant.convert.families.rows import Row

_MLP = "model.layers.{}.mlp."
_HIDDEN = "moe_intermediate_size"
EXPERTS = (
    router_row(_MLP + "gate.weight"),
    *single_rows(_MLP + "experts.{expert}.{part}.weight", _HIDDEN),
    *stacked_rows(_MLP + "experts.gate_up_proj", _MLP + "experts.down_proj", _HIDDEN),
)
_SHARED = "shared_expert_intermediate_size"
SHARED = (
    Row("blk.{}.ffn_gate_inp_shexp.weight", _MLP + "shared_expert_gate.weight", ("1", "width"), Squeeze(0)),
    Row("blk.{}.ffn_gate_shexp.weight", _MLP + "shared_expert.gate_proj.weight", (_SHARED, "width")),
    Row("blk.{}.ffn_up_shexp.weight", _MLP + "shared_expert.up_proj.weight", (_SHARED, "width")),
    Row("blk.{}.ffn_down_shexp.weight", _MLP + "shared_expert.down_proj.weight", ("width", _SHARED)),
)


def replace_mlp(rows: tuple[Row, ...], *experts: Row) -> tuple[Row, ...]:
    """The table with experts instead of Llama's MLP."""
    place = next(index for index, row in enumerate(rows) if row.targets[0].startswith("blk.{}.ffn_gate."))
    rest = tuple(row for row in rows[place:] if not row.checkpoint.startswith(_MLP))
    return rows[:place] + experts + rest


_EVERY_LAYER = (Expected("decoder_sparse_step", 1), Expected("mlp_only_layers", []))
_DEFAULTS: dict[str, Any] = {"num_experts_per_tok": 8, "norm_topk_prob": False, "decoder_sparse_step": 1}

QWEN2_MOE = Family(
    architecture="qwen2moe",
    models=("Qwen2MoeForCausalLM", "Qwen2MoeModel"),
    model_types=("qwen2_moe",),
    rows=replace_mlp(
        tuple(replace(row, when="qkv_bias") if row.targets[0].endswith("bias") else row for row in qwen2.ROWS),
        *EXPERTS,
        *SHARED,
    ),
    defaults={
        **qwen2.QWEN2.defaults,
        **_DEFAULTS,
        "num_experts_per_tok": 4,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 24,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "sliding_window": 0,
        "qkv_bias": True,
    },
    settings=(
        *qwen2.SETTINGS,
        Experts("num_experts", "num_local_experts"),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        Integer(_SHARED, "expert_shared_feed_forward_length"),
        Fixed("norm_topk_prob", False),
        ByTensor("qkv_bias", "blk.0.attn_q.bias"),
        *_EVERY_LAYER,
    ),
)

QWEN3_MOE = Family(
    architecture="qwen3moe",
    models=("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    model_types=("qwen3_moe",),
    rows=replace_mlp(qwen3.QWEN3.rows, *EXPERTS),
    defaults={
        **qwen2.QWEN2.defaults,
        **_DEFAULTS,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_key_value_heads": 4,
        "num_hidden_layers": 24,
        "moe_intermediate_size": 768,
    },
    settings=(
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        *qwen2.SETTINGS,
        HeadDim(always=True),
        Experts("num_experts", "num_local_experts"),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        Fixed("norm_topk_prob", True),
        *_EVERY_LAYER,
    ),
)
