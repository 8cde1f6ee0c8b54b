"""GPT-2, StarCoder 1 and GPT-J: learned positions or partly rotated heads, layer norms, an MLP without a gate."""

from typing import Any

from lltool.gguf.metadata import u32
from lltool.quant.convert.families.changes import SAME, Transpose
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    FULL_HEADS,
    LAYER_EPSILON,
    Expected,
    Fixed,
    HeadDim,
    Keys,
    Setting,
    Unused,
)
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import FUSED_BIASES, GROUPED, decoder, layer, module

_GPT2_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_SPELLING = {
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_attention_heads": "n_head",
}
_GPT2_UNUSED = Unused(
    *("n_ctx", "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *(
        "summary_first_dropout",
        "reorder_and_upcast_attn",
        "attention_softmax_in_fp32",
        "scale_attention_softmax_in_fp32",
    ),
    *("inference_runner", "validate_runner_input", "pre_allocate_kv_cache", "max_batch_size", "max_sequence_length"),
)
_POSITIONS = module("position_embd", "transformer.wpe", ("max_position_embeddings", "width"))
_BUFFERS = (".attn.bias", ".attn.masked_bias")
_SCALED = (
    Expected("scale_attn_weights", True),
    Expected("scale_attn_by_inverse_layer_idx", False),
    Expected("add_cross_attention", False),
)
_GPT2_DEFAULTS = {
    "max_position_embeddings": 1024,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def _gpt2_rows(changes: dict[str, Any], shapes: dict[str, tuple[str, ...]]) -> tuple[Row, ...]:
    return decoder(
        layer(
            _GPT2_NAMES,
            base="transformer.h.{}.",
            changes=changes,
            bias_changes=dict.fromkeys(changes, SAME),
            biases=FUSED_BIASES,
            shapes=shapes,
        ),
        embedding="transformer.wte",
        norm="transformer.ln_f",
        norm_bias="always",
        more=_POSITIONS,
    )


GPT2 = Family(
    architecture="gpt2",
    models=("GPT2LMHeadModel", "GPT2Model"),
    model_types=("gpt2",),
    rows=_gpt2_rows(
        dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), Transpose()),
        {
            "attn_qkv": ("width", GROUPED),
            "attn_output": ("queries", "width"),
            "ffn_up": ("width", "hidden"),
            "ffn_down": ("hidden", "width"),
        },
    ),
    settings=(Fixed("activation_function", "gelu_new"), *FULL_HEADS, LAYER_EPSILON, HeadDim(), *_SCALED, _GPT2_UNUSED),
    defaults=_GPT2_DEFAULTS,
    spelling=_GPT2_SPELLING,
    base="transformer.",
    ignored=_BUFFERS,
)


class _MultiQuery(Setting):
    """One head of keys and values."""

    def describe(self, config: Config) -> Keys:
        config.expect("multi_query", True)
        config.derive("num_key_value_heads", 1)
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"multi_query": True}


STARCODER = Family(
    architecture="starcoder",
    models=("GPTBigCodeForCausalLM", "GPTBigCodeModel"),
    model_types=("gpt_bigcode",),
    rows=_gpt2_rows({}, {}),
    settings=(
        Fixed("activation_function", "gelu_pytorch_tanh"),
        _MultiQuery(),
        *FULL_HEADS,
        LAYER_EPSILON,
        HeadDim(),
        *_SCALED,
        _GPT2_UNUSED,
    ),
    defaults=_GPT2_DEFAULTS,
    spelling=_GPT2_SPELLING,
    base="transformer.",
    ignored=(*_BUFFERS, "transformer.bias"),
)


class _RotaryDim(Setting):
    """The number of rotated dimensions of a head."""

    def describe(self, config: Config) -> Keys:
        rotated, head_dim = config.integer("rotary_dim", config.values["head_dim"]), config.values["head_dim"]
        config.require("rotary_dim", rotated % 2 == 0 and rotated <= head_dim, f"an even number up to {head_dim}")
        return {"rope.dimension_count": u32(rotated)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"rotary_dim": stored.integer("rope.dimension_count")}


GPTJ = Family(
    architecture="gptj",
    models=("GPTJForCausalLM", "GPTJModel"),
    model_types=("gptj",),
    rows=decoder(
        layer(
            {
                "attn_norm": "ln_1",
                "attn_q": "attn.q_proj",
                "attn_k": "attn.k_proj",
                "attn_v": "attn.v_proj",
                "attn_output": "attn.out_proj",
                "ffn_up": "mlp.fc_in",
                "ffn_down": "mlp.fc_out",
            },
            base="transformer.h.{}.",
            biases=dict.fromkeys(("attn_norm", "ffn_up", "ffn_down"), "always"),
        ),
        embedding="transformer.wte",
        norm="transformer.ln_f",
        norm_bias="always",
        head_bias="if stored",
    ),
    settings=(
        Fixed("activation_function", "gelu_new"),
        *FULL_HEADS,
        LAYER_EPSILON,
        HeadDim(),
        _RotaryDim(),
        Expected("rotary", True),
        Expected("scale_attn_weights", True),
        _GPT2_UNUSED,
    ),
    defaults={
        "max_position_embeddings": 2048,
        "hidden_size": 4096,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "rotary_dim": 64,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
    },
    spelling=_GPT2_SPELLING,
    base="transformer.",
    ignored=_BUFFERS,
)


FAMILIES = (GPT2, STARCODER, GPTJ)
