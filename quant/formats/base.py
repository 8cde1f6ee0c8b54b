"""The base class of quantized formats: a layout, and the unpacking of blocks into codes and scales.

    weight i of a block = scale[g] * (codes[i] - zero) + min[g],   g = i // group

These classes are the readable definition; `codec` runs the native version in csrc/formats. Tests check that both agree.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import LAYOUT, GGMLType, Layout
from lltool.gguf.source import Bytes

Floats = NDArray[np.float32]
Codes = NDArray[np.integer[Any]]


class Groups(NamedTuple):
    """Unpacked blocks: codes (n, block) from 0 to 255; scale and min (n, block // group). `min` is None if always 0."""

    codes: Codes
    scale: Floats
    min: Floats | None = None


FORMATS: dict[GGMLType, "type[Format]"] = {}
"""The formats whose modules were imported; `formats.table` imports them all."""


class Format:
    """The base class of the formats. A subclass names its type and registers itself in FORMATS."""

    type: ClassVar[GGMLType]
    layout: ClassVar[Layout]
    group: ClassVar[int]
    zero: ClassVar[int]

    def __init_subclass__(cls, type: GGMLType) -> None:
        if type in FORMATS:
            raise TypeError(f"{type.name} is already defined by {FORMATS[type].__name__}")
        cls.type, cls.layout = type, LAYOUT[type]
        FORMATS[type] = cls

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        """The codes and scales of `blocks`, uint8 (n, layout.bytes)."""
        raise NotImplementedError

    @classmethod
    def decode(cls, blocks: Bytes) -> Floats:
        """The weights of `blocks`, uint8 (n, layout.bytes), as float32 (n, layout.block)."""
        groups = cls.unpack(blocks)
        shape = (len(blocks), cls.layout.block // cls.group, cls.group)
        weights = groups.scale[..., None] * (groups.codes.reshape(shape).astype(np.float32) - np.float32(cls.zero))
        if groups.min is not None:
            weights += groups.min[..., None]
        return weights.reshape(len(blocks), cls.layout.block)


def half(blocks: Bytes, offset: int) -> Floats:
    """The f16 at `offset` of each block, (n, 1)."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)


def words(data: Bytes, dtype: str) -> Codes:
    """`data`, uint8 (n, bytes), as words of `dtype`, widened to uint32 (n, words)."""
    return np.ascontiguousarray(data).view(dtype).astype(np.uint32)


def fields(data: Codes, shifts: range, bits: int) -> Codes:
    """Bit fields of each number, in the order of `shifts`: (..., k) becomes (..., k, len(shifts))."""
    return data.astype(np.uint32)[..., None] >> np.array(shifts, np.uint32) & np.uint32((1 << bits) - 1)


def nibbles(data: Bytes) -> Codes:
    """(..., 16) bytes as (..., 32) codes: the low nibbles, then the high ones."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def planes(data: Bytes, bits: int) -> Codes:
    """(n, 32 k) bytes as (n, 32 k * 8 // bits) codes: for each 32 bytes, all lowest bit fields, then the next ones."""
    runs = data.reshape(len(data), -1, 1, 32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (runs >> shifts & np.uint8((1 << bits) - 1)).reshape(len(data), -1)


def bits(data: Bytes) -> Bytes:
    """(n, k) bytes as (n, 8 k) zeros and ones, lowest bit first."""
    return np.unpackbits(np.ascontiguousarray(data), axis=1, bitorder="little")
