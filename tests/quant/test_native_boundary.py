"""Invalid arguments to the bindings of `quant` cause exceptions and nothing worse; `make sanitize` runs this too."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant import _native, isa
from tests.odd_arrays import as_odd, odd_arrays

REFUSED = (ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
NUMBERS = {GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64, GGMLType.F64}  # numpy decodes them


@pytest.mark.parametrize("type", LAYOUT, ids=lambda type: type.name)
def test_native_formats_have_the_blocks_of_the_table(type: GGMLType) -> None:
    assert _native.layout(type) == (None if type in NUMBERS else tuple(LAYOUT[type]))


def test_unknown_types_have_no_layout() -> None:
    assert [_native.layout(type) for type in (-1, 4, 33, 1000, 2**31 - 1)] == [None] * 5


ONE_BLOCK, ITS_WEIGHTS = np.zeros((1, 18), np.uint8), np.zeros((1, 32), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: _native.decode(2, ONE_BLOCK[:, :1].copy(), ITS_WEIGHTS.copy(), 1),
            "32 weights in 1 bytes; type 2 has 18",
        ),
        (lambda: _native.decode(2, ONE_BLOCK, np.zeros((1, 33), np.float32), 1), "33 weights in 18 bytes"),
        (lambda: _native.decode(2, ONE_BLOCK, np.zeros((2, 32), np.float32), 1), "shapes do not agree"),
        (lambda: _native.decode(4, ONE_BLOCK, ITS_WEIGHTS.copy(), 1), "no native format of type 4"),
        (lambda: _native.decode(2, ONE_BLOCK, ITS_WEIGHTS.copy(), 0), "threads must be at least 1"),
        (lambda: _native.decode(2, ONE_BLOCK, ITS_WEIGHTS.copy(), 2**31 - 1), "at most 4096"),
        (lambda: _native.encode(2, ITS_WEIGHTS, None, np.zeros((1, 17), np.uint8), 1), "32 weights in 17 bytes"),
        (lambda: _native.encode(2, ITS_WEIGHTS, None, np.zeros((2, 18), np.uint8), 1), "shapes do not agree"),
        (lambda: _native.encode(9, ITS_WEIGHTS, None, np.zeros((1, 36), np.uint8), 1), "no native encoder of type 9"),
        (
            lambda: _native.encode(2, ITS_WEIGHTS, np.full(32, np.nan, np.float32), np.zeros((1, 18), np.uint8), 1),
            "importance is negative, infinite or NaN",
        ),
        (
            lambda: _native.encode(2, ITS_WEIGHTS, np.ones(31, np.float32), np.zeros((1, 18), np.uint8), 1),
            "do not agree",
        ),
        (lambda: _native.decode(2, ONE_BLOCK, as_odd(ITS_WEIGHTS, "misaligned"), 1), "not aligned"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", ["other type", "strided", "other order", "fewer dimensions", "list"])
def test_arrays_are_not_converted(kind: str) -> None:
    """A converted copy would be filled and discarded, or read after it was freed."""
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.decode(2, as_odd(ONE_BLOCK, kind), ITS_WEIGHTS.copy(), 1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.decode(2, ONE_BLOCK, as_odd(ITS_WEIGHTS, kind), 1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.encode(2, as_odd(ITS_WEIGHTS, kind), None, ONE_BLOCK.copy(), 1)


def test_a_read_only_array_is_not_written() -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.decode(2, ONE_BLOCK, as_odd(ITS_WEIGHTS, "read-only"), 1)


types = st.sampled_from(sorted(LAYOUT)) | st.integers(-2, 50) | st.sampled_from([2**31 - 1, -(2**31), 2**63])
threads = st.sampled_from([1, 1, 1, 2, 3, 0, -1, 2**31 - 1, 2**40])


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.data())
def test_any_arguments(data: st.DataObject) -> None:
    draw = data.draw
    type, rows, blocks = draw(types), draw(st.integers(0, 4)), draw(st.integers(0, 5))
    block, size = LAYOUT.get(type, (32, 18))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    packed = rng.integers(0, 256, (rows, blocks * size), np.uint8)
    scale = draw(st.sampled_from([1.0, 1e-42, 1e-20, 1e9, 1e30, 3e38, np.inf, np.nan]))
    with np.errstate(all="ignore"):
        values = (rng.standard_normal((rows, blocks * block)) * scale).astype(np.float32)
    importance = draw(st.none() | st.sampled_from([0.0, 1.0, 1e-40, 3e38, -1.0, np.nan, np.inf]))
    important = None if importance is None else np.full(blocks * block, importance, np.float32)
    _native.select_isa(draw(st.sampled_from(_native.available_isas())))
    calls: list[tuple[Callable[..., Any], list[Any]]] = [
        (_native.decode, [type, packed, np.empty_like(values), draw(threads)]),
        (_native.encode, [type, values, important, np.empty_like(packed), draw(threads)]),
    ]
    for function, arguments in calls:
        if draw(st.booleans()):
            arguments[draw(st.integers(0, len(arguments) - 1))] = draw(odd_arrays(packed, values))
        with suppress(*REFUSED):
            function(*arguments)
    for small in (_native.layout, _native.can_encode, _native.needs_importance, _native.codebook, _native.select_isa):
        with suppress(*REFUSED):
            small(draw(types | st.text(max_size=8) | st.none()))
    isa.apply()
