"""Numbers of packed weights: small floats, bit fields, and scales of groups."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.raw import RawTensor

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])
"""The values of four-bit floats with two bits of exponent and one of mantissa."""

FLOAT_TYPES = ("F32", "BF16", "F16", "F64", "F8_E4M3", "F8_E5M2", "F8_E8M0")


_PIECE = 1 << 16  # weights


@cache
def small_floats(dtype: str) -> Floats:
    """The values of all 256 codes of an 8-bit float type, under safetensors' name; NaN and infinities included."""
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        powers: Floats = np.where(codes == 255, np.nan, np.ldexp(1.0, codes - 127)).astype(np.float32)
        return powers
    bits, bias = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15)}[dtype]
    exponents, mantissas = (codes & 127) >> bits, (codes & ((1 << bits) - 1)) / (1 << bits)
    sizes = np.ldexp(mantissas + (exponents > 0), np.maximum(exponents, 1) - bias)
    if dtype == "F8_E4M3":
        sizes[codes & 127 == 127] = np.nan
    else:
        sizes = np.where(exponents == 31, np.where(mantissas > 0, np.nan, np.inf), sizes)
    values: Floats = np.where(codes < 128, sizes, -sizes).astype(np.float32)
    return values


def as_floats(values: NDArray[Any], dtype: str) -> Floats:
    """Stored numbers as float32; `dtype` is safetensors' name of their type."""
    if dtype.startswith("F8"):
        return look_up(small_floats(dtype), values)
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(values, np.float32)


@cache
def _pairs(table: bytes) -> NDArray[np.uint64]:
    """For all 65536 pairs of codes, the two floats of a table of 256."""
    values = np.frombuffer(table, np.float32)
    return np.stack([np.tile(values, 256), np.repeat(values, 256)], axis=1).view(np.uint64).reshape(-1)


def look_up(table: Floats, codes: Codes) -> Floats:
    """The table's value of each code; (..., n) for (..., n). Even rows are read in pairs, which takes half the time."""
    if len(table) < 256 or codes.shape[-1] % 2 or not codes.flags.c_contiguous:
        return table[codes]
    return _pairs(table.tobytes()).take(codes.view(np.uint16)).view(np.float32)


def unpack_bits(data: NDArray[Any], bits: int) -> Codes:
    """Each row as a stream of fields of `bits` bits, lowest bit first: (rows, bytes) to (rows, bytes * 8 // bits).

    A row of bytes must be a multiple of 4; with a number of bits that divides no word, fields cross from one word to
    the next, and what remains at the end of a row is left out.
    """
    rows = np.ascontiguousarray(data).view(np.uint8)
    if bits == 8:
        return rows
    count = rows.shape[1] * 8 // bits
    if 8 % bits == 0:
        table = _fields(bits)
        return np.ascontiguousarray(table[rows]).view(np.uint8).reshape(len(rows), count)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % bits)))
    rows = rows.reshape(len(rows), rows.shape[1] // bits, bits)
    words = np.zeros(rows.shape[:2], np.uint64)  # 8 fields each
    for n in range(bits):
        words |= rows[..., n].astype(np.uint64) << np.uint64(8 * n)
    shifts = np.arange(0, 8 * bits, bits, dtype=np.uint64)
    codes = (words[..., None] >> shifts & np.uint64((1 << bits) - 1)).astype(np.uint8)
    return codes.reshape(len(rows), 8 * words.shape[1])[:, :count]


@cache
def _fields(bits: int) -> NDArray[Any]:
    """For each byte its fields, lowest first, as one number of as many bytes."""
    fields = np.arange(256)[:, None] >> np.arange(0, 8, bits) & ((1 << bits) - 1)
    return np.ascontiguousarray(fields.astype(np.uint8)).view(f"<u{8 // bits}").reshape(-1)


def floats_in_pieces(name: str, shape: tuple[int, ...], read_few: Callable[[int, int], Floats]) -> Tensor:
    """A float32 tensor whose rows `read_few` makes, a few at a time, so that its intermediate results stay in cache."""
    step = max(1, _PIECE // shape[-1])

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, shape[-1]), np.float32)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out[first - start : last - start] = read_few(first, last)
        return out.view(np.uint8)

    return Tensor(name, GGMLType.F32, shape, read)


def by_group(function: np.ufunc, weights: Floats, factors: Floats, group: int) -> None:
    """Applies `function`, in place, to each `group` columns of (rows, columns) and their factor of (rows, groups)."""
    rows, columns = weights.shape
    whole = columns // group
    inner = weights[:, : whole * group].reshape(rows, whole, group)  # a view, unless some columns remain
    function(inner, factors[:, :whole, None], out=inner)
    if whole * group < columns:
        weights[:, : whole * group] = inner.reshape(rows, -1)
        rest = weights[:, whole * group :]
        function(rest, factors[:, whole:], out=rest)


def read_scales(raw: RawTensor, start: int = 0, stop: int | None = None, dtype: str = "") -> Floats:
    """Rows [start, stop) of a tensor of scales as float32; `dtype` replaces the stored type.

    Raises InputError for scales that are NaN or infinite.
    """
    scales = as_floats(raw.values(start, stop), dtype or raw.dtype)
    fine = np.isfinite(scales)
    if not fine.all():
        row, column = (int(n) for n in np.argwhere(~fine)[0])
        raise InputError(
            f"{raw.path}: {raw.name}: row {start + row}, column {column}: found {scales[row, column]}, "
            f"wanted a finite scale; the file is damaged, so fetch it again"
        )
    return scales
