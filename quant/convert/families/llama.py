"""Llama 1 to 3 and models that compute the same: Mistral, Yi, SmolLM."""

from typing import Any

from lltool.quant.convert.families.changes import Permute
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import IGNORED, Family
from lltool.quant.convert.families.keys import (
    DECODER,
    ByTensor,
    Expected,
    Fixed,
    HeadDim,
    Ignored,
    Keys,
    Setting,
    describe_windows,
)
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import LLAMA_NAMES, decoder, layer, reorder

NAMES = reorder(LLAMA_NAMES, without=("attn_q_norm", "attn_k_norm"))
PAIRS = {"attn_q": Permute("num_attention_heads"), "attn_k": Permute("num_key_value_heads")}
_ATTENTION, _MLP = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
BIASES = {**dict.fromkeys(_ATTENTION, "attention_bias"), **dict.fromkeys(_MLP, "mlp_bias")}
ROWS = decoder(layer(NAMES, changes=PAIRS, biases=BIASES))

BLOCKS: tuple[Setting, ...] = (Fixed("hidden_act", "silu"), *DECODER, Rope(ROPE_TYPES, dims=True))


class Windows(Setting):
    """The sliding window, in all layers or in those that layer_types names; null means none."""

    def describe(self, config: Config) -> Keys:
        layers = config.values["num_hidden_layers"]
        slides = config.sliding_layers(layers) or [True] * layers
        return {} if config.get("sliding_window") is None else describe_windows(config, slides)

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        if not stored.keys.get("attention.sliding_window"):
            return {"sliding_window": None}
        window: dict[str, Any] = {"sliding_window": stored.integer("attention.sliding_window")}
        if "attention.sliding_window_pattern" in stored.keys:
            window["layer_types"] = stored.layer_types(config["num_hidden_layers"])
        return window


WITH_IMAGES = "Mistral3ForConditionalGeneration"
"""The class of Mistral Small 3.1 and of Ministral 3, which reads images; its text model is of either kind."""

IN_IMAGE_MODELS = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "language_model.": "model.",
}
IMAGE_PARTS = (*IGNORED, "vision_tower.", "multi_modal_projector.")

SIZES_7B = {
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}

LLAMA = Family(
    architecture="llama",
    models=("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    model_types=("llama",),
    rows=ROWS,
    defaults={**SIZES_7B, "intermediate_size": 11008, "max_position_embeddings": 2048, "tie_word_embeddings": False},
    settings=(
        *BLOCKS,
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("mlp_bias", "blk.0.ffn_up.bias"),
        Ignored("Llama", "sliding_window"),
    ),
    restores=lambda stored: not stored.keys.get("attention.sliding_window"),
)

HELIUM = Family(
    architecture="llama",
    models=("HeliumForCausalLM", "HeliumModel"),
    model_types=("helium",),
    rows=decoder(layer(NAMES, biases={name: bias for name, bias in BIASES.items() if name != "attn_output"})),
    defaults={
        "hidden_size": 2560,
        "intermediate_size": 7040,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "head_dim": 128,
        "rms_norm_eps": 1e-8,
        "rope_theta": 100000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    settings=(*BLOCKS, HeadDim(always=True), Expected("attention_bias", False), Expected("mlp_bias", False)),
    restores=lambda stored: False,
)
"""Its checkpoints rotate neighbouring dimensions, as files do; export makes a Llama of them."""

MISTRAL = Family(
    architecture="llama",
    models=(
        *("MistralForCausalLM", "MistralModel", "MinistralForCausalLM", "MinistralModel", WITH_IMAGES),
        *("CwmForCausalLM", "CwmModel"),
    ),
    model_types=("mistral", "ministral", "cwm"),
    rows=decoder(layer(NAMES, changes=PAIRS)),
    defaults={
        **SIZES_7B,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    settings=(*BLOCKS, Ignored("Mistral", "attention_bias", "mlp_bias"), Windows()),
    prefixes=IN_IMAGE_MODELS,
    ignored=IMAGE_PARTS,
)
