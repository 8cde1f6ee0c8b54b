"""Invertible changes of the tensors of state-space models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.codec import decode
from lltool.quant.convert.families.changes import Change, Tensors
from lltool.quant.convert.families.sizes import Sizes


@dataclass(frozen=True)
class Unflatten(Change):
    """A vector becomes a matrix with `rows` rows."""

    rows: str

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        rows = sizes[self.rows]
        for tensor in tensors:
            if len(tensor.shape) != 1 or tensor.shape[0] % rows:
                raise InputError(f"{tensor.name}: shape {tensor.shape}, wanted a vector of a multiple of {rows}")
        return [_reshape(tensor, (rows, tensor.shape[0] // rows)) for tensor in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [_reshape(tensor, (tensor.rows * tensor.columns,)) for tensor in tensors]


@dataclass(frozen=True)
class Times(Change):
    """Multiplies by numbers of the config, `keys`; with `parts`, sizes and keys, rows of each part by one more.

    The result is float32. The way back leaves the tensor as it is: a restored config has numbers of 1.
    """

    keys: tuple[str, ...]
    parts: tuple[tuple[str, str], ...] = ()

    def to_gguf(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return [self._scale(tensor, sizes) for tensor in tensors]

    def to_checkpoint(self, tensors: Sequence[Tensor], sizes: Sizes) -> Tensors:
        return list(tensors)

    def _scale(self, tensor: Tensor, sizes: Sizes) -> Tensor:
        factor = math.prod(float(sizes.values[key]) for key in self.keys)
        factors = np.full((tensor.rows, 1), factor, np.float32)
        if self.parts:
            lengths = [sizes[size] for size, _ in self.parts]
            factors *= np.repeat([float(sizes.values[key]) for _, key in self.parts], lengths)[:, None].astype(
                np.float32
            )
        if (factors == 1).all():
            return tensor

        def read(start: int, stop: int) -> Bytes:
            rows = decode(tensor.read(start, stop), tensor.type) * factors[start:stop]
            scaled: Bytes = np.ascontiguousarray(rows, np.float32).view(np.uint8)
            return scaled

        return replace(tensor, type=GGMLType.F32, read=read)


def _reshape(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor, which is small, with other axes."""
    count = shape[0] if len(shape) > 1 else 1

    def read(start: int, stop: int) -> Bytes:
        rows: Bytes = tensor.read(0, tensor.rows).reshape(count, -1)[start:stop]
        return rows

    return replace(tensor, shape=shape, read=read)
