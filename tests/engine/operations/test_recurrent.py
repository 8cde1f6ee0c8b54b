"""Operations that keep a state of fixed size: the native executor and the reference, under every instruction set."""

from collections.abc import Sequence

import numpy as np
import pytest

from lltool.engine.batch import Batch
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.convolution import convolution
from lltool.engine.operations.linear import linear
from lltool.engine.operations.scan import scan, selective_scan
from lltool.engine.program import Buffer, Program, Tracer, Weight
from lltool.engine.reference.executor import ReferenceExecutor
from tests.engine.cpu.test_cpu import ISAS, VOCAB, Array, f32_weight, program, run_all, vector

SLOTS = (2, 0, 4)  # of three sequences
# How many tokens each of them gets in a batch; all start at 0, and some get none at first.
CUTS = [(7, 0, 1), (1, 2, 20), (1, 1, 1), (30, 1, 0), (2, 40, 3)]
WHOLE = [(41, 44, 25)]


def batches(cuts: Sequence[tuple[int, ...]]) -> list[Batch]:
    """The batches that give each sequence its tokens, always the same ones, and compute all logits."""
    texts = np.random.default_rng(8).integers(0, VOCAB, (len(SLOTS), 64)).astype(np.int32)
    lengths, made = np.zeros(len(SLOTS), np.int32), []
    for counts in cuts:
        spans = [np.arange(start, start + count) for start, count in zip(lengths, counts, strict=True)]
        made.append(
            Batch(
                np.concatenate([text[span] for text, span in zip(texts, spans, strict=True)]),
                positions=np.concatenate(spans).astype(np.int32),
                sequences=np.repeat(np.arange(len(SLOTS), dtype=np.int32), counts),
                tables=np.arange(len(SLOTS), dtype=np.int32)[:, None],
                outputs=np.arange(sum(counts), dtype=np.int32),
                slots=np.array(SLOTS, np.int32),
            )
        )
        lengths += counts
    return made


def run_cuts(executor: CpuExecutor | ReferenceExecutor, cuts: Sequence[tuple[int, ...]]) -> list[Array]:
    """The logits of each sequence's tokens."""
    rows: list[list[Array]] = [[] for _ in SLOTS]
    for batch in batches(cuts):
        logits = run_all(executor, batch)
        for sequence, found in enumerate(rows):
            found.append(logits[batch.sequences == sequence])
    return [np.concatenate(found) for found in rows]


def compare(made: Program, isa: str, tolerance: float) -> None:
    """In many batches and in one, and twice, so that states of an earlier text lie in the slots."""
    wanted = run_cuts(ReferenceExecutor(made, 3, slots=5, dtype=np.float64), WHOLE)
    cpu = CpuExecutor(made, 3, slots=5, max_batch=128, threads=2, precision="f32", instruction_set=isa)
    reference = ReferenceExecutor(made, 3, slots=5, dtype=np.float64)
    for cuts in (CUTS, WHOLE, CUTS):
        for expected, found, defined in zip(wanted, run_cuts(cpu, cuts), run_cuts(reference, cuts), strict=True):
            np.testing.assert_allclose(defined, expected, atol=1e-6 * np.abs(expected).max())
            assert np.max(np.abs(found - expected)) < tolerance * np.abs(expected).max()


def convolving(width: int, taps: int, *, bias: bool, silu: bool) -> Program:
    rng = np.random.default_rng(9)
    weights: list[Weight] = [
        f32_weight("embed", rng.standard_normal((VOCAB, width), np.float32)),
        f32_weight("conv.weight", rng.standard_normal((width, taps), np.float32)),
    ]
    weights += [vector("conv.bias", rng.standard_normal(width, np.float32))] if bias else []
    return program(weights, width, lambda g, x: convolution(g, x, "conv.weight", taps, "silu" if silu else None))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("width", "taps", "bias", "silu"), [(128, 3, False, False), (75, 4, True, True), (3, 9, True, False)]
)
def test_convolutions(width: int, taps: int, bias: bool, silu: bool, isa: str) -> None:
    compare(convolving(width, taps, bias=bias, silu=silu), isa, 2e-6)


def test_a_convolution_is_that_of_its_formula() -> None:
    made = convolving(5, 4, bias=True, silu=True)
    batch = batches([(20, 0, 0)])[0]
    found = run_all(ReferenceExecutor(made, 3, slots=5, dtype=np.float64), batch)
    x, weight, bias = (made.weights[name].data.view(np.float32) for name in ("embed", "conv.weight", "conv.bias"))
    for t in range(20):
        total = bias[0].astype(np.float64)
        for k in range(4):
            if t - 3 + k >= 0:
                total = total + weight[:, k] * x[batch.tokens[t - 3 + k]]
        np.testing.assert_allclose(found[t], total / (1 + np.exp(-total)), atol=1e-6)


