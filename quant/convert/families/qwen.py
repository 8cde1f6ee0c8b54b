"""Qwen 1: Qwen 2's blocks with fused queries, keys and values, whose MLP is half as wide as the config says."""

from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import GROUPED_QUERY, RMS_EPSILON, Expected, HeadDim, Keys, Setting, Unused
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.tables import decoder, layer


class _Half(Setting):
    """The width inside the MLP, as tensors have it."""

    def describe(self, config: Config) -> Keys:
        config.require("intermediate_size", config.integer("intermediate_size") % 2 == 0, "an even number")
        config.derive("_half", config.values["intermediate_size"] // 2)
        return {}


QWEN = Family(
    architecture="qwen",
    models=("QWenLMHeadModel", "QWenModel"),
    model_types=("qwen",),
    rows=decoder(
        layer(
            {
                "attn_norm": "ln_1",
                "attn_qkv": "attn.c_attn",
                "attn_output": "attn.c_proj",
                "ffn_norm": "ln_2",
                "ffn_gate": "mlp.w2",
                "ffn_up": "mlp.w1",
                "ffn_down": "mlp.c_proj",
            },
            base="transformer.h.{}.",
            biases={"attn_qkv": "always"},
            shapes={"ffn_gate": ("_half", "width"), "ffn_up": ("_half", "width"), "ffn_down": ("width", "_half")},
        ),
        embedding="transformer.wte",
        norm="transformer.ln_f",
    ),
    settings=(
        *GROUPED_QUERY,
        RMS_EPSILON,
        HeadDim(),
        Rope(("default",)),
        _Half(),
        Expected("no_bias", True),
        Expected("scale_attn_weights", True),
        Expected("rotary_pct", 1.0),
        Unused(
            *("attn_dropout_prob", "emb_dropout_prob", "bf16", "fp16", "fp32", "kv_channels", "onnx_safe"),
            *("use_cache_kernel", "use_cache_quantization", "use_dynamic_ntk", "use_logn_attn", "softmax_in_fp32"),
            *("max_position_embeddings", "tokenizer_type"),
        ),
    ),
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False},
    spelling={
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layer_norm_epsilon",
        "rope_theta": "rotary_emb_base",
    },
    base="transformer.",
    ignored=IGNORED,
    no_export="its class is not part of transformers, and Qwen 2's has separate matrices",
)

FAMILIES = (QWEN,)
