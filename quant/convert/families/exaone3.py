"""EXAONE 3 and 3.5: Llama's blocks under GPT's names."""

from lltool.quant.convert.families import llama
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, Expected, Fixed
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.tables import decoder, layer

# Pairs are not reordered, because this architecture rotates i and i + half in GGUF files too.
_NAMES = {
    "attn_norm": "ln_1",
    "attn_q": "attn.attention.q_proj",
    "attn_k": "attn.attention.k_proj",
    "attn_v": "attn.attention.v_proj",
    "attn_output": "attn.attention.out_proj",
    "ffn_norm": "ln_2",
    "ffn_gate": "mlp.c_fc_0",
    "ffn_up": "mlp.c_fc_1",
    "ffn_down": "mlp.c_proj",
}

EXAONE3 = Family(
    architecture="exaone",
    models=("ExaoneForCausalLM", "ExaoneModel"),
    model_types=("exaone",),
    rows=decoder(layer(_NAMES, base="transformer.h.{}."), embedding="transformer.wte", norm="transformer.ln_f"),
    base="transformer.",
    spelling={
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    defaults={
        **llama.SIZES_7B,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER,
        Rope(ROPE_TYPES, dims=True),
        Expected("attention_bias", False),
        Expected("mlp_bias", False),
        Expected("embed_dropout", 0.0),
    ),
)
