"""Command-R and Cohere 2: attention and MLP side by side after one norm, logits with a scale."""

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import string
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.gemma3 import Windows
from lltool.quant.convert.families.keys import (
    GROUPED_QUERY,
    ByTensor,
    Expected,
    Fixed,
    HeadDim,
    Keys,
    Number,
    Setting,
    Unused,
)
from lltool.quant.convert.families.llama import NAMES
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.tables import decoder, layer, reorder

_QKV = ("attn_q", "attn_k", "attn_v")


class _NoScaling(Setting):
    """The type of rotary scaling as llama.cpp's converter states it for these models."""

    def describe(self, config: Config) -> Keys:
        return {"rope.scaling.type": string("none")}


_COHERE = reorder(NAMES, without=("ffn_norm",))
COHERE = Family(
    architecture="command-r",
    models=("CohereForCausalLM", "CohereModel"),
    model_types=("cohere",),
    rows=decoder(
        (
            *layer(
                {name: _COHERE[name] for name in ("attn_norm", *_QKV)}, biases=dict.fromkeys(_QKV, "attention_bias")
            ),
            Row(
                "blk.{}.attn_q_norm.weight",
                "model.layers.{}.self_attn.q_norm.weight",
                ("num_attention_heads", "head"),
                when="use_qk_norm",
            ),
            Row(
                "blk.{}.attn_k_norm.weight",
                "model.layers.{}.self_attn.k_norm.weight",
                ("num_key_value_heads", "head"),
                when="use_qk_norm",
            ),
            *layer(
                {name: _COHERE[name] for name in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")},
                biases={"attn_output": "attention_bias"},
            ),
        )
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        *GROUPED_QUERY,
        Number("layer_norm_eps", "attention.layer_norm_epsilon", high=1.0),
        HeadDim(),
        Rope(("default",)),
        Number("logit_scale", "logit_scale", *SCALES),
        _NoScaling(),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("use_qk_norm", "blk.0.attn_q_norm.weight"),
        Unused("model_max_length"),
    ),
    defaults={
        "num_attention_heads": 64,
        "num_hidden_layers": 40,
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
    },
)

COHERE2 = Family(
    architecture="cohere2",
    models=("Cohere2ForCausalLM", "Cohere2Model"),
    model_types=("cohere2",),
    rows=decoder(layer(_COHERE)),
    settings=(
        Fixed("hidden_act", "silu"),
        *GROUPED_QUERY,
        Number("layer_norm_eps", "attention.layer_norm_epsilon", high=1.0),
        HeadDim(),
        Rope(("default",), dims=True),
        Number("logit_scale", "logit_scale", *SCALES),
        _NoScaling(),
        Windows(4),
        Expected("attention_bias", False),
        Expected("rotary_pct", 1.0),
        Expected("use_qk_norm", False),
        Expected("use_parallel_block", True),
        Expected("use_parallel_embedding", False),
        Expected("use_gated_activation", True),
        Expected("position_embedding_type", "rope_gptj"),
        Unused("order_of_interleaved_layers", "layer_switch", "use_embedding_sharing"),
    ),
    defaults={
        "num_attention_heads": 64,
        "num_hidden_layers": 40,
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "logit_scale": 0.0625,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
)

FAMILIES = (COHERE, COHERE2)
