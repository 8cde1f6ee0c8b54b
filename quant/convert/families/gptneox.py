"""GPT-NeoX, Falcon, MPT and Bloom: queries, keys and values fused head by head, or by groups of heads."""

from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import f32, string
from lltool.quant.convert.families.changes import Gather, Split
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    FULL_HEADS,
    LAYER_EPSILON,
    Expected,
    Fixed,
    Flag,
    HeadDim,
    Keys,
    Number,
    Setting,
    Unused,
)
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import FUSED_BIASES, decoder, layer, module

_BY_HEAD = Gather(Split(("head_dim", "head_dim", "head_dim"), "num_attention_heads"))


class _NeoxNames(Setting):
    """The older names of the rotary settings."""

    def describe(self, config: Config) -> Keys:
        for old, new in (("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")):
            if config.get(old) is not None:
                config.derive(new, config.number(old))
        return {}


GPTNEOX = Family(
    architecture="gptneox",
    models=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    model_types=("gpt_neox",),
    rows=decoder(
        layer(
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "attention.query_key_value",
                "attn_output": "attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            },
            base="gpt_neox.layers.{}.",
            changes={"attn_qkv": _BY_HEAD},
            biases={**FUSED_BIASES, "attn_qkv": "attention_bias", "attn_output": "attention_bias"},
        ),
        embedding="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm",
        norm_bias="always",
        head="embed_out",
    ),
    settings=(
        Fixed("hidden_act", "gelu"),
        *FULL_HEADS,
        Number("layer_norm_eps", "attention.layer_norm_epsilon", high=1.0),
        HeadDim(),
        _NeoxNames(),
        Rope(("default", "linear"), dims=True, partial=True),
        Flag("use_parallel_residual", "use_parallel_residual"),
        Expected("attention_bias", True, False),
    ),
    defaults={
        "max_position_embeddings": 2048,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    prefixes={"lm_head.": "embed_out."},
    base="gpt_neox.",
    ignored=(*IGNORED, ".attention.bias", ".attention.masked_bias"),
)


class _Falcon(Setting):
    """The heads of keys, the norms of a block and the order of fused rows, by the generation of the architecture."""

    def describe(self, config: Config) -> Keys:
        config.expect("alibi", False)
        config.expect("parallel_attn", True)
        config.expect("bias", False)
        config.expect("activation", "gelu")
        is_new, is_multi_query = config.get("new_decoder_architecture"), config.get("multi_query")
        if not is_new:
            heads = 1 if is_multi_query else config.integer("num_attention_heads")
            config.get("num_key_value_heads")
            config.derive("num_key_value_heads", heads)
        norms = config.get("num_ln_in_parallel_attn", 2 if is_new else 1)
        config.require("num_ln_in_parallel_attn", norms in (1, 2), "1 or 2")
        config.derive("_two_norms", bool(is_new) and norms == 2)
        return {"tensor_data_layout": string("jploski")}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        two = "blk.0.attn_norm_2.weight" in stored.names
        heads, kv_heads = stored.integer("attention.head_count"), stored.integer("attention.head_count_kv")
        return {
            "_two_norms": two,
            "new_decoder_architecture": two or kv_heads not in (1, heads),
            "num_ln_in_parallel_attn": 2 if two else 1,
            "multi_query": kv_heads == 1,
            "parallel_attn": True,
            "alibi": False,
            "bias": False,
        }


def _norm(gguf: str, source: str, when: str) -> tuple[Row, ...]:
    base = "transformer.h.{}."
    return tuple(
        Row(f"blk.{{}}.{gguf}.{kind}", f"{base}{source}.{kind}", ("width",), when=when) for kind in ("weight", "bias")
    )


FALCON = Family(
    architecture="falcon",
    models=("FalconForCausalLM", "RWForCausalLM", "FalconModel"),
    model_types=("falcon", "RefinedWebModel", "RefinedWeb"),
    rows=decoder(
        (
            *_norm("attn_norm", "ln_mlp", "_two_norms"),
            *_norm("attn_norm_2", "ln_attn", "_two_norms"),
            *_norm("attn_norm", "input_layernorm", "not _two_norms"),
            *layer(
                {
                    "attn_qkv": "self_attention.query_key_value",
                    "attn_output": "self_attention.dense",
                    "ffn_up": "mlp.dense_h_to_4h",
                    "ffn_down": "mlp.dense_4h_to_h",
                },
                base="transformer.h.{}.",
                changes={
                    "attn_qkv": Gather(Split(("group * head_dim", "head_dim", "head_dim"), "num_key_value_heads"))
                },
            ),
        ),
        embedding="transformer.word_embeddings",
        norm="transformer.ln_f",
        norm_bias="always",
    ),
    settings=(_Falcon(), *FULL_HEADS, LAYER_EPSILON, HeadDim(), Rope(("default", "linear"))),
    defaults={
        "max_position_embeddings": 2048,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "multi_query": True,
        "parallel_attn": True,
        "tie_word_embeddings": True,
    },
    spelling={"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size", "head_dim": ""},
    base="transformer.",
)


class _MptAttention(Setting):
    """The settings of attention, which are an object of their own."""

    def describe(self, config: Config) -> Keys:
        stated = config.get("attn_config", {})
        config.require("attn_config", isinstance(stated, dict), "an object")
        inner = Config(config.file, stated, {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention"})
        for key, allowed in (("attn_type", "multihead_attention"), ("qk_ln", False), ("prefix_lm", False)):
            inner.expect(key, allowed)
        inner.expect("alibi", True)
        inner.expect("softmax_scale", None)
        inner.expect("attn_uses_sequence_id", False)
        keys: Keys = {"attention.max_alibi_bias": f32(inner.number("alibi_bias_max"))}
        if inner.get("clip_qkv") is not None:
            keys["attention.clamp_kqv"] = f32(inner.number("clip_qkv", None, *SCALES))
        return keys

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        bias = stored.number("attention.max_alibi_bias")
        stored.require("attention.max_alibi_bias", bias == int(bias), "a whole number")
        clip = "attention.clamp_kqv"
        clamp = stored.number(clip) if stored.keys.get(clip) else None
        return {"attn_config": {"alibi": True, "alibi_bias_max": int(bias), "clip_qkv": clamp}}


MPT = Family(
    architecture="mpt",
    models=("MptForCausalLM", "MPTForCausalLM", "MptModel"),
    model_types=("mpt",),
    rows=decoder(
        layer(
            {
                "attn_norm": "norm_1",
                "attn_qkv": "attn.Wqkv",
                "attn_output": "attn.out_proj",
                "ffn_norm": "norm_2",
                "ffn_up": "ffn.up_proj",
                "ffn_down": "ffn.down_proj",
            },
            base="transformer.blocks.{}.",
        ),
        embedding="transformer.wte",
        norm="transformer.norm_f",
    ),
    settings=(
        *FULL_HEADS,
        # transformers has no other factor, though the config can state one.
        Expected("expansion_ratio", 4),
        LAYER_EPSILON,
        HeadDim(),
        _MptAttention(),
        Expected("no_bias", True),
        Expected("logit_scale", None),
        Expected("embedding_fraction", 1.0),
        Unused("learned_pos_emb", "norm_type", "emb_pdrop", "init_device", "init_config", "tokenizer_name", "verbose"),
    ),
    defaults={
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    spelling={
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_seq_len",
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
    },
    base="transformer.",
)

BLOOM = Family(
    architecture="bloom",
    models=("BloomForCausalLM", "BloomModel"),
    model_types=("bloom",),
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
            base="transformer.h.{}.",
            changes={"attn_qkv": _BY_HEAD},
            biases=FUSED_BIASES,
        ),
        embedding="transformer.word_embeddings",
        norm="transformer.ln_f",
        norm_bias="always",
        more=module("token_embd_norm", "transformer.word_embeddings_layernorm", ("width",), bias="always"),
    ),
    settings=(
        *FULL_HEADS,
        LAYER_EPSILON,
        HeadDim(),
        Expected("apply_residual_connection_post_layernorm", False),
        Unused("slow_but_exact", "skip_bias_add", "skip_bias_add_qkv", "bias_dropout_fusion", "masked_softmax_fusion"),
        Unused("attention_softmax_in_fp32", "offset_alibi", "unk_token_id", "n_inner"),
    ),
    defaults={
        "max_position_embeddings": 2048,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    spelling={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
    },
    base="transformer.",
)

FAMILIES = (GPTNEOX, FALCON, MPT, BLOOM)
