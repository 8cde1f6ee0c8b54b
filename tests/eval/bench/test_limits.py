"""The probes stay within what a processor can do, and reach what numpy reaches on the same memory."""

import time
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from lltool.engine.cpu import _native
from lltool.engine.program import Program, Weight
from lltool.eval.bench.machine.limits import Limits, _memory, better_of, measure_limits
from lltool.eval.bench.run import work
from lltool.gguf.ggml_types import GGMLType

SIZES = (("small", 32), ("large", 64))
LANES = {"avx512": 16, "avx2": 8, "scalar": 4}
GIGAHERTZ = 6.5  # more than any processor's clock


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize(("kind", "products"), [("int8", 4), ("int16", 2), ("float32", 1)])
def test_no_more_products_than_two_instructions_a_cycle(isa: str, kind: str, products: int) -> None:
    """A loop from which the compiler removed the products would be faster than this."""
    found = _native.probe_multiply(isa, 1, kind, 0.02) / 1e9
    assert 0.1 < found < 2 * products * LANES[isa] * GIGAHERTZ


def test_reading_is_as_fast_as_numpy_reads() -> None:
    """At least half as fast, because other processes may use the memory for a while."""
    data = _memory(huge=False)
    words = data.view(np.uint64)
    start = time.perf_counter()
    assert int(words.sum()) == data.size // 4096  # one byte a page is 1
    theirs = data.size / (time.perf_counter() - start)
    ours = _native.probe_read(_native.available_isas()[0], 1, data, 0.1)
    assert 0.5 * theirs < ours < 2e12


@pytest.mark.slow
def test_limits_of_two_threads_and_of_another_instruction_set() -> None:
    one, two = measure_limits(1, instruction_set="scalar"), measure_limits(2, instruction_set="scalar")
    assert (one.threads, two.threads, one.isa) == (1, 2, "scalar")
    for limits in (one, two):
        assert limits.read > 0
        assert 0 < limits.float32 < limits.threads * LANES["scalar"] * 2 * GIGAHERTZ * 1e9


def test_what_cannot_be_measured_is_an_error() -> None:
    data = np.zeros(10, np.uint8)
    with pytest.raises(ValueError, match="products of 'int4'"):
        _native.probe_multiply("scalar", 1, "int4", 0.01)
    with pytest.raises(ValueError, match="at least 1"):
        _native.probe_read("scalar", 0, data, 0.01)
    with pytest.raises(ValueError, match="instruction set 'mmx'"):
        _native.probe_read("mmx", 1, data, 0.01)


def test_the_better_of_two_measurements() -> None:
    one = Limits(1, "avx2", read=1, read_large_pages=5, int8=8, int16=4, float32=2)
    two = Limits(1, "avx2", read=3, read_large_pages=4, int8=9, int16=3, float32=2)
    assert better_of(one, two) == Limits(1, "avx2", read=3, read_large_pages=5, int8=9, int16=4, float32=2)


def test_weights_are_read_as_fast_as_their_pages_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(1, "avx2", read=1, read_large_pages=5, int8=8, int16=4, float32=2)
    small, large = (Weight(name, GGMLType.F32, (4, size), np.zeros((4, 4 * size), np.uint8)) for name, size in SIZES)
    monkeypatch.setattr(work, "in_large_pages", lambda data: data is large.data)
    programs = [SimpleNamespace(weights={weight.name: weight for weight in some}) for some in ([small], [small, large])]
    assert [work.limits_for(limits, cast(Program, program)).bandwidth for program in programs] == [1, 5]
