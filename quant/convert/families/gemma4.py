"""Gemma 4 (text): heads of two widths, keys that later layers share, inputs of each layer, some models with experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lltool.gguf.metadata import ValueType, array, u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, Experts
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.gemma3 import NAMES, Activation
from lltool.quant.convert.families.keys import (
    HEAD_DIMS,
    RMS_EPSILON,
    Expected,
    Integer,
    Keys,
    Layers,
    Setting,
    Softcap,
)
from lltool.quant.convert.families.padding import PadRows
from lltool.quant.convert.families.rope import describe_rope, read_rope
from lltool.quant.convert.families.rows import LayerSet, Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer, module, reorder

_UNROTATED = 1e30
"""The divisor of frequencies of pairs that are not rotated, as llama.cpp writes it."""

_INPUT, _MOE = "hidden_size_per_layer_input", "enable_moe_block"
INPUT_TOTAL = f"num_hidden_layers * {_INPUT}"
IN_IMAGE_MODELS = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "language_model.": "model.",
}
OTHER_PARTS = (*IGNORED, "vision_tower.", "audio_tower.", "multi_modal_projector.", "embed_vision.", "embed_audio.")

INPUT_ROWS = (
    Row(
        "per_layer_token_embd.weight",
        "model.embed_tokens_per_layer.weight",
        ("vocab_size_per_layer_input", INPUT_TOTAL),
        PadRows("vocab"),
        when=_INPUT,
    ),
    Row("per_layer_model_proj.weight", "model.per_layer_model_projection.weight", (INPUT_TOTAL, "width"), when=_INPUT),
    Row("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", (_INPUT,), when=_INPUT),
)
"""What each layer reads of the tokens."""

INPUT_NAMES = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
}
INPUT_SHAPES: Mapping[str, tuple[str, ...]] = {"inp_gate": (_INPUT, "width"), "proj": ("width", _INPUT)}


def is_sharing(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer reads the keys and values of an earlier one."""
    return bool(layer >= config["num_hidden_layers"] - config["num_kv_shared_layers"])


def in_layers(rows: tuple[Row, ...], layers: LayerSet, *, optional: bool = False) -> tuple[Row, ...]:
    return tuple(replace(row, layers=layers, optional=optional) for row in rows)


def key_rows(names: Mapping[str, str], slides: LayerSet, shapes: Mapping[str, tuple[str, ...]]) -> tuple[Row, ...]:
    """Rows of keys and values, which layers that read an earlier layer's may have for nothing."""
    rows = layer(names, shapes=shapes)
    return (
        *in_layers(rows, lambda config, layer: slides(config, layer) and not is_sharing(config, layer)),
        *in_layers(rows, lambda config, layer: slides(config, layer) and is_sharing(config, layer), optional=True),
    )


def _slides(config: Mapping[str, Any], layer: int) -> bool:
    return bool(config["_slides"][layer])


def _is_full(config: Mapping[str, Any], layer: int) -> bool:
    return not _slides(config, layer)


def _is_wide(config: Mapping[str, Any], layer: int) -> bool:
    return bool(config["use_double_wide_mlp"]) and is_sharing(config, layer)


_KEYS, _MLP = ("attn_k", "attn_v", "attn_k_norm"), ("ffn_gate", "ffn_up", "ffn_down")
_HEADS = ("attn_q", "attn_q_norm", "attn_output")
_FULL_QUERIES, _FULL_KEYS = "num_attention_heads * global_head_dim", "_global_kv_heads * global_head_dim"
_FULL_SHAPES = {
    "attn_q": (_FULL_QUERIES, "width"),
    "attn_q_norm": ("global_head_dim",),
    "attn_output": ("width", _FULL_QUERIES),
    "attn_k": (_FULL_KEYS, "width"),
    "attn_v": (_FULL_KEYS, "width"),
    "attn_k_norm": ("global_head_dim",),
}
_WIDE = "2 * intermediate_size"
_WIDE_SHAPES = {"ffn_gate": (_WIDE, "width"), "ffn_up": (_WIDE, "width"), "ffn_down": ("width", _WIDE)}


