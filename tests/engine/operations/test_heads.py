"""Operations of latent attention: a matrix for each head, rows side by side, rotation of the last dimensions."""

from typing import Any

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.concatenate import concatenate
from lltool.engine.operations.elementwise import scale_by_position
from lltool.engine.operations.linear import HeadLinear, head_linear, linear
from lltool.engine.operations.observe import observe_linears
from lltool.engine.operations.rope import rope
from lltool.engine.program import Buffer, Calls, Cost, Program, Rows, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import ISAS, VOCAB, compare, f32_weight, one_sequence, program, random_weight, run_all
from tests.engine.operations.test_experts import stack

HEADS = 3


def heads_program(
    type: GGMLType = GGMLType.F32, columns: int = 40, rest: int = 8, rows: int = 24, *, seed: int = 0
) -> Program:
    """The first `columns` of each head of an embedding, multiplied with a matrix of the head; `rest` follow."""
    rng = np.random.default_rng(seed)
    width = HEADS * (columns + rest)
    weights = [
        f32_weight("embed", rng.standard_normal((VOCAB, width), np.float32)),
        stack(rng, "heads.weight", type, rows, columns, HEADS),
    ]
    return program(weights, width, lambda g, x: head_linear(g, x, "heads.weight", HEADS, columns, rows))


def test_the_reference_multiplies_each_head_with_its_matrix() -> None:
    made = heads_program()
    found = run_all(ReferenceExecutor(made, 4, dtype=np.float64), one_sequence(20)).reshape(20, HEADS, 24 + 8)
    weights = {name: w.data.view(np.float32).reshape(w.shape) for name, w in made.weights.items()}
    x = weights["embed"][one_sequence(20).tokens].reshape(20, HEADS, 48)
    for head in range(HEADS):
        wanted = x[:, head, :40] @ weights["heads.weight"][head].T
        np.testing.assert_allclose(found[:, head, :24], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found[:, head, 24:], x[:, head, 40:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 33, 64])
@pytest.mark.parametrize(("columns", "rest", "rows"), [(40, 8, 24), (24, 0, 70), (7, 3, 5)])
def test_batches_of_all_sizes(isa: str, tokens: int, columns: int, rest: int, rows: int) -> None:
    compare(heads_program(columns=columns, rest=rest, rows=rows), one_sequence(tokens), isa, 2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16])
@pytest.mark.parametrize("tokens", [1, 2, 64])
def test_formats(isa: str, type: GGMLType, tokens: int) -> None:
    """In float32 almost the reference's; in int8 (14 bits for floats) as near as a linear's activations allow."""
    made = heads_program(type, columns=256, rest=64, rows=90)
    compare(made, one_sequence(tokens), isa, 1e-5)
    cpu = CpuExecutor(made, 4, max_batch=128, threads=2, instruction_set=isa)
    expected = run_all(ReferenceExecutor(made, 4, dtype=np.float64), one_sequence(tokens))
    error = np.sqrt(np.square(run_all(cpu, one_sequence(tokens)) - expected).mean())
    assert error < 0.02 * np.sqrt(np.square(expected).mean())


