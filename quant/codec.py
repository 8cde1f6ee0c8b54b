"""Encodes and decodes weights, for every tensor type."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType, row_bytes
from lltool.gguf.source import Bytes
from lltool.quant import _native, isa

# Types of plain numbers that are not used for weights; numpy decodes them.
_NUMBERS: dict[GGMLType, np.dtype[Any]] = {
    GGMLType.I8: np.dtype("<i1"),
    GGMLType.I16: np.dtype("<i2"),
    GGMLType.I32: np.dtype("<i4"),
    GGMLType.I64: np.dtype("<i8"),
    GGMLType.F64: np.dtype("<f8"),
}

ENCODED = frozenset(type for type in GGMLType if _native.can_encode(type))
"""The types that `encode` can write."""

NEEDS_IMPORTANCE = frozenset(type for type in ENCODED if _native.needs_importance(type))
"""The types that ggml cannot encode without importance."""

isa.apply()


NOT_FINITE = "holds NaN or infinity; the source is damaged"


class BadWeights(InputError):
    """Row `row` cannot be encoded; `problem` is the reason, and `is_overflow` tells that another type could hold it."""

    def __init__(self, row: int, problem: str, tensor: str = "", *, is_overflow: bool = False) -> None:
        super().__init__(f"{tensor}{': ' if tensor else ''}row {row} {problem}")
        self.row, self.problem, self.is_overflow = row, problem, is_overflow


def decode(data: Bytes, type: GGMLType, threads: int | None = None) -> NDArray[np.float32]:
    """The weights of `data`, uint8 of (rows, row_bytes), as float32 of (rows, columns).

    Raises ValueError for rows that are not whole blocks.
    """
    block, size = LAYOUT[type]
    rows, width = data.shape
    if width % size:
        raise ValueError(f"row of {width} bytes is not a multiple of the {type.name} block of {size} bytes")
    data = np.ascontiguousarray(data)
    if type in _NUMBERS:
        with np.errstate(over="ignore"):  # too large numbers become infinite, which `encode` refuses
            return np.asarray(data.view(_NUMBERS[type]), np.float32)
    weights = np.empty((rows, width // size * block), np.float32)
    _native.decode(type, data, weights, threads or _processors())
    return weights


def encode(
    values: NDArray[np.float32],
    type: GGMLType,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> Bytes:
    """The encoding of `values`, (rows, columns), as uint8 of (rows, row_bytes).

    The bytes equal ggml's under every instruction set. `importance`, (columns,), weights the error of each column.
    Raises BadWeights for a row with NaN, infinity or weights that `type` cannot hold, and InputError for a type that
    cannot be encoded and for importance that is missing, negative or not finite.
    """
    if type not in ENCODED:
        raise InputError(f"cannot encode to {type.name}; choose one of {', '.join(t.name for t in sorted(ENCODED))}")
    if importance is None and type in NEEDS_IMPORTANCE:
        raise InputError(f"cannot encode to {type.name} without importance; give importance or choose a larger type")
    rows, columns = values.shape
    out = np.empty((rows, row_bytes(type, columns)), np.uint8)
    values = np.ascontiguousarray(values, np.float32)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        if not (np.isfinite(importance) & (importance >= 0)).all():
            raise InputError("importance holds numbers that are negative or not finite, wanted 0 or more")
    fault = _native.encode(type, values, importance, out, threads or _processors())
    if fault:
        row, reason = fault
        if reason == "not finite":
            raise BadWeights(row, NOT_FINITE)
        problem = f"holds weights too large for {type.name}'s half precision; use BF16 or F32"
        raise BadWeights(row, problem, is_overflow=True)
    return out


def _processors() -> int:
    """The number of processors of this process. Hyperthreads count, because latency limits encoding, not throughput."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
