"""Weights to bytes and back, for every tensor type."""

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType, row_bytes
from lltool.gguf.source import Bytes
from lltool.quant import _native, isa

_NUMBERS = {
    GGMLType.I8: np.dtype("<i1"),
    GGMLType.I16: np.dtype("<i2"),
    GGMLType.I32: np.dtype("<i4"),
    GGMLType.I64: np.dtype("<i8"),
    GGMLType.F64: np.dtype("<f8"),
}

isa.chosen()


def decode(data: Bytes, type: GGMLType) -> NDArray[np.float32]:
    """The weights of `data`, uint8 of (rows, row_bytes), as (rows, columns)."""
    block, size = LAYOUT[type]
    rows, width = data.shape
    if width % size:
        raise ValueError(f"row of {width} bytes is not a multiple of the {type.name} block of {size} bytes")
    if type in _NUMBERS:
        return np.ascontiguousarray(data).view(_NUMBERS[type]).astype(np.float32)
    weights = np.empty((rows, width // size * block), np.float32)
    _native.decode(type, np.ascontiguousarray(data).reshape(-1), weights.reshape(-1), size, block)
    return weights


def encode(
    values: NDArray[np.float32], type: GGMLType, importance: NDArray[np.float32] | None = None, threads: int | None = None
) -> Bytes:
    """Quantizes `values`, (rows, columns), to (rows, row_bytes)."""
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InputError(f"row {row} holds a weight that is not finite")
    rows, columns = values.shape
    if type == GGMLType.F32:
        return np.ascontiguousarray(values, np.float32).view(np.uint8)
    if type == GGMLType.F16:
        return values.astype(np.float16).view(np.uint8)
    if type == GGMLType.BF16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
    if type == GGMLType.Q8_0:
        blocks = values.reshape(-1, 32)
        d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
        scaled = blocks * inverse
        codes = (np.trunc(scaled) + np.trunc(2 * (scaled - np.trunc(scaled)))).astype(np.int8)
        return np.hstack([d.astype(np.float16).view(np.uint8), codes.view(np.uint8)]).reshape(rows, row_bytes(type, columns))
    raise InputError(f"cannot encode to {type.name} yet")
