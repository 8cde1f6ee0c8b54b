"""What Gemma 3n and 4 and T5 need: streams, sparse gates, fused stacks of experts, shared keys, a bias by distance."""

from dataclasses import replace

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.attention import attend
from lltool.engine.operations.concatenate import concatenate
from lltool.engine.operations.distance_bias import DistanceBias
from lltool.engine.operations.elementwise import activate, add, gated, sparsify
from lltool.engine.operations.experts import Routing, combine, expert_linear, route
from lltool.engine.operations.linear import linear
from lltool.engine.operations.streams import match_magnitude, mix_streams
from lltool.engine.program import Buffer, Program, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
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


def embedding(width: int = WIDTH, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal((VOCAB, width)) * 2 + 0.5).astype(np.float32)


def reference(made: Program, tokens: int = 20) -> Array:
    return run_all(ReferenceExecutor(made, 4, dtype=np.float64), one_sequence(tokens))


def rows(values: Array, tokens: int = 20) -> Array:
    return values[np.arange(tokens) * 7 % VOCAB].astype(np.float64)


@pytest.mark.parametrize("isa", ISAS)
def test_streams_are_mixed(isa: str) -> None:
    """Two streams, and one that both take a share of; the numbers are a projection of the token."""
    values, matrix = embedding(), np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32) / 9

    def build(g: Tracer, x: Buffer) -> Buffer:
        (shares,) = linear(g, x, ("shares.weight",), (2,))
        return mix_streams(g, concatenate(g, x, activate(g, x, "relu")), x, shares, 2, 1, shift=0.5)

    made = program([f32_weight("embed", values), f32_weight("shares.weight", matrix)], WIDTH, build)
    x = rows(values)
    shares = x @ matrix.T + 0.5
    wanted = np.concatenate([x + shares[:, :1] * x, np.maximum(x, 0) + shares[:, 1:] * x], axis=1)
    np.testing.assert_allclose(reference(made), wanted, rtol=1e-5, atol=1e-5)
    compare(made, one_sequence(37), isa, 2e-6)


def test_coefficients_are_rows_of_targets() -> None:
    g = Tracer({})
    y, z, shares = g.buffer(4), g.buffer(6), g.buffer(6)
    mixed = mix_streams(g, y, z, shares, 2, 3)
    assert (mixed.width, g.ops[-1].inputs) == (4, (y, z, shares))


