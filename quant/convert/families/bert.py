"""BERT, DistilBERT, RoBERTa, Nomic and Jina: encoders, and rerankers with a classifier."""

from dataclasses import replace
from typing import Any

from lltool.quant.convert.families.changes import DropRows
from lltool.quant.convert.families.encoder_settings import (
    NO_EXPORT,
    Bidirectional,
    CutPositions,
    Labels,
    SentencePooling,
    TokenTypes,
)
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    GROUPED_QUERY,
    Expected,
    FixedNumber,
    HeadDim,
    Number,
    Setting,
    Unused,
)
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.tables import Bias, layer, module, reorder

EPSILON = Number("layer_norm_eps", "attention.layer_norm_epsilon", high=1.0)
_UNUSED = Unused("attention_probs_dropout_prob", "gradient_checkpointing", "max_trained_positions", "position_offset")
_GELU = Expected("hidden_act", "gelu")
_ENCODES: tuple[Setting, ...] = (Bidirectional(), TokenTypes(), SentencePooling(), _UNUSED)
_BERT_SETTINGS = (
    *GROUPED_QUERY,
    EPSILON,
    HeadDim(),
    Expected("position_embedding_type", "absolute"),
    _GELU,
    *_ENCODES,
)
_BERT_SIZES: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
_HEADS = ("pooler.", "cls.predictions.", "cls.seq_relationship.", "lm_head.", "position_ids")


def _norm(gguf: str, source: str) -> tuple[Row, ...]:
    """A norm with a bias; old checkpoints call the two gamma and beta."""
    old = ((f"{gguf}.weight", f"{source}.gamma"), (f"{gguf}.bias", f"{source}.beta"))
    return (*module(gguf, source, ("width",), bias="always"), *(Row(name, was, ("width",)) for name, was in old))


def _embeddings(base: str, norm: str) -> tuple[Row, ...]:
    return (
        *module("token_embd", f"{base}word_embeddings", ("vocab", "width")),
        Row("token_types.weight", f"{base}token_type_embeddings.weight", ("type_vocab_size", "width")),
        *_norm("token_embd_norm", norm),
    )


def classifier(dense: str, out: str, bias: Bias = "always") -> tuple[Row, ...]:
    """The rows of a classifier: a dense layer, which may have a bias, and an output."""
    return (
        *module("cls", dense, ("width", "width"), bias=bias),
        *module("cls.output", out, ("_labels", "width"), bias="always"),
    )


_BERT_NAMES = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
}
_BERT_ROWS = (
    *_embeddings("bert.embeddings.", "bert.embeddings.LayerNorm"),
    Row("position_embd.weight", "bert.embeddings.position_embeddings.weight", ("max_position_embeddings", "width")),
    *layer(_BERT_NAMES, base="bert.encoder.layer.{}.", biases=dict.fromkeys(_BERT_NAMES, "always")),
    *_norm("blk.{}.attn_output_norm", "bert.encoder.layer.{}.attention.output.LayerNorm"),
    *_norm("blk.{}.layer_output_norm", "bert.encoder.layer.{}.output.LayerNorm"),
)
BERT = Family(
    architecture="bert",
    models=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    model_types=("bert",),
    rows=_BERT_ROWS,
    defaults=_BERT_SIZES,
    settings=_BERT_SETTINGS,
    base="bert.",
    ignored=(*IGNORED, *_HEADS),
    no_export=NO_EXPORT,
)
BERT_RERANKER = replace(
    BERT,
    models=("BertForSequenceClassification",),
    rows=(*_BERT_ROWS, *classifier("bert.pooler.dense", "classifier")),
    settings=(*_BERT_SETTINGS, Labels()),
    ignored=(*IGNORED, *_HEADS[1:]),
)
_CUT = Row(
    "position_embd.weight",
    "bert.embeddings.position_embeddings.weight",
    ("max_position_embeddings", "width"),
    DropRows("_positions"),
)
ROBERTA = replace(
    BERT,
    models=("RobertaModel", "XLMRobertaModel", "CamembertModel", "RobertaForMaskedLM", "XLMRobertaForMaskedLM"),
    model_types=("roberta", "xlm-roberta", "camembert"),
    rows=tuple(_CUT if "position_embd.weight" in row.targets else row for row in _BERT_ROWS),
    settings=(*_BERT_SETTINGS, CutPositions()),
    defaults={**_BERT_SIZES, "pad_token_id": 1},
    prefixes={"roberta.": "bert.", "camembert.": "bert."},
)
ROBERTA_RERANKER = replace(
    ROBERTA,
    models=("RobertaForSequenceClassification", "XLMRobertaForSequenceClassification"),
    rows=(*ROBERTA.rows, *classifier("classifier.dense", "classifier.out_proj")),
    settings=(*ROBERTA.settings, Labels()),
)

