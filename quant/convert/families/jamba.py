"""Jamba: Mamba 1 with norms of steps, b and c, attention in every n-th layer, and experts in every m-th."""

from collections.abc import Sequence
from typing import Any

from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.experts import Experts, router_row, single_rows, stacked_rows
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import (
    GROUPED_QUERY,
    RMS_EPSILON,
    Expected,
    Fixed,
    HeadDim,
    Heads,
    Keys,
    Setting,
    Unused,
)
from lltool.quant.convert.families.llama import NAMES
from lltool.quant.convert.families.mamba import RANK, Mamba, mamba_rows
from lltool.quant.convert.families.mixed_layers import ATTENDS, LayerHeads, attending, not_attending, only
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

_SPARSE = "_sparse"
"""A derived key: for each layer, whether it has experts."""


class _Periods(Setting):
    """The layers with attention and those with experts, each as a period and an offset."""

    def describe(self, config: Config) -> Keys:
        layers = config.integer("num_hidden_layers")
        for kind, derived in (("attn", ATTENDS), ("expert", _SPARSE)):
            period, key = config.integer(f"{kind}_layer_period"), f"{kind}_layer_offset"
            offset = config.get(key)
            config.require(key, type(offset) is int and 0 <= offset < period, f"an integer from 0, below {period}")
            config.derive(derived, [number % period == offset for number in range(layers)])
        config.require("attn_layer_offset", any(config.values[ATTENDS]), f"a number of the {layers} layers")
        return {}


class _RestoredPeriods(Setting):
    """The periods that the list of heads and the routers say."""

    def describe(self, config: Config) -> Keys:
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        layers = config["num_hidden_layers"]
        sparse = [f"blk.{number}.ffn_gate_inp.weight" in stored.names for number in range(layers)]
        keys: dict[str, Any] = {_SPARSE: sparse}
        for kind, flags in (("attn", config[ATTENDS]), ("expert", sparse)):
            found = _period(flags)
            stored.require("block_count", found is not None, f"layers in which every n-th has {kind}")
            keys[f"{kind}_layer_period"], keys[f"{kind}_layer_offset"] = found or (1, 0)
        return keys


def _period(flags: Sequence[bool]) -> tuple[int, int] | None:
    """The period and the offset of the true ones; None if they have none."""
    numbers = [number for number, flag in enumerate(flags) if flag]
    if not numbers:
        return None
    period = numbers[1] - numbers[0] if len(numbers) > 1 else len(flags)
    same = [number % period == numbers[0] for number in range(len(flags))] == list(flags)
    return (period, numbers[0]) if same else None


def _sparse(config: Any, number: int) -> bool:
    return bool(config[_SPARSE][number])


def _dense(config: Any, number: int) -> bool:
    return not config[_SPARSE][number]


_MLP = {f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")}
_BASE, _EXPERTS = "model.layers.{}.mamba.", "model.layers.{}.feed_forward.experts."
_STEP_NORMS = tuple(
    Row(f"blk.{{}}.ssm_{part}_norm.weight", f"{_BASE}{part}_layernorm.weight", (size,))
    for part, size in (("dt", RANK), ("b", "state_size"), ("c", "state_size"))
)

JAMBA = Family(
    architecture="jamba",
    models=("JambaForCausalLM", "JambaModel"),
    model_types=("jamba",),
    rows=decoder(
        (
            *layer({"attn_norm": NAMES["attn_norm"]}),
            *only(attending, layer({name: NAMES[name] for name in ("attn_q", "attn_k", "attn_v", "attn_output")})),
            *only(not_attending, (*mamba_rows(_BASE), *_STEP_NORMS)),
            *layer({"ffn_norm": "pre_ff_layernorm"}),
            *only(_dense, layer(_MLP)),
            router_row("model.layers.{}.feed_forward.router.weight", _sparse),
            *single_rows(_EXPERTS + "{expert}.{part}.weight", "hidden", layers=_sparse),
            *stacked_rows(_EXPERTS + "gate_up_proj", _EXPERTS + "down_proj", "intermediate_size", _sparse),
        ),
        norm="model.final_layernorm",
    ),
    settings=(
        _Periods(),
        Fixed("hidden_act", "silu"),
        *(LayerHeads() if isinstance(row, Heads) else row for row in GROUPED_QUERY),
        RMS_EPSILON,
        HeadDim(),
        Mamba(),
        Experts("num_experts", "num_local_experts"),
        Expected("use_bias", False),
        Expected("use_conv_bias", True),
        Unused("use_mamba_kernels", "use_mambapy", "use_associative_scan", "layer_types", "layers_block_type"),
        _RestoredPeriods(),
    ),
    spelling={
        "state_size": "mamba_d_state",
        "conv_kernel": "mamba_d_conv",
        "expand": "mamba_expand",
        "time_step_rank": "mamba_dt_rank",
        "use_conv_bias": "mamba_conv_bias",
        "use_bias": "mamba_proj_bias",
        "head_dim": "",
    },
    defaults={
        "vocab_size": 65536,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "state_size": 16,
        "conv_kernel": 4,
        "expand": 2,
        "use_conv_bias": True,
        "use_bias": False,
        "tie_word_embeddings": False,
    },
)