def pick(names: Mapping[str, str], wanted: tuple[str, ...]) -> dict[str, str]:
    return {gguf: source for gguf, source in names.items() if gguf in wanted}


def _with_values(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Full layers' values have no matrix where the config says that they are keys."""
    return tuple(replace(row, when="not attention_k_eq_v") if "attn_v" in row.targets[0] else row for row in rows)


_LAYER = "model.layers.{}."
_ROWS = (
    *layer(reorder(NAMES, without=(*_KEYS, *_MLP, *_HEADS))),
    *in_layers(layer(pick(NAMES, _HEADS)), _slides),
    *in_layers(layer(pick(NAMES, _HEADS), shapes=_FULL_SHAPES), _is_full),
    *key_rows(pick(NAMES, _KEYS), _slides, {}),
    *_with_values(key_rows(pick(NAMES, _KEYS), _is_full, _FULL_SHAPES)),
    *in_layers(layer(pick(NAMES, _MLP)), lambda config, layer: not _is_wide(config, layer)),
    *in_layers(layer(pick(NAMES, _MLP), shapes=_WIDE_SHAPES), _is_wide),
    *(replace(row, when=_INPUT) for row in layer(INPUT_NAMES, shapes=INPUT_SHAPES)),
    Row("blk.{}.layer_output_scale.weight", _LAYER + "layer_scalar", ("1",), optional=True),
    Row("blk.{}.ffn_gate_inp.weight", _LAYER + "router.proj.weight", (COUNT, "width"), when=_MOE),
    Row("blk.{}.ffn_gate_inp.scale", _LAYER + "router.scale", ("width",), when=_MOE),
    Row(
        "blk.{}.ffn_gate_up_exps.weight",
        _LAYER + "experts.gate_up_proj",
        (COUNT, "2 * moe_intermediate_size", "width"),
        when=_MOE,
    ),
    Row(
        "blk.{}.ffn_down_exps.weight",
        _LAYER + "experts.down_proj",
        (COUNT, "width", "moe_intermediate_size"),
        when=_MOE,
    ),
    Row("blk.{}.ffn_down_exps.scale", _LAYER + "router.per_expert_scale", (COUNT,), when=_MOE),
    *(
        replace(row, when=_MOE)
        for gguf, source in (("pre_ffw_norm_2", "pre"), ("post_ffw_norm_1", "post"), ("post_ffw_norm_2", "post"))
        for row in module(f"blk.{{}}.{gguf}", f"{_LAYER}{source}_feedforward_layernorm_{gguf[-1]}", ("width",))
    ),
)


def describe_sharing(config: Config, slides: list[bool]) -> Keys:
    """How many layers, the last ones, read the keys and values of earlier layers of their kind."""
    layers, shared = len(slides), config.get("num_kv_shared_layers", 0)
    config.require("num_kv_shared_layers", type(shared) is int and 0 <= shared < layers, "fewer than the layers")
    config.derive("num_kv_shared_layers", shared)
    same = set(slides) == set(slides[: layers - shared])
    config.require("num_kv_shared_layers", same, "earlier layers of each kind with keys of their own")
    return {"attention.shared_kv_layers": u32(shared)}


class _Heads(Setting):
    """The heads of layers with and without a window, and which layers share keys and values."""

    def describe(self, config: Config) -> Keys:
        layers, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads")
        slides = config.sliding_layers(layers) or [(layer + 1) % 6 != 0 for layer in range(layers)]
        config.require("layer_types", not slides[-1], "full_attention in the last layer")
        config.derive("_slides", slides)
        wide = {"head_dim": config.get("global_head_dim"), "num_key_value_heads": None}
        if config.get("attention_k_eq_v"):
            wide["num_key_value_heads"] = config.get("num_global_key_value_heads")
        config.read.add("num_global_key_value_heads")
        if (stated := config.get("per_layer_config")) is not None:
            wide = {"head_dim": config.get("head_dim"), **self._of_full_layers(config, stated, slides)}
        config.derive("global_head_dim", wide["head_dim"])
        kv_heads, full_kv_heads = config.integer("num_key_value_heads"), wide.get("num_key_value_heads")
        config.derive("_global_kv_heads", kv_heads if full_kv_heads is None else full_kv_heads)
        for key in ("head_dim", "global_head_dim"):
            config.require(key, config.integer(key) % 2 == 0, "an even number: rotary positions rotate pairs")
        for key in ("num_key_value_heads", "_global_kv_heads"):
            config.require(key, heads % config.integer(key) == 0, f"a divisor of {heads}")
        counts = [kv_heads if slide else config.values["_global_kv_heads"] for slide in slides]
        local = {f"{key}_swa": u32(config.values["head_dim"]) for key in HEAD_DIMS}
        return {
            "attention.head_count": u32(heads),
            "attention.head_count_kv": u32(kv_heads) if full_kv_heads is None else array(ValueType.INT32, counts),
            **describe_sharing(config, slides),
            "attention.sliding_window": u32(config.integer("sliding_window")),
            "attention.sliding_window_pattern": array(ValueType.BOOL, np.array(slides)),
            **dict.fromkeys(HEAD_DIMS, u32(config.values["global_head_dim"])),
            **local,
        }

    def _of_full_layers(self, config: Config, stated: Any, slides: list[bool]) -> dict[str, Any]:
        """What the config says of all layers with full attention alike; nothing if they are as the others."""
        if stated == {}:
            return {}
        full = [str(layer) for layer, slide in enumerate(slides) if not slide]
        parts = list(stated.values()) if isinstance(stated, dict) else []
        fine = isinstance(stated, dict) and sorted(stated, key=int) == full and all(part == parts[0] for part in parts)
        known = fine and set(parts[0]) <= {"head_dim", "num_key_value_heads"}
        config.require("per_layer_config", bool(known), "the same head_dim and num_key_value_heads for each full layer")
        return dict(parts[0])

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        layers, heads = config["num_hidden_layers"], stored.integer("attention.head_count")
        types = stored.layer_types(layers)
        slides = [kind == "sliding_attention" for kind in types]
        counts: Any = stored.keys.get("attention.head_count_kv", heads)
        counts = counts if isinstance(counts, list) else [counts] * layers
        fine = len(counts) == layers and all(type(x) is int and x > 0 for x in counts)
        stored.require("attention.head_count_kv", fine, f"a number for each of {layers} layers")
        local = next((x for x, slide in zip(counts, slides, strict=True) if slide), counts[0])
        full = next((x for x, slide in zip(counts, slides, strict=True) if not slide), counts[0])
        head_dim = stored.integer(HEAD_DIMS[0])
        return {
            "num_attention_heads": heads,
            "num_key_value_heads": local,
            "num_global_key_value_heads": None if full == local else full,
            "_global_kv_heads": full,
            "head_dim": stored.integer(f"{HEAD_DIMS[0]}_swa", head_dim),
            "global_head_dim": head_dim,
            "attention_k_eq_v": not any(
                f"blk.{layer}.attn_v.weight" in stored.names for layer, slide in enumerate(slides) if not slide
            ),
            "num_kv_shared_layers": stored.keys.get("attention.shared_kv_layers", 0),
            "sliding_window": stored.integer("attention.sliding_window"),
            "layer_types": types,
            "_slides": slides,
        }


class _FeedForward(Setting):
    """The width inside the MLP, which is twice as large in layers that share keys, if the config says so."""

    def describe(self, config: Config) -> Keys:
        width, layers = config.integer("intermediate_size"), config.values["num_hidden_layers"]
        config.expect("use_double_wide_mlp", True, False)
        config.derive("use_double_wide_mlp", bool(config.get("use_double_wide_mlp")))
        if not config.values["use_double_wide_mlp"]:
            return {"feed_forward_length": u32(width)}
        widths = [width * (1 + is_sharing(config.values, layer)) for layer in range(layers)]
        return {"feed_forward_length": array(ValueType.INT32, widths)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found: Any = stored.keys.get("feed_forward_length")
        widths = found if isinstance(found, list) else [found]
        fine = bool(widths) and all(type(x) is int and x in (widths[0], 2 * widths[0]) for x in widths)
        stored.require("feed_forward_length", fine, "one width, or twice as much in layers that share keys")
        return {"intermediate_size": widths[0], "use_double_wide_mlp": len(set(widths)) > 1}


class _Positions(Setting):
    """Layers with full attention rotate a part of their heads, with the frequencies of whole heads."""

    def describe(self, config: Config) -> Keys:
        local = read_rope(config, ("default",), "sliding_attention")
        parameters = read_rope(config, ("proportional", "default"), "full_attention", partial=True)
        head_dim = config.values["global_head_dim"]
        rotated = int(parameters["partial_rotary_factor"] * head_dim // 2)
        divisors = np.full(head_dim // 2, _UNROTATED, np.float32)
        divisors[:rotated] = parameters.get("factor", 1.0)
        config.constants["rope_freqs.weight"] = divisors
        return {
            **describe_rope(config, parameters),
            **{f"{key}_swa": value for key, value in describe_rope(config, local).items()},
            "rope.dimension_count": u32(head_dim),
            "rope.dimension_count_swa": u32(config.values["head_dim"]),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        divisors = stored.constants.get("rope_freqs.weight", np.ones(config["global_head_dim"] // 2, np.float32))
        rotated = int((divisors < _UNROTATED / 2).sum())
        full = {
            "rope_type": "proportional",
            "rope_theta": stored.number("rope.freq_base"),
            "partial_rotary_factor": rotated / len(divisors),
            "factor": float(divisors[0]),
        }
        local = {"rope_type": "default", "rope_theta": stored.number("rope.freq_base_swa", 10000.0)}
        return {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


class LayerInputs(Setting):
    """The width of what each layer reads of the tokens; 0: nothing."""

    def describe(self, config: Config) -> Keys:
        width = config.get(_INPUT, 0)
        config.require(_INPUT, type(width) is int and 0 <= width < 1 << 16, "an integer from 0, below 65536")
        config.derive(_INPUT, width)
        rows = config.integer("vocab_size_per_layer_input", config.integer("vocab_size"))
        config.require("vocab_size_per_layer_input", not width or rows <= config.values["vocab_size"], "no more tokens")
        return {"embedding_length_per_layer_input": u32(width)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        table = stored.shapes.get("per_layer_token_embd.weight")
        rows = {"vocab_size_per_layer_input": table[0]} if table else {}
        return {_INPUT: stored.keys.get("embedding_length_per_layer_input", 0), **rows}


class _Mixture(Setting):
    """Experts beside the MLP of each layer, if the config says so."""

    settings = (
        Experts("num_experts", used="top_k_experts"),
        Integer("moe_intermediate_size", "expert_feed_forward_length"),
    )

    def describe(self, config: Config) -> Keys:
        config.expect(_MOE, True, False)
        keys: Keys = {}
        for setting in self.settings if config.get(_MOE) else ():
            keys |= setting.describe(config)
        config.read.update(("num_experts", "top_k_experts", "moe_intermediate_size"))
        return keys

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {_MOE: bool(stored.keys.get("expert_count"))}
        for setting in self.settings if found[_MOE] else ():
            found |= setting.restore(stored, config)
        return found


GEMMA4 = Family(
    architecture="gemma4",
    models=(
        *("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4TextModel", "Gemma4Model"),
        "Gemma4UnifiedForConditionalGeneration",
    ),
    model_types=("gemma4_text", "gemma4", "gemma4_unified_text", "gemma4_unified"),
    rows=decoder(_ROWS, more=INPUT_ROWS),
    defaults={
        "vocab_size": 262144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 512,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "attention_k_eq_v": False,
        "use_double_wide_mlp": False,
        "enable_moe_block": False,
        "tie_word_embeddings": True,
    },
    settings=(
        Activation(),
        Expected("attention_bias", False),
        Expected("use_bidirectional_attention", "vision"),
        Layers(),
        Integer("max_position_embeddings", "context_length"),
        Integer("hidden_size", "embedding_length"),
        RMS_EPSILON,
        _Heads(),
        _FeedForward(),
        _Positions(),
        LayerInputs(),
        _Mixture(),
        Softcap("final_logit_softcapping", "final_logit_softcapping"),
    ),
    prefixes=IN_IMAGE_MODELS,
    ignored=OTHER_PARTS,
)