@pytest.mark.parametrize("isa", ISAS)
def test_streams_get_the_magnitude_of_another(isa: str) -> None:
    values = embedding()

    def build(g: Tracer, x: Buffer) -> Buffer:
        return match_magnitude(g, concatenate(g, activate(g, x, "tanh"), activate(g, x, "relu")), x, 1e-5)

    made = program([f32_weight("embed", values)], WIDTH, build)
    found = reference(made).reshape(20, 2, WIDTH)
    wanted = np.sqrt(np.mean(rows(values) ** 2, axis=1))
    np.testing.assert_allclose(np.sqrt(np.mean(found**2, axis=2)), np.stack([wanted] * 2, axis=1), rtol=1e-5)
    compare(made, one_sequence(37), isa, 2e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_few_gates_are_left(isa: str) -> None:
    values = embedding()
    made = program([f32_weight("embed", values)], WIDTH, lambda g, x: sparsify(g, x, 1.2))
    x = rows(values)
    wanted = np.maximum(x - x.mean(axis=1, keepdims=True) - 1.2 * x.std(axis=1, keepdims=True), 0)
    np.testing.assert_allclose(reference(made), wanted, rtol=1e-5, atol=1e-5)
    compare(made, one_sequence(37), isa, 2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", [GGMLType.F32, GGMLType.Q8_0])
def test_a_fused_stack_is_that_of_its_parts(isa: str, type: GGMLType) -> None:
    """Gate and up of each expert follow one another in the fused stack; each expert has a scale."""
    rng, experts, width, hidden = np.random.default_rng(2), 5, 64, 32
    parts = [random_weight(rng, name, type, experts * hidden, width) for name in ("gate.weight", "up.weight")]
    blocks = [part.data.reshape(experts, hidden, -1) for part in parts]
    fused = replace(
        parts[0],
        name="fused.weight",
        shape=(experts, 2 * hidden, width),
        data=np.concatenate(blocks, axis=1).reshape(experts * 2 * hidden, -1),
    )
    scales = rng.standard_normal(experts).astype(np.float32)
    common = [
        f32_weight("embed", embedding(width)),
        f32_weight("router.weight", rng.standard_normal((experts, width)).astype(np.float32) / 4),
        vector("scales", scales),
    ]
    down = random_weight(rng, "down.weight", type, experts * width, hidden)
    stacks = [replace(part, shape=(experts, hidden, width)) for part in parts]
    common.append(replace(down, shape=(experts, width, hidden)))

    def build(names: tuple[str, str]) -> Program:
        def trace(g: Tracer, x: Buffer) -> Buffer:
            (logits,) = linear(g, x, ("router.weight",), (experts,))
            chosen, factors = route(g, logits, Routing(experts, 2, normalized=True), None, "scales")
            gate, up = expert_linear(g, x, chosen, experts, names, (hidden, hidden))
            (made,) = expert_linear(g, gated(g, gate, up, "silu"), chosen, experts, ("down.weight",), (width,))
            return combine(g, made, chosen, factors, x)

        return program([*common, *([fused] if names[0] == names[1] else stacks)], width, trace)

    one, two = build(("fused.weight",) * 2), build(("gate.weight", "up.weight"))
    np.testing.assert_array_equal(reference(one), reference(two))
    compare(one, one_sequence(40), isa, 1e-5)
    cpu = [CpuExecutor(made, 4, max_batch=64, threads=2, precision="int8", instruction_set=isa) for made in (one, two)]
    np.testing.assert_array_equal(*(run_all(executor, one_sequence(40)) for executor in cpu))


@pytest.mark.parametrize("isa", ISAS)
def test_a_layer_reads_the_keys_of_an_earlier_one(isa: str) -> None:
    """The second attention has more heads, and a window; its queries differ from those of the first."""
    rng = np.random.default_rng(3)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 64), np.float32))]
    weights += [f32_weight(f"{n}.weight", rng.standard_normal((64, 64), np.float32) / 8) for n in "qkv"]
    weights.append(f32_weight("more.weight", rng.standard_normal((128, 64), np.float32) / 8))

    def build(g: Tracer, x: Buffer, *, stores: bool) -> Buffer:
        q, k, v = linear(g, x, QKV, (64, 64, 64))
        x = add(g, x, attend(g, q, k, v, layer=0, head_dim=32, scale=0.2, window=0, softcap=0.0))
        (q,) = linear(g, x, ("more.weight",), (128,))
        layer = 1 if stores else 0
        return attend(g, q, k, v, layer=layer, head_dim=32, scale=0.2, window=9, softcap=0.0, stores=stores)

    shared = program(weights, 64, lambda g, x: build(g, x, stores=False))
    again = program(weights, 64, lambda g, x: build(g, x, stores=True))
    np.testing.assert_array_equal(reference(shared), reference(again))
    compare(shared, one_sequence(50), isa, 2e-6)
    assert len({op.layer for op in shared.ops if hasattr(op, "stores")}) == 1


def test_keys_that_no_layer_has_stored_are_refused() -> None:
    def build(g: Tracer, x: Buffer) -> Buffer:
        return attend(g, x, x, x, layer=0, head_dim=32, scale=0.2, window=0, softcap=0.0, stores=False)

    made = program([f32_weight("embed", embedding(64))], 64, build)
    with pytest.raises(ValueError, match="layer 0 has stored no keys of these shapes"):
        CpuExecutor(made, 4, max_batch=8, threads=1)


def test_buckets_are_those_of_t5() -> None:
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-600, 600)
    for buckets, furthest in ((32, 128), (16, 128), (32, 96)):
        wanted = T5Attention._relative_position_bucket(torch.tensor(distances), True, buckets, furthest).numpy()
        np.testing.assert_array_equal(DistanceBias("b", buckets, furthest).buckets_of(distances), wanted)


@pytest.mark.parametrize("isa", ISAS)
def test_a_bias_by_distance(isa: str) -> None:
    """In both directions, over more positions than the furthest distance."""
    rng = np.random.default_rng(4)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 64), np.float32))]
    weights += [f32_weight(f"{n}.weight", rng.standard_normal((64, 64), np.float32) / 8) for n in "qkv"]
    weights.append(f32_weight("bias", rng.standard_normal((16, 2), np.float32) * 2))

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, x, QKV, (64, 64, 64))
        bias = DistanceBias("bias", 16, 24)
        common = {"layer": 0, "head_dim": 32, "window": 0, "softcap": 0.0}
        return attend(g, q, k, v, scale=0.2, causal=False, bias=bias, **common)  # type: ignore[arg-type]

    compare(program(weights, 64, build), one_sequence(60), isa, 2e-6)
