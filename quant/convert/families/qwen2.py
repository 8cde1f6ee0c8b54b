"""Qwen 2 and 2.5: Llama's blocks with biases on q, k and v and with a sliding window in some layers."""

from typing import Any

from lltool.quant.convert.families import llama
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.encoder_settings import OptionalSentencePooling
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, Expected, Fixed, Keys, Setting, describe_windows
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

ROPE_TYPES = ("default", "linear", "yarn", "dynamic")

# Pairs are not reordered, because this architecture rotates i and i + half in GGUF files too.
ROWS = decoder(layer(llama.NAMES, biases=dict.fromkeys(("attn_q", "attn_k", "attn_v"), "always")))


class Windows(Setting):
    """The sliding window, which the layers from max_window_layers on or those named by layer_types have."""

    def describe(self, config: Config) -> Keys:
        config.expect("use_sliding_window", True, False)
        layers, window = config.integer("num_hidden_layers"), config.get("sliding_window")
        first = config.get("max_window_layers", 28)
        slides = config.sliding_layers(layers)
        if not config.get("use_sliding_window", False):
            window = None
        if slides is None:
            config.require("max_window_layers", type(first) is int, "an integer")
            slides = [layer >= first for layer in range(layers)]
        return {} if window is None else describe_windows(config, slides)

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        if not stored.keys.get("attention.sliding_window"):
            return {"use_sliding_window": False}
        window, layer_types = (
            stored.integer("attention.sliding_window"),
            stored.layer_types(config["num_hidden_layers"]),
        )
        return {"use_sliding_window": True, "sliding_window": window, "layer_types": layer_types}


SETTINGS: tuple[Setting, ...] = (
    Fixed("hidden_act", "silu"),
    Expected("use_mrope", False),
    *DECODER,
    Rope(ROPE_TYPES),
    Windows(),
    OptionalSentencePooling(),  # of Qwen3-Embedding and its kin
)

QWEN2 = Family(
    architecture="qwen2",
    models=("Qwen2ForCausalLM", "Qwen2Model"),
    model_types=("qwen2",),
    rows=ROWS,
    defaults={
        **llama.SIZES_7B,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    settings=SETTINGS,
)