def scanning(width: int, states: int) -> Program:
    """x, dt, b and c are the token's embedding, and products of it."""
    rng = np.random.default_rng(10)
    weights: list[Weight] = [f32_weight("embed", rng.standard_normal((VOCAB, width), np.float32))]
    weights += [
        f32_weight(f"{name}.weight", rng.standard_normal((rows, width), np.float32) / width**0.5)
        for name, rows in (("dt", width), ("b", states), ("c", states))
    ]
    weights.append(vector("dt.bias", rng.uniform(-12, 6, width).astype(np.float32)))  # from long memories to short ones
    weights.append(f32_weight("a", -rng.uniform(0.1, 16, (width, states)).astype(np.float32)))
    weights.append(vector("d", rng.standard_normal(width, np.float32)))

    def build(g: Tracer, x: Buffer) -> Buffer:
        dt, b, c = linear(g, x, ["dt.weight", "b.weight", "c.weight"], [width, states, states])
        return selective_scan(g, x, dt, b, c, "a", "d")

    return program(weights, width, build)


def scanning_heads(heads: int, columns: int, groups: int, states: int) -> Program:
    """The embedding is x, b and c; dt is a product of it."""
    rng = np.random.default_rng(11)
    width, out = heads * columns + 2 * groups * states, heads * columns
    weights: list[Weight] = [
        f32_weight("embed", rng.standard_normal((VOCAB, width), np.float32)),
        f32_weight("dt.weight", rng.standard_normal((heads, width), np.float32) / width**0.5),
        f32_weight("a", -rng.uniform(0.1, 16, (heads, 1)).astype(np.float32)),
        f32_weight("d", rng.standard_normal((heads, 1), np.float32)),
        vector("dt_bias", rng.uniform(-9, 3, heads).astype(np.float32)),
    ]

    def build(g: Tracer, x: Buffer) -> Buffer:
        (dt,) = linear(g, x, ["dt.weight"], [heads])
        return scan(g, x, dt, out, groups, "a", "d", "dt_bias")

    return program(weights, width, build)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("width", "states"), [(128, 16), (75, 5), (3, 1)])
def test_selective_scans(width: int, states: int, isa: str) -> None:
    compare(scanning(width, states), isa, 5e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("heads", "columns", "groups", "states"), [(4, 64, 1, 32), (6, 24, 2, 7), (3, 5, 3, 1), (2, 100, 1, 16)]
)
def test_scans_of_heads(heads: int, columns: int, groups: int, states: int, isa: str) -> None:
    compare(scanning_heads(heads, columns, groups, states), isa, 5e-6)


def values(made: Program, name: str) -> Array:
    return made.weights[name].data.view(np.float32).reshape(made.weights[name].shape)


def softplus(x: Array) -> Array:
    return np.log(1 + np.exp(x.astype(np.float64)))


def test_a_selective_scan_is_that_of_its_formula() -> None:
    """As a sum over all earlier tokens, without a state."""
    made = scanning(5, 3)
    batch = batches([(12, 0, 0)])[0]
    found = run_all(ReferenceExecutor(made, 3, slots=5, dtype=np.float64), batch)
    x = values(made, "embed")[batch.tokens].astype(np.float64)
    step = softplus(x @ values(made, "dt.weight").T + values(made, "dt.bias"))
    b, c = (x @ values(made, f"{name}.weight").T for name in "bc")
    for t in range(12):
        wanted = values(made, "d") * x[t]
        for s in range(t + 1):
            decay = np.exp(step[s + 1 : t + 1].sum(axis=0)[:, None] * values(made, "a"))  # (width, states)
            wanted = wanted + (decay * b[s] * c[t]).sum(axis=1) * step[s] * x[s]
        np.testing.assert_allclose(found[t], wanted, atol=1e-6)


def test_a_scan_of_heads_is_that_of_its_formula() -> None:
    heads, columns, groups, states = 6, 4, 2, 3
    made = scanning_heads(heads, columns, groups, states)
    batch = batches([(12, 0, 0)])[0]
    found = run_all(ReferenceExecutor(made, 3, slots=5, dtype=np.float64), batch)
    row = values(made, "embed")[batch.tokens].astype(np.float64)
    step = softplus(row @ values(made, "dt.weight").T + values(made, "dt_bias"))
    x = row[:, : heads * columns].reshape(12, heads, columns)
    b, c = row[:, heads * columns :].reshape(12, 2, groups, states).transpose(1, 0, 2, 3)
    for t in range(12):
        for head in range(heads):
            wanted = values(made, "d")[head] * x[t, head]
            for s in range(t + 1):
                decay = np.exp(step[s + 1 : t + 1, head].sum() * values(made, "a")[head])
                wanted = wanted + decay * (b[s, head // 3] @ c[t, head // 3]) * step[s, head] * x[s, head]
            np.testing.assert_allclose(found[t].reshape(heads, columns)[head], wanted, atol=1e-6)
