"""Operations of dense models besides Llama's, under every instruction set, and against formulas written out."""

import math

import numpy as np
import pytest

from lltool.engine.batch import Batch
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.models.alibi import read_slopes
from lltool.engine.operations.attention import attend
from lltool.engine.operations.elementwise import (
    ACTIVATIONS,
    PlainActivation,
    activate,
    add,
    clamp,
    gated,
    multiply,
    xielu,
)
from lltool.engine.operations.embed import embed_positions
from lltool.engine.operations.linear import linear
from lltool.engine.operations.norm import layer_norm, norm
from lltool.engine.program import Buffer, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.architecture_keys import ArchitectureKeys
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import (
    ISAS,
    QKV,
    VOCAB,
    Array,
    compare,
    f32_weight,
    one_sequence,
    program,
    random_weight,
    run_all,
    vector,
)

WIDTH = 90  # no multiple of any vector


def embedding(rng: np.random.Generator, width: int = WIDTH, spread: float = 4.0) -> Array:
    return (rng.standard_normal((VOCAB, width)) * spread + 1).astype(np.float32)


def logits(rng: np.random.Generator, values: Array, build: object, *more: object) -> Array:
    """The reference's logits for each token of the vocabulary's first 20."""
    made = program([f32_weight("embed", values), *more], values.shape[1], build)  # type: ignore[arg-type, list-item]
    return run_all(ReferenceExecutor(made, 4, dtype=np.float64), one_sequence(20))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("stored", ["weight and bias", "weight", "nothing"])
