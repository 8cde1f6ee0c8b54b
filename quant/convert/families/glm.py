"""ChatGLM 3, GLM 4 and GLM 4 of April 2025: rotary pairs side by side in half of a head, a fused gate."""

from lltool.gguf.metadata import f32, u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    DECODER,
    GROUPED_QUERY,
    RMS_EPSILON,
    ByTensor,
    Expected,
    Fixed,
    HeadDim,
    Keys,
    Setting,
)
from lltool.quant.convert.families.llama import NAMES
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.tables import decoder, layer, reorder

_QKV = ("attn_q", "attn_k", "attn_v")
_FUSED_GATE = {"ffn_up": ("2 * intermediate_size", "width")}
_NAMES = {**reorder(NAMES, without=("ffn_gate",)), "ffn_up": "mlp.gate_up_proj"}
_DEFAULTS = {
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "num_hidden_layers": 40,
    "hidden_size": 4096,
    "head_dim": 128,
    "intermediate_size": 13696,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 0.00000015625,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "tie_word_embeddings": False,
}
_SETTINGS: tuple[Setting, ...] = (
    Fixed("hidden_act", "silu"),
    *DECODER,
    Rope(("default",), dims=True, partial=True),
    ByTensor("attention_bias", "blk.0.attn_q.bias"),
)

GLM = Family(
    architecture="chatglm",
    models=("GlmForCausalLM", "GlmModel"),
    model_types=("glm",),
    rows=decoder(layer(_NAMES, biases=dict.fromkeys(_QKV, "attention_bias"), shapes=_FUSED_GATE)),
    settings=_SETTINGS,
    defaults=_DEFAULTS,
    restores=lambda stored: "blk.0.attn_qkv.weight" not in stored.names,
)

_GLM4_NAMES = {
    **{name: _NAMES[name] for name in ("attn_norm", *_QKV, "attn_output")},
    "post_attention_norm": "post_self_attn_layernorm",
    **{name: _NAMES[name] for name in ("ffn_norm", "ffn_up", "ffn_down")},
    "post_ffw_norm": "post_mlp_layernorm",
}
GLM4 = Family(
    architecture="glm4",
    models=("Glm4ForCausalLM", "Glm4Model"),
    model_types=("glm4",),
    rows=decoder(layer(_GLM4_NAMES, biases=dict.fromkeys(_QKV, "attention_bias"), shapes=_FUSED_GATE)),
    settings=_SETTINGS,
    defaults=_DEFAULTS,
)


class _ChatGlm(Setting):
    """What ChatGLM's config says in its own way: heads of keys, rotary positions, biases."""

    def describe(self, config: Config) -> Keys:
        if not config.get("multi_query_attention", False):
            config.derive("num_key_value_heads", config.integer("num_attention_heads"))
        config.expect("apply_residual_connection_post_layernorm", False)
        config.expect("post_layer_norm", True)
        config.expect("original_rope", True)
        config.expect("interleaved_qkv", False)
        config.expect("add_bias_linear", False)
        config.expect("rmsnorm", True)
        for key in (
            "apply_query_key_layer_scaling",
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "layernorm_epsilon",
        ):
            config.get(key)
        return {}


class _ChatGlmRope(Setting):
    """Half of each head is rotated, at a base that the config gives as a ratio."""

    def describe(self, config: Config) -> Keys:
        rotated = config.values["head_dim"] // 2
        config.require("head_dim", rotated % 2 == 0, "a multiple of 4")
        base = 10000.0 * config.number("rope_ratio", 1.0)
        return {"rope.dimension_count": u32(rotated), "rope.freq_base": f32(base)}


CHATGLM = Family(
    architecture="chatglm",
    models=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    model_types=("chatglm",),
    rows=decoder(
        layer(
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attention.query_key_value",
                "attn_output": "self_attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            },
            base="transformer.encoder.layers.{}.",
            biases={"attn_qkv": "add_qkv_bias"},
            shapes=_FUSED_GATE,
        ),
        embedding="transformer.embedding.word_embeddings",
        norm="transformer.encoder.final_layernorm",
        head="transformer.output_layer",
    ),
    settings=(
        _ChatGlm(),
        *GROUPED_QUERY,
        RMS_EPSILON,
        HeadDim(),
        _ChatGlmRope(),
        Expected("add_qkv_bias", True, False),
    ),
    defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    spelling={
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "seq_length",
        "intermediate_size": "ffn_hidden_size",
        "num_key_value_heads": "multi_query_group_num",
        "head_dim": "kv_channels",
        "rms_norm_eps": "layernorm_epsilon",
        "vocab_size": "padded_vocab_size",
    },
    base="transformer.",
    ignored=(*IGNORED, "rotary_pos_emb."),
    no_export="its class is not part of transformers, and its matrices are fused as those of no class that is",
)

FAMILIES = (GLM, GLM4, CHATGLM)
