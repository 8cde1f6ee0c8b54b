"""MiniMax M2: attention with norms over all heads, and in every layer experts that are chosen by a sigmoid."""

from typing import Any

from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, Experts, Gating, router_row, single_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, Expected, Fixed, HeadDim, Integer, Unused
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.tables import LLAMA_NAMES, decoder, layer, reorder

_MOE = "model.layers.{}.block_sparse_moe."
_SHAPES = {"attn_q_norm": ("queries",), "attn_k_norm": ("keys",)}  # of all heads together


def _take_rotated(config: Config) -> None:
    """Published configs have the number of rotated dimensions, where transformers writes their share of a head."""
    if config.get("rotary_dim") is not None:
        config.derive("partial_rotary_factor", config.integer("rotary_dim") / config.integer("head_dim"))


_DEFAULTS: dict[str, Any] = {
    "vocab_size": 200064,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 196608,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}

MINIMAX_M2 = Family(
    architecture="minimax-m2",
    models=("MiniMaxM2ForCausalLM", "MiniMaxM2Model"),
    model_types=("minimax_m2",),
    rows=decoder(
        (
            *layer(reorder(LLAMA_NAMES, without=("ffn_gate", "ffn_up", "ffn_down")), shapes=_SHAPES),
            router_row(f"{_MOE}gate.weight"),
            Row("blk.{}.exp_probs_b.bias", f"{_MOE}e_score_correction_bias", (COUNT,)),
            *single_rows(f"{_MOE}experts.{{expert}}.{{part}}.weight", "hidden", ("w1", "w3", "w2")),
        )
    ),
    prepare=_take_rotated,
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER,
        HeadDim(always=True),
        Rope(("default", "linear", "yarn"), dims=True, partial=True),
        Experts("num_local_experts", "num_experts"),
        Integer("intermediate_size", "expert_feed_forward_length"),
        Gating(2),
        Expected("use_qk_norm", True),
        Expected("qk_norm_type", "per_layer"),
        Expected("scoring_func", "sigmoid"),
        Expected("use_routing_bias", True),
        Expected("shared_intermediate_size", 0),
        Unused("num_mtp_modules", "mtp_transformer_layers", "use_mtp", "mlp_intermediate_size", "shared_moe_mode"),
        Unused("attn_type_list", "rotary_dim"),
    ),
    defaults=_DEFAULTS,
)
