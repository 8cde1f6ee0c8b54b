"""Falcon-H1: attention and Mamba 2 beside each other in every layer, with factors that the weights take up."""

from dataclasses import replace
from typing import Any

from lltool.gguf.architecture_keys import SCALES
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import DECODER, ByTensor, Expected, Fixed, HeadDim, Keys, Setting, Unused
from lltool.quant.convert.families.llama import NAMES, SIZES_7B
from lltool.quant.convert.families.mamba import (
    INNER,
    NO_LIMITS,
    RANK,
    SHARED,
    describe_scan,
    mamba2_rows,
    restore_scan,
)
from lltool.quant.convert.families.rope import ROPE_TYPES, Rope
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.scan_changes import Times
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

_LISTS = {"mlp_multipliers": ("_gate", "_down"), "ssm_multipliers": ("_z", "_x", "_b", "_c", "_dt")}
_NUMBERS = (
    "embedding_multiplier",
    "lm_head_multiplier",
    "key_multiplier",
    "attention_in_multiplier",
    "attention_out_multiplier",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
)
_ATTENTION_IN, _HALF = ("attention_in_multiplier",), f"{SHARED}_half"
_CHANGES = {
    "token_embd": Times(("embedding_multiplier",)),
    "output": Times(("lm_head_multiplier",)),
    "attn_q": Times(_ATTENTION_IN),
    "attn_k": Times((*_ATTENTION_IN, "key_multiplier")),
    "attn_v": Times(_ATTENTION_IN),
    "attn_output": Times(("attention_out_multiplier",)),
    "ffn_gate": Times(("_gate",)),
    "ffn_down": Times(("_down",)),
    "ssm_in": Times(
        ("ssm_in_multiplier",), ((INNER, "_z"), (INNER, "_x"), (_HALF, "_b"), (_HALF, "_c"), (RANK, "_dt"))
    ),
    "ssm_out": Times(("ssm_out_multiplier",)),
}


class _Factors(Setting):
    """The factors, which become part of the weights: a restored config has factors of 1."""

    def describe(self, config: Config) -> Keys:
        for key in _NUMBERS:
            config.number(key, None, *SCALES)
        for key, names in _LISTS.items():
            found = config.get(key, [1.0] * len(names))
            fine = isinstance(found, list) and len(found) == len(names) and all(type(x) in (int, float) for x in found)
            config.require(key, fine, f"{len(names)} numbers")
            for name, number in zip(names, found, strict=True):
                config.derive(name, number)
        tied, (one, other) = config.get("tie_word_embeddings"), (config.values[key] for key in _NUMBERS[:2])
        wanted = f"lm_head_multiplier {other}, as one matrix has one factor"
        config.require("embedding_multiplier", not tied or one == other, wanted)
        return {}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {
            **dict.fromkeys(_NUMBERS, 1.0),
            **{key: [1.0] * len(names) for key, names in _LISTS.items()},
            **{name: 1.0 for names in _LISTS.values() for name in names},
        }


class _Scan(Setting):
    """The sizes of the scan."""

    def describe(self, config: Config) -> Keys:
        heads, groups = config.integer("num_heads"), config.integer("n_groups")
        inner = config.integer("mamba_d_ssm", config.integer("mamba_expand") * config.values["hidden_size"])
        config.require("mamba_d_ssm", inner % heads == 0, f"a multiple of the {heads} heads")
        config.require("n_groups", heads % groups == 0, f"a divisor of the {heads} heads")
        config.expect("mamba_d_head", "auto", inner // heads)
        normed = bool(config.get("mamba_rms_norm"))
        config.require("mamba_norm_before_gate", not (normed and config.get("mamba_norm_before_gate")), "false")
        keys = describe_scan(config, inner, heads, groups)
        config.derive(_HALF, config.values[SHARED] // 2)
        return keys

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = restore_scan(stored)
        stored.require("ssm.inner_size", found[INNER] % found[RANK] == 0, f"a multiple of the {found[RANK]} heads")
        return found | {
            "mamba_d_ssm": found[INNER],
            "num_heads": found[RANK],
            "mamba_d_head": found[INNER] // found[RANK],
            "mamba_norm_before_gate": False,
            _HALF: found[SHARED] // 2,
        }


def _rows() -> tuple[Row, ...]:
    mlp = {f"ffn_{part}": f"feed_forward.{part}_proj" for part in ("gate", "up", "down")}
    rows = decoder(
        (
            *layer({name: NAMES[name] for name in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")}),
            *mamba2_rows("model.layers.{}.mamba.", norm="mamba_rms_norm"),
            Row("blk.{}.ffn_norm", "model.layers.{}.pre_ff_layernorm.weight", ("width",)),
            *layer(mlp),
        ),
        norm="model.final_layernorm",
    )
    names = (row.targets[0].removesuffix(".weight").removeprefix("blk.{}.") for row in rows)
    return tuple(replace(row, change=_CHANGES.get(name, row.change)) for row, name in zip(rows, names, strict=True))


FALCON_H1 = Family(
    architecture="falcon-h1",
    models=("FalconH1ForCausalLM", "FalconH1Model"),
    model_types=("falcon_h1",),
    rows=_rows(),
    settings=(
        Fixed("hidden_act", "silu"),
        *DECODER[:-1],
        HeadDim(always=True),
        Rope(ROPE_TYPES),
        _Scan(),
        _Factors(),
        ByTensor("mamba_rms_norm", "blk.0.ssm_norm.weight"),
        Expected("use_conv_bias", True),
        Expected("time_step_limit", *NO_LIMITS),
        *(Expected(key, False) for key in ("mamba_proj_bias", "projectors_bias", "attention_bias", "mlp_bias")),
        Unused("mamba_expand", "mamba_chunk_size", "mamba_use_mlp", "num_logits_to_keep", "layers_block_type"),
    ),
    spelling={
        "state_size": "mamba_d_state",
        "conv_kernel": "mamba_d_conv",
        "n_groups": "mamba_n_groups",
        "num_heads": "mamba_n_heads",
        "use_conv_bias": "mamba_conv_bias",
    },
    defaults={
        **SIZES_7B,
        "vocab_size": 128000,
        "rms_norm_eps": 1e-5,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "mamba_d_ssm": 1024,
        "num_heads": 128,
        "n_groups": 1,
        "state_size": 256,
        "conv_kernel": 4,
        "mamba_expand": 2,
        "use_conv_bias": True,
        "mamba_norm_before_gate": True,
        "mamba_rms_norm": False,
        **dict.fromkeys(_NUMBERS, 1.0),
        "tie_word_embeddings": False,
    },
)
