"""Weights that are integers less a zero, times the scale of their group: what GPTQ, AWQ and others store.

If the zero is the middle of the range and scales are half floats, Q4_0 and Q8_0 hold the same values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.packed.numbers import Codes, Floats, by_group
from lltool.quant.convert.raw import RawTensor

_GRIDS = {4: GGMLType.Q4_0, 8: GGMLType.Q8_0}
_BLOCK = 32
_WINDOW = 16 << 20  # bytes of a part that are looked at together for columns of it


@dataclass(frozen=True)
class Integers:
    """A matrix of integers of `bits` bits; each function takes a range of rows and returns (rows, columns or groups).

    `zeros` is None if all are the middle, 2 ** (bits - 1). `order` gives each column's group where neighbours have
    different ones, else each `group` columns have one. `has_half_scales` if float16 holds all scales.
    """

    shape: tuple[int, int]
    bits: int
    group: int
    codes: Callable[[int, int], Codes]
    scales: Callable[[int, int], Floats]
    zeros: Callable[[int, int], Floats] | None = None
    order: NDArray[np.int64] | None = None
    has_half_scales: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether a type of GGUF holds the same values."""
        whole = self.group % _BLOCK == 0 and self.shape[1] % _BLOCK == 0
        return self.bits in _GRIDS and whole and self.zeros is None and self.order is None and self.has_half_scales

    def tensor(self, name: str) -> Tensor:
        """The weights in a type of GGUF that holds them exactly, or else as float32."""
        if self.is_exact:
            return Tensor(name, _GRIDS[self.bits], self.shape, self._read_blocks)
        return Tensor(name, GGMLType.F32, self.shape, self._read_floats)

    def _read_floats(self, start: int, stop: int) -> Bytes:
        weights = self.codes(start, stop).astype(np.float32)
        scales = self.scales(start, stop)
        if self.zeros is None:
            weights -= np.float32(1 << (self.bits - 1))
        elif self.order is None:
            by_group(np.subtract, weights, self.zeros(start, stop), self.group)
        else:
            weights -= self.zeros(start, stop)[:, self.order]
        if self.order is None:
            by_group(np.multiply, weights, scales, self.group)
        else:
            weights *= scales[:, self.order]
        return weights.view(np.uint8)

    def _read_blocks(self, start: int, stop: int) -> Bytes:
        codes = self.codes(start, stop).reshape(stop - start, self.shape[1] // _BLOCK, _BLOCK)
        halves = self.scales(start, stop).astype(np.float16)
        each = np.repeat(halves, self.group // _BLOCK, axis=1)[:, : codes.shape[1], None]
        half = _BLOCK // 2
        packed = codes ^ 128 if self.bits == 8 else codes[..., :half] | codes[..., half:] << 4
        blocks = np.concatenate([np.ascontiguousarray(each).view(np.uint8), packed], axis=-1)
        return blocks.reshape(stop - start, blocks.shape[1] * blocks.shape[2])


def are_half(scales: Floats) -> bool:
    """Whether float16 holds all of these."""
    with np.errstate(over="ignore"):
        return bool((scales.astype(np.float16) == scales).all())


def read_columns(raw: RawTensor, start: int, stop: int) -> NDArray[np.int32]:
    """Columns [start, stop) of a stored matrix as rows."""
    out = np.empty((stop - start, raw.rows), np.int32)
    step = max(1, _WINDOW // (4 * raw.columns))
    for top in range(0, raw.rows, step):
        bottom = min(top + step, raw.rows)
        out[:, top:bottom] = raw.values(top, bottom)[:, start:stop].T
    return out
