"""Encoders against libgguf, which is ggml's own quantizer: byte for byte, under every instruction set."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.codec import ENCODED, NEEDS_IMPORTANCE, BadWeights, decode, encode

COLUMNS = 768
NOT_IN_LIBGGUF = {GGMLType.Q2_0, GGMLType.IQ1_M}  # its IQ1_M is an older version: see test_encode_iq1_m.py
WITHOUT_HALVES = {GGMLType.MXFP4, GGMLType.NVFP4}  # their scales are 8-bit floats
QUANTIZED = sorted(ENCODED - {GGMLType.F32, GGMLType.F16, GGMLType.BF16} - NOT_IN_LIBGGUF)


def make_rows(kind: str) -> NDArray[np.float32]:
    random = np.random.default_rng(7)
    normal = random.standard_normal((7, COLUMNS))  # 21 blocks of 256 leave some lanes unused
    if kind == "one outlier a row":
        normal[:, 5] = 3000
    zeros = np.zeros((3, COLUMNS))
    zeros[:, ::3] = -0.0
    zeros[1, ::7], zeros[2, ::7] = 1, -1
    some_groups = random.random((7, COLUMNS // 16)).repeat(16, axis=1)
    powers = np.sort(random.integers(-30, 15, (7, COLUMNS)))
    rows = {
        "normal": normal * 0.05,
        "one outlier a row": normal * 0.01,
        "heavy tails": random.standard_t(2, normal.shape) * 0.02,
        "all positive": random.uniform(0.5, 1, normal.shape),
        "all negative": random.uniform(-1, -0.5, normal.shape),
        "constant": np.full((3, COLUMNS), 0.37),
        "negative constant": np.full((3, COLUMNS), -0.37),
        "zeros of both signs": zeros,
        "subnormal": normal * 1e-41,
        "tiny": normal * 1e-20,
        "inverse of the scale overflows": normal * 1e-37,
        "huge": random.uniform(-1, 1, normal.shape) * 30000,
        "plus and minus one": random.choice([-1.0, 1.0], normal.shape),
        "integers": random.integers(-8, 8, normal.shape),
        "half precision": (normal * 0.05).astype(np.float16),
        "groups of zeros": normal * (some_groups < 0.5),
        "groups apart": normal * 10 ** (some_groups * 12 - 10),
        "one weight a block": normal * (np.arange(COLUMNS) % 256 == 77),
        "close together": 1 + normal * 1e-6,
        "about powers of two": np.ldexp(random.choice(1 + np.arange(-2, 3) * 2.0**-24, powers.shape), powers),
    }
    return np.asarray(rows[kind], np.float32)


KINDS = (
    *("normal", "one outlier a row", "heavy tails", "all positive", "all negative", "constant", "negative constant"),
    *("zeros of both signs", "subnormal", "tiny", "inverse of the scale overflows", "huge", "plus and minus one"),
    *("integers", "half precision", "about powers of two", "groups of zeros", "groups apart", "one weight a block"),
    "close together",
)


def make_importance(kind: str) -> NDArray[np.float32] | None:
    importance = (np.random.default_rng(3).random(COLUMNS) ** 4).astype(np.float32)
    importance[::11] = 0
    if kind == "few columns":
        importance[np.arange(COLUMNS) % 19 > 0] = 0
    return None if kind == "plain" else importance


CODEBOOKS = {type for type in QUANTIZED if type.name.startswith(("IQ1", "IQ2", "IQ3"))}  # these have their own tests
WAYS = [
    pytest.param(type, kind, id=f"{type.name}-{kind}", marks=[pytest.mark.slow] * (type == GGMLType.IQ1_S))
    for type in QUANTIZED
    for kind in ("plain", "importance", "few columns")
    if kind == "importance" or type not in CODEBOOKS
]


def rows_of(type: GGMLType, kind: str) -> NDArray[np.float32]:
    return make_rows(kind)[: 3 if type in CODEBOOKS else None]  # libgguf is slow for these


@cache
def made_by_ggml(type: GGMLType, important: str, kind: str) -> Bytes:
    libgguf = pytest.importorskip("libgguf")
    return np.asarray(libgguf.quantize_rows(rows_of(type, kind), int(type), make_importance(important)))


@pytest.mark.parametrize(("type", "important"), WAYS)
def test_bytes_equal_ggml(type: GGMLType, important: str, each_isa: str) -> None:
    for kind in KINDS:
        data = encode(rows_of(type, kind), type, make_importance(important))
        np.testing.assert_array_equal(data, made_by_ggml(type, important, kind), err_msg=kind)


def test_q2_0_is_as_ggml_defines_it(each_isa: str) -> None:
    """Compares with quantize_row_q2_0_ref of ggml-quants.c in numpy, because libgguf lacks the type."""
    for kind in KINDS:
        blocks = make_rows(kind).reshape(-1, 64)
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        with np.errstate(all="ignore"):
            quotient = (blocks * np.where(largest > 0, np.float32(1) / largest, np.float32(0))).astype(np.float64)
            codes = np.sign(quotient) * np.floor(np.abs(quotient) + 0.5) + 1
        # C's conversion to int gives the least int for quotients that are NaN or infinite.
        codes = np.where(np.isfinite(codes), codes, 0).astype(np.uint8).reshape(-1, 16, 4)
        data = (codes << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2).astype(np.uint8)
        expected = np.concatenate([largest.astype("<f2").view(np.uint8), data], axis=1)
        np.testing.assert_array_equal(encode(make_rows(kind), GGMLType.Q2_0).reshape(-1, 18), expected, err_msg=kind)


@pytest.mark.parametrize("type", [GGMLType.F16, GGMLType.BF16], ids=lambda type: type.name)
def test_sixteen_bits_round_to_nearest_even(type: GGMLType, each_isa: str) -> None:
    """Tests all signs, all exponents that fit, and mantissas around the halfway points."""
    bits = np.arange(0x33000000, 0x47800000, 0x1001, dtype=np.uint32) & ~np.uint32(0x0FFF)
    around = (bits[:, None] + np.array([0, 1, 0x7FF, 0x800, 0xFFF], np.uint32)).reshape(1, -1)
    rows = np.concatenate([around, around | 0x80000000]).view(np.float32)
    rows = np.ascontiguousarray(rows[:, np.abs(rows[0]) < 65520])
    if type == GGMLType.F16:
        expected = rows.astype(np.float16).view(np.uint8)
    else:
        wide = rows.view(np.uint32).astype(np.uint64)
        expected = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
    np.testing.assert_array_equal(encode(rows, type), expected)


@pytest.mark.parametrize("type", sorted(ENCODED), ids=lambda type: type.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_row_that_is_not_finite_is_named(type: GGMLType, bad: float, each_isa: str) -> None:
    rows = np.ones((700, 256), np.float32)
    rows[[612, 333], [3, 250]] = bad
    with pytest.raises(BadWeights, match="row 333 holds NaN or infinity"):
        encode(rows, type, np.ones(256, np.float32), threads=2)


@pytest.mark.parametrize(
    ("type", "size"),
    [(GGMLType.F16, 65520), (GGMLType.Q4_0, 600000), (GGMLType.Q4_1, -7e4), (GGMLType.Q8_0, 1e7)]
    + [(type, size) for type in QUANTIZED if type not in WITHOUT_HALVES for size in (1e12, -1e20, 3e38)],
    ids=lambda value: getattr(value, "name", value),
)
def test_weights_beyond_half_precision_are_refused(type: GGMLType, size: float) -> None:
    rows = np.ones((4, 256), np.float32)
    rows[1, 7] = size
    rows[3, 7] = np.inf
    for importance in (None, np.ones(256, np.float32)):
        if importance is None and type in NEEDS_IMPORTANCE:
            continue
        with pytest.raises(BadWeights, match=f"row 1 holds weights too large for {type.name}"):
            encode(rows, type, importance)


def test_threads_do_not_change_the_bytes() -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 512)).astype(np.float32)
    np.testing.assert_array_equal(encode(rows, GGMLType.Q4_1, threads=1), encode(rows, GGMLType.Q4_1, threads=5))


def test_importance_lowers_the_error_that_counts() -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((64, 512)).astype(np.float32)
    importance = (random.random(512) ** 8).astype(np.float32)

    def error(data: NDArray[np.uint8]) -> float:
        return float((importance * (decode(data, GGMLType.Q4_0) - rows) ** 2).sum())

    assert error(encode(rows, GGMLType.Q4_0, importance)) < 0.8 * error(encode(rows, GGMLType.Q4_0))


def test_types_without_encoder_and_partial_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="cannot encode to Q8_K; choose one of F32"):
        encode(np.zeros((1, 256), np.float32), GGMLType.Q8_K)
    with pytest.raises(ValueError, match="row of 48 is not a multiple of the Q4_0 block of 32"):
        encode(np.zeros((1, 48), np.float32), GGMLType.Q4_0)


def test_types_that_need_importance_name_it() -> None:
    assert {GGMLType.IQ2_XXS, GGMLType.IQ2_XS} <= NEEDS_IMPORTANCE
    for type in NEEDS_IMPORTANCE:
        with pytest.raises(InputError, match=f"cannot encode to {type.name} without importance"):
            encode(np.zeros((1, 256), np.float32), type)
