"""Mixtral and OLMoE: Llama's blocks with experts; OLMoE also has norms of whole rows of queries and keys."""

from typing import Any

from lltool.quant.convert.families import llama, qwen2
from lltool.quant.convert.families.experts import Experts, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, Expected, Fixed, Ignored
from lltool.quant.convert.families.qwen_moe import replace_mlp
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.rows import Row

_MLP = "model.layers.{}.block_sparse_moe."
_STACKED = stacked_rows("model.layers.{}.mlp.experts.gate_up_proj", "model.layers.{}.mlp.experts.down_proj", "hidden")

MIXTRAL = Family(
    architecture="llama",
    models=("MixtralForCausalLM", "MixtralModel"),
    model_types=("mixtral",),
    rows=replace_mlp(
        tuple(row for row in llama.ROWS if not row.when),
        router_row(_MLP + "gate.weight"),
        *single_rows(_MLP + "experts.{expert}.{part}.weight", "hidden", ("w1", "w3", "w2")),
        *_STACKED,
    ),
    defaults={
        **llama.SIZES_7B,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "tie_word_embeddings": False,
    },
    settings=(
        *llama.BLOCKS,
        llama.Windows(),
        Experts("num_local_experts", "num_experts"),
        Ignored("Mixtral", "attention_bias", "mlp_bias"),
    ),
    restores=lambda stored: bool(stored.keys.get("expert_count")),
)


def _with_norms(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The table with norms of queries and keys before the matrix at the end of attention."""
    place = next(index for index, row in enumerate(rows) if row.targets[0] == "blk.{}.attn_output.weight")
    attention = "model.layers.{}.self_attn."
    norms = (
        Row("blk.{}.attn_q_norm.weight", attention + "q_norm.weight", ("queries",)),
        Row("blk.{}.attn_k_norm.weight", attention + "k_norm.weight", ("keys",)),
    )
    return rows[:place] + norms + rows[place:]


_OLMOE: dict[str, Any] = {
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "tie_word_embeddings": False,
}

OLMOE = Family(
    architecture="olmoe",
    models=("OlmoeForCausalLM", "OlmoeModel"),
    model_types=("olmoe",),
    rows=replace_mlp(
        _with_norms(tuple(row for row in qwen2.ROWS if row.targets[0].endswith("weight"))),
        router_row("model.layers.{}.mlp.gate.weight"),
        *single_rows("model.layers.{}.mlp.experts.{expert}.{part}.weight", "hidden"),
        *_STACKED,
    ),
    defaults=_OLMOE,
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER,
        Rope(ROPE_TYPES),
        Experts("num_experts", "num_local_experts"),
        Fixed("norm_topk_prob", False),
        Expected("attention_bias", False),
        Expected("clip_qkv"),
    ),
)
