"""Properties that encoders must have for all weights, tested without an oracle."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant.codec import ENCODED, decode, encode
from lltool.quant.formats.table import FORMATS

Floats = NDArray[np.float32]
HALF = 2.0**-11  # the relative rounding error of half precision

# Formats that round each weight to their nearest value: the largest error relative to the block's largest weight.
NEAREST = {
    GGMLType.Q4_0: 1 / 8 + HALF,  # a whole step at the end that has no code, half a step elsewhere
    GGMLType.Q5_0: 1 / 16 + HALF,
    GGMLType.Q4_1: 1 / 15 + 3 * HALF,  # half of one of 15 steps from -largest to largest; min and 15 steps are rounded
    GGMLType.Q5_1: 1 / 31 + 3 * HALF,
    GGMLType.Q8_0: 0.5 / 127 + HALF,
    GGMLType.MXFP4: 1 / 4,  # 8 becomes 6
    GGMLType.NVFP4: 17 / 96,  # 5 becomes 6 (or 4); the scale is off by a sixteenth
    GGMLType.TQ1_0: 1 / 2 + HALF,
    GGMLType.TQ2_0: 1 / 2 + HALF,
    GGMLType.Q2_0: 1 / 2 + HALF,
    GGMLType.Q1_0: 1 + HALF,
}
ROUNDED = {GGMLType.F32: 0.0, GGMLType.F16: HALF, GGMLType.BF16: 2.0**-8}  # relative to the weight itself
SEARCHED = sorted(ENCODED - NEAREST.keys() - ROUNDED.keys())


def draw_rows(seed: int, scale: float, tail: str) -> Floats:
    random = np.random.default_rng(seed)
    drawn = {
        "normal": random.standard_normal((5, 512)),
        "laplace": random.laplace(size=(5, 512)),
        "uniform": random.uniform(-1, 1, (5, 512)),
    }
    return np.asarray(drawn[tail] * scale, np.float32)


# The scales keep every format's scale in the normal range of half precision and of NVFP4's E4M3.
rows_of_weights = st.builds(
    draw_rows, st.integers(0, 2**32), st.floats(0.5, 100), st.sampled_from(["normal", "laplace", "uniform"])
)


def by_name(types: Iterable[GGMLType]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("type", types, ids=lambda type: type.name)


@by_name(sorted(NEAREST))
@settings(deadline=None, max_examples=20)
@given(rows=rows_of_weights)
def test_rounding_to_the_nearest_errs_no_more_than_its_step(type: GGMLType, rows: Floats) -> None:
    size = 16 if type == GGMLType.NVFP4 else LAYOUT[type].block
    error = np.abs(decode(encode(rows, type), type) - rows).reshape(-1, size)
    largest = np.abs(rows).reshape(-1, size).max(axis=1, keepdims=True)
    assert (error <= NEAREST[type] * largest * (1 + 1e-5)).all()


@by_name(sorted(ROUNDED))
@settings(deadline=None, max_examples=20)
@given(rows=rows_of_weights)
def test_floats_err_no_more_than_half_their_last_place(type: GGMLType, rows: Floats) -> None:
    least = 2.0**-24 if type == GGMLType.F16 else 0  # the step of subnormal numbers
    error = np.abs(decode(encode(rows, type), type) - rows)
    assert (error <= np.maximum(ROUNDED[type] * np.abs(rows), least / 2)).all()


@by_name(sorted(NEAREST.keys() | ROUNDED.keys()))
@settings(deadline=None, max_examples=20)
@given(rows=rows_of_weights)
def test_decoded_weights_are_encoded_to_the_same_bytes(type: GGMLType, rows: Floats) -> None:
    """The largest weight of a block is stored exactly, so its scale is found again. Searches may find a better one."""
    data = encode(rows, type)
    np.testing.assert_array_equal(encode(decode(data, type), type), data)


@by_name(sorted(ENCODED & FORMATS.keys()))
@settings(deadline=None, max_examples=10)
@given(
    rows=st.builds(
        draw_rows,
        st.integers(0, 2**32),
        st.floats(-40, 3).map(lambda exponent: 10**exponent),
        st.sampled_from(["normal", "laplace", "uniform"]),
    )
)
def test_the_definition_reads_what_was_encoded(type: GGMLType, rows: Floats) -> None:
    data = encode(rows, type, np.ones(512, np.float32))
    blocks = data.reshape(-1, LAYOUT[type].bytes)
    np.testing.assert_array_equal(FORMATS[type].decode(blocks).reshape(5, 512), decode(data, type))


def relative_error(type: GGMLType, rows: Floats) -> float:
    """The root mean square error of unit normal weights, with equal importance, times 2 to the bits per weight.

    Shannon's bound for a source of independent normal numbers is 1: no code of so many bits has less.
    """
    data = encode(rows, type, np.ones(rows.shape[1], np.float32))
    return float(np.sqrt(np.mean((decode(data, type) - rows) ** 2)) * 2 ** LAYOUT[type].bits_per_weight)


@by_name(SEARCHED)
def test_searches_come_near_the_bound_on_normal_weights(type: GGMLType) -> None:
    """They reach 1.42 (IQ1_S) to 1.69 (IQ4_NL) times the bound."""
    rows = np.random.default_rng(5).standard_normal((64, 1024)).astype(np.float32)
    assert 1 < relative_error(type, rows) < 1.75


def test_more_bits_give_smaller_errors() -> None:
    rows = np.random.default_rng(6).standard_normal((32, 1024)).astype(np.float32)
    for family in (
        "Q2_K Q3_K Q4_K Q5_K Q6_K Q8_0 F16 F32",
        "Q1_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 BF16 F16",
        "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_XS Q5_K",
        "TQ2_0 Q2_0 MXFP4 NVFP4 Q5_0",
    ):
        types = [GGMLType[name] for name in family.split()]
        errors = [relative_error(type, rows) / 2 ** LAYOUT[type].bits_per_weight for type in types]
        assert errors == sorted(errors, reverse=True), family
