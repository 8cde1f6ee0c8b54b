"""The kernels for devices against the reference, operation by operation, and products for every format."""

from dataclasses import fields, replace

import numpy as np
import pytest

from lltool.engine.batch import Batch
from lltool.engine.gpu.device import Device
from lltool.engine.gpu.executor import GpuExecutor
from lltool.engine.gpu.operations import KERNELS
from lltool.engine.operations.attention import attend
from lltool.engine.operations.concatenate import concatenate
from lltool.engine.operations.elementwise import (
    activate,
    add,
    add_vector,
    clamp,
    gated,
    multiply,
    product,
    scale,
    scale_by_position,
    softcap,
    xielu,
)
from lltool.engine.operations.embed import embed, embed_positions, embed_types
from lltool.engine.operations.experts import Routing, combine, expert_linear, route
from lltool.engine.operations.linear import head_linear, linear
from lltool.engine.operations.norm import layer_norm, norm
from lltool.engine.operations.rope import rope
from lltool.engine.operations.select import select
from lltool.engine.operations.split import split
from lltool.engine.program import Buffer, Program, Tracer, Weight
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from tests.engine.cpu.test_attention import Shape, batches, shuffled_tables
from tests.engine.cpu.test_cpu import TYPES, VOCAB, Array, f32_weight, one_sequence, program, random_weight, vector
from tests.engine.operations.test_experts import mixture, stack

WIDTH = 90  # no multiple of a work group


def run_all(executor: GpuExecutor | ReferenceExecutor, batch: Batch) -> Array:
    executor.run(batch)
    count, step = len(batch.outputs), executor.head_rows
    return np.concatenate([executor.logits(i, min(count, i + step)).copy() for i in range(0, count, step)])


def compare(device: Device, made: Program, batch: Batch, tolerance: float, precision: str = "f32") -> None:
    """The largest difference, as a part of the largest logit."""
    gpu = GpuExecutor(
        made,
        4,
        device,
        max_batch=64,
        precision=precision,  # type: ignore[arg-type]
        cache_type_k="f32",
        cache_type_v="f32",
    )
    expected, found = run_all(ReferenceExecutor(made, 4, dtype=np.float64), batch), run_all(gpu, batch)
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected)) < tolerance * np.abs(expected).max()


def embedding(rng: np.random.Generator, width: int = WIDTH) -> Weight:
    return f32_weight("embed", (rng.standard_normal((VOCAB, width)) * 4 + 1).astype(np.float32))


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_products(device: Device, type: GGMLType) -> None:
    """One row, a few and many, with a bias and a residual, of a matrix whose rows no work group divides.

    Few rows are rounded to 15 bits: by at most 3.1e-5 of the largest of 32 elements.
    """
    rng = np.random.default_rng(3)
    columns = 512 if LAYOUT[type].block > 1 else 37
    weights = [
        f32_weight("embed", rng.standard_normal((VOCAB, columns), np.float32)),
        random_weight(rng, "a.weight", type, 70, columns),
        vector("a.bias", rng.standard_normal(70).astype(np.float32)),
        f32_weight("r.weight", rng.standard_normal((70, columns), np.float32)),
    ]

    def build(g: Tracer, x: Buffer) -> Buffer:
        (residual,) = linear(g, x, ("r.weight",), (70,))
        return linear(g, x, ("a.weight",), (70,), residual=residual)[0]

    made = program(weights, columns, build)
    for tokens in (1, 3, 33):
        compare(device, made, one_sequence(tokens), 3e-6)
    compare(device, made, one_sequence(1), 1.5e-4, "int8")
    compare(device, made, one_sequence(5), 1.5e-4, "int8")


