"""What the cache's types keep, by the definition that the executors follow."""

from typing import get_args

import numpy as np
import pytest

from lltool.engine.batch import CacheType
from lltool.engine.reference.cache_rounding import hadamard, round_to_cache
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode, encode
from tests.engine.cpu.test_cpu import Array


def heads(head_dim: int, outlier: float = 0.0) -> Array:
    """500 heads of normally distributed elements, of which the fourth is larger by `outlier`."""
    x = np.random.default_rng(head_dim).standard_normal((500, head_dim)).astype(np.float32)
    x[:, 3] += outlier
    return x


def squared_error(x: Array, y: Array) -> float:
    """Of the outlier's neighbours, which share a block of ggml's with it."""
    return float(np.delete(np.square(x - y)[:, :32], 3, axis=1).mean())


def through_ggml(x: Array, kind: CacheType) -> Array:
    type = GGMLType[kind.upper()]
    return decode(encode(x, type), type).reshape(x.shape)


@pytest.mark.parametrize(("head_dim", "block"), [(32, 32), (64, 64), (96, 32), (128, 128), (160, 32), (512, 512)])
def test_the_transform_is_the_normalised_hadamard_matrix(head_dim: int, block: int) -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.kron([[1, 1], [1, -1]], matrix) / np.sqrt(2)
    expected = np.kron(np.eye(head_dim // block), matrix)
    assert np.allclose(hadamard(np.eye(head_dim)), expected, atol=1e-12)
    x = heads(head_dim)
    assert np.abs(hadamard(hadamard(x)) - x).max() < 1e-5  # 18 additions in float32 at most, of elements below 6


@pytest.mark.parametrize(("kind", "factor"), [("q4_0", 10), ("q8_0", 30)])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_an_outlier_does_not_spoil_its_neighbours(kind: CacheType, factor: int, head_dim: int) -> None:
    """An element of 50 sets the scale of its block; spread over 64 elements it adds 6.25 to each.

    The steps are then 6 times smaller and the squared errors 36 times, as q8_0 shows: 37 was measured. In q4_0 the step
    without the transform is so wide that the neighbours round to zero, which bounds their error: 11 was measured.
    """
    x = heads(head_dim, outlier=50)
    assert squared_error(x, round_to_cache(x, kind)) * factor < squared_error(x, through_ggml(x, kind))


@pytest.mark.parametrize("head_dim", [64, 96])
def test_q4_0_rounds_better_than_ggml(head_dim: int) -> None:
    """Measured: 9 % less squared error than ggml's scale, on elements that are normally distributed."""
    x = heads(head_dim)
    spread = hadamard(x)
    ratio = np.square(round_to_cache(x, "q4_0") - x).mean() / np.square(through_ggml(spread, "q4_0") - spread).mean()
    assert 0.88 < ratio < 0.94


@pytest.mark.parametrize("kind", get_args(CacheType))
def test_zeros_stay_zeros_and_float_types_are_not_transformed(kind: CacheType) -> None:
    zeros = np.zeros((1, 2, 64), np.float32)
    assert np.array_equal(round_to_cache(zeros, kind), zeros)
    x = heads(64, outlier=1e3)
    if kind in ("f16", "bf16"):
        assert np.array_equal(round_to_cache(x, kind), through_ggml(x, kind))
