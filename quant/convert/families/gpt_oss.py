"""gpt-oss: experts with biases and a clamped activation, attention sinks, and a window in every second layer."""

from dataclasses import replace
from typing import Any

from lltool.gguf.metadata import u32
from lltool.quant.convert.families import qwen2
from lltool.quant.convert.families.changes import Chain, Each, Split, Transpose
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, STACKS, Experts, split_stack
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, Expected, Fixed, HeadDim, Keys, Setting, describe_windows
from lltool.quant.convert.families.qwen_moe import replace_mlp
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored

_MLP, _ATTENTION = "model.layers.{}.mlp.", "model.layers.{}.self_attn."
_BIASES = tuple(name.replace("weight", "bias") for name in STACKS)

# A column of gate is followed by one of up; a bias is split as a matrix whose columns are the experts.
_ROWS_IN_TURN = split_stack("1", "1", groups="intermediate_size")
_IN_TURN = Chain(Transpose(), _ROWS_IN_TURN)
_BIAS_IN_TURN = Chain(Transpose(), Split(("1", "1"), "intermediate_size"), Each((Transpose(), Transpose())))


def _rename(row: Row) -> Row:
    return replace(row, gguf="blk.{}.post_attention_norm.weight") if row.targets[0] == "blk.{}.ffn_norm.weight" else row


class _Windows(Setting):
    """The sliding window, in every second layer where layer_types says nothing else."""

    def describe(self, config: Config) -> Keys:
        layers = config.values["num_hidden_layers"]
        usual = [layer % 2 == 0 for layer in range(layers)]
        slides = config.sliding_layers(layers) or usual
        return {
            "attention.sliding_window": u32(config.integer("sliding_window")),
            **({} if slides == usual else describe_windows(config, slides)),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        window = stored.integer("attention.sliding_window")
        return {"sliding_window": window, "layer_types": stored.layer_types(config["num_hidden_layers"], 2)}


class _Width(Setting):
    """The width of an expert, which is written twice."""

    def describe(self, config: Config) -> Keys:
        return {"expert_feed_forward_length": u32(config.integer("intermediate_size"))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"intermediate_size": stored.integer("expert_feed_forward_length", config["intermediate_size"])}


GPT_OSS = Family(
    architecture="gpt-oss",
    models=("GptOssForCausalLM", "GptOssModel"),
    model_types=("gpt_oss",),
    rows=replace_mlp(
        (
            *(_rename(row) for row in qwen2.ROWS if not row.targets[0].startswith("output")),
            Row("blk.{}.attn_output.bias", _ATTENTION + "o_proj.bias", ("width",)),
            Row("blk.{}.attn_sinks.weight", _ATTENTION + "sinks", ("num_attention_heads",)),
            *(row for row in qwen2.ROWS if row.targets[0].startswith("output")),
        ),
        Row("blk.{}.ffn_gate_inp.weight", _MLP + "router.weight", (COUNT, "width")),
        Row("blk.{}.ffn_gate_inp.bias", _MLP + "router.bias", (COUNT,)),
        Row(STACKS[:2], _MLP + "experts.gate_up_proj", (COUNT, "width", "2 * intermediate_size"), _IN_TURN),
        Row(_BIASES[:2], _MLP + "experts.gate_up_proj_bias", (COUNT, "2 * intermediate_size"), _BIAS_IN_TURN),
        Row(STACKS[:2], _MLP + "experts.gate_up_proj_blocks", (COUNT, "2 * intermediate_size", "width"), _ROWS_IN_TURN),
        Row(STACKS[2], _MLP + "experts.down_proj", (COUNT, "hidden", "width"), Transpose()),
        Row(STACKS[2], _MLP + "experts.down_proj_blocks", (COUNT, "width", "hidden")),
        Row(_BIASES[2], _MLP + "experts.down_proj_bias", (COUNT, "width")),
    ),
    defaults={
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        Fixed("attention_bias", True),
        Expected("swiglu_limit", 7.0),
        Expected("swiglu_alpha", 1.702),
        *DECODER,
        HeadDim(always=True),
        Rope(("default", "yarn"), exact=True),
        _Windows(),
        _Width(),
        Experts("num_local_experts", "num_experts"),
    ),
)