def test_a_fused_weight_and_a_row_of_zeros(device: Device) -> None:
    rng = np.random.default_rng(4)
    values = rng.standard_normal((VOCAB, 64), np.float32)
    values[0] = 0
    weights = [f32_weight("embed", values), random_weight(rng, "qkv.weight", GGMLType.Q5_0, 96, 64)]
    weights.append(vector("qkv.bias", rng.standard_normal(96).astype(np.float32)))

    def build(g: Tracer, x: Buffer) -> Buffer:
        a, b, c = linear(g, x, ("qkv.weight",) * 3, (32, 32, 32))
        return concatenate(g, add(g, a, b), c)

    for precision, tolerance in (("f32", 1e-6), ("int8", 1.5e-4)):
        compare(device, program(weights, 64, build), one_sequence(4), tolerance, precision)


def test_elementwise_operations(device: Device) -> None:
    rng = np.random.default_rng(5)
    weights = [embedding(rng), vector("norm", rng.standard_normal(WIDTH, np.float32))]
    weights += [
        vector("heads", rng.standard_normal(30, np.float32)),
        vector("bias", rng.standard_normal(30, np.float32)),
    ]
    weights.append(f32_weight("each", rng.standard_normal((3, 30), np.float32)))

    def build(g: Tracer, x: Buffer) -> Buffer:
        y = layer_norm(g, x, "heads", 1e-5, 3, bias="bias")
        z = layer_norm(g, y, None, 1e-5)
        y = norm(g, add(g, y, z), "norm", 1e-6)
        y = gated(g, y, clamp(g, x, 2.5), "silu")
        y = norm(g, y, None, 1e-5, groups=3)
        y = add(g, scale(g, y, 0.3), gated(g, y, x, "gelu_tanh"))
        y = multiply(g, gated(g, y, x, "gelu"), "each", (3, 30))
        y = add_vector(g, product(g, softcap(g, y, 5.0), gated(g, x, y, "sigmoid")), "norm")
        y = add(g, gated(g, y, x, "swiglu_oai"), xielu(g, x, 0.8, 0.9, 0.5))
        return scale_by_position(g, y, 0.1, 7, 2)

    compare(device, program(weights, WIDTH, build), one_sequence(37), 2e-6)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "relu_squared", "tanh", "sigmoid"])
def test_activations_without_a_gate(device: Device, activation: str) -> None:
    made = program([embedding(np.random.default_rng(3))], WIDTH, lambda g, x: activate(g, x, activation))  # type: ignore[arg-type]
    compare(device, made, one_sequence(37), 1e-6)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("head_dim", "first"), [(24, 0), (30, 0), (30, 7), (15, 3)])
def test_rope(device: Device, interleaved: bool, head_dim: int, first: int) -> None:
    """Some elements turn, others, before and behind them, stay; also of heads with an odd number of elements."""
    rng = np.random.default_rng(5)
    frequencies = tuple(10000.0 ** -(i / 5) for i in range(5))
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 2 * head_dim), np.float32))]
    made = program(weights, 2 * head_dim, lambda g, x: rope(g, x, head_dim, frequencies, 1.25, interleaved, first))
    batch = one_sequence(38)
    compare(
        device, made, replace(batch, positions=batch.positions + 200, tables=np.arange(4, dtype=np.int32)[None]), 1e-6
    )


def test_parts_of_rows(device: Device) -> None:
    """A matrix for each head, and parts of each of three groups."""
    rng = np.random.default_rng(6)
    stack = rng.standard_normal((3, 20, 24), np.float32)
    weights = [embedding(rng), replace(f32_weight("w", stack.reshape(60, 24)), shape=(3, 20, 24))]

    def build(g: Tracer, x: Buffer) -> Buffer:
        y = head_linear(g, x, "w", 3, 24, 20)  # heads of 30 become heads of 26
        first, second = split(g, y, (30, 48), 3)
        return concatenate(g, second, first)

    compare(device, program(weights, WIDTH, build), one_sequence(21), 2e-6)


