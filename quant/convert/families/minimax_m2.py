"""MiniMax M2: experts in every layer, chosen by a sigmoid and a bias; norms of whole rows of queries and keys."""

from typing import Any

from lltool.gguf.metadata import u32
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import COUNT, Experts, Gating, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, Expected, Fixed, HeadDim, Keys, Setting, Unused
from lltool.quant.convert.families.rope import Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import LLAMA_NAMES, decoder, layer, reorder

_MLP = "model.layers.{}.block_sparse_moe."
_ATTENTION = reorder(LLAMA_NAMES, without=("ffn_gate", "ffn_up", "ffn_down"))


class _ExpertWidth(Setting):
    """The width inside the MLP is that of an expert."""

    def describe(self, config: Config) -> Keys:
        return {"expert_feed_forward_length": u32(config.integer("intermediate_size"))}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"intermediate_size": stored.integer("expert_feed_forward_length")}


class _RotaryDim(Setting):
    """The rotated dimensions of a head, for which published configs have a key of their own."""

    def describe(self, config: Config) -> Keys:
        if (rotated := config.get("rotary_dim")) is not None:
            config.require(
                "rotary_dim",
                type(rotated) is int and 0 < rotated <= config.values["head_dim"],
                f"at most {config.values['head_dim']}",
            )
            config.derive("partial_rotary_factor", rotated / config.values["head_dim"])
        return {}


MINIMAX_M2 = Family(
    architecture="minimax-m2",
    models=("MiniMaxM2ForCausalLM", "MiniMaxM2Model"),
    model_types=("minimax_m2", "minimax"),
    rows=decoder(
        (
            *layer(_ATTENTION, shapes={"attn_q_norm": ("queries",), "attn_k_norm": ("keys",)}),
            router_row(_MLP + "gate.weight"),
            Row("blk.{}.exp_probs_b.bias", _MLP + "e_score_correction_bias", (COUNT,)),
            *single_rows(_MLP + "experts.{expert}.{part}.weight", "hidden", ("w1", "w3", "w2")),
            *stacked_rows(
                "model.layers.{}.mlp.experts.gate_up_proj", "model.layers.{}.mlp.experts.down_proj", "hidden"
            ),
        )
    ),
    defaults={
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
        "num_experts_per_tok": 8,
        "num_local_experts": 256,
        "tie_word_embeddings": False,
    },
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER,
        HeadDim(always=True),
        _RotaryDim(),
        Rope(("default", "linear", "yarn"), dims=True, partial=True),
        Experts("num_local_experts", "num_experts"),
        Gating(2),
        _ExpertWidth(),
        Expected("use_qk_norm", True),
        Expected("qk_norm_type", "per_layer"),
        Expected("scoring_func", "sigmoid"),
        Expected("use_routing_bias", True),
        Expected("shared_intermediate_size", 0),
        Unused(
            "use_mtp", "num_mtp_modules", "mtp_transformer_layers", "attn_type_list", "layernorm_full_attention_beta"
        ),
        Unused("layernorm_linear_attention_beta", "layernorm_mlp_beta"),
    ),
)
