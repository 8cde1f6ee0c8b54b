"""SmolLM 3, Seed-OSS, ERNIE 4.5, Hunyuan and Apertus: Llama's blocks with other positions, norms or activations."""

from typing import Any

from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family, LayerKey
from lltool.quant.convert.families.keys import (
    DECODER,
    ByTensor,
    Expected,
    Fixed,
    HeadDim,
    Ignored,
    Keys,
    Setting,
    Unused,
)
from lltool.quant.convert.families.llama import BLOCKS, NAMES, ROWS, SIZES_7B
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import LLAMA_NAMES, decoder, layer, reorder


class _NoRope(Setting):
    """The layers without rotary positions, which engines take to be every fourth."""

    def describe(self, config: Config) -> Keys:
        layers = config.values["num_hidden_layers"]
        every = [int((layer + 1) % config.integer("no_rope_layer_interval", 4) != 0) for layer in range(layers)]
        wanted = [int((layer + 1) % 4 != 0) for layer in range(layers)]
        found = config.get("no_rope_layers", every)
        config.require("no_rope_layers", found == wanted, "0 in every fourth layer; GGUF has no key for others")
        config.expect("use_sliding_window", False)
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"no_rope_layer_interval": 4, "use_sliding_window": False}


class _FullAttention(Setting):
    """layer_types, which must name full attention for every layer; the window is then of no layer."""

    def describe(self, config: Config) -> Keys:
        slides = config.sliding_layers(config.values["num_hidden_layers"]) or []
        config.require("layer_types", not any(slides), "full_attention for every layer")
        config.get("sliding_window"), config.get("max_window_layers")
        return {}


SMOLLM3 = Family(
    architecture="smollm3",
    models=("SmolLM3ForCausalLM", "SmolLM3Model"),
    model_types=("smollm3",),
    rows=ROWS,
    settings=(
        *BLOCKS,
        _NoRope(),
        _FullAttention(),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("mlp_bias", "blk.0.ffn_up.bias"),
    ),
    defaults={
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_hidden_layers": 36,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
    },
)

SEED_OSS = Family(
    architecture="seed_oss",
    models=("SeedOssForCausalLM", "SeedOssModel"),
    model_types=("seed_oss",),
    rows=decoder(
        layer(
            {"post_attention_norm" if gguf == "ffn_norm" else gguf: name for gguf, name in NAMES.items()},
            biases={
                **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attention_bias"),
                "attn_output": "attention_out_bias",
                **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), "mlp_bias"),
            },
        )
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER[:-1],
        HeadDim(always=True),
        Rope(ROPE_TYPES),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        ByTensor("attention_out_bias", "blk.0.attn_output.bias"),
        ByTensor("mlp_bias", "blk.0.ffn_up.bias"),
        Ignored("Seed-OSS", "residual_dropout"),
    ),
    defaults={
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "num_hidden_layers": 64,
        "hidden_size": 4096,
        "head_dim": 128,
        "intermediate_size": 27648,
        "max_position_embeddings": 524288,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
)

ERNIE4_5 = Family(
    architecture="ernie4_5",
    models=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM", "Ernie4_5Model"),
    model_types=("ernie4_5",),
    rows=decoder(
        layer(NAMES, biases={name: "use_bias" for name in NAMES if not name.endswith("norm")}),
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER[:-1],
        HeadDim(always=True),
        Rope(ROPE_TYPES),
        ByTensor("use_bias", "blk.0.attn_q.bias"),
    ),
    defaults={
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "num_hidden_layers": 18,
        "hidden_size": 1024,
        "head_dim": 128,
        "intermediate_size": 3072,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    prefixes={"ernie.": "model."},
)


class _Alpha(Setting):
    """Hunyuan's dynamic scaling with an alpha, which is a larger rotary base at any length."""

    def describe(self, config: Config) -> Keys:
        for key in ("rope_scaling", "rope_parameters"):
            stated = config.get(key)
            if (
                isinstance(stated, dict)
                and stated.get("alpha")
                and stated.get("type", stated.get("rope_type")) == "dynamic"
            ):
                base = stated.get("rope_theta", config.values["rope_theta"])
                dim = config.values["head_dim"]
                config.require(key, dim > 2 and isinstance(stated["alpha"], int | float), "a number as alpha")
                theta = base * stated["alpha"] ** (dim / (dim - 2))
                config.values[key] = {"rope_type": "default", "rope_theta": theta}
        return {}


_HUNYUAN = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.query_layernorm",
    "attn_k_norm": "self_attn.key_layernorm",
    **reorder(LLAMA_NAMES, without=("attn_norm", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm")),
}
HUNYUAN_DENSE = Family(
    architecture="hunyuan-dense",
    models=("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Model"),
    model_types=("hunyuan_v1_dense",),
    rows=decoder(
        layer(_HUNYUAN, biases=dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "attention_bias"))
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER[:-1],
        HeadDim(always=True),
        _Alpha(),
        Rope(("default", "linear")),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        Unused("eod_token_id", "norm_type", "use_rotary_pos_emb", "sep_token_id"),
        Expected("use_qk_norm", True),
        Expected("use_cla", False),
        Expected("num_experts", 0, 1),
        Expected("mlp_bias", False),
    ),
    defaults={
        **SIZES_7B,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
)

APERTUS = Family(
    architecture="apertus",
    models=("ApertusForCausalLM", "ApertusModel"),
    model_types=("apertus",),
    rows=decoder(
        layer(
            reorder(LLAMA_NAMES, without=("ffn_gate",))
            | {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
            biases=dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "attention_bias"),
        )
    ),
    settings=(
        Fixed("hidden_act", "xielu"),
        *DECODER[:-1],
        HeadDim(),
        Rope(ROPE_TYPES, dims=True),
        ByTensor("attention_bias", "blk.0.attn_q.bias"),
        Expected("mlp_bias", False),
        Expected("qk_norm", True),
        Expected("post_norm", False),
    ),
    defaults={
        **SIZES_7B,
        "intermediate_size": 14336,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0,
        "tie_word_embeddings": False,
    },
    layer_keys={
        "xielu.alpha_n": LayerKey("model.layers.{}.mlp.act_fn.alpha_n", (1,)),
        "xielu.alpha_p": LayerKey("model.layers.{}.mlp.act_fn.alpha_p", (1,)),
        "xielu.beta": LayerKey("model.layers.{}.mlp.act_fn.beta", ()),
        "xielu.eps": LayerKey("model.layers.{}.mlp.act_fn.eps", ()),
    },
)

FAMILIES = (SMOLLM3, SEED_OSS, ERNIE4_5, HUNYUAN_DENSE, APERTUS)
