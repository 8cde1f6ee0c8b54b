"""Gemma 3n (text): several residual streams, inputs of each layer, keys that later layers share, sparse gates."""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

from lltool.gguf.metadata import ValueType, array, u32
from lltool.quant.convert.families.changes import Stack
from lltool.quant.convert.families.config import Config, is_between
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.gemma3 import NAMES, Activation, LocalRope, Windows
from lltool.quant.convert.families.gemma4 import (
    IN_IMAGE_MODELS,
    INPUT_NAMES,
    INPUT_ROWS,
    INPUT_SHAPES,
    OTHER_PARTS,
    LayerInputs,
    describe_sharing,
    in_layers,
    is_sharing,
    pick,
)
from lltool.quant.convert.families.keys import (
    RMS_EPSILON,
    Expected,
    HeadDim,
    Heads,
    Integer,
    Keys,
    Layers,
    Setting,
    Softcap,
)
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer, reorder

_KEYS, _OTHERS = ("attn_k", "attn_v", "attn_k_norm"), "_other_streams"
_STREAMS = "altup_num_inputs"

_STREAM_NAMES = {
    "altup_correct_coef": "altup.correction_coefs",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}
_STREAM_SHAPES = {
    "altup_correct_coef": (_STREAMS, _STREAMS),
    "altup_predict_coef": (f"{_STREAMS} * {_STREAMS}", _STREAMS),
    "altup_router": (_STREAMS, "width"),
    "laurel_l": ("laurel_rank", "width"),
    "laurel_r": ("width", "laurel_rank"),
}

_ROWS = (
    *layer(reorder(NAMES, without=_KEYS)),
    *in_layers(layer(pick(NAMES, _KEYS)), lambda config, layer: not is_sharing(config, layer)),
    *in_layers(layer(pick(NAMES, _KEYS)), is_sharing, optional=True),
    *layer(INPUT_NAMES, shapes=INPUT_SHAPES),
    *layer(_STREAM_NAMES, shapes=_STREAM_SHAPES),
    Row("blk.{}.altup_correct_scale.weight", "model.layers.{}.altup.correct_output_scale", ("width",)),
)
_PROJECTIONS = tuple(
    Row(f"{gguf}.weight", f"model.{source}.{{expert}}.weight", ("width", "width"), Stack(_OTHERS), experts=_OTHERS)
    for gguf, source in (
        ("altup_proj", "altup_projections"),
        ("altup_unembd_proj", "altup_unembed_projections"),
    )
)


class _Streams(Setting):
    """The streams, the rank of the projection beside attention, and the layers that share keys and values."""

    def describe(self, config: Config) -> Keys:
        layers, count = config.values["num_hidden_layers"], config.integer(_STREAMS)
        active = config.get("altup_active_idx", 0)
        config.require(_STREAMS, 2 <= count <= 64, "a number from 2 to 64")
        config.require("altup_active_idx", type(active) is int and 0 <= active < count, f"less than {count}")
        config.expect("altup_correct_scale", True)
        config.read.add("altup_coef_clip")  # in training
        config.integer("laurel_rank")
        config.derive(_OTHERS, count - 1)
        slides = config.sliding_layers(layers) or [(layer + 1) % 5 != 0 for layer in range(layers)]
        return {
            "altup.num_inputs": u32(count),
            "altup.active_idx": u32(active),
            **describe_sharing(config, slides),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        count = stored.integer("altup.num_inputs", 4)
        return {
            _STREAMS: count,
            _OTHERS: count - 1,
            "altup_active_idx": stored.keys.get("altup.active_idx", 0),
            "laurel_rank": stored.shapes.get("blk.0.laurel_l.weight", (64,))[0],
            "num_kv_shared_layers": stored.keys.get("attention.shared_kv_layers", 0),
        }


class _FeedForward(Setting):
    """The width inside the MLP, for which configs have a list."""

    def describe(self, config: Config) -> Keys:
        found, layers = config.get("intermediate_size"), config.values["num_hidden_layers"]
        if isinstance(found, list):
            fine = len(found) == layers and len(set(found)) == 1
            config.require("intermediate_size", fine, f"one number for all {layers} layers")
            config.derive("intermediate_size", found[0])
        return {"feed_forward_length": array(ValueType.INT32, [config.integer("intermediate_size")] * layers)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found: Any = stored.keys.get("feed_forward_length")
        widths = found if isinstance(found, list) else [found]
        fine = bool(widths) and type(widths[0]) is int and len(set(widths)) == 1
        stored.require("feed_forward_length", fine, "one width for all layers")
        return {"intermediate_size": widths[0]}


class _Sparsity(Setting):
    """The share of a layer's gates that become 0, which a file states as deviations of a normal distribution."""

    def describe(self, config: Config) -> Keys:
        layers, found = config.values["num_hidden_layers"], config.get("activation_sparsity_pattern")
        if found is None:
            found = [0.95] * 10 + [0.0] * (layers - 10) if layers > 10 else [0.0] * layers
        fine = isinstance(found, list) and len(found) == layers and all(is_between(x, 0.0, 0.999) for x in found)
        config.require("activation_sparsity_pattern", fine, f"a number from 0, below 1, for each of {layers} layers")
        deviations = [NormalDist().inv_cdf(share) if share else -math.inf for share in found]
        return {"activation_sparsity_scale": array(ValueType.FLOAT32, np.array(deviations, np.float32))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = stored.numbers("activation_sparsity_scale", config["num_hidden_layers"])
        shares = [round(NormalDist().cdf(x), 6) if x > -math.inf else 0.0 for x in found]
        return {"activation_sparsity_pattern": shares}


GEMMA3N = Family(
    architecture="gemma3n",
    models=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration", "Gemma3nTextModel", "Gemma3nModel"),
    model_types=("gemma3n_text", "gemma3n"),
    rows=decoder(_ROWS, more=(*(replace(row, when="") for row in INPUT_ROWS), *_PROJECTIONS)),
    defaults={
        "vocab_size": 262400,
        "hidden_size": 2048,
        "intermediate_size": [16384] * 35,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "vocab_size_per_layer_input": 262144,
        "hidden_size_per_layer_input": 256,
        "altup_active_idx": 0,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 15,
        "laurel_rank": 64,
        "tie_word_embeddings": True,
    },
    settings=(
        Activation(),
        Expected("attention_bias", False),
        Layers(),
        Integer("max_position_embeddings", "context_length"),
        Integer("hidden_size", "embedding_length"),
        _FeedForward(),
        Heads(),
        RMS_EPSILON,
        HeadDim(always=True),
        Softcap("final_logit_softcapping", "final_logit_softcapping"),
        Rope(("default", "linear"), "full_attention"),
        LocalRope(),
        Windows(5, always=True),
        _Streams(),
        LayerInputs(),
        _Sparsity(),
    ),
    prefixes=IN_IMAGE_MODELS,
    ignored=OTHER_PARTS,
)
