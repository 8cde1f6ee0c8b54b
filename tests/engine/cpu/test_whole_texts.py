"""Native attention in both directions, means of texts and types of tokens, against the reference and written out."""

from dataclasses import dataclass

import numpy as np
import pytest

from lltool.engine.batch import PAGE, Batch
from lltool.engine.cpu.executor import CpuExecutor, _native
from lltool.engine.operations.attention import Attention, attend
from lltool.engine.operations.elementwise import activate, add, scale
from lltool.engine.operations.embed import embed, embed_types
from lltool.engine.operations.select import select
from lltool.engine.program import Calls, Program, Rows, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.engine.state import StateLayout
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_cpu import ISAS, Array, f32_weight

LENGTHS = (200, 1, 17, 64, 63)
VALUES, HEADS, KV_HEADS, DIM = 97, 6, 2, 24


@dataclass(frozen=True)
class Case:
    window: int = 0
    softcap: float = 0.0
    slopes: tuple[float, ...] | None = None


CASES = [
    Case(),
    Case(window=2),
    Case(window=31, softcap=2.0),
    Case(window=128),
    Case(window=1000),
    Case(slopes=(0.5, 0.25, 0.125, 0.06, 0.03, 1.0)),
]


def make_program(case: Case) -> Program:
    """Two layers, of which the second has other keys in the pages of the first."""
    rng = np.random.default_rng(5)
    widths = {"q": HEADS * DIM, "k": KV_HEADS * DIM, "v": KV_HEADS * DIM}
    weights = [f32_weight(name, rng.standard_normal((VALUES, width), np.float32)) for name, width in widths.items()]
    g = Tracer({weight.name: weight for weight in weights})
    q, k, v = (embed(g, name, VALUES, width) for name, width in widths.items())
    parts = [
        attend(
            g,
            q,
            keys,
            values,
            layer=layer,
            head_dim=DIM,
            scale=DIM**-0.5,
            window=case.window,
            softcap=case.softcap,
            slopes=case.slopes,
            causal=False,
        )
        for layer, (keys, values) in enumerate(((k, v), (scale(g, k, -1.0), scale(g, k, 1.0))))
    ]
    scale(g, select(g, add(g, *parts)), 1.0)
    return g.finish()