_NOMIC_NAMES = {"ffn_up": "mlp.fc11", "ffn_gate": "mlp.fc12", "ffn_down": "mlp.fc2"}
_FUSED = {"attn_qkv": "attn.Wqkv", "attn_output": "attn.out_proj"}
_NORMS = (
    *_norm("blk.{}.attn_output_norm", "encoder.layers.{}.norm1"),
    *_norm("blk.{}.layer_output_norm", "encoder.layers.{}.norm2"),
)
NOMIC = Family(
    architecture="nomic-bert",
    models=("NomicBertModel", "NomicBertForMaskedLM"),
    model_types=("nomic_bert",),
    rows=(
        *_embeddings("embeddings.", "emb_ln"),
        *layer(_FUSED | _NOMIC_NAMES, base="encoder.layers.{}."),
        *_NORMS,
    ),
    defaults={**_BERT_SIZES, "hidden_act": "silu", "max_position_embeddings": 2048, "rope_theta": 1000.0},
    settings=(
        *GROUPED_QUERY,
        EPSILON,
        HeadDim(),
        Rope(("default",)),
        Expected("hidden_act", "silu", "swiglu"),
        *_ENCODES,
        Expected("qkv_proj_bias", False),
        Expected("mlp_fc1_bias", False),
        Expected("mlp_fc2_bias", False),
        Expected("prenorm", False),
        Expected("rotary_emb_fraction", 1.0),
        Expected("rotary_emb_interleaved", False),
        Expected("use_rms_norm", False),
        Expected("causal", False),
        Expected("parallel_block", False),
        Expected("scale_attn_weights", True),
        Expected("scale_attn_by_inverse_layer_idx", False),
        Unused(
            *("attn_pdrop", "dense_seq_output", "fused_bias_fc", "fused_dropout_add_ln", "last_layer_subset"),
            *("mlp_fc1_bias", "pad_vocab_size_multiple", "reorder_and_upcast_attn", "rotary_emb_base"),
            *("rotary_emb_scale_base", "rotary_scaling_factor", "summary_activation", "summary_first_dropout"),
            *("summary_proj_to_labels", "summary_type", "summary_use_proj", "use_xentropy"),
        ),
    ),
    prefixes={"nomic_bert.": "", "bert.": ""},
    base="",
    ignored=(*IGNORED, *_HEADS),
    no_export=NO_EXPORT,
)
JINA3 = Family(
    architecture="jina-bert-v3",
    models=("JinaEmbeddingsV3Model", "JinaEmbeddingsV3ForMaskedLM"),
    model_types=("jina_embeddings_v3",),
    rows=(
        *_embeddings("embeddings.", "emb_ln"),
        *layer(
            {
                "attn_qkv": "mixer.Wqkv",
                "attn_output": "mixer.out_proj",
                "ffn_up": "mlp.fc1",
                "ffn_down": "mlp.fc2",
            },
            base="encoder.layers.{}.",
            biases=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), "always"),
        ),
        *_NORMS,
    ),
    defaults={
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "max_position_embeddings": 8194,
        "rope_theta": 20000.0,
        "layer_norm_eps": 1e-5,
    },
    settings=(*GROUPED_QUERY, EPSILON, HeadDim(), Rope(("default",)), _GELU, *_ENCODES),
    prefixes={"roberta.": "", "jina_embeddings_v3.": ""},
    base="",
    ignored=(*IGNORED, *_HEADS),
    no_export=NO_EXPORT,
)

