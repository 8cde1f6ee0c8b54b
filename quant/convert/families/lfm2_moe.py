"""LFM2 with experts in the layers after the first ones."""

from dataclasses import replace
from typing import Any

from lltool.quant.convert.families.experts import COUNT, Count, Experts, Gating, router_row, single_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import Expected, Integer
from lltool.quant.convert.families.lfm2 import LFM2, SETTINGS
from lltool.quant.convert.families.rows import Row, layers_before, layers_from

_DENSE, _HIDDEN = "num_dense_layers", "moe_intermediate_size"
_BLOCK = "model.layers.{}.feed_forward."
_SPARSE = layers_from(_DENSE)


def _rows() -> tuple[Row, ...]:
    """LFM2's rows, with those of experts after the MLP's."""
    dense = [replace(row, layers=layers_before(_DENSE)) if _BLOCK in row.checkpoint else row for row in LFM2.rows]
    place = max(index for index, row in enumerate(dense) if _BLOCK in row.checkpoint) + 1
    experts = (
        router_row(_BLOCK + "gate.weight", _SPARSE),
        Row("blk.{}.exp_probs_b.bias", _BLOCK + "expert_bias", (COUNT,), when="use_expert_bias", layers=_SPARSE),
        *single_rows(_BLOCK + "experts.{expert}.{part}.weight", _HIDDEN, ("w1", "w3", "w2"), _SPARSE),
    )
    return (*dense[:place], *experts, *dense[place:])


_LFM2: dict[str, Any] = {key: value for key, value in LFM2.defaults.items() if not key.startswith("block_")}

LFM2_MOE = Family(
    architecture="lfm2moe",
    models=("Lfm2MoeForCausalLM", "Lfm2MoeModel"),
    model_types=("lfm2_moe",),
    rows=_rows(),
    settings=(
        *SETTINGS,
        Experts("num_experts"),
        Gating(2),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        Count(_DENSE, "leading_dense_block_count"),
        Expected("norm_topk_prob", True),
        Expected("routed_scaling_factor", 1.0),
        Expected("use_expert_bias", True),
    ),
    spelling=LFM2.spelling,
    defaults={
        **_LFM2,
        "hidden_size": 2048,
        "intermediate_size": 7168,
        _HIDDEN: 1792,
        _DENSE: 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
)