def test_layer_norm(isa: str, groups: int, stored: str) -> None:
    rng = np.random.default_rng(1)
    weight, bias = (vector(name, rng.standard_normal(WIDTH // groups, np.float32)) for name in ("w", "b"))
    names = {"weight and bias": ("w", "b"), "weight": ("w", None), "nothing": (None, None)}[stored]

    def build(g: Tracer, x: Buffer) -> Buffer:
        return layer_norm(g, x, names[0], 1e-3, groups, bias=names[1])

    used = [w for w in (weight, bias) if w.name in names]
    values = embedding(rng)
    compare(program([f32_weight("embed", values), *used], WIDTH, build), one_sequence(37), isa, 1e-6)
    if stored == "weight and bias" and groups == 1:
        import torch

        found = logits(rng, values, build, weight, bias)
        w, b = (torch.tensor(v.data.reshape(-1).view(np.float32)) for v in (weight, bias))
        x = torch.tensor(values[one_sequence(20).tokens])
        wanted = torch.nn.functional.layer_norm(x, (WIDTH,), w, b, 1e-3)
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_rms_norm_without_a_weight(isa: str) -> None:
    values = embedding(np.random.default_rng(2))
    made = program([f32_weight("embed", values)], WIDTH, lambda g, x: norm(g, x, None, 1e-5, groups=3))
    compare(made, one_sequence(37), isa, 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu_squared"])
def test_activations_without_a_gate(isa: str, activation: PlainActivation) -> None:
    values = embedding(np.random.default_rng(3))
    made = program([f32_weight("embed", values)], WIDTH, lambda g, x: activate(g, x, activation))
    compare(made, one_sequence(37), isa, 1e-6)


def test_activations_are_those_of_torch() -> None:
    import torch

    x = np.linspace(-9, 9, 301)
    t = torch.tensor(x)
    wanted = {
        "gelu": torch.nn.functional.gelu(t),
        "gelu_tanh": torch.nn.functional.gelu(t, approximate="tanh"),
        "silu": torch.nn.functional.silu(t),
        "relu": torch.relu(t),
        "relu_squared": torch.relu(t) ** 2,
        "sigmoid": torch.sigmoid(t),
        "tanh": torch.tanh(t),
    }
    assert wanted.keys() == ACTIVATIONS.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), values.numpy(), atol=1e-12)


@pytest.mark.parametrize("isa", ISAS)
def test_a_gate_of_gelu_a_limit_and_a_weight_of_each_column(isa: str) -> None:
    rng = np.random.default_rng(4)
    heads = f32_weight("heads", rng.standard_normal((3, WIDTH // 3), np.float32))

    def build(g: Tracer, x: Buffer) -> Buffer:
        y = clamp(g, x, 2.5)
        return multiply(g, gated(g, x, y, "gelu"), "heads", (3, WIDTH // 3))

    compare(program([f32_weight("embed", embedding(rng)), heads], WIDTH, build), one_sequence(37), isa, 1e-6)


def test_a_limit_is_on_both_sides() -> None:
    values = np.zeros((VOCAB, 16), np.float32)
    values[:, :3] = (-3, 0.25, 9)
    found = logits(np.random.default_rng(), values, lambda g, x: clamp(g, x, 0.5))
    assert np.unique(found[:, :3], axis=0).tolist() == [[-0.5, 0.25, 0.5]]


@pytest.mark.parametrize("isa", ISAS)
def test_xielu(isa: str) -> None:
    values = embedding(np.random.default_rng(5), 96)
    made = program([f32_weight("embed", values)], 96, lambda g, x: xielu(g, x, 0.8, 0.9, 0.5))
    compare(made, one_sequence(37), isa, 1e-6)
    x = values[one_sequence(20).tokens].astype(np.float64)
    found = logits(np.random.default_rng(), values, lambda g, x: xielu(g, x, 0.8, 0.9, 0.5))
    wanted = np.where(x > 0, 0.8 * x * x, 0.9 * (np.exp(x) - 1 - x)) + 0.5 * x
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_positions_have_an_embedding(isa: str) -> None:
    rng = np.random.default_rng(6)
    table = random_weight(rng, "positions", GGMLType.Q8_0, 50, 64)

    def build(g: Tracer, x: Buffer) -> Buffer:
        return add(g, x, embed_positions(g, "positions", 50, 64))

    made = program([f32_weight("embed", embedding(rng, 64)), table], 64, build)
    compare(made, one_sequence(50), isa, 1e-6)
    beyond = Batch(np.zeros(1, np.int32), np.array([50], np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32),
                   np.zeros(1, np.int32))  # fmt: skip
    with pytest.raises(ValueError, match="token 0 is out of range"):
        CpuExecutor(made, 1, max_batch=4, threads=1).run(beyond)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.Q5_1])
def test_a_fused_weight_gives_its_rows_in_turn(isa: str, type: GGMLType) -> None:
    rng = np.random.default_rng(7)
    weights = [f32_weight("embed", embedding(rng, 64, 1.0)), random_weight(rng, "qkv.weight", type, 160, 64)]
    weights.append(vector("qkv.bias", rng.standard_normal(160, np.float32)))
    weights.append(random_weight(rng, "v.weight", type, 64, 32))

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, x, ["qkv.weight"] * 3, (64, 64, 32))
        (y,) = linear(g, v, ["v.weight"], (64,))
        return add(g, gated(g, q, k, "silu"), y)

    made = program(weights, 64, build)
    compare(made, one_sequence(20), isa, 2e-6)
    op = next(op for op in made.ops if len(op.outputs) == 3)
    assert op.weight_shapes == {"qkv.weight": (160, 64), "qkv.bias": (160,)}
    assert op.multiplied.keys() == {"qkv.weight"}
    bias = weights[2].data.reshape(-1).view(np.float32)
    assert np.array_equal(op.mean_bias(op.outputs[1], made), bias[64:128].astype(np.float64))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("cache", "tolerance"), [("f32", 2e-6), ("f16", 2e-3)])
@pytest.mark.parametrize("window", [0, 40])
def test_attention_biased_by_distance(isa: str, cache: str, tolerance: float, window: int) -> None:
    """f16 multiplies pairs of int16 where the instruction set can."""
    rng = np.random.default_rng(8)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 64), np.float32))]
    weights += [f32_weight(f"{n}.weight", rng.standard_normal((64, 64), np.float32) / 8) for n in "qkv"]

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, x, QKV, (64, 64, 64))
        slopes = (0.5, 0.01)
        return attend(g, q, k, v, layer=0, head_dim=32, scale=0.2, window=window, softcap=0.0, slopes=slopes)

    made = program(weights, 64, build)
    cpu = CpuExecutor(
        made,
        4,
        max_batch=64,
        threads=2,
        precision="f32",
        cache_type_k=cache,
        cache_type_v=cache,
        instruction_set=isa,  # type: ignore[arg-type]
    )
    reference = ReferenceExecutor(made, 4, dtype=np.float64)
    expected, found = [], []
    for first in (0, 60, 120, 121):
        count = 1 if first >= 120 else 60
        whole = one_sequence(180)
        part = slice(first, first + count)
        batch = Batch(whole.tokens[part], whole.positions[part], np.zeros(count, np.int32), whole.tables,
                      np.arange(count, dtype=np.int32))  # fmt: skip
        expected.append(run_all(reference, batch))
        found.append(run_all(cpu, batch))
    error = np.abs(np.concatenate(found) - np.concatenate(expected)).max()
    assert error < tolerance * np.abs(np.concatenate(expected)).max()


def test_slopes_are_those_of_transformers() -> None:
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    for heads in (1, 2, 3, 8, 12, 40):
        found = read_slopes(ArchitectureKeys({}, "x"), heads, 8.0)
        bloom = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
        mpt = -build_mpt_alibi_tensor(heads, 2, alibi_bias_max=8)[:, 0, 0].reshape(-1)
        np.testing.assert_allclose(found, bloom.numpy(), rtol=1e-6)
        np.testing.assert_allclose(found, mpt.numpy(), rtol=1e-6)
    assert read_slopes(ArchitectureKeys({}, "x"), 8, 0.0) is None
    assert math.isclose(sum(read_slopes(ArchitectureKeys({}, "x"), 2, 8.0) or ()), 1 / 16 + 1 / 256)
