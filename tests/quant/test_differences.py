"""The differences of weights, against PyPI's gguf and numpy."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import gguf
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Model, Tensor
from lltool.quant import differences
from lltool.quant.codec import encode
from lltool.quant.differences import compare_weights


def model(values: NDArray[np.float32], type: GGMLType = GGMLType.F32, name: str = "a") -> Model:
    data = encode(values, type)
    return Model({}, [Tensor(name, type, values.shape, lambda start, stop: data[start:stop])])


def normal(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((48, 256)).astype(np.float32)


@pytest.mark.parametrize("type", [GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.BF16])
def test_the_error_of_a_type_is_that_of_gguf(type: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "_WINDOW_WEIGHTS", 5 * 256)
    values = normal()
    decoded = gguf.quants.dequantize(encode(values, type), gguf.GGMLQuantizationType(type)).astype(np.float64)
    gap = decoded - values
    (found,) = compare_weights(model(values), model(values, type))
    assert found.relative == pytest.approx(np.sum(gap**2) / np.sum(values.astype(np.float64) ** 2), rel=1e-12)
    assert found.largest == np.max(np.abs(gap))
    assert not found.is_equal


def test_equal_weights_and_those_of_another_type() -> None:
    values = np.round(normal()).astype(np.float32)
    for type in (GGMLType.F32, GGMLType.F16):
        (found,) = compare_weights(model(values), model(values, type))
        assert (found.relative, found.largest, found.is_equal) == (0, 0, True)


def test_what_is_not_compared() -> None:
    assert not list(compare_weights(model(normal()), model(normal(), name="b")))
    assert not list(compare_weights(model(normal()), model(normal()[:4])))


def plain(values: NDArray[np.float32]) -> Model:
    rows = values.view(np.uint8)
    return Model({}, [Tensor("a", GGMLType.F32, values.shape, lambda start, stop: rows[start:stop])])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_one_model_is_a_difference_and_in_both_is_none(bad: float) -> None:
    values = normal()
    values[3, 4] = bad
    (found,) = compare_weights(plain(values), plain(normal()))
    assert np.isnan(found.relative)
    assert not found.is_equal
    other = values.copy()
    other[0, 0] += 1
    (found,) = compare_weights(plain(values), plain(other))
    assert found.largest == pytest.approx(1)
    (found,) = compare_weights(plain(values), plain(values.copy()))
    assert found.is_equal


def test_weights_that_were_zero() -> None:
    (found,) = compare_weights(model(np.zeros((2, 32), np.float32)), model(np.ones((2, 32), np.float32)))
    assert (found.relative, found.largest) == (np.inf, 1)


@pytest.mark.slow
def test_a_real_model_is_equal_to_itself(real_model: Callable[[str], Path]) -> None:
    from lltool.gguf.reader import open_gguf

    with open_gguf(real_model("smollm2-q4_1")) as file:
        assert all(found.is_equal for found in compare_weights(file, file))
