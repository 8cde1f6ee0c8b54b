"""Planes hold exactly what the file's blocks do, for every quantized format."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lltool.engine.gpu.planes import PLANE_NAMES, Planes, form_of, pack
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant import _native
from lltool.quant.codec import decode
from tests.engine.cpu.test_cpu import TYPES, random_weight

QUANTIZED = [type for type in TYPES if LAYOUT[type].block > 1]
SHIFTS = {4: (0, 4), 2: (0, 2, 4, 6), 1: tuple(range(8))}


def codes_of(planes: Planes) -> NDArray[np.int64]:
    """(rows, columns), by the layout that the module's docstring states."""
    assert planes.form is not None
    codes, shift = np.zeros((planes.rows, planes.columns // 32, 32), np.int64), 0
    for bits in planes.form.widths:
        plane = planes.arrays[PLANE_NAMES[bits]].reshape(planes.rows, planes.columns // 32, -1)
        if bits == 8:
            return plane.view(np.int8).astype(np.int64).reshape(planes.rows, -1)
        parts = [plane >> by & (1 << bits) - 1 for by in SHIFTS[bits]]
        codes |= np.concatenate(parts, axis=-1).astype(np.int64) << shift
        shift += bits
    return codes.reshape(planes.rows, -1)


def scales_of(planes: Planes, name: str) -> NDArray[np.float32]:
    """(rows, groups)."""
    form, stored = planes.form, planes.arrays[name]
    assert form is not None
    if form.scales != "INTEGER":
        return stored.astype(np.float32)
    factor = planes.arrays[f"{name}_factor"].astype(np.float32)
    return stored.view(np.int8).astype(np.float32) * np.repeat(factor, form.block // form.group, axis=1)


@pytest.mark.parametrize("type", QUANTIZED, ids=lambda type: type.name)
def test_planes_are_exact(type: GGMLType) -> None:
    weight = random_weight(np.random.default_rng(7), "w", type, 5, 768)
    planes = pack(weight, threads=2)
    form = planes.form
    assert form is not None
    codes = codes_of(planes)
    codes = np.array([code - form.zero for code in form.table])[codes] if form.table else codes - form.zero
    found = codes.reshape(5, -1, form.group).astype(np.float32) * scales_of(planes, "scale")[..., None]
    if form.has_min:
        found = found + scales_of(planes, "min")[..., None]
    np.testing.assert_array_equal(found.reshape(5, -1), decode(weight.data, type))
    assert planes.bytes * 8 == pytest.approx(form.bits_per_weight * 5 * 768)


def test_the_bits_that_a_weight_takes() -> None:
    """Of the types that people use most; no plane is wider than it must be."""
    wanted = {"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q8_0": 8.5, "Q2_K": 3.125, "Q3_K": 3.5625, "Q4_K": 4.625}
    wanted |= {"Q5_K": 5.625, "Q6_K": 6.5625, "IQ4_NL": 4.5, "IQ4_XS": 4.3125}
    assert {name: form_of(GGMLType[name]).bits_per_weight for name in wanted} == wanted


def test_arrays_that_do_not_fit_are_refused() -> None:
    blocks = np.zeros((2, 18), np.uint8)
    scale = np.zeros((2, 1), np.float32)
    for fours, text in ((np.zeros((2, 8), np.uint8), "shapes do not agree"), (np.zeros((1, 16), np.uint8), "agree")):
        with pytest.raises(ValueError, match=text):
            _native.planes(GGMLType.Q4_0, blocks, fours, None, None, None, None, scale, None, 1)
    with pytest.raises(ValueError, match="the type has minima"):
        _native.planes(GGMLType.Q4_1, np.zeros((2, 20), np.uint8), None, None, None, None, None, scale, None, 1)
    with pytest.raises(ValueError, match="the type has no codes"):
        _native.planes(GGMLType.F16, blocks, None, None, None, None, None, scale, None, 1)
