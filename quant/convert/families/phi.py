"""Phi 3 and 4 (fused matrices, LongRoPE, partly rotated heads) and Phi 2 (parallel blocks with layer norms)."""

from lltool.gguf.metadata import u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    DECODER,
    GROUPED_QUERY,
    Expected,
    Fixed,
    HeadDim,
    Keys,
    Number,
    Setting,
    Unused,
)
from lltool.quant.convert.families.llama import SIZES_7B
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer


class Window(Setting):
    """The window of every layer; 0 for none."""

    def describe(self, config: Config) -> Keys:
        window = config.get("sliding_window")
        return {"attention.sliding_window": u32(0 if window is None else config.integer("sliding_window"))}

    def restore(self, stored: Stored, config: dict[str, object]) -> dict[str, object]:
        window = "attention.sliding_window"
        return {"sliding_window": stored.integer(window) if stored.keys.get(window) else None}


PHI3 = Family(
    architecture="phi3",
    models=("Phi3ForCausalLM", "Phi3Model"),
    model_types=("phi3",),
    rows=decoder(
        layer(
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
            shapes={"ffn_up": ("2 * intermediate_size", "width")},
        )
    ),
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER,
        Rope(("default", "longrope"), dims=True, partial=True),
        Window(),
        Unused("original_max_position_embeddings"),
        Expected("attention_bias", False),
        Expected("mlp_bias", False),
        Expected("lm_head_bias", False),
        Expected("embd_layer_norm", False),
    ),
    defaults={
        **SIZES_7B,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
)

PHI2 = Family(
    architecture="phi2",
    models=("PhiForCausalLM", "PhiModel"),
    model_types=("phi",),
    rows=decoder(
        layer(
            {
                "attn_norm": "input_layernorm",
                "attn_q": "self_attn.q_proj",
                "attn_k": "self_attn.k_proj",
                "attn_v": "self_attn.v_proj",
                "attn_output": "self_attn.dense",
                "ffn_up": "mlp.fc1",
                "ffn_down": "mlp.fc2",
            },
            biases=dict.fromkeys(
                ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"), "always"
            ),
        ),
        norm="model.final_layernorm",
        norm_bias="always",
        head_bias="always",
    ),
    settings=(
        Fixed("hidden_act", "gelu_new", "gelu_pytorch_tanh"),
        *GROUPED_QUERY,
        Number("layer_norm_eps", "attention.layer_norm_epsilon", high=1.0),
        HeadDim(),
        Rope(("default", "linear"), dims=True, partial=True),
        Expected("qk_layernorm", False),
    ),
    defaults={
        "num_attention_heads": 32,
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
    },
)

FAMILIES = (PHI3, PHI2)