def whole_texts(outputs: np.ndarray | None = None) -> tuple[Batch, int]:
    rng = np.random.default_rng(6)
    pages = [-(-length // PAGE) for length in LENGTHS]
    order = iter(rng.permutation(sum(pages)).tolist())
    tables = np.zeros((len(LENGTHS), max(pages)), np.int32)
    for row, count in enumerate(pages):
        tables[row, :count] = [next(order) for _ in range(count)]
    total = sum(LENGTHS)
    batch = Batch(
        tokens=rng.integers(0, VALUES, total).astype(np.int32),
        positions=np.concatenate([np.arange(length, dtype=np.int32) for length in LENGTHS]),
        sequences=np.repeat(np.arange(len(LENGTHS), dtype=np.int32), LENGTHS),
        tables=tables,
        outputs=np.arange(total, dtype=np.int32) if outputs is None else outputs,
    )
    return batch, sum(pages)


def run(executor: CpuExecutor | ReferenceExecutor, batch: Batch) -> Array:
    executor.run(batch)
    count, step = len(batch.outputs), executor.head_rows
    return np.concatenate([executor.logits(i, min(count, i + step)).copy() for i in range(0, count, step)])


def make_cpu(program: Program, pages: int, isa: str, precision: str = "f32") -> CpuExecutor:
    return CpuExecutor(
        program,
        pages,
        max_batch=400,
        threads=2,
        precision=precision,  # type: ignore[arg-type]
        cache_type_k="f32",
        cache_type_v="f32",
        instruction_set=isa,
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_the_reference(isa: str, case: Case) -> None:
    program, (batch, pages) = make_program(case), whole_texts()
    expected = run(ReferenceExecutor(program, pages, dtype=np.float64), batch)
    found = run(make_cpu(program, pages, isa), batch)
    assert np.abs(found - expected).max() < 5e-6 * np.abs(expected).max()
    found = run(make_cpu(program, pages, isa, "int8"), batch)
    assert np.abs(found - expected).max() < 2**-11 * 9  # pairs of int16, of two attentions


def test_the_reference_is_what_the_formula_says() -> None:
    case = Case(window=31, slopes=(0.5, 0.25, 0.125, 0.06, 0.03, 1.0))
    program, (batch, pages) = make_program(case), whole_texts()
    found = run(ReferenceExecutor(program, pages, dtype=np.float64), batch)
    table = {name: program.weights[name].data.view(np.float32) for name in "qkv"}
    start = 0
    for length in LENGTHS:
        ids = batch.tokens[start : start + length]
        q, k, v = (table[name][ids].astype(np.float64).reshape(length, -1, DIM) for name in "qkv")
        for head in range(HEADS):
            wanted = np.zeros((length, DIM))
            for keys, values in ((k[:, head // 3], v[:, head // 3]), (-k[:, head // 3], k[:, head // 3])):
                for t in range(length):
                    seen = [n for n in range(length) if abs(n - t) <= 15]
                    assert case.slopes is not None
                    scores = np.array([q[t, head] @ keys[n] / DIM**0.5 - case.slopes[head] * abs(n - t) for n in seen])
                    weights = np.exp(scores - scores.max())
                    wanted[t] += weights @ values[seen] / weights.sum()
            rows = found[start : start + length].reshape(length, HEADS, DIM)[:, head]
            np.testing.assert_allclose(rows, wanted, atol=1e-5)
        start += length


def test_layers_share_their_pages_and_count_what_they_read() -> None:
    program = make_program(Case(window=4))
    assert len(StateLayout.of(program).key_values) == 1
    attention = next(op for op in program.ops if isinstance(op, Attention))
    calls = Calls({Rows.TOKEN: [10]}, [(0, 7), (0, 3)], GGMLType.F32, GGMLType.F32)
    seen = sum(abs(a - b) <= 2 for n in (7, 3) for a in range(n) for b in range(n))
    cost = attention.cost(calls, program.weights)
    assert (cost.floats, cost.read) == (seen * HEADS * 2 * DIM, 10 * KV_HEADS * 2 * DIM * 4)


@pytest.mark.parametrize("isa", ISAS)
def test_means_types_and_tanh(isa: str) -> None:
    rng = np.random.default_rng(7)
    words, kinds = rng.standard_normal((VALUES, 40), np.float32), rng.standard_normal((3, 40), np.float32)
    g = Tracer({"words": f32_weight("words", words), "kinds": f32_weight("kinds", kinds)})
    x = add(g, embed(g, "words", VALUES, 40), embed_types(g, "kinds", 3, 40))
    scale(g, activate(g, select(g, x, mean=True), "tanh"), 1.0)
    program = g.finish()
    firsts = np.cumsum([0, *LENGTHS[:-1]])
    batch, pages = whole_texts((firsts + np.array(LENGTHS) // 2).astype(np.int32))
    types = rng.integers(0, 3, len(batch.tokens)).astype(np.int32)
    batch = Batch(**{**vars(batch), "types": types})
    rows = words[batch.tokens] + kinds[types]
    wanted = np.tanh([rows[first : first + n].mean(axis=0) for first, n in zip(firsts, LENGTHS, strict=True)])
    for executor in (ReferenceExecutor(program, pages), make_cpu(program, pages, isa)):
        np.testing.assert_allclose(run(executor, batch), wanted, atol=2e-6)


def test_the_boundary_refuses_types_that_do_not_exist() -> None:
    g = Tracer({"kinds": f32_weight("kinds", np.ones((3, 40), np.float32))})
    scale(g, select(g, embed_types(g, "kinds", 3, 40)), 1.0)
    cpu = make_cpu(g.finish(), 20, _native.available_isas()[0])
    batch, _ = whole_texts()
    for types, message in ((np.full(345, 3), "no such type"), (np.zeros(344), "a type for each token")):
        with pytest.raises(ValueError, match=message):
            cpu.run(Batch(**{**vars(batch), "types": types.astype(np.int32)}))
