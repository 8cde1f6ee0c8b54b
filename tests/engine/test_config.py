"""Metadata to ModelConfig: what is missing, absurd or unknown is named; what is implied is filled in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.engine.config import ModelConfig
from lltool.engine.model import load_model
from lltool.engine.models.architectures import TRACES, trace_program
from lltool.engine.models.neutral_keys import NEUTRAL
from lltool.engine.program import Weight
from lltool.engine.traits import ARCHITECTURES
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.metadata import Value, ValueType, array, boolean, f32, string, u32
from tests.engine import tiny_gguf

EMBEDDING = Weight("token_embd.weight", GGMLType.F32, (96, 32), np.zeros((96, 128), np.uint8))


def config(architecture: str = "gemma3", **changes: Value | None) -> ModelConfig:
    return ModelConfig.from_gguf(tiny_gguf.metadata(architecture, **changes), {"token_embd.weight": EMBEDDING})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": None}, "gemma3.block_count: found nothing, wanted a value"),
        ({"rope__freq_base_swa": f32(0.0)}, r"rope\.freq_base_swa: found 0\.0, wanted above 1"),
        ({"block_count": u32(2**31 - 1)}, "gemma3.block_count: found 2147483647, wanted at most 65536"),
        ({"block_count": u32(0)}, "gemma3.block_count: found 0, wanted an integer from 1"),
        ({"block_count": string("3")}, "gemma3.block_count: found '3', wanted an integer from 1"),
        ({"embedding_length": boolean(True)}, "gemma3.embedding_length: found True, wanted an integer from 1"),
        ({"context_length": f32(512.0)}, "gemma3.context_length: found 512.0, wanted an integer from 1"),
        ({"attention.head_count_kv": u32(3)}, "head_count: found 4, wanted a multiple of the 3 key/value heads"),
        ({"attention.value_length": u32(0)}, "attention.value_length: found 0, wanted an integer from 1"),
        ({"attention.layer_norm_rms_epsilon": f32(float("nan"))}, "rms_epsilon: found nan, wanted a number"),
        ({"attention.layer_norm_rms_epsilon": f32(-1.0)}, "rms_epsilon: found -1.0, wanted a number from 0 to 1"),
        ({"rope.freq_base": f32(0.0)}, "gemma3.rope.freq_base: found 0.0, wanted above 1"),
        ({"rope.dimension_count": u32(18)}, "rope.dimension_count: found 18, wanted even and at most 16"),
        ({"rope.dimension_count": u32(7)}, "rope.dimension_count: found 7, wanted even and at most 16"),
        ({"rope.scaling.type": string("longrope")}, "scaling.type: found 'longrope', this version runs none, linear"),
        ({"rope.scaling.yarn_log_multiplier": f32(0.1)}, "yarn_log_multiplier: found .*, this version runs .* 0 only"),
        ({"rope.scaling.yarn_beta_slow": f32(0.0)}, "beta_slow: found 0.0, wanted a number from 1e-09 to 1e[+]09"),
        ({"rope.scaling.yarn_beta_slow": f32(64.0)}, "beta_slow: found 64.0, wanted at most beta_fast, 32.0"),
        *[
            ({f"rope.scaling.yarn_beta_{end}": Value(ValueType.FLOAT64, beta)}, f"beta_{end}: found .*, wanted a")
            for end in ("fast", "slow")
            for beta in (5e-324, 1.7e308)
        ],
        ({"attention.scale": f32(1e30)}, r"attention\.scale: found .*e.30, wanted a number from 1e-09 to 1e.09"),
        ({"final_logit_softcapping": f32(1e-30)}, "final_logit_softcapping: found .*, wanted a number from 1e-09"),
        ({"rope.scaling.attn_factor": f32(3e38)}, "attn_factor: found .*, wanted a number from 1e-09"),
        ({"block_count": array(ValueType.ARRAY, (array(ValueType.BOOL, np.ones(1, bool)),))}, "block_count: found"),
        ({"expert_count": u32(8)}, "gemma3.expert_count: found 8, this version runs models with 0 only"),
        ({"logit_scale": f32(0.0625)}, "gemma3.logit_scale: found 0.0625, this version runs models with 1 only"),
        ({"wkv.head_size": u32(16)}, "gemma3.wkv.head_size: found 16, but this version does not know the key"),
        (
            {"feed_forward_length": array(ValueType.UINT32, np.array([64, 64, 32], np.uint32))},
            "gemma3.feed_forward_length: found .64, 64, 32., wanted one value for all layers",
        ),
        (
            {"attention.sliding_window_pattern": array(ValueType.BOOL, np.array([True, False]))},
            "sliding_window_pattern: found .*, wanted one flag for each of 3 layers",
        ),
    ],
)  # fmt: skip
def test_bad_values_are_named(changes: dict[str, Value | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_a_missing_context_length_gets_a_default_and_a_note(caplog: pytest.LogCaptureFixture) -> None:
    assert config(context_length=None).context_length == 4096
    assert caplog.messages == ["gemma3.context_length is missing: a context of 4096 tokens is assumed"]


def test_every_architecture_has_a_trace() -> None:
    assert TRACES.keys() == ARCHITECTURES.keys()


def test_unknown_architectures_name_the_known_ones() -> None:
    with pytest.raises(InputError, match=f"found 'rwkv6', this version runs {', '.join(ARCHITECTURES)}"):
        config("rwkv6")
    with pytest.raises(InputError, match=r"general\.architecture: found nothing"):
        ModelConfig.from_gguf({}, {})


def test_errors_of_a_file_name_it(tmp_path: Path) -> None:
    tensors = tiny_gguf.tensors()

    def load(keys: dict[str, Value], arrays: dict[str, Any]) -> None:
        load_model(tiny_gguf.write_model(tmp_path / "m.gguf", keys, arrays), executor="reference")

    load(tiny_gguf.metadata(), tensors)
    with pytest.raises(InputError, match=r"m\.gguf: gemma3\.block_count: found nothing"):
        load(tiny_gguf.metadata(block_count=None), tensors)
    with pytest.raises(InputError, match=r"m\.gguf: blk\.3\.attn_norm\.weight: tensor missing"):
        load(tiny_gguf.metadata(block_count=u32(4), attention__sliding_window_pattern=None), tensors)
    with pytest.raises(InputError, match=r"m\.gguf: tensors .* no use for: blk\.2\.attn_k.*, .* and 9 more"):
        load(tiny_gguf.metadata(block_count=u32(2), attention__sliding_window_pattern=None), tensors)
    with pytest.raises(InputError, match=r"m\.gguf: token_embd\.weight: I32 is not a type to compute with"):
        load(tiny_gguf.metadata(), tensors | {"token_embd.weight": np.zeros((96, 32), np.int32)})
    with pytest.raises(InputError, match=r"m\.gguf: blk\.1\.ffn_up\.weight: shape \(64, 31\), wanted \(64, 32\)"):
        load(tiny_gguf.metadata(), tensors | {"blk.1.ffn_up.weight": np.zeros((64, 31), np.float32)})
    with pytest.raises(InputError, match=r"m\.gguf: output_norm\.weight: I32 is not"):
        load(tiny_gguf.metadata(), tensors | {"output_norm.weight": np.zeros(32, np.int32)})


def test_what_files_leave_out() -> None:
    """Gemma's first converters wrote no pattern, no local base and no scale; Mistral's window is for all layers."""
    gemma = config(attention__sliding_window_pattern=None, block_count=u32(12), rope__freq_base=f32(1e6))
    assert gemma.windows == (64, 64, 64, 64, 64, 0) * 2
    assert (gemma.rotary.base, gemma.local_rotary.base) == (1e6, 1e4)
    assert gemma.attention_scale == 16**-0.5
    assert gemma.embedding_scale == 32**0.5
    assert config(rope__freq_base_swa=f32(5e4)).local_rotary.base == 5e4
    biggest = config(block_count=u32(62), attention__sliding_window_pattern=None)
    assert biggest.attention_scale == pytest.approx((32 / 4) ** -0.5)
    assert config(attention__scale=f32(0.25)).attention_scale == 0.25

    mistral = config("llama", attention__sliding_window_pattern=None, attention__key_length=None,
                     attention__value_length=None, attention__head_count_kv=None)  # fmt: skip
    assert mistral.windows == (64, 64, 64)
    assert (mistral.head_dim, mistral.kv_heads) == (8, 4)
    assert mistral.local_rotary == mistral.rotary
    assert (mistral.rotary.base, mistral.rotary.dims) == (1e4, 8)
    assert config("qwen2", attention__sliding_window=None).windows == (0, 0, 0)


def test_patterns_are_flags_or_a_period() -> None:
    assert config().windows == (64, 0, 64)
    assert config(attention__sliding_window_pattern=u32(2)).windows == (64, 0, 64)
    assert config(attention__sliding_window_pattern=u32(3)).windows == (64, 64, 0)
    heads = array(ValueType.INT32, np.array([2, 2, 2], np.int32))
    assert config(attention__head_count_kv=heads).kv_heads == 2


ODD_VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64).map(lambda n: Value(ValueType.INT64, n)),
    st.integers(0, 130).map(u32),
    st.floats().map(f32),
    st.booleans().map(boolean),
    st.text(max_size=8).map(string),
    st.lists(st.text(max_size=2), max_size=4).map(lambda texts: array(ValueType.STRING, texts)),
    st.lists(st.integers(0, 99), max_size=4).map(lambda n: array(ValueType.INT32, np.array(n, np.int32))),
    st.lists(st.just(array(ValueType.INT32, np.ones(2, np.int32))), max_size=3).map(
        lambda rows: array(ValueType.ARRAY, tuple(rows))
    ),
    st.floats().map(lambda x: Value(ValueType.FLOAT64, x)),
    st.lists(st.booleans(), max_size=4).map(lambda flags: array(ValueType.BOOL, np.array(flags, bool))),
)
KEYS = [key.removeprefix("gemma3.") for key in tiny_gguf.metadata()] + [
    "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "attention.scale", "vocab_size", *NEUTRAL,
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), ODD_VALUES, min_size=1, max_size=3), st.booleans())
def test_odd_values_give_a_model_or_one_clear_error(changes: dict[str, Value | None], yarn: bool) -> None:
    keys = tiny_gguf.metadata(**({"rope.scaling.type": string("yarn")} if yarn else {}) | changes)
    if "general.architecture" in changes:
        keys["general.architecture"] = changes["general.architecture"] or u32(1)
    weights = {
        name: Weight(name, GGMLType.F32, values.shape, values.view(np.uint8).reshape(-1, values.shape[-1] * 4))
        for name, values in tiny_gguf.tensors().items()
    }
    try:
        program = trace_program(ModelConfig.from_gguf(keys, weights), weights)
    except InputError as error:
        message = str(error)
    else:
        message = "a model"
        assert program.logits.width == tiny_gguf.VOCAB
    assert "\n" not in message


def test_what_only_the_number_of_layers_tells() -> None:
    """Baichuan 13B has slopes instead of rotary positions; two models scale scores by width / heads."""
    small, large = (config("baichuan", block_count=u32(n), **PLAIN) for n in (32, 40))
    assert (small.slopes, small.rotated) == (None, (True,) * 32)
    assert large.slopes is not None
    assert (len(large.slopes), any(large.rotated)) == (4, False)
    for architecture, layers in (("gemma2", 46), ("gemma3", 62)):
        keys = {"block_count": u32(layers), "attention.sliding_window_pattern": None}
        assert config(architecture, **keys).attention_scale == pytest.approx((32 / 4) ** -0.5)
        assert config(architecture, **{**keys, "block_count": u32(layers + 1)}).attention_scale == pytest.approx(
            16**-0.5
        )


PLAIN: dict[str, Value | None] = {"attention.sliding_window_pattern": None, "attention.sliding_window": None}


def test_layers_with_rotary_positions() -> None:
    assert config("smollm3", block_count=u32(8), **PLAIN).rotated == (True, True, True, False) * 2
    four = {"block_count": u32(4), "attention.sliding_window_pattern": None}
    epsilon = {"attention.layer_norm_epsilon": f32(1e-5), "attention.layer_norm_rms_epsilon": None}
    assert config("cohere2", **four, **epsilon).rotated == (True, True, True, False)
    assert config("exaone4", **four).rotated == (True, True, True, False)
    assert config("exaone4", **four, **{"attention.sliding_window": None}).rotated == (True,) * 4


def test_scales_and_parallel_blocks() -> None:
    scales = {"embedding_scale": f32(12.0), "residual_scale": f32(0.25), "logit_scale": f32(8.0)}
    granite = config("granite", **scales, **PLAIN)
    assert (granite.embedding_scale, granite.residual_scale, granite.logit_scale) == (12.0, 0.25, 1 / 8)
    epsilon = {"attention.layer_norm_epsilon": f32(1e-5), "attention.layer_norm_rms_epsilon": None}
    assert config("command-r", logit_scale=f32(8.0), **epsilon, **PLAIN).logit_scale == 8.0
    for stated in (True, False):
        made = config("gptneox", use_parallel_residual=boolean(stated), **epsilon, **PLAIN)
        assert made.is_parallel is stated
    # StableLM's files may say that blocks are parallel although a norm tells that they are not, as in llama.cpp.
    metadata = tiny_gguf.metadata("stablelm", use_parallel_residual=boolean(True), **epsilon, **PLAIN)
    weights = {"token_embd.weight": EMBEDDING, "blk.0.ffn_norm.weight": EMBEDDING}
    assert not ModelConfig.from_gguf(metadata, weights).is_parallel
    assert ModelConfig.from_gguf(metadata, {"token_embd.weight": EMBEDDING}).is_parallel


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("xielu.alpha_p", None, "xielu.alpha_p: found nothing, wanted a number for each of 3 layers"),
        ("xielu.beta", np.ones(2, np.float32), "xielu.beta: found .*, wanted a number for each of 3 layers"),
        ("xielu.alpha_n", np.array([0, np.nan, 0], np.float32), "xielu.alpha_n: found .*, wanted a number for each"),
        ("xielu.eps", np.zeros(3, np.float32), "xielu.eps: found .*, wanted -1e-06 for each layer"),
    ],
)
def test_numbers_of_each_layer_are_checked(key: str, value: Any, message: str) -> None:
    numbers = {"alpha_p": 0.5, "alpha_n": -1.0, "beta": 0.5, "eps": -1e-6}
    arrays: dict[str, Any] = {f"xielu.{name}": np.full(3, x, np.float32) for name, x in numbers.items()} | {key: value}
    stored = {name: array(ValueType.FLOAT32, x) for name, x in arrays.items() if x is not None}
    metadata = tiny_gguf.metadata("apertus", **PLAIN)
    with pytest.raises(InputError, match=message):
        ModelConfig.from_gguf(metadata | stored, {"token_embd.weight": EMBEDDING})