_TWICE = ("2 * intermediate_size", "width")
_JINA2_NAMES = reorder(_BERT_NAMES, without=("ffn_up", "ffn_down"))
JINA2 = replace(
    BERT,
    architecture="jina-bert-v2",
    models=("JinaBertModel", "JinaBertForMaskedLM"),
    model_types=("bert", "jina_bert"),
    rows=(
        *_embeddings("bert.embeddings.", "bert.embeddings.LayerNorm"),
        *layer(_JINA2_NAMES, base="bert.encoder.layer.{}.", biases=dict.fromkeys(_JINA2_NAMES, "always")),
        *_norm("blk.{}.attn_output_norm", "bert.encoder.layer.{}.attention.output.LayerNorm"),
        Row(
            "blk.{}.ffn_up.weight", "bert.encoder.layer.{}.mlp.gated_layers.weight", ("2 * intermediate_size", "width")
        ),
        *module("blk.{}.ffn_down", "bert.encoder.layer.{}.mlp.wo", ("width", "hidden"), bias="always"),
        *_norm("blk.{}.layer_output_norm", "bert.encoder.layer.{}.mlp.layernorm"),
    ),
    settings=(
        *GROUPED_QUERY,
        EPSILON,
        HeadDim(),
        _GELU,
        Expected("position_embedding_type", "alibi"),
        Expected("feed_forward_type", "geglu"),
        Unused("emb_pooler", "attn_implementation", "model_max_length"),
        *_ENCODES,
    ),
)
_DISTIL_NAMES = {
    "attn_q": "attention.q_lin",
    "attn_k": "attention.k_lin",
    "attn_v": "attention.v_lin",
    "attn_output": "attention.out_lin",
    "ffn_up": "ffn.lin1",
    "ffn_down": "ffn.lin2",
}
_DISTIL = "distilbert.transformer.layer.{}."
DISTIL = replace(
    BERT,
    models=("DistilBertModel", "DistilBertForMaskedLM"),
    model_types=("distilbert",),
    rows=(
        *module("token_embd", "distilbert.embeddings.word_embeddings", ("vocab", "width")),
        *_norm("token_embd_norm", "distilbert.embeddings.LayerNorm"),
        Row(
            "position_embd.weight",
            "distilbert.embeddings.position_embeddings.weight",
            ("max_position_embeddings", "width"),
        ),
        *layer(_DISTIL_NAMES, base=_DISTIL, biases=dict.fromkeys(_DISTIL_NAMES, "always")),
        *_norm("blk.{}.attn_output_norm", f"{_DISTIL}sa_layer_norm"),
        *_norm("blk.{}.layer_output_norm", f"{_DISTIL}output_layer_norm"),
    ),
    settings=(
        *GROUPED_QUERY,
        FixedNumber("attention.layer_norm_epsilon", 1e-12),
        HeadDim(),
        Expected("activation", "gelu"),
        *_ENCODES,
        Unused("attention_dropout", "dropout", "qa_dropout", "seq_classif_dropout", "sinusoidal_pos_embds"),
    ),
    defaults={
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "activation": "gelu",
    },
    spelling={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    base="distilbert.",
    ignored=(*IGNORED, "vocab_"),
)

FAMILIES = (BERT, DISTIL, ROBERTA, JINA2, NOMIC, JINA3, BERT_RERANKER, ROBERTA_RERANKER)
