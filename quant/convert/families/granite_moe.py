"""Granite 3 with experts: Mixtral with factors for the embedding, the residuals, the scores and the logits."""

from lltool.gguf.architecture_keys import SCALES
from lltool.quant.convert.families import llama
from lltool.quant.convert.families.changes import Split
from lltool.quant.convert.families.experts import COUNT, STACKS, Count, Experts, router_row, split_stack
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import ByTensor, Number
from lltool.quant.convert.families.qwen_moe import replace_mlp
from lltool.quant.convert.families.rows import Row

_MOE, _SHARED, _WIDTH = "model.layers.{}.block_sparse_moe.", "model.layers.{}.shared_mlp.", "shared_intermediate_size"
_SHARED_INPUTS = ("blk.{}.ffn_gate_shexp.weight", "blk.{}.ffn_up_shexp.weight")
_INPUT = (COUNT, "2 * intermediate_size", "width")

GRANITE_MOE = Family(
    architecture="granitemoe",
    models=("GraniteMoeSharedForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSharedModel", "GraniteMoeModel"),
    model_types=("granitemoeshared", "granitemoe"),
    rows=replace_mlp(
        tuple(row for row in llama.ROWS if row.when != "mlp_bias"),
        router_row(_MOE + "router.layer.weight"),
        Row(STACKS[:2], _MOE + "input_linear.weight", _INPUT, split_stack("hidden", "hidden")),
        Row(STACKS[2], _MOE + "output_linear.weight", (COUNT, "width", "hidden")),
        Row(
            _SHARED_INPUTS,
            _SHARED + "input_linear.weight",
            (f"2 * {_WIDTH}", "width"),
            Split((_WIDTH, _WIDTH)),
            when=_WIDTH,
        ),
        Row("blk.{}.ffn_down_shexp.weight", _SHARED + "output_linear.weight", ("width", _WIDTH), when=_WIDTH),
    ),
    defaults={
        **llama.SIZES_7B,
        "intermediate_size": 11008,
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        _WIDTH: 0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
        "tie_word_embeddings": False,
    },
    settings=(
        *llama.BLOCKS,
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        Experts("num_local_experts", "num_experts"),
        Count(_WIDTH, "expert_shared_feed_forward_length"),
        Number("embedding_multiplier", "embedding_scale", *SCALES),
        Number("residual_multiplier", "residual_scale", *SCALES),
        Number("attention_multiplier", "attention.scale", *SCALES),
        Number("logits_scaling", "logit_scale", *SCALES),
    ),
)
