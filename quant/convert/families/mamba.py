"""Mamba 1 and 2, and Falcon Mamba: blocks of a scan, without attention."""

from dataclasses import replace
from typing import Any

from lltool.gguf.metadata import Value, ValueType, u32
from lltool.quant.convert.families.changes import NEGATIVE_EXP, SAME, Chain, Squeeze
from lltool.quant.convert.families.config import Config
from lltool.quant.convert.families.family import Family
from lltool.quant.convert.families.keys import RMS_EPSILON, Expected, Fixed, Integer, Keys, Layers, Setting, Unused
from lltool.quant.convert.families.rows import Row
from lltool.quant.convert.families.scan_changes import Unflatten
from lltool.quant.convert.families.stored import Stored
from lltool.quant.convert.families.tables import decoder, layer

INNER, RANK, SHARED = "_inner", "_rank", "_shared"
"""Derived sizes: of a scan's rows, of what steps are projected from (or heads), and of the b and c of a token."""


_CONTEXT = 1 << 20  # tokens, as llama.cpp's converter writes for models without a longest text


def mamba_rows(base: str) -> tuple[Row, ...]:
    """The rows of a block of Mamba 1, whose module is named `base`."""
    return (
        Row("blk.{}.ssm_in.weight", base + "in_proj.weight", (f"2 * {INNER}", "width")),
        *convolution_rows(base, INNER),
        Row("blk.{}.ssm_x.weight", base + "x_proj.weight", (f"{RANK} + 2 * state_size", INNER)),
        Row("blk.{}.ssm_dt.weight", base + "dt_proj.weight", (INNER, RANK)),
        Row("blk.{}.ssm_dt.bias", base + "dt_proj.bias", (INNER,)),
        Row("blk.{}.ssm_a", base + "A_log", (INNER, "state_size"), NEGATIVE_EXP),
        Row("blk.{}.ssm_d", base + "D", (INNER,)),
        Row("blk.{}.ssm_out.weight", base + "out_proj.weight", ("width", INNER)),
    )


def mamba2_rows(base: str, norm: str = "") -> tuple[Row, ...]:
    """The rows of a block of Mamba 2; `norm` is the key that says whether it has a norm after the gate."""
    a, d = Chain(NEGATIVE_EXP, Unflatten(RANK)), Unflatten(RANK)
    return (
        Row("blk.{}.ssm_in.weight", base + "in_proj.weight", (f"2 * {INNER} + {SHARED} + {RANK}", "width")),
        *convolution_rows(base, f"{INNER} + {SHARED}"),
        Row("blk.{}.ssm_dt.bias", base + "dt_bias", (RANK,)),
        Row("blk.{}.ssm_a", base + "A_log", (RANK,), a),
        Row("blk.{}.ssm_d", base + "D", (RANK,), d),
        Row("blk.{}.ssm_norm.weight", base + "norm.weight", (INNER,), Unflatten("n_groups"), when=norm),
        Row("blk.{}.ssm_out.weight", base + "out_proj.weight", ("width", INNER)),
    )


def convolution_rows(base: str, width: str) -> tuple[Row, ...]:
    return (
        Row("blk.{}.ssm_conv1d.weight", base + "conv1d.weight", (width, "1", "conv_kernel"), Squeeze(1)),
        Row("blk.{}.ssm_conv1d.bias", base + "conv1d.bias", (width,), SAME, when="use_conv_bias"),
    )


def describe_scan(config: Config, inner: int, rank: int, groups: int = 0) -> Keys:
    """The sizes of a scan, which the tables read too; `groups` are those of Mamba 2."""
    config.derive(INNER, inner)
    config.derive(RANK, rank)
    states = config.integer("state_size")
    keys = {
        "ssm.conv_kernel": u32(config.integer("conv_kernel")),
        "ssm.inner_size": u32(inner),
        "ssm.state_size": u32(states),
        "ssm.time_step_rank": u32(rank),
    }
    if groups:
        config.derive(SHARED, 2 * groups * states)
        keys["ssm.group_count"] = u32(groups)
    return keys


def restore_scan(stored: Stored) -> dict[str, Any]:
    inner, rank, states = (stored.integer(f"ssm.{key}") for key in ("inner_size", "time_step_rank", "state_size"))
    groups = stored.integer("ssm.group_count", 1)
    return {
        "conv_kernel": stored.integer("ssm.conv_kernel"),
        "state_size": states,
        "n_groups": groups,
        INNER: inner,
        RANK: rank,
        SHARED: 2 * groups * states,
    }


class NoAttention(Setting):
    """The keys that llama.cpp expects of every model, for one without attention, MLP and a longest text."""

    def describe(self, config: Config) -> Keys:
        return {
            "context_length": u32(_CONTEXT),
            "feed_forward_length": u32(0),
            "attention.head_count": u32(0),
        }

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        return {"max_position_embeddings": stored.integer("context_length", _CONTEXT)}  # for the tokenizer's files


