"""StableLM, OLMo 1, Nemotron and StarCoder 2: layer norms in blocks like Llama's."""

from lltool.gguf.architecture_keys import SCALES
from lltool.quant.convert.families.changes import ADD_ONE, SAME, Stack
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    GROUPED_QUERY,
    ByTensor,
    Expected,
    Fixed,
    FixedNumber,
    Flag,
    HeadDim,
    Number,
    OptionalWindow,
    Unused,
)
from lltool.quant.convert.families.llama import NAMES, PAIRS, SIZES_7B
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.tables import decoder, layer, reorder

_QKV = ("attn_q", "attn_k", "attn_v")
_PLAIN_ROPE = ("default", "linear", "dynamic")


def _per_head(letter: str, heads: str) -> Row:
    """The weights of the norms of all heads, each of which is a module of its own."""
    source = f"model.layers.{{}}.self_attn.{letter}_layernorm.norms.{{expert}}.weight"
    return Row(f"blk.{{}}.attn_{letter}_norm.weight", source, ("head",), Stack(heads), "qk_layernorm", experts=heads)


STABLELM = Family(
    architecture="stablelm",
    models=("StableLmForCausalLM", "StableLMEpochForCausalLM", "StableLmModel"),
    model_types=("stablelm", "stablelm_epoch"),
    rows=decoder(
        (
            *layer(
                reorder(NAMES, without=("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")),
                biases={"attn_norm": "always", **dict.fromkeys(_QKV, "use_qkv_bias")},
            ),
            _per_head("q", "num_attention_heads"),
            _per_head("k", "num_key_value_heads"),
            Row(
                "blk.{}.ffn_norm.weight",
                "model.layers.{}.post_attention_layernorm.weight",
                ("width",),
                when="not use_parallel_residual",
            ),
            Row(
                "blk.{}.ffn_norm.bias",
                "model.layers.{}.post_attention_layernorm.bias",
                ("width",),
                when="not use_parallel_residual",
            ),
            *layer({name: NAMES[name] for name in ("ffn_gate", "ffn_up", "ffn_down")}),
        ),
        norm_bias="always",
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        *GROUPED_QUERY,
        Number("layer_norm_eps", "attention.layer_norm_epsilon", high=1.0),
        HeadDim(),
        Rope(_PLAIN_ROPE, dims=True, partial=True),
        Flag("use_parallel_residual", "use_parallel_residual"),
        ByTensor("use_qkv_bias", "blk.0.attn_q.bias"),
        ByTensor("qk_layernorm", "blk.0.attn_q_norm.weight"),
    ),
    defaults={
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_hidden_layers": 32,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
        "tie_word_embeddings": False,
    },
)

OLMO = Family(
    architecture="olmo",
    models=("OlmoForCausalLM", "OLMoForCausalLM", "OlmoModel"),
    model_types=("olmo",),
    rows=tuple(
        row
        for row in decoder(layer(reorder(NAMES, without=("attn_norm", "ffn_norm")), changes=PAIRS))
        if row.gguf != "output_norm.weight"
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        *GROUPED_QUERY,
        FixedNumber("attention.layer_norm_epsilon", 1e-5),
        HeadDim(),
        Rope(ROPE_TYPES, dims=True),
        Number("clip_qkv", "attention.clamp_kqv", *SCALES, neutral=0.0),
        Expected("attention_bias", False),
    ),
    defaults={
        **{k: v for k, v in SIZES_7B.items() if k != "rms_norm_eps"},
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
)

_NEMOTRON = reorder(NAMES, without=("ffn_gate",))
NEMOTRON = Family(
    architecture="nemotron",
    models=("NemotronForCausalLM", "NemotronModel"),
    model_types=("nemotron",),
    rows=decoder(
        layer(
            _NEMOTRON,
            changes={"attn_norm": ADD_ONE, "ffn_norm": ADD_ONE},
            bias_changes={"attn_norm": SAME, "ffn_norm": SAME},
            biases={
                "attn_norm": "always",
                "ffn_norm": "always",
                **dict.fromkeys((*_QKV, "attn_output"), "attention_bias"),
                **dict.fromkeys(("ffn_up", "ffn_down"), "mlp_bias"),
            },
        ),
        norm_change=ADD_ONE,
        norm_bias="always",
    ),
    settings=(
        Fixed("hidden_act", "relu2"),
        *GROUPED_QUERY,
        Number("norm_eps", "attention.layer_norm_epsilon", high=1.0),
        HeadDim(),
        Rope(_PLAIN_ROPE, dims=True, partial=True),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("mlp_bias", "blk.0.ffn_up.bias"),
    ),
    defaults={
        "num_attention_heads": 48,
        "num_hidden_layers": 32,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
    },
)

_STARCODER2 = {
    **reorder(NAMES, without=("ffn_gate", "ffn_up", "ffn_down")),
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
STARCODER2 = Family(
    architecture="starcoder2",
    models=("Starcoder2ForCausalLM", "Starcoder2Model"),
    model_types=("starcoder2",),
    rows=decoder(
        layer(
            _STARCODER2,
            biases={name: "always" if name.endswith("norm") else "use_bias" for name in _STARCODER2},
        ),
        norm_bias="always",
    ),
    settings=(
        Fixed("hidden_act", "gelu_pytorch_tanh"),
        *GROUPED_QUERY,
        Number("norm_epsilon", "attention.layer_norm_epsilon", high=1.0),
        HeadDim(),
        Rope(_PLAIN_ROPE),
        OptionalWindow(),
        ByTensor("use_bias", "blk.0.attn_q.bias"),
        Unused("mlp_type", "norm_type", "residual_dropout", "embedding_dropout"),
    ),
    defaults={
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "num_hidden_layers": 30,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
)

FAMILIES = (STABLELM, OLMO, NEMOTRON, STARCODER2)
