"""Weights whose stored numbers, of 8 bits, are multiplied by the scale of their block, channel or tensor.

The grid of scales says what a block is: as many as blocks of the size that config.json states, or one for each row,
or one for all. Source: DeepSeek V3's and fbgemm's checkpoints, and transformers' integrations/finegrained_fp8.py.
"""

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.errors import InputError
from lltool.quant.convert.packed.numbers import Floats, as_floats, by_group, floats_in_pieces, read_scales
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked
from lltool.quant.convert.raw import RawTensor

SCALES = ("_scale_inv", "_scale")
"""What follows a weight's name in that of its scales. Both multiply, in spite of the first one's name."""

_SCALE_TYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The float32 weights of all tensors of 8-bit floats."""
    blocks = settings.values.get("weight_block_size")
    fine = blocks is None or (
        isinstance(blocks, list) and len(blocks) == 2 and all(type(size) is int and size > 0 for size in blocks)
    )
    settings.require("weight_block_size", fine, "two positive integers")
    for name in list(parts.files):
        if parts.peek(name).dtype in ("F8_E4M3", "F8_E5M2") and not name.endswith(SCALES):
            yield scaled(parts, name, tuple(blocks) if blocks else None)


def scaled(parts: Parts, name: str, block: tuple[int, int] | None, zeros: RawTensor | None = None) -> Unpacked:
    """The float32 weights of one stored tensor. `zeros`, one for each scale, is subtracted from integers.

    Raises InputError for scales that are missing or whose grid does not fit, and, when read, for ones not finite.
    """
    raw = parts.take(name, name)
    scale_name = next((name + end for end in SCALES if name + end in parts.files), name + SCALES[0 if block else 1])
    scales = parts.take(scale_name, name, *_SCALE_TYPES)
    height, width = _block_of(raw, scales, block)
    *_, rows, columns = (1, 1, *raw.shape)
    down, across = -(-rows // height), -(-columns // width)  # blocks of each matrix, where several may be stacked

    def grid(part: RawTensor, places: NDArray[np.int64]) -> Floats:
        """The rows of a grid at these places, which ascend."""
        first, last = int(places[0]), int(places[-1]) + 1
        dtype = "F8_E8M0" if part.dtype == "U8" else part.dtype
        if len(part.shape) > 1 and part.columns == across:
            return read_scales(part, first, last, dtype)[places - first]
        return read_scales(part, dtype=dtype).reshape(-1, across)[places]

    def read_few(start: int, stop: int) -> Floats:
        weights = as_floats(raw.values(start, stop), raw.dtype)
        if raw.dtype.startswith("F8"):
            refuse_infinite(raw, weights, start)
        number = np.arange(start, stop)
        places = number // rows * down + number % rows // height
        if zeros is not None:
            by_group(np.subtract, weights, grid(zeros, places), width)
        by_group(np.multiply, weights, grid(scales, places), width)
        return weights

    return Unpacked(raw.path, floats_in_pieces(name, raw.shape, read_few))


def refuse_infinite(raw: RawTensor, weights: Floats, start: int) -> None:
    """Raises InputError for a row that holds NaN or infinity; `start` is the number of the first row."""
    fine = np.isfinite(weights).all(axis=1)
    if not fine.all():
        row = start + int(fine.argmin())
        raise InputError(f"{raw.path}: {raw.name}: row {row} holds NaN or infinity; the source is damaged")


def _block_of(raw: RawTensor, scales: RawTensor, block: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of a block. Raises InputError for scales that are not as many as a weight of this shape has."""
    *outer, rows, columns = (1, 1, *raw.shape)
    stacked, count = prod(outer), prod(scales.shape)
    if count == 1 and stacked == 1:
        return rows, columns
    if block and count == stacked * -(-rows // block[0]) * -(-columns // block[1]):
        return block
    *_, down, across = (1, 1, *scales.shape)
    if len(scales.shape) == 1 and count == rows:
        down, across = rows, 1
    if count == stacked * down * across and not rows % down and not columns % across:
        return rows // down, columns // across
    wanted = f" or one for each block of {block[0]} × {block[1]}" if block else ""
    raise InputError(
        f"{scales.path}: {scales.name}: shape {scales.shape}, wanted one scale, one for each row{wanted}, "
        f"as {raw.name} is {raw.shape}"
    )
