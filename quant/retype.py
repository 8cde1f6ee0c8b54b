"""The transform that changes tensor types: it decodes and encodes rows when the writer reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.gguf.ggml_types import GGMLType, row_bytes
from lltool.gguf.source import Bytes, Model, Source, Tensor
from lltool.quant.codec import NOT_FINITE, BadWeights, decode, encode

Floats = NDArray[np.float32]

# Of the types that can hold NaN and infinity: their bits, and the bits of the exponent, which both have all set.
_EXPONENTS: dict[GGMLType, tuple[type[np.unsignedinteger[Any]], int]] = {
    GGMLType.F32: (np.uint32, 0x7F800000),
    GGMLType.F16: (np.uint16, 0x7C00),
    GGMLType.BF16: (np.uint16, 0x7F80),
}
_CHECKED = 1 << 18  # bytes that are checked at a time, which stay in a core's cache

# Weights that are held as float32 at a time (16 MiB), because a reader may ask for many times as many.
_WINDOW = 4 << 20


class Decoder:
    """Decodes rows of tensors to float32 and keeps the last ones, for the next output that asks for the same rows.

    `threads` is the number of threads for decoding and for encoding again.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._key: tuple[Callable[[int, int], Bytes], int, int] | None = None
        self._weights: Floats = np.empty((0, 0), np.float32)

    def weights(self, tensor: Tensor, start: int, stop: int) -> Floats:
        """Rows [start, stop) of the tensor, float32 of (stop - start, columns)."""
        if self._key != (tensor.read, start, stop):
            self._weights = np.empty((0, 0), np.float32)  # frees the old window before the new one is made
            self._weights = decode(tensor.read(start, stop), tensor.type, self.threads)
            self._key = (tensor.read, start, stop)
        return self._weights


@dataclass
class ErrorSum:
    """Sums of the squares of weights and of their errors so far, with each column weighted by its importance."""

    error: float = 0
    total: float = 0

    @property
    def relative(self) -> float:
        """The relative squared error: 0 for a copy, 1 if everything is lost."""
        return self.error / self.total if self.total else 0.0

    def add(self, weights: Floats, found: Floats, importance: Floats | None) -> None:
        found -= weights  # in place: the caller does not use `found` again
        factor = np.ones(weights.shape[1]) if importance is None else importance.astype(np.float64)
        self.error += float(np.einsum("ij,ij->j", found, found) @ factor)
        self.total += float(np.einsum("ij,ij->j", weights, weights) @ factor)


def retype(source: Source, choose: Callable[[Tensor], GGMLType], threads: int | None = None) -> Model:
    """`source` with each tensor in the type that `choose` returns; a tensor that has this type passes unchanged."""
    decoder = Decoder(threads)
    tensors = [retype_tensor(tensor, choose(tensor), decoder=decoder) for tensor in source.tensors]
    return Model(source.metadata, tensors)


def retype_tensor(
    tensor: Tensor,
    type: GGMLType,
    *,
    importance: Floats | None = None,
    decoder: Decoder | None = None,
    error: ErrorSum | None = None,
    allow_nonfinite: bool = False,
) -> Tensor:
    """`tensor` as `type`, encoded when its rows are read; reading raises BadWeights for weights that do not fit.

    A tensor that has the type passes unchanged. With `allow_nonfinite`, plain types keep NaN and infinity.

    `importance` is (experts, columns), with one row if the tensor has no experts. Tensors that share a `decoder` are
    decoded once if the same rows of each are read in turn. The squared errors are added to `error`.
    """
    if type == tensor.type:
        return tensor
    decoder = decoder or Decoder()
    threads = decoder.threads
    width = row_bytes(type, tensor.columns)
    window = max(1, _WINDOW // max(1, tensor.columns))

    def read(start: int, stop: int) -> Bytes:
        out = np.empty((stop - start, width), np.uint8)
        for first in range(start, stop, window):
            weights = decoder.weights(tensor, first, min(first + window, stop))
            for begin, end, columns in _by_expert(tensor, importance, first, first + len(weights)):
                rows = weights[begin - first : end - first]
                try:
                    encoded = (_encode_any if allow_nonfinite else encode)(rows, type, columns, threads)
                except BadWeights as bad:
                    row = begin + bad.row
                    raise BadWeights(row, bad.problem, tensor.name, is_overflow=bad.is_overflow) from bad
                out[begin - start : end - start] = encoded
                if error is not None:
                    error.add(rows, decode(encoded, type, threads), columns)
        return out

    return Tensor(tensor.name, type, tensor.shape, read)


def _encode_any(rows: Floats, type: GGMLType, importance: Floats | None, threads: int | None) -> Bytes:
    """`encode`, but types with NaN and infinity keep them."""
    odd = ~np.isfinite(rows)
    if type not in _EXPONENTS or not odd.any():
        return encode(rows, type, importance, threads)
    out = encode(np.where(odd, np.float32(0), rows), type, importance, threads)
    bits = rows[odd].view(np.uint32)
    kept: NDArray[Any]
    match type:
        case GGMLType.F16:
            kept = rows[odd].astype(np.float16).view(np.uint16)
        case GGMLType.BF16:
            kept = (bits >> 16 | np.isnan(rows[odd]).astype(np.uint32) << 6).astype(np.uint16)  # NaN stays NaN
        case _:
            kept = bits
    out.view(kept.dtype)[odd] = kept
    return out


def refuse_nonfinite(tensor: Tensor) -> Tensor:
    """The same tensor; reading rows with NaN or infinity raises BadWeights. Only plain floats are checked."""
    if tensor.type not in _EXPONENTS:
        return tensor
    bits, exponent = _EXPONENTS[tensor.type]
    step = max(1, _CHECKED // tensor.row_bytes)

    def read(start: int, stop: int) -> Bytes:
        data = tensor.read(start, stop)
        for first in range(0, len(data), step):
            words = np.ascontiguousarray(data[first : first + step]).view(bits) & bits(exponent)
            if words.size and words.max() == exponent:
                row = int(np.argmax((words == exponent).any(axis=1)))
                raise BadWeights(start + first + row, NOT_FINITE, tensor.name)
        return data

    return replace(tensor, read=read)


def _by_expert(
    tensor: Tensor, importance: Floats | None, start: int, stop: int
) -> Iterator[tuple[int, int, Floats | None]]:
    """Rows [start, stop), split at the boundaries of experts, each part with the importance of its columns."""
    if importance is None or len(importance) == 1:
        yield start, stop, None if importance is None else importance[0]
        return
    size = tensor.rows // len(importance)
    for expert in range(start // size, -(-stop // size)):
        yield max(start, expert * size), min(stop, (expert + 1) * size), importance[expert]