def test_tables_of_positions_and_types_and_means(device: Device) -> None:
    rng = np.random.default_rng(7)
    weights = [
        embedding(rng),
        f32_weight("positions", rng.standard_normal((64, WIDTH), np.float32)),
        f32_weight("types", rng.standard_normal((2, WIDTH), np.float32)),
    ]
    g = Tracer({w.name: w for w in weights})
    x = add(g, embed(g, "embed", VOCAB, WIDTH, 1.5), embed_positions(g, "positions", 64, WIDTH))
    scale(g, select(g, add(g, x, embed_types(g, "types", 2, WIDTH)), mean=True), 1.0)
    batch = one_sequence(20)
    sequences = np.repeat(np.array([0, 1], np.int32), (12, 8))
    batch = replace(
        batch,
        sequences=sequences,
        tables=np.array([[2], [1]], np.int32),
        outputs=np.array([0, 13], np.int32),
        types=(np.arange(20) % 2).astype(np.int32),
    )
    compare(device, g.finish(), batch, 1e-6)


SHAPES = [
    Shape(4, 2, 16),
    Shape(9, 1, 80, has_sinks=True),
    Shape(6, 2, 64, window=5, softcap=2.0),
    Shape(6, 2, 64, window=70, value_dim=24),
    Shape(3, 1, 24, softcap=20.0, value_dim=160, has_sinks=True),
    Shape(3, 1, 64, window=40, chunk=90),
    Shape(4, 1, 576, value_dim=512, is_view=True),
    Shape(3, 1, 44, value_dim=37, is_view=True, has_sinks=True),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_over_shuffled_pages(device: Device, shape: Shape) -> None:
    """Two sequences in one batch, then more of both behind what the cache holds."""
    made = shape.program()
    gpu = GpuExecutor(made, 14, device, max_batch=400, cache_type_k="f32", cache_type_v="f32")
    reference = ReferenceExecutor(made, 14)
    for batch in batches(((130, 40), (1, 1), (4, 3)), shuffled_tables()):
        expected, found = run_all(reference, batch), run_all(gpu, batch)
        assert np.max(np.abs(found - expected)) < 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("types", [("f16", "bf16"), ("bf16", "f32"), ("f32", "f16")])
def test_types_of_the_cache(device: Device, types: tuple[str, str]) -> None:
    made = Shape(6, 2, 40, window=30).program()
    key, value = types
    gpu = GpuExecutor(made, 14, device, max_batch=64, cache_type_k=key, cache_type_v=value)  # type: ignore[arg-type]
    reference = ReferenceExecutor(made, 14, cache_type_k=key, cache_type_v=value)  # type: ignore[arg-type]
    for batch in batches(((30, 20), (3, 1)), shuffled_tables()):
        expected, found = run_all(reference, batch), run_all(gpu, batch)
        assert np.max(np.abs(found - expected)) < 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("window", [0, 9])
def test_texts_that_are_seen_whole(device: Device, window: int) -> None:
    """Queries of an encoder see what follows them, with scores that fall with the distance."""
    rng = np.random.default_rng(8)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 48), np.float32))]
    weights += [f32_weight(f"{n}.weight", rng.standard_normal((48, 48), np.float32) / 5) for n in "qkv"]

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, x, ("q.weight", "k.weight", "v.weight"), (48, 48, 48))
        slopes = tuple(0.1 * (head + 1) for head in range(3))
        return attend(
            g, q, k, v, layer=0, head_dim=16, scale=0.25, window=window, softcap=0.0, slopes=slopes, causal=False
        )

    batch = one_sequence(50)
    sequences = np.repeat(np.array([0, 1], np.int32), (31, 19))
    positions = np.concatenate([np.arange(31), np.arange(19)]).astype(np.int32)
    batch = replace(batch, sequences=sequences, positions=positions, tables=np.array([[3], [0]], np.int32))
    compare(device, program(weights, 48, build), batch, 2e-6)


ROUTINGS = [
    Routing(12, 3),
    Routing(12, 3, "sigmoid", normalized=True, factor=2.5),
    Routing(12, 4, "sigmoid", normalized=True, groups=4, groups_used=2),
    Routing(12, 3, "softmax", groups=3, groups_used=1, counted=1),
    Routing(12, 2, "sparsemixer"),
]