class Mamba(Setting):
    """The sizes of Mamba 1, and `inner`, the key of the width inside, if there is one.

    `normed` says whether steps, b and c are normed without weights; None does not state it.
    """

    def __init__(self, *, inner: str = "", normed: bool | None = None) -> None:
        self.inner, self.normed = inner, normed

    def describe(self, config: Config) -> Keys:
        width, rank = config.values["hidden_size"], config.get("time_step_rank", "auto")
        inner = int(config.number("expand") * width)
        if self.inner:
            inner = config.integer(self.inner, inner)
        config.require(self.inner or "expand", inner == 2 * width, "twice hidden_size, all that llama.cpp reads")
        rank = -(-width // 16) if rank == "auto" else config.integer("time_step_rank")
        keys = describe_scan(config, inner, rank)
        return keys if self.normed is None else keys | {"ssm.dt_b_c_rms": Value(ValueType.BOOL, self.normed)}

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found = restore_scan(stored)
        del found["n_groups"]
        stored.require("ssm.inner_size", found[INNER] == 2 * config["hidden_size"], "twice embedding_length")
        return found | {"expand": 2, "time_step_rank": found[RANK]}


class _Mamba2(Setting):
    """The sizes of Mamba 2."""

    def describe(self, config: Config) -> Keys:
        heads, groups = config.integer("num_heads"), config.integer("n_groups")
        inner = heads * config.integer("head_dim")
        stated = int(config.number("expand") * config.values["hidden_size"])
        config.require("num_heads", inner == stated, f"a number whose product with head_dim is {stated}")
        config.require("n_groups", heads % groups == 0, f"a divisor of the {heads} heads")
        return describe_scan(config, inner, heads, groups)

    def restore(self, stored: Stored, config: dict[str, Any]) -> dict[str, Any]:
        found, width = restore_scan(stored), config["hidden_size"]
        stored.require("ssm.inner_size", found[INNER] % width == 0, f"a multiple of embedding_length, {width}")
        stored.require("ssm.inner_size", found[INNER] % found[RANK] == 0, f"a multiple of the {found[RANK]} heads")
        heads = {"num_heads": found[RANK], "head_dim": found[INNER] // found[RANK]}
        return found | heads | {"expand": found[INNER] // width}


_SIZES: tuple[Setting, ...] = (
    Fixed("hidden_act", "silu"),
    Layers(),
    Integer("hidden_size", "embedding_length"),
    RMS_EPSILON,
    NoAttention(),
    Expected("use_bias", False),
    Expected("use_conv_bias", True),
    Unused(
        "intermediate_size",
        "residual_in_fp32",
        "rescale_prenorm_residual",
        "time_step_scale",
        "time_step_min",
        "time_step_max",
        "time_step_init_scheme",
        "time_step_floor",
        "use_mambapy",
        "use_associative_scan",
        "chunk_size",
        "layer_types",
    ),
)
_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
}
NO_LIMITS = ([0.0, float("inf")], [0.0, {"__float__": "Infinity"}])
"""The bounds of steps of a model that has none, as versions of transformers write them."""

_NORM = layer({"attn_norm": "norm"}, base="backbone.layers.{}.")
_MIXER = "backbone.layers.{}.mixer."

MAMBA = Family(
    architecture="mamba",
    models=("MambaForCausalLM", "MambaModel"),
    model_types=("mamba",),
    rows=decoder((*_NORM, *mamba_rows(_MIXER)), embedding="backbone.embeddings", norm="backbone.norm_f"),
    settings=(*_SIZES, Mamba(inner="intermediate_size", normed=False)),
    spelling={"rms_norm_eps": "layer_norm_epsilon", "max_position_embeddings": ""},
    base="backbone.",
    defaults={
        **_DEFAULTS,
        "vocab_size": 50280,
        "hidden_size": 768,
        "num_hidden_layers": 32,
        "state_size": 16,
        "tie_word_embeddings": True,
    },
    restores=lambda stored: not stored.keys.get("ssm.dt_b_c_rms"),
)
FALCON_MAMBA = replace(
    MAMBA,
    models=("FalconMambaForCausalLM", "FalconMambaModel"),
    model_types=("falcon_mamba",),
    settings=(*_SIZES, Mamba(inner="intermediate_size", normed=True), Expected("mixer_rms_eps", 1e-6)),
    restores=lambda stored: bool(stored.keys.get("ssm.dt_b_c_rms")),
)
MAMBA2 = Family(
    architecture="mamba2",
    models=("Mamba2ForCausalLM", "Mamba2Model"),
    model_types=("mamba2",),
    rows=decoder((*_NORM, *mamba2_rows(_MIXER)), embedding="backbone.embeddings", norm="backbone.norm_f"),
    settings=(*_SIZES, Unused("time_step_rank"), Expected("time_step_limit", *NO_LIMITS), _Mamba2()),
    spelling=MAMBA.spelling,
    base="backbone.",
    defaults={
        **MAMBA.defaults,
        "num_heads": 128,
        "head_dim": 64,
        "vocab_size": 32768,
        "hidden_size": 4096,
        "state_size": 128,
        "num_hidden_layers": 64,
        "n_groups": 8,
        "tie_word_embeddings": False,
    },
)

FAMILIES = (MAMBA, FALCON_MAMBA, MAMBA2)
