"""InternLM 2 and 3, Baichuan 1 and 2, MiniCPM and Granite: Llama's mathematics, up to names, fusing and scales."""

import math
from dataclasses import replace
from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import f32
from lltool.quant.convert.families.changes import SAME, Chain, Each, NormalizeRows, Split
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    ByTensor,
    Expected,
    Ignored,
    Keys,
    Number,
    Setting,
)
from lltool.quant.convert.families.llama import BLOCKS, LLAMA, NAMES, PAIRS, ROWS, SIZES_7B
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import GROUPED, decoder, layer, reorder

_QKV = ("blk.{}.attn_q.weight", "blk.{}.attn_k.weight", "blk.{}.attn_v.weight")
_PAIRED = Each((PAIRS["attn_q"], PAIRS["attn_k"], SAME))


def _never(stored: Stored) -> bool:
    return False


INTERNLM2 = Family(
    architecture="internlm2",
    models=("InternLM2ForCausalLM", "InternLM2Model"),
    model_types=("internlm2",),
    rows=decoder(
        (
            *layer({"attn_norm": "attention_norm"}),
            Row(
                _QKV,
                "model.layers.{}.attention.wqkv.weight",
                (GROUPED, "width"),
                Chain(Split(("group * head_dim", "head_dim", "head_dim"), "num_key_value_heads"), _PAIRED),
            ),
            *layer(
                {
                    "attn_output": "attention.wo",
                    "ffn_norm": "ffn_norm",
                    "ffn_gate": "feed_forward.w1",
                    "ffn_up": "feed_forward.w3",
                    "ffn_down": "feed_forward.w2",
                }
            ),
        ),
        embedding="model.tok_embeddings",
        head="output",
    ),
    settings=(*BLOCKS, Expected("bias", False)),
    defaults={**SIZES_7B, "vocab_size": 103168, "intermediate_size": 11008, "max_position_embeddings": 2048},
    restores=_never,
)
INTERNLM2_AS_LLAMA = replace(LLAMA, architecture="internlm2")

_INTERNLM3_BIASES = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "qkv_bias"),
    **dict.fromkeys(("attn_output", "ffn_gate", "ffn_up", "ffn_down"), "bias"),
}
INTERNLM3 = Family(
    architecture="llama",
    models=("InternLM3ForCausalLM", "InternLM3Model"),
    model_types=("internlm3",),
    rows=decoder(layer(NAMES, changes=PAIRS, biases=_INTERNLM3_BIASES)),
    settings=(*BLOCKS, Expected("qkv_bias", True, False), Expected("bias", True, False)),
    defaults={**SIZES_7B, "vocab_size": 128512, "intermediate_size": 11008, "max_position_embeddings": 32768},
    restores=_never,
)


class _Baichuan(Setting):
    """The context under either of its names, and Baichuan 2's rows of unit length in the output matrix."""

    def describe(self, config: Config) -> Keys:
        if not config.get("max_position_embeddings"):
            config.derive("max_position_embeddings", config.get("model_max_length"))
        config.get("model_max_length")
        # Baichuan 2 is told by what its config has besides; its code normalizes the matrix in every call.
        is_second = config.get("z_loss_weight") is not None or config.get("vocab_size") == 125696
        config.derive("_norm_head", is_second)
        if is_second:
            config.notes.append("the rows of the output matrix are stored with length 1, as Baichuan 2 uses them")
        return {}


def _baichuan_rows() -> tuple[Row, ...]:
    pack = Chain(Split(("queries", "keys", "keys")), _PAIRED)
    rows = decoder(
        (
            *layer(reorder(NAMES, without=tuple(reorder(NAMES, without=("attn_norm",))))),
            Row(_QKV, "model.layers.{}.self_attn.W_pack.weight", (GROUPED, "width"), pack),
            *layer(reorder(NAMES, without=("attn_norm", "attn_q", "attn_k", "attn_v"))),
        )
    )
    head = rows[-1]
    return (*rows[:-1], replace(head, change=NormalizeRows(), when="_norm_head"), replace(head, when="not _norm_head"))


BAICHUAN = Family(
    architecture="baichuan",
    models=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    model_types=("baichuan",),
    rows=_baichuan_rows(),
    settings=(_Baichuan(), *BLOCKS, Ignored("Baichuan", "gradient_checkpointing")),
    defaults={**SIZES_7B, "vocab_size": 64000, "intermediate_size": 11008, "max_position_embeddings": None},
    restores=lambda stored: stored.keys.get("block_count") == 40,
    no_export="its positions are slopes of ALiBi, which no class of transformers has beside Llama's blocks",
)
BAICHUAN_AS_LLAMA = replace(LLAMA, architecture="baichuan")

GRANITE = Family(
    architecture="granite",
    models=("GraniteForCausalLM", "GraniteModel"),
    model_types=("granite",),
    rows=ROWS,
    settings=(
        *BLOCKS,
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("mlp_bias", "blk.0.ffn_up.bias"),
        Number("attention_multiplier", "attention.scale", *SCALES),
        Number("embedding_multiplier", "embedding_scale", *SCALES, neutral=1.0),
        Number("residual_multiplier", "residual_scale", *SCALES, neutral=1.0),
        Number("logits_scaling", "logit_scale", *SCALES, neutral=1.0),
    ),
    defaults={
        **SIZES_7B,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
        "tie_word_embeddings": False,
    },
)


class _MiniCpm(Setting):
    """The scales of the embedding, of what blocks add and of logits, from the depth and the width."""

    def describe(self, config: Config) -> Keys:
        layers, width = config.values["num_hidden_layers"], config.values["hidden_size"]
        return {
            "embedding_scale": f32(config.number("scale_emb", None, *SCALES)),
            "residual_scale": f32(config.number("scale_depth", None, *SCALES) / math.sqrt(layers)),
            "logit_scale": f32(width / config.integer("dim_model_base")),
        }


MINICPM = Family(
    architecture="minicpm",
    models=("MiniCPMForCausalLM", "MiniCPMModel"),
    model_types=("minicpm",),
    rows=decoder(layer(NAMES, changes=PAIRS)),
    settings=(*BLOCKS, Expected("attention_bias", False), _MiniCpm(), Expected("num_experts", 0)),
    defaults={
        **SIZES_7B,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "scale_emb": 1,
        "dim_model_base": 1,
        "scale_depth": 1,
        "tie_word_embeddings": True,
    },
    restores=_never,
)


class _AsGranite(Setting):
    """Granite's default attention scale is 1, and that of a file without the key is by the size of heads."""

    def describe(self, config: Config) -> Keys:
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"attention_multiplier": stored.number("attention.scale", 1 / math.sqrt(config["head_dim"]))}


MINICPM_AS_GRANITE = replace(
    GRANITE,
    architecture="minicpm",
    settings=(
        *(row for row in GRANITE.settings if not (isinstance(row, Number) and row.gguf == "attention.scale")),
        _AsGranite(),
    ),
)


FAMILIES = (
    INTERNLM2,
    INTERNLM2_AS_LLAMA,
    INTERNLM3,
    BAICHUAN,
    BAICHUAN_AS_LLAMA,
    GRANITE,
    MINICPM,
    MINICPM_AS_GRANITE,
)