@pytest.mark.parametrize("routing", ROUTINGS, ids=str)
def test_mixtures_of_experts(device: Device, routing: Routing) -> None:
    has_bias = routing.scoring == "sigmoid"
    made = mixture(routing=routing, biases=True, choice_bias=has_bias, shared=True)
    for tokens in (1, 21):
        compare(device, made, one_sequence(tokens), 5e-6)


def test_experts_of_a_quantized_type_whose_inputs_are_weighed(device: Device) -> None:
    for precision, tolerance in (("f32", 5e-6), ("int8", 2e-4)):
        made = mixture(GGMLType.Q4_0, weights_inputs=True)
        compare(device, made, one_sequence(9), tolerance, precision)


def test_experts_whose_matrices_are_fused_and_whose_weights_are_scaled(device: Device) -> None:
    rng = np.random.default_rng(9)
    weights = [
        f32_weight("embed", rng.standard_normal((VOCAB, 64), np.float32)),
        f32_weight("router.weight", rng.standard_normal((12, 64), np.float32) / 4),
        vector("scales", rng.standard_normal(12).astype(np.float32)),
        stack(rng, "both.weight", GGMLType.F32, 96, 64, 12),
    ]

    def build(g: Tracer, x: Buffer) -> Buffer:
        (scores,) = linear(g, x, ("router.weight",), (12,))
        chosen, shares = route(g, scores, Routing(12, 3), None, "scales")
        first, second = expert_linear(g, x, chosen, 12, ("both.weight",) * 2, (48, 48))
        hidden = add(g, gated(g, first, second, "silu"), first)
        return combine(g, hidden, chosen, shares)

    for tokens in (1, 9):
        compare(device, program(weights, 64, build), one_sequence(tokens), 5e-6)


def test_keys_that_an_earlier_attention_has_stored(device: Device) -> None:
    rng = np.random.default_rng(10)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 48), np.float32))]
    weights += [f32_weight(f"{n}.weight", rng.standard_normal((48, 48), np.float32) / 5) for n in "qkv"]

    def build(g: Tracer, x: Buffer) -> Buffer:
        q, k, v = linear(g, x, ("q.weight", "k.weight", "v.weight"), (48, 48, 48))
        sizes = {"layer": 0, "head_dim": 16, "scale": 0.25, "window": 0, "softcap": 0.0}
        y = attend(g, q, k, v, **sizes)  # type: ignore[arg-type]
        return attend(g, y, k, v, stores=False, **sizes)  # type: ignore[arg-type]

    compare(device, program(weights, 48, build), one_sequence(50), 2e-6)


# The fields that engine/gpu/operations.py knows: what reads an operation there has to know each field that it gets.
FIELDS = {
    "Embed": "out weight vocab scale",
    "EmbedPositions": "out weight count",
    "EmbedTypes": "out weight count",
    "Norm": "x out weight eps groups",
    "LayerNorm": "x out weight bias eps groups",
    "Linear": "x outs weights biases residual",
    "HeadLinear": "x out weight heads columns",
    "Concatenate": "x y out",
    "Route": "logits outs routing bias scales",
    "ExpertLinear": "x chosen outs weights biases experts",
    "Weigh": "x chosen weights out",
    "Combine": "x chosen weights out residual",
    "SharedGate": "x h out weight",
    "Rope": "x out head_dim frequencies magnitude interleaved first",
    "Attention": "q k v out layer heads kv_heads head_dim scale window softcap sinks slopes chunk causal bias stores",
    "Split": "x outs groups",
    "Gated": "gate up out activation",
    "Activate": "x out activation",
    "Xielu": "x out positive negative slope",
    "Clamp": "x out limit",
    "Multiply": "x out weight shape",
    "AddVector": "x out weight",
    "Product": "x y out",
    "Add": "x y out",
    "Scale": "x out factor",
    "ScaleByPosition": "x out factor length offset",
    "Softcap": "x out cap",
    "Select": "x out mean",
}


def test_no_field_of_an_operation_is_passed_over() -> None:
    assert {kind.__name__: " ".join(field.name for field in fields(kind)) for kind in KERNELS} == FIELDS
