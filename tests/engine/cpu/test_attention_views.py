"""Attention whose values are views of keys, or that ends at the beginning of a chunk."""

import numpy as np
import pytest

from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.attention import Attention, attend
from lltool.engine.operations.elementwise import scale
from lltool.engine.operations.embed import embed
from lltool.engine.operations.select import select
from lltool.engine.program import Calls, Cost, Program, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.engine.state import KeyValue, StateLayout
from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from tests.engine.cpu.test_attention import COUNTS, PAGES, VALUES, Shape, batches, expect, run_both, shuffled_tables
from tests.engine.cpu.test_cpu import ISAS, f32_weight, run_all


def view_program(value_dim: int, *, is_view: bool) -> Program:
    """Values are the first `value_dim` numbers of each head of keys: a view of them, or embeddings of their own."""
    rng = np.random.default_rng(11)
    q, k = (rng.standard_normal((VALUES, heads * 64), np.float32) for heads in (4, 2))
    v = np.ascontiguousarray(k.reshape(VALUES, 2, 64)[..., :value_dim]).reshape(VALUES, -1)
    g = Tracer({w.name: w for w in (f32_weight("q", q), f32_weight("k", k), f32_weight("v", v))})
    query, key = embed(g, "q", VALUES, 256), embed(g, "k", VALUES, 128)
    options = {"layer": 0, "head_dim": 64, "scale": 0.1, "window": 0, "softcap": 0.0}
    if is_view:
        out = attend(g, query, key, key, value_dim=value_dim, **options)  # type: ignore[arg-type]
        g.used.add("v")
    else:
        out = attend(g, query, key, embed(g, "v", VALUES, v.shape[1]), **options)  # type: ignore[arg-type]
    scale(g, select(g, out), 1.0)
    return g.finish()


@pytest.mark.parametrize("value_dim", [64, 40])
def test_values_that_are_views_of_keys(value_dim: int) -> None:
    program = view_program(value_dim, is_view=True)
    assert StateLayout.of(program).key_values == (KeyValue(0, 2, 64, value_dim, value_is_key=True),)
    assert StateLayout.of(program).token_width == 128
    executors = [ReferenceExecutor(p, 2 * PAGES) for p in (program, view_program(value_dim, is_view=False))]
    for batch in batches(COUNTS, shuffled_tables()):
        view, own = (run_all(executor, batch) for executor in executors)
        np.testing.assert_array_equal(view, own)


def test_views_of_keys_take_the_type_and_the_memory_of_keys() -> None:
    shape = Shape(5, 1, 160, value_dim=96, is_view=True)
    with pytest.raises(InputError, match=r"layer 0: heads of 80; a cache of .* needs a multiple of 32"):
        CpuExecutor(
            Shape(1, 1, 96, value_dim=80, is_view=True).program(), 1, max_batch=1, threads=1, cache_type_k="q8_0"
        )
    expected, found = run_both(shape, ISAS[0], "f32", ("f32", "q4_0"))  # as with f32 for both
    assert np.array_equal(expected, expect(shape, ("f32", "f32"), 1.0))
    assert np.max(np.abs(found - expected)) < 5e-6 * np.abs(expected).max()


def test_a_chunk_hides_the_keys_before_it() -> None:
    """With scores that are all equal, a result is the mean of the values that are seen."""
    rng = np.random.default_rng(2)
    k, v = np.zeros((VALUES, 16), np.float32), rng.standard_normal((VALUES, 16), np.float32)
    g = Tracer({w.name: w for w in (f32_weight("k", k), f32_weight("v", v))})
    key, value = embed(g, "k", VALUES, 16), embed(g, "v", VALUES, 16)
    out = attend(g, key, key, value, layer=0, head_dim=16, scale=1.0, window=0, softcap=0.0, chunk=7)
    scale(g, select(g, out), 1.0)
    program, batch = g.finish(), batches([(30,)], np.arange(PAGES, dtype=np.int32)[None])[0]
    seen = v[batch.tokens]
    wanted = [seen[p - p % 7 : p + 1].mean(axis=0) for p in range(30)]
    np.testing.assert_allclose(run_all(ReferenceExecutor(program, PAGES), batch), wanted, atol=1e-6)
    calls = Calls({}, [(5, 4), (14, 1)], GGMLType.F16, GGMLType.F16)
    (attention,) = (op for op in program.ops if isinstance(op, Attention))
    pairs, keys = (6 + 7) + (1 + 2) + 1, 7 + 2 + 1  # positions 5 and 6 of one chunk, 7 and 8 of the next; and 14
    assert attention.cost(calls, {}) == Cost(keys * 16 * 2 * 2, floats=pairs * 32)
