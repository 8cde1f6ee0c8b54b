"""The native attention against the reference: shapes, cache types, cuts of a batch, every instruction set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch, CacheType, Precision
from lltool.engine.cpu import CpuExecutor
from lltool.engine.program import Program, Tracer
from lltool.engine.reference import ReferenceExecutor
from lltool.gguf.errors import InputError
from tests.engine.test_cpu import ISAS, Array, f32_weight, run_all, vector

PAGES = 7  # a sequence
VALUES = 700  # tokens with a query, key and value each of its own
PRECISIONS = get_args(Precision)
CACHE_TYPES: tuple[CacheType, ...] = get_args(CacheType)
PAIRS = [(CACHE_TYPES[i - 1], CACHE_TYPES[i]) for i in range(len(CACHE_TYPES))]


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    softcap: float = 0.0
    has_sinks: bool = False

    def program(self, loudness: float = 1.0) -> Program:
        """Query, key and value are parts of a token's embedding; products with ones and zeros leave them exact."""
        rng = np.random.default_rng(self.heads * self.head_dim)
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        total = width + 2 * kv_width
        parts = np.split(np.eye(total, dtype=np.float32), [width, width + kv_width])
        weights = [f32_weight("embed", loudness * rng.standard_normal((VALUES, total), np.float32))]
        weights += [f32_weight(f"{name}.weight", part) for name, part in zip("qkv", parts, strict=True)]
        weights.append(vector("sinks", rng.standard_normal(self.heads).astype(np.float32) + 3))
        g = Tracer({w.name: w for w in weights})
        x = g.embed("embed", VALUES, total)
        q, k, v = g.linear(x, ("q.weight", "k.weight", "v.weight"), (width, kv_width, kv_width))
        y = g.attention(
            q,
            k,
            v,
            layer=0,
            head_dim=self.head_dim,
            scale=1 / np.sqrt(self.head_dim),
            window=self.window,
            softcap=self.softcap,
            sinks="sinks" if self.has_sinks else None,
        )
        g.scale(g.select(y), 1.0)
        if not self.has_sinks:
            g.used.add("sinks")
        return g.finish()


SHAPES = [
    Shape(4, 2, 16),
    Shape(9, 1, 80, has_sinks=True),
    Shape(2, 2, 24, window=70),
    Shape(6, 2, 64, window=5, softcap=2.0),
    Shape(7, 1, 64, window=200, has_sinks=True),
    Shape(1, 1, 256, window=300),
    Shape(8, 2, 128, softcap=20.0),
    Shape(5, 5, 32, has_sinks=True),
]


def batches(counts: Sequence[Sequence[int]], tables: NDArray[np.int32]) -> list[Batch]:
    """Batches of counts[b][s] tokens of sequence s, one behind the other."""
    rng = np.random.default_rng(3)
    ids = rng.integers(0, VALUES, (len(tables), PAGES * PAGE)).astype(np.int32)
    starts = [0] * len(tables)
    made = []
    for row in counts:
        cuts = [(s, starts[s], starts[s] + n) for s, n in enumerate(row)]
        total = sum(row)
        made.append(
            Batch(
                tokens=np.concatenate([ids[s, a:b] for s, a, b in cuts]),
                positions=np.concatenate([np.arange(a, b, dtype=np.int32) for _, a, b in cuts]),
                sequences=np.repeat(np.arange(len(row), dtype=np.int32), row),
                tables=tables,
                outputs=np.arange(total, dtype=np.int32),
            )
        )
        starts = [b for _, _, b in cuts]
    return made


def shuffled_tables() -> NDArray[np.int32]:
    return np.random.default_rng(1).permutation(2 * PAGES).astype(np.int32).reshape(2, PAGES)


# Two sequences in one batch, then more of both behind what the cache holds; of few tokens, keys are shared out.
COUNTS = ((330, 40), (1, 1), (4, 3), (30, 90), (2, 0))


@cache
def expect(shape: Shape, types: tuple[CacheType, CacheType], loudness: float) -> Array:
    made = shape.program(loudness)
    reference = ReferenceExecutor(made, 2 * PAGES, dtype=np.float64, cache_type_k=types[0], cache_type_v=types[1])
    return np.concatenate([run_all(reference, b) for b in batches(COUNTS, shuffled_tables())])


