"""The transform that changes tensor types: decode and encode rows as the writer asks for them."""

from collections.abc import Callable

import numpy as np

from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.source import Bytes, Model, Source, Tensor
from lltool.quant.codec import BadWeights, decode, encode

# Weights held as float32 at a time: small enough for the second-level cache of a few cores' work, 16 MiB in all.
_WINDOW = 4 << 20


def retype(source: Source, choose: Callable[[Tensor], GGMLType], threads: int | None = None) -> Model:
    """`source` with each tensor in the type that `choose` names; a tensor of that type already passes untouched."""
    return Model(source.metadata, [retype_tensor(tensor, choose(tensor), threads) for tensor in source.tensors])


def retype_tensor(tensor: Tensor, type: GGMLType, threads: int | None = None) -> Tensor:
    """`tensor` as `type`, computed when its rows are read; weights that `type` cannot hold raise BadWeights then."""
    if type == tensor.type:
        return tensor
    width = row_bytes(type, tensor.columns)
    window = max(1, _WINDOW // max(1, tensor.columns))

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, width), np.uint8)
        for first in range(start, stop, window):
            last = min(first + window, stop)
            weights = decode(tensor.read(first, last), tensor.type, threads)
            try:
                out[first - start : last - start] = encode(weights, type, threads=threads)
            except BadWeights as error:
                raise BadWeights(first + error.row, error.problem, tensor.name) from error
        return out

    return Tensor(tensor.name, type, tensor.shape, read)
