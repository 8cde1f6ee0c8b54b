"""ModernBERT and EuroBERT: encoders with rotary positions and norms before attention and MLP."""

from dataclasses import replace

from lltool.quant.convert.families.bert import EPSILON, classifier
from lltool.quant.convert.families.encoder_settings import (
    NO_EXPORT,
    Bidirectional,
    ClassifierPooling,
    HiddenActivation,
    Labels,
    Periods,
    SentencePooling,
)
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.gemma3 import LocalRope
from lltool.quant.convert.families.keys import DECODER, GROUPED_QUERY, Expected, HeadDim, Unused
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.tables import LLAMA_NAMES, layer, module, reorder

_MODERN_NAMES = {
    "attn_qkv": "attn.Wqkv",
    "attn_output": "attn.Wo",
    "ffn_norm": "mlp_norm",
    "ffn_up": "mlp.Wi",
    "ffn_down": "mlp.Wo",
}
_MODERN_ROWS = (
    *module("token_embd", "model.embeddings.tok_embeddings", ("vocab", "width")),
    *module("token_embd_norm", "model.embeddings.norm", ("width",)),
    replace(
        module("blk.{}.attn_norm", "model.layers.{}.attn_norm", ("width",))[0], layers=lambda config, layer: layer > 0
    ),
    *layer(_MODERN_NAMES, shapes={"ffn_up": ("2 * intermediate_size", "width")}),
    *module("output_norm", "model.final_norm", ("width",)),
)
MODERN = Family(
    architecture="modern-bert",
    models=("ModernBertModel", "ModernBertForMaskedLM"),
    model_types=("modernbert",),
    rows=_MODERN_ROWS,
    defaults={
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "local_attention": 128,
        "classifier_pooling": "cls",
        "classifier_activation": "gelu",
        "rope_theta": 160000.0,
        "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": True,
    },
    settings=(
        *GROUPED_QUERY,
        EPSILON,
        HeadDim(),
        Rope(("default",), "full_attention"),
        LocalRope(None),
        Periods(),
        HiddenActivation(),
        Bidirectional(),
        SentencePooling(),
        Expected("norm_bias", False),
        Expected("attention_bias", False),
        Expected("mlp_bias", False),
        Unused(
            *("classifier_pooling", "classifier_activation", "classifier_bias", "cls_token_id", "decoder_bias"),
            *("deterministic_flash_attn", "embedding_dropout", "mlp_dropout", "reference_compile", "repad_logits_with"),
            *("repad_logits_with_grad", "sparse_pred_ignore_index", "sparse_prediction", "initializer_cutoff_factor"),
            *("position_embedding_type", "layer_norm_eps", "norm_eps", "unpad_inputs"),
        ),
    ),
    spelling={
        "layer_norm_eps": "norm_eps",
        "rope_theta": "global_rope_theta",
        "rope_local_base_freq": "local_rope_theta",
    },
    ignored=(*IGNORED, "head.", "decoder."),
    no_export=NO_EXPORT,
)
MODERN_RERANKER = replace(
    MODERN,
    models=("ModernBertForSequenceClassification",),
    rows=(
        *_MODERN_ROWS,
        *classifier("head.dense", "classifier", "no"),
        *module("cls.norm", "head.norm", ("width",)),
    ),
    settings=(
        *MODERN.settings,
        Expected("classifier_activation", "gelu"),
        Expected("classifier_bias", False),
        ClassifierPooling(),
        Labels(),
    ),
    ignored=IGNORED,
)
EURO = Family(
    architecture="eurobert",
    models=("EuroBertModel", "EuroBertForMaskedLM"),
    model_types=("eurobert",),
    rows=(
        *module("token_embd", "model.embed_tokens", ("vocab", "width")),
        *layer(reorder(LLAMA_NAMES, without=("attn_q_norm", "attn_k_norm"))),
        *module("output_norm", "model.norm", ("width",)),
    ),
    defaults={
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
    },
    settings=(
        *DECODER,
        Rope(("default",)),
        Expected("hidden_act", "silu"),
        Expected("attention_bias", False),
        Expected("mlp_bias", False),
        Bidirectional(),
        SentencePooling(),
        Unused("classifier_pooling", "mask_token", "mask_token_id", "clf_pooling"),
    ),
    ignored=(*IGNORED, "lm_head."),
    no_export=NO_EXPORT,
)

FAMILIES = (MODERN, EURO, MODERN_RERANKER)
