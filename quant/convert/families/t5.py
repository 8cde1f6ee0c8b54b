"""The encoders of T5, mT5 and UMT5: pre-norm blocks whose scores have a bias by distance, and no positions."""

from typing import Any

from lltool.gguf.metadata import u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.encoder_settings import NO_EXPORT, OneWay, SentencePooling
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    HEAD_DIMS,
    Expected,
    Integer,
    Keys,
    Layers,
    Number,
    Unused,
)
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.tables import module

_BLOCK, _QUERIES = "encoder.block.{}.", ("num_attention_heads * head_dim", "width")
_GATED = "_is_gated"


def _rows(names: dict[str, tuple[str, tuple[str, ...]]], when: str = "") -> tuple[Row, ...]:
    return tuple(
        Row(f"enc.blk.{{}}.{gguf}.weight", f"{_BLOCK}layer.{source}.weight", shape, when=when)
        for gguf, (source, shape) in names.items()
    )


_ROWS = (
    *module("token_embd", "shared", ("vocab", "width")),
    *_rows(
        {
            "attn_norm": ("0.layer_norm", ("width",)),
            "attn_q": ("0.SelfAttention.q", _QUERIES),
            "attn_k": ("0.SelfAttention.k", _QUERIES),
            "attn_v": ("0.SelfAttention.v", _QUERIES),
            "attn_o": ("0.SelfAttention.o", ("width", "queries")),
        }
    ),
    Row(
        "enc.blk.{}.attn_rel_b.weight",
        f"{_BLOCK}layer.0.SelfAttention.relative_attention_bias.weight",
        ("relative_attention_num_buckets", "num_attention_heads"),
        layers=lambda config, layer: layer == 0 or bool(config["_biases_each_layer"]),
    ),
    *_rows({"ffn_norm": ("1.layer_norm", ("width",))}),
    *_rows({"ffn_gate": ("1.DenseReluDense.wi_0", ("hidden", "width"))}, _GATED),
    *_rows({"ffn_up": ("1.DenseReluDense.wi_1", ("hidden", "width"))}, _GATED),
    *_rows({"ffn_up": ("1.DenseReluDense.wi", ("hidden", "width"))}, f"not {_GATED}"),
    *_rows({"ffn_down": ("1.DenseReluDense.wo", ("width", "hidden"))}),
    *module("enc.output_norm", "encoder.final_layer_norm", ("width",)),
)


class _Attention(OneWay):
    """Heads of a width of their own, and the buckets of distances, of which UMT5 has biases for each layer."""

    def describe(self, config: Config) -> Keys:
        heads, dim = config.integer("num_attention_heads"), config.integer("head_dim")
        buckets = config.integer("relative_attention_num_buckets")
        config.require("relative_attention_num_buckets", buckets % 4 == 0, "a multiple of 4")
        config.expect("relative_attention_max_distance", 128)
        config.derive("_biases_each_layer", config.get("model_type") == "umt5")
        return {
            "attention.head_count": u32(heads),
            **dict.fromkeys(HEAD_DIMS, u32(dim)),
            "attention.relative_buckets_count": u32(buckets),
        }


class _FeedForward(OneWay):
    """The activation: RELU, or GELU of a gate."""

    def describe(self, config: Config) -> Keys:
        config.expect("feed_forward_proj", "relu", "gated-gelu")
        config.derive(_GATED, config.get("feed_forward_proj") == "gated-gelu")
        config.expect("is_gated_act", config.values[_GATED])
        config.expect("dense_act_fn", "gelu_new" if config.values[_GATED] else "relu")
        return {"feed_forward_length": u32(config.integer("intermediate_size"))}


_DEFAULTS: dict[str, Any] = {
    "hidden_size": 512,
    "head_dim": 64,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_eps": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}

T5_ENCODER = Family(
    architecture="t5encoder",
    models=("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel"),
    model_types=("t5", "mt5", "umt5"),
    rows=_ROWS,
    defaults=_DEFAULTS,
    settings=(
        Layers(),
        Integer("max_position_embeddings", "context_length", 512),
        Integer("hidden_size", "embedding_length"),
        _Attention(),
        _FeedForward(),
        Number("layer_norm_eps", "attention.layer_norm_epsilon", high=1.0),
        Number("layer_norm_eps", "attention.layer_norm_rms_epsilon", high=1.0),
        SentencePooling(dense=True),
        Unused("num_decoder_layers", "decoder_start_token_id", "dropout_rate", "initializer_factor", "n_positions"),
        Unused("output_past", "scalable_attention", "tokenizer_class"),
        Expected("add_cross_attention", False),
    ),
    spelling={
        "hidden_size": "d_model",
        "head_dim": "d_kv",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "layer_norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "n_positions",
    },
    prefixes={"encoder.embed_tokens.": "shared."},
    aliases=("encoder.embed_tokens.",),
    base="",
    no_export=NO_EXPORT,
)
