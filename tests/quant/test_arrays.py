"""`quantize` and `dequantize`: arrays of any shape, types by name."""

import numpy as np
import pytest

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.arrays import dequantize, quantize
from lltool.quant.codec import decode, encode

ROWS = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)


def test_a_name_stands_for_its_type() -> None:
    expected = encode(ROWS, GGMLType.Q4_K)
    for type in ("Q4_K", "q4_k", GGMLType.Q4_K):
        np.testing.assert_array_equal(quantize(ROWS, type), expected)
        np.testing.assert_array_equal(dequantize(expected, type), decode(expected, GGMLType.Q4_K))


def test_importance_reaches_the_encoder() -> None:
    importance = np.arange(512, dtype=np.float32)
    expected = encode(ROWS, GGMLType.IQ2_XXS, importance)
    np.testing.assert_array_equal(quantize(ROWS, "IQ2_XXS", importance), expected)
    np.testing.assert_array_equal(quantize(ROWS, "IQ2_XXS", importance=importance.tolist(), threads=1), expected)


def test_the_last_axis_is_the_row() -> None:
    data = quantize(ROWS, "Q8_0")
    np.testing.assert_array_equal(quantize(ROWS.reshape(2, 3, 512), "Q8_0"), data.reshape(2, 3, 544))
    np.testing.assert_array_equal(quantize(ROWS[1], "Q8_0"), data[1])
    np.testing.assert_array_equal(
        dequantize(data.reshape(3, 2, 544), "Q8_0"), dequantize(data, "Q8_0").reshape(3, 2, 512)
    )
    np.testing.assert_array_equal(dequantize(data[:, :34], "Q8_0"), dequantize(data, "Q8_0")[:, :32])


def test_other_numbers_than_float32_are_accepted() -> None:
    halves = ROWS.astype(np.float16)
    np.testing.assert_array_equal(quantize(halves, "Q5_1"), quantize(halves.astype(np.float32), "Q5_1"))
    np.testing.assert_array_equal(quantize(halves.astype(np.float64).tolist(), "F16"), halves.view(np.uint8))
    np.testing.assert_array_equal(quantize(ROWS[:, ::2], "Q4_0"), quantize(ROWS[:, ::2].copy(), "Q4_0"))


@pytest.mark.parametrize(
    ("array", "type", "importance", "message"),
    [
        (ROWS, "Q4_X", None, "'Q4_X' is not a tensor type; choose one of F32, F16, Q4_0"),
        (ROWS, "Q8_K", None, "cannot encode to Q8_K; choose one of F32"),
        (ROWS, "IQ1_S", None, "cannot encode to IQ1_S without importance"),
        (ROWS[:, :100], "Q4_K", None, r"array of shape \(6, 100\), wanted rows of a multiple of the Q4_K block of 256"),
        (1.0, "Q8_0", None, r"array of shape \(\), wanted rows"),
        (ROWS[:0], "Q8_0", None, r"array of shape \(0, 512\), wanted rows"),
        (ROWS, "Q4_K", np.ones(256), r"importance of shape \(256,\), wanted \(512,\)"),
        (ROWS, "Q4_K", -np.ones(512), "importance holds numbers that are negative"),
        (ROWS, "Q4_K", np.full(512, np.nan), "importance holds numbers that are negative or not finite"),
        (np.where(ROWS[4, 2] == ROWS, np.nan, ROWS), "Q4_K", None, "row 4 holds NaN"),
        (ROWS * 1e6, "F16", None, "row 0 holds weights too large for F16"),
    ],
)
def test_bad_arrays_are_refused(array: object, type: str, importance: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize(array, type, importance)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ROWS, r"data of float32, wanted bytes \(uint8\)"),
        (
            np.zeros((2, 143), np.uint8),
            r"data of shape \(2, 143\), wanted rows of a multiple of 144 bytes, a Q4_K block",
        ),
        (np.zeros((0, 144), np.uint8), r"data of shape \(0, 144\)"),
    ],
)
def test_bad_bytes_are_refused(data: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dequantize(data, "Q4_K")
