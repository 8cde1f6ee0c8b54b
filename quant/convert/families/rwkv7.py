"""RWKV 7 as the library flash-linear-attention stores it: time mixing and channel mixing, without attention."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lltool.gguf.metadata import u32
from lltool.gguf.source import Tensor
from lltool.quant.convert.families.changes import SAME, Change, Inverse, Stack, Tensors
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    LAYER_EPSILON,
    Expected,
    Fixed,
    Integer,
    Keys,
    Layers,
    Setting,
    Unused,
)
from lltool.quant.convert.families.mixed_layers import only
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.scan_changes import Unflatten
from lltool.quant.convert.families.sizes import Sizes
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, module

_CONTEXT = 1 << 20  # tokens, as llama.cpp's converter writes for models without a longest text
_HEAD_EPSILON = 64e-5  # of the norm of each head, which no file states
_LETTERS = "rwkvag"  # of the inputs that are shifted, in the order of the file
_RANKS = {
    "decay_low_rank_dim": "attention.decay_lora_rank",
    "a_low_rank_dim": "attention.iclr_lora_rank",
    "v_low_rank_dim": "attention.value_residual_mix_lora_rank",
    "gate_low_rank_dim": "attention.gate_lora_rank",
}


@dataclass(frozen=True)
class Copies(Change):
    """A tensor that the file has `count` times; the way back takes the first."""

    count: int

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        (tensor,) = tensors
        return [tensor] * self.count

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [tensors[0]]


class _TimeMixing(Setting):
    """The heads, and the widths between the pairs of matrices."""

    def describe(self, config: Config) -> Keys:
        width, dim = config.integer("hidden_size"), config.integer("head_dim")
        config.require("head_dim", width % dim == 0, f"a divisor of hidden_size, {width}")
        config.derive("_heads", width // dim)
        config.expect("num_heads", width // dim)
        epsilon = dim * config.number("layer_norm_epsilon")
        wanted = f"{_HEAD_EPSILON / dim}, whose product with head_dim is what engines assume"
        config.require("layer_norm_epsilon", math.isclose(epsilon, _HEAD_EPSILON, rel_tol=1e-4), wanted)
        ranks = {gguf: u32(config.integer(key)) for key, gguf in _RANKS.items()}
        return {"wkv.head_size": u32(dim), "context_length": u32(_CONTEXT), "attention.head_count": u32(0), **ranks}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        dim, width = stored.integer("wkv.head_size"), config["hidden_size"]
        stored.require("wkv.head_size", width % dim == 0, f"a divisor of embedding_length, {width}")
        ranks = {key: stored.integer(gguf) for key, gguf in _RANKS.items()}
        return {"head_dim": dim, "_heads": width // dim, "max_position_embeddings": _CONTEXT, **ranks}


class _Hidden(Setting):
    """The width inside channel mixing, which a config may state as a multiple of the model's, rounded up to 32."""

    def describe(self, config: Config) -> Keys:
        ratio = config.number("hidden_ratio", 4.0)
        width = -(-int(config.values["hidden_size"] * ratio) // 32) * 32
        config.derive("intermediate_size", config.integer("intermediate_size", width))
        return {"feed_forward_length": u32(config.values["intermediate_size"])}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"intermediate_size": stored.integer("feed_forward_length")}


_LAYER = "model.layers.{}."
_MIX = f"{_LAYER}attn."


def _is_first(config: Any, number: int) -> bool:
    return number == 0


def _is_later(config: Any, number: int) -> bool:
    return number > 0


def _narrow(gguf: str, source: str, rank: str, change: Change = SAME) -> tuple[Row, ...]:
    """A vector and two matrices with `rank` values between them; what the first layer has twice, engines want so."""
    targets = [tuple(f"blk.{{}}.time_mix_{letter}{part}.weight" for letter in gguf) for part in range(3)]
    module = f"{_MIX}{source}_lora.lora."
    return (
        Row(targets[0], f"{module}2.bias", ("width",), change),
        Row(targets[1], f"{module}0.weight", (rank, "width"), change),
        Row(targets[2], f"{module}2.weight", ("width", rank), change),
    )


_LERP = "blk.{}.time_mix_lerp_fused.weight"
_VECTORS = (
    Row("blk.{}.time_mix_k_k.weight", f"{_MIX}k_k", ("width",)),
    Row("blk.{}.time_mix_k_a.weight", f"{_MIX}k_a", ("width",)),
    Row("blk.{}.time_mix_r_k.weight", f"{_MIX}r_k", ("_heads", "head_dim"), Inverse(Unflatten("_heads"))),
)
_PROJECTIONS = {"receptance": "r", "key": "k", "value": "v", "output": "o"}
_ROWS = (
    *module("blk.{}.attn_norm", f"{_LAYER}attn_norm", ("width",), bias="always"),
    *module("blk.{}.attn_norm_2", f"{_LAYER}ffn_norm", ("width",), bias="always"),
    Row(_LERP, f"{_MIX}x_{{letter}}", ("1", "1", "width"), Stack(str(len(_LETTERS))), letters=_LETTERS),
    Row(_LERP, f"{_MIX}x_x", (str(len(_LETTERS)), "width")),
    *_VECTORS,
    *_narrow("w", "w", "decay_low_rank_dim"),
    *only(_is_first, _narrow("av", "a", "a_low_rank_dim", Copies(2))),
    *only(_is_later, (*_narrow("a", "a", "a_low_rank_dim"), *_narrow("v", "v", "v_low_rank_dim"))),
    *_narrow("g", "g", "gate_low_rank_dim")[1:],
    *(
        Row(f"blk.{{}}.time_mix_{gguf}.weight", f"{_MIX}{name}_proj.weight", ("width", "width"))
        for gguf, name in _PROJECTIONS.items()
    ),
    *module("blk.{}.time_mix_ln", f"{_MIX}g_norm", ("width",), bias="always"),
    Row("blk.{}.channel_mix_lerp_k.weight", f"{_LAYER}ffn.x_k", ("width",)),
    Row("blk.{}.channel_mix_key.weight", f"{_LAYER}ffn.key.weight", ("hidden", "width")),
    Row("blk.{}.channel_mix_value.weight", f"{_LAYER}ffn.value.weight", ("width", "hidden")),
)

RWKV7 = Family(
    architecture="rwkv7",
    models=("RWKV7ForCausalLM", "Rwkv7ForCausalLM", "RWKV7Model"),
    model_types=("rwkv7",),
    rows=decoder(
        _ROWS,
        embedding="model.embeddings",
        more=module("token_embd_norm", "model.layers.0.pre_norm", ("width",), bias="always"),
        norm_bias="always",
    ),
    settings=(
        Fixed("hidden_act", "sqrelu"),
        Layers(),
        Integer("hidden_size", "embedding_length"),
        LAYER_EPSILON,
        _TimeMixing(),
        _Hidden(),
        Fixed("norm_first", True),
        Fixed("norm_bias", True),
        Expected("attn", None),
        Unused("attn_mode", "value_dim", "max_position_embeddings", "hidden_ratio", "fuse_norm", "fuse_cross_entropy"),
        Unused("fuse_linear_cross_entropy", "use_l2warp", "expand_k", "expand_v"),
    ),
    spelling={"layer_norm_epsilon": "norm_eps"},
    ignored=(*IGNORED, "layers.0.attn.v_lora."),  # which some checkpoints have, and nothing reads
    defaults={
        "vocab_size": 65536,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "head_dim": 64,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
    },
)