def run_both(
    shape: Shape, isa: str, precision: Precision, types: tuple[CacheType, CacheType], loudness: float = 1.0
) -> tuple[Array, Array]:
    cpu = CpuExecutor(
        shape.program(loudness),
        2 * PAGES,
        max_batch=400,
        threads=2,
        precision=precision,
        cache_type_k=types[0],
        cache_type_v=types[1],
        instruction_set=isa,
    )
    found = np.concatenate([run_all(cpu, b) for b in batches(COUNTS, shuffled_tables())])
    return expect(shape, types, loudness), found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_float32_it_is_the_reference(isa: str, shape: Shape) -> None:
    expected, found = run_both(shape, isa, "f32", ("f32", "f32"))
    # Sums of at most 400 products in float32, and 2^x to 2 ulp.
    assert np.max(np.abs(found - expected)) < 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pairs_of_int16_are_nearly_as_good(isa: str, shape: Shape) -> None:
    expected, found = run_both(shape, isa, "int8", ("f32", "f32"))
    # A value rounds to 2^-12 of its row's largest; weights, to 2^-14 of the page's largest, and scores add less.
    assert np.max(np.abs(found - expected)) < 2**-11 * 4.5  # the largest of the values


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("types", [*PAIRS, *zip(CACHE_TYPES, CACHE_TYPES, strict=True)], ids="-".join)
def test_every_type_of_cache(isa: str, types: tuple[CacheType, CacheType]) -> None:
    """The reference rounds keys and values as the cache does, so that float32 differs by its own rounding alone."""
    expected, found = run_both(Shape(6, 2, 64), isa, "f32", types)
    assert np.max(np.abs(found - expected)) < 5e-6 * np.abs(expected).max()
    expected, found = run_both(Shape(6, 2, 64), isa, "int8", types)
    assert np.max(np.abs(found - expected)) < 2**-11 * 4.5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loud_scores_overflow_nothing(isa: str, precision: Precision) -> None:
    """Scores of thousands: nearly all weight is on one key."""
    expected, found = run_both(Shape(4, 1, 64, has_sinks=True), isa, precision, ("f32", "f32"), loudness=30)
    close = np.abs(found - expected) < 0.02 * np.abs(expected).max()
    assert close.mean() > 0.999  # scores that nearly tie may fall the other way


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.head_dim != 256], ids=str)
def test_deterministic_bits_do_not_depend_on_the_batch(isa: str, precision: Precision, shape: Shape) -> None:
    made = shape.program()

    def run(counts: Sequence[Sequence[int]]) -> Array:
        """Logits of the first sequence."""
        cpu = CpuExecutor(
            made, 2 * PAGES, max_batch=430, threads=2, precision=precision, deterministic=True, instruction_set=isa
        )
        parts = [run_all(cpu, b)[b.sequences == 0] for b in batches(counts, shuffled_tables())]
        return np.concatenate(parts)

    whole = run([(330, 0)])
    assert np.array_equal(whole, run([(1, 0), (6, 5), (57, 1), (1, 0), (64, 100), (100, 300), (1, 1), (99, 2), (1, 0)]))


def test_pages_are_copied_in_every_type() -> None:
    for types in PAIRS:
        cpu = CpuExecutor(
            Shape(4, 2, 32).program(), 4, max_batch=128, threads=1, cache_type_k=types[0], cache_type_v=types[1]
        )
        first, second = batches([(100,), (1,)], np.array([[0, 2]], np.int32))
        cpu.run(first)
        cpu.copy_page(0, 1)
        cpu.copy_page(2, 3)
        expected = run_all(cpu, second)
        assert np.array_equal(run_all(cpu, replace(second, tables=np.array([[1, 3]], np.int32))), expected)


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_heads_that_fill_no_block_are_refused(type: CacheType) -> None:
    made = Shape(1, 1, 80).program()
    with pytest.raises(InputError, match=r"layer 0: heads of 80; a cache of .* wants a multiple of 32"):
        CpuExecutor(made, 1, max_batch=1, threads=1, cache_type_k="f16", cache_type_v=type)
