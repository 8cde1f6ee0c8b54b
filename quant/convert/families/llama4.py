"""Llama 4's text model: chunked attention, every fourth layer without positions, and experts in every n-th layer."""

from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.gguf.metadata import f32, u32
from lltool.quant.convert.families import llama
from lltool.quant.convert.families.changes import Chain, Transpose
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, STACKS, Experts, router_row, split_stack
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    RMS_EPSILON,
    ByTensor,
    Expected,
    Fixed,
    HeadDim,
    Heads,
    Integer,
    Keys,
    Layers,
    Setting,
)
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer, reorder

_MLP, _STEP = "model.layers.{}.feed_forward.", "interleave_moe_layer_step"
_PERIOD = 4  # every fourth layer sees all keys, and has no positions
_TEMPER = {"attn_scale": 0.1, "floor_scale": 8192}
_WITHOUT_NORMS = 128  # experts of the model whose heads have no norms


def _is_mixed(config: Any, layer: int) -> bool:
    return bool((layer + 1) % config[_STEP] == 0)


def _is_dense(config: Any, layer: int) -> bool:
    return not _is_mixed(config, layer)


def _mlp_rows(gguf: str, checkpoint: str, hidden: str, layers: Any) -> tuple[Row, ...]:
    shapes = {"gate": (hidden, "width"), "up": (hidden, "width"), "down": ("width", hidden)}
    return tuple(
        Row(gguf.replace("PART", part), f"{_MLP}{checkpoint}{part}_proj.weight", shape, layers=layers)
        for part, shape in shapes.items()
    )


class _Mixed(Setting):
    """The layers with experts: every n-th."""

    def describe(self, config: Config) -> Keys:
        step, layers = config.integer(_STEP, 1), config.values["num_hidden_layers"]
        wanted = [layer for layer in range(layers) if (layer + 1) % step == 0]
        config.require("moe_layers", config.get("moe_layers", wanted) == wanted, f"{wanted}, every {step}th layer")
        experts = config.values[COUNT]
        has_norms = config.get("use_qk_norm", True)
        config.require("use_qk_norm", has_norms == (experts != _WITHOUT_NORMS), "false with 128 experts, else true")
        return {_STEP: u32(step)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {_STEP: stored.integer(_STEP), "use_qk_norm": config[COUNT] != _WITHOUT_NORMS}


class _Chunks(Setting):
    """The chunk of layers with positions, and how queries grow in the others.

    llama.cpp takes 8192 positions for both and the factor 0.1, whatever a file says; other numbers are written for us.
    """

    def describe(self, config: Config) -> Keys:
        layers = config.values["num_hidden_layers"]
        rotated = [int((layer + 1) % _PERIOD != 0) for layer in range(layers)]
        config.require("no_rope_layer_interval", config.get("no_rope_layer_interval", _PERIOD) == _PERIOD, "4")
        config.require("no_rope_layers", config.get("no_rope_layers") in (None, [], rotated), f"{rotated}")
        kinds = ["chunked_attention" if flag else "full_attention" for flag in rotated]
        config.require("layer_types", config.get("layer_types", kinds) == kinds, f"{kinds}")
        config.require("attn_temperature_tuning", config.get("attn_temperature_tuning") in (True, 4), "true")
        keys = {"attention.sliding_window": u32(config.integer("attention_chunk_size"))}
        if config.get("attn_scale") != _TEMPER["attn_scale"]:
            keys["attention.temperature_scale"] = f32(config.number("attn_scale", None, *SCALES))
        length = config.integer("floor_scale")
        return keys if length == _TEMPER["floor_scale"] else keys | {"attention.temperature_length": u32(length)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        layers = config["num_hidden_layers"]
        stored.require("attention.sliding_window", stored.keys.get("attention.sliding_window") != 0, "a chunk")
        return {
            "attention_chunk_size": stored.integer("attention.sliding_window", 8192),
            "no_rope_layers": [int((layer + 1) % _PERIOD != 0) for layer in range(layers)],
            "attn_scale": stored.number("attention.temperature_scale", _TEMPER["attn_scale"]),
            "floor_scale": stored.integer("attention.temperature_length", int(_TEMPER["floor_scale"])),
        }


_HIDDEN, _DENSE_HIDDEN = "intermediate_size", "intermediate_size_mlp"
_NAMES = reorder(llama.NAMES, without=("ffn_gate", "ffn_up", "ffn_down"))
_ATTENTION_BIASES = {name: key for name, key in llama.BIASES.items() if name.startswith("attn")}

LLAMA4 = Family(
    architecture="llama4",
    models=("Llama4ForCausalLM", "Llama4ForConditionalGeneration", "Llama4TextModel"),
    model_types=("llama4_text", "llama4"),
    rows=decoder(
        (
            *layer(_NAMES, biases=_ATTENTION_BIASES),
            *_mlp_rows("blk.{}.ffn_PART.weight", "", _DENSE_HIDDEN, _is_dense),
            router_row(_MLP + "router.weight", _is_mixed),
            Row(
                STACKS[:2],
                _MLP + "experts.gate_up_proj",
                (COUNT, "width", f"2 * {_HIDDEN}"),
                Chain(Transpose(), split_stack(_HIDDEN, _HIDDEN)),
                layers=_is_mixed,
            ),
            Row(STACKS[2], _MLP + "experts.down_proj", (COUNT, _HIDDEN, "width"), Transpose(), layers=_is_mixed),
            *_mlp_rows("blk.{}.ffn_PART_shexp.weight", "shared_expert.", _HIDDEN, _is_mixed),
        )
    ),
    defaults={
        **llama.SIZES_7B,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "tie_word_embeddings": False,
        **_TEMPER,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        Layers(),
        Integer("max_position_embeddings", "context_length"),
        Integer("hidden_size", "embedding_length"),
        Integer(_DENSE_HIDDEN, "feed_forward_length"),
        Integer(_HIDDEN, "expert_feed_forward_length"),
        Heads(),
        RMS_EPSILON,
        HeadDim(always=True),
        Rope(("default", "llama3"), dims=True),
        Experts("num_local_experts"),
        _Mixed(),
        _Chunks(),
        Expected("router_jitter_noise", 0.0),
        Expected("for_llm_compressor", False),
    ),
    prefixes={"language_model.model.": "model.", "model.language_model.": "model.", "language_model.": ""},
    ignored=(*IGNORED, "vision_model.", "multi_modal_projector."),
)
