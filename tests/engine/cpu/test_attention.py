"""The native attention against the reference: shapes, cache types, cuts of a batch, every instruction set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.batch import PAGE, Batch, CacheType, Precision
from lltool.engine.cpu.executor import CpuExecutor
from lltool.engine.operations.attention import attend
from lltool.engine.operations.elementwise import scale
from lltool.engine.operations.embed import embed
from lltool.engine.operations.linear import linear
from lltool.engine.operations.select import select
from lltool.engine.program import Program, Tracer
from lltool.engine.reference.executor import ReferenceExecutor
from lltool.gguf.errors import InputError
from tests.engine.cpu.test_cpu import ISAS, Array, f32_weight, run_all, vector

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
    has_common_key: bool = False
    value_dim: int = 0  # 0: as wide as a key
    chunk: int = 0
    is_view: bool = False  # values are the beginnings of keys

    def program(self, loudness: float = 1.0) -> Program:
        """Query, key and value are embeddings of the token: exact, with any precision of products."""
        rng = np.random.default_rng(self.heads * self.head_dim)
        width, kv_width = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = {"q": width, "k": kv_width, "v": self.kv_heads * (self.value_dim or self.head_dim)}
        weights = [
            f32_weight(name, loudness * rng.standard_normal((VALUES, n), np.float32)) for name, n in widths.items()
        ]
        weights.append(vector("sinks", rng.standard_normal(self.heads).astype(np.float32) + 3))
        if self.has_common_key:
            weights.append(f32_weight("key.weight", np.zeros((kv_width, kv_width), np.float32)))
            weights.append(vector("key.bias", 4 * rng.standard_normal(kv_width).astype(np.float32)))
        g = Tracer({w.name: w for w in weights})
        q, k, v = (embed(g, name, VALUES, n) for name, n in widths.items())
        if self.has_common_key:  # the matrix is zero, so that the linear adds its bias alone, with any kernel
            k = linear(g, k, ("key.weight",), (kv_width,), residual=k)[0]
        y = attend(
            g,
            q,
            k,
            k if self.is_view else v,
            layer=0,
            head_dim=self.head_dim,
            scale=1 / np.sqrt(self.head_dim),
            window=self.window,
            softcap=self.softcap,
            sinks="sinks" if self.has_sinks else None,
            value_dim=self.value_dim if self.is_view else None,
            chunk=self.chunk,
        )
        scale(g, select(g, y), 1.0)
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
    Shape(6, 2, 64, window=70, value_dim=24),
    Shape(3, 1, 24, softcap=20.0, value_dim=160, has_sinks=True),
    Shape(4, 4, 192, value_dim=128),
    Shape(2, 1, 512, value_dim=16),
    Shape(8, 1, 8, value_dim=512),
    Shape(4, 2, 24, chunk=50, has_sinks=True),
    Shape(6, 1, 64, chunk=128, softcap=20.0),
    Shape(3, 1, 64, window=40, chunk=90),
    Shape(16, 1, 576, value_dim=512, is_view=True),  # DeepSeek's latent attention
    Shape(3, 1, 44, value_dim=37, is_view=True, has_sinks=True),
    Shape(20, 2, 64, value_dim=64, is_view=True, window=70),
]

BLOCK_SHAPES = [  # transformed in blocks of 32, of 32, and of 512
    Shape(6, 2, 96, window=70, has_sinks=True),
    Shape(3, 1, 160, softcap=20.0),
    Shape(2, 1, 512),
    Shape(6, 2, 96, value_dim=32),
    Shape(3, 1, 32, window=70, value_dim=160),
    Shape(5, 1, 160, value_dim=96, is_view=True),  # in blocks of 32, which divide both
    Shape(18, 1, 128, value_dim=64, is_view=True, chunk=70),
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
@pytest.mark.parametrize("types", [("q4_0", "q8_0"), ("q8_0", "q4_0"), ("q4_0", "f16"), ("f16", "q4_0")], ids="-".join)
@pytest.mark.parametrize(
    "shape", [s for s in (*SHAPES, *BLOCK_SHAPES) if s.head_dim % 32 == s.value_dim % 32 == 0], ids=str
)
def test_transformed_caches_of_every_shape(isa: str, types: tuple[CacheType, CacheType], shape: Shape) -> None:
    """Few tokens and many, parts of the keys that are merged, windows, sinks and heads of no power of two."""
    expected, found = run_both(shape, isa, "f32", types)
    assert np.max(np.abs(found - expected)) < 5e-6 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loud_scores_overflow_nothing(isa: str, precision: Precision) -> None:
    """Scores of thousands: nearly all weight is on one key."""
    expected, found = run_both(Shape(4, 1, 64, has_sinks=True), isa, precision, ("f32", "f32"), loudness=30)
    close = np.abs(found - expected) < 0.02 * np.abs(expected).max()
    assert close.mean() > 0.999  # scores that nearly tie may fall the other way


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("shape", "types"),
    [(s, ("f16", "f16")) for s in SHAPES if s.head_dim != 256] + [(BLOCK_SHAPES[0], ("q4_0", "q8_0"))],
    ids=str,
)
def test_bits_do_not_depend_on_where_a_prompt_is_cut(
    isa: str, precision: Precision, shape: Shape, types: tuple[CacheType, CacheType]
) -> None:
    made = shape.program()

    def run(counts: Sequence[Sequence[int]]) -> Array:
        """Logits of the first sequence."""
        cpu = CpuExecutor(
            made,
            2 * PAGES,
            max_batch=430,
            threads=2,
            precision=precision,
            cache_type_k=types[0],
            cache_type_v=types[1],
            instruction_set=isa,
        )
        parts = [run_all(cpu, b)[b.sequences == 0] for b in batches(counts, shuffled_tables())]
        return np.concatenate(parts)

    whole = run([(330, 0)])
    assert np.array_equal(whole, run([(1, 0), (6, 5), (57, 1), (1, 0), (64, 100), (100, 300), (1, 1), (99, 2), (1, 0)]))


@dataclass(frozen=True)
class Text:
    """A sequence of the cache, whose tokens are computed in batches of any kind."""

    ids: NDArray[np.int32]
    pages: NDArray[np.int32]

    def run(self, cpu: CpuExecutor, start: int, stop: int, position: int, beside: "Text | None" = None) -> Array:
        """The result at `position`, of tokens [start, stop) in one batch, with those of another text before them."""
        texts = [beside, self] if beside else [self]
        width = max(len(t.pages) for t in texts)
        cpu.run(
            Batch(
                tokens=np.concatenate([t.ids[start:stop] for t in texts]),
                positions=np.tile(np.arange(start, stop, dtype=np.int32), len(texts)),
                sequences=np.repeat(np.arange(len(texts), dtype=np.int32), stop - start),
                tables=np.stack([np.pad(t.pages, (0, width - len(t.pages))) for t in texts]),
                outputs=np.array([(len(texts) - 1) * (stop - start) + position - start], np.int32),
            )
        )
        return cpu.logits(0, 1)[0].copy()


LENGTH, DEPTHS, SIZES = 3072, (0, 1, 63, 64, 255, 256, 1000, 3000), (1, 2, 3, 5, 8, 9, 64, 200, 512)
GROUPS = [  # query heads of a key, 1 to 8, with every width of a head; then values of another width than keys
    (Shape(2, 2, 32, has_common_key=True), ("q8_0", "q8_0")),
    (Shape(1, 1, 256, window=300), ("f16", "bf16")),
    (Shape(4, 2, 128, softcap=20.0), ("q4_0", "f16")),
    (Shape(3, 1, 64, window=5, softcap=2.0), ("f32", "f32")),
    (Shape(4, 1, 256, window=512), ("f16", "f16")),
    (Shape(5, 1, 32, has_sinks=True, window=100), ("q8_0", "q4_0")),
    (Shape(6, 1, 64, has_common_key=True), ("q4_0", "q8_0")),
    (Shape(14, 2, 64), ("f16", "f16")),
    (Shape(7, 1, 128, has_sinks=True), ("bf16", "f32")),
    (Shape(8, 1, 32, softcap=20.0), ("f16", "q8_0")),
    (Shape(4, 2, 64, value_dim=24), ("q8_0", "f16")),
    (Shape(6, 2, 24, value_dim=160), ("f16", "q4_0")),
    (Shape(6, 1, 64, chunk=300), ("f16", "f16")),
    (Shape(20, 1, 80, value_dim=64, is_view=True), ("f16", "f16")),
    (Shape(4, 1, 96, value_dim=64, is_view=True), ("q8_0", "q4_0")),
]


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("shape", "types"), GROUPS, ids=str)
def test_bits_do_not_depend_on_neighbours(
    isa: str, precision: Precision, shape: Shape, types: tuple[CacheType, CacheType]
) -> None:
    """A token has the same result in batches of 1 to 512, alone and beside another text, on any pages and threads."""
    rng, made = np.random.default_rng(7), shape.program()
    length = LENGTH if isa != "scalar" else 1100
    ids = rng.integers(0, VALUES, (2, length)).astype(np.int32)
    alone: dict[int, Array] = {}
    for threads in (1, 2, 4):
        pages = rng.permutation(2 * length // PAGE + 2).astype(np.int32).reshape(2, -1)
        cpu = CpuExecutor(
            made,
            pages.size,
            max_batch=1024,
            threads=threads,
            precision=precision,
            cache_type_k=types[0],
            cache_type_v=types[1],
            instruction_set=isa,
        )
        text, other = (Text(*of) for of in zip(ids, pages, strict=True))
        for start in range(0, length, 512):
            text.run(cpu, start, min(start + 512, length), start, beside=other)
        for depth in (d for d in DEPTHS if d < length):
            alone.setdefault(depth, text.run(cpu, depth, depth + 1, depth))
            for size in SIZES:
                for start in {max(0, depth - size + 1), min(depth, length - size)}:  # it is the last one, and the first
                    for beside in (None, other):
                        found = text.run(cpu, start, start + size, depth, beside)
                        assert np.array_equal(found, alone[depth]), (threads, depth, size, start, beside is None)


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
    with pytest.raises(InputError, match=r"layer 0: heads of 80; a cache of .* needs a multiple of 32"):
        CpuExecutor(made, 1, max_batch=1, threads=1, cache_type_k="f16", cache_type_v=type)


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_heads_need_to_fill_blocks_only_where_their_cache_has_blocks(type: CacheType) -> None:
    made = Shape(1, 1, 64, value_dim=24).program()
    with pytest.raises(InputError, match=r"layer 0: heads of 24; a cache of .* needs a multiple of 32"):
        CpuExecutor(made, 1, max_batch=1, threads=1, cache_type_k="f16", cache_type_v=type)
    expected, found = run_both(Shape(1, 1, 64, value_dim=24), ISAS[0], "f32", (type, "f16"))
    assert np.max(np.abs(found - expected)) < 5e-6 * np.abs(expected).max()