@pytest.mark.parametrize("type", [GGMLType.Q4_K, GGMLType.F16])
def test_deterministic_rows_do_not_depend_on_the_batch_or_on_threads(type: GGMLType) -> None:
    made = heads_program(type, columns=256, rest=32)

    def outputs(tokens: int, threads: int) -> Any:
        cpu = CpuExecutor(made, 4, max_batch=128, threads=threads, deterministic=True)
        return run_all(cpu, one_sequence(tokens))

    whole = outputs(100, 1)
    for tokens in (1, 2, 3, 61, 100):
        assert np.array_equal(outputs(tokens, 3), whole[:tokens])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_begins_where_it_is_told(isa: str, interleaved: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((VOCAB, 60), np.float32)
    frequencies = (1.0, 0.3, 0.01)

    def build(first: int, head_dim: int) -> Any:
        return lambda g, x: rope(g, x, head_dim, frequencies, 1.5, interleaved, first)

    whole = program([f32_weight("embed", values)], 60, build(9, 20))
    compare(whole, one_sequence(40), isa, 1e-6)
    found = run_all(ReferenceExecutor(whole, 4), one_sequence(40)).reshape(40, 3, 20)
    kept = values[one_sequence(40).tokens].reshape(40, 3, 20)
    turned = np.ascontiguousarray(values.reshape(VOCAB, 3, 20)[..., 9:15]).reshape(VOCAB, 18)
    part = program([f32_weight("embed", turned)], 18, build(0, 6))
    np.testing.assert_allclose(
        found[..., 9:15], run_all(ReferenceExecutor(part, 4), one_sequence(40)).reshape(40, 3, 6), atol=1e-6
    )
    np.testing.assert_array_equal(np.delete(found, range(9, 15), axis=2), np.delete(kept, range(9, 15), axis=2))


@pytest.mark.parametrize("isa", ISAS)
def test_rows_side_by_side(isa: str) -> None:
    rng = np.random.default_rng(2)
    weights = [f32_weight("embed", rng.standard_normal((VOCAB, 40), np.float32))]
    weights.append(random_weight(rng, "a.weight", GGMLType.F32, 7, 40))

    def build(g: Tracer, x: Buffer) -> Buffer:
        return concatenate(g, x, linear(g, x, ["a.weight"], [7])[0])

    made = program(weights, 40, build)
    compare(made, one_sequence(30), isa, 1e-6)
    found = run_all(ReferenceExecutor(made, 4), one_sequence(30))
    embedded, matrix = (w.data.view(np.float32).reshape(w.shape) for w in weights)
    x = embedded[one_sequence(30).tokens]
    np.testing.assert_allclose(found, np.concatenate([x, x @ matrix.T], axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_queries_grow_with_the_position(isa: str) -> None:
    values = np.random.default_rng(3).standard_normal((VOCAB, 19), np.float32)
    made = program([f32_weight("embed", values)], 19, lambda g, x: scale_by_position(g, x, 0.1, 8, offset=1))
    compare(made, one_sequence(50), isa, 1e-6)
    found = run_all(ReferenceExecutor(made, 4), one_sequence(50))
    factors = np.array([1 + 0.1 * np.log(1 + (position + 1) // 8) for position in range(50)])
    np.testing.assert_allclose(found, values[one_sequence(50).tokens] * factors[:, None], rtol=1e-6)
    assert factors[6] == 1 < factors[7]


@pytest.mark.parametrize("kind", ["reference", *ISAS])
def test_observers_sum_the_multiplied_columns_of_all_heads(kind: str) -> None:
    """As llama-imatrix: a row of the columns of all heads in turn, and one count."""
    made = observe_linears(heads_program(), lambda name: True)
    executor: Any = (
        ReferenceExecutor(made, 4)
        if kind == "reference"
        else CpuExecutor(made, 4, max_batch=64, threads=2, precision="f32", instruction_set=kind)
    )
    batch = one_sequence(30)
    executor.run(batch)
    x = made.weights["embed"].data.view(np.float32)[batch.tokens].astype(np.float64).reshape(30, HEADS, 48)
    seen = executor.take_observations()["heads.weight"]
    assert seen.rows.tolist() == [30]
    np.testing.assert_allclose(seen.sums, np.square(x[..., :40]).sum(axis=0).reshape(1, -1), rtol=1e-5)


def test_the_cost_is_that_of_all_matrices() -> None:
    made = heads_program(GGMLType.Q8_0, columns=64)
    (op,) = (op for op in made.ops if isinstance(op, HeadLinear))
    calls = Calls({Rows.TOKEN: [1, 5]}, [], GGMLType.F16, GGMLType.F16)
    size = HEADS * 24 * 64
    assert op.cost(calls, made.weights) == Cost(2 * size // 32 * 34, 6.0 * size)
