"""The reference definition of how a key/value cache of each type rounds keys and values.

A few channels of keys and values are much larger than the others of their head, and would set the scale of their
blocks. The block-quantized types therefore store the head's Walsh-Hadamard transform, which spreads each element over
its whole block. The transform is orthonormal, so that transformed queries give the same scores, and it is its own
inverse.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lltool.engine.batch import CacheType
from lltool.gguf.ggml_types import GGMLType
from lltool.quant.codec import decode, encode

Floats = NDArray[Any]
Q4_0_ENDS = (-7.6, -8.0, -8.4)


def round_to_cache(x: Floats, kind: CacheType, value_dim: int = 0) -> Floats:
    """The values x (..., head_dim) after a round trip through a cache of type `kind`; f32 leaves x as it is.

    `value_dim` is given for keys whose first elements are also values: these are whole blocks of the transform then.
    """
    block = largest_block(x.shape[-1] | value_dim)
    match kind:
        case "f32":
            return x
        case "q8_0":
            return hadamard(_round_q8_0(hadamard(x.astype(np.float32), block)).astype(x.dtype), block)
        case "q4_0":
            return hadamard(_round_q4_0(hadamard(x.astype(np.float32), block)).astype(x.dtype), block)
        case _:
            type = GGMLType[kind.upper()]
            rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float32)
            return decode(encode(rows, type), type).reshape(x.shape).astype(x.dtype)


def largest_block(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n


def hadamard(x: Floats, block: int = 0) -> Floats:
    """The orthonormal Walsh-Hadamard transform of x (..., n), in blocks of `block` (0: `largest_block(n)`).

    It adds in the same order as the kernels, so that both round in the same way in float32.
    """
    block = block or largest_block(x.shape[-1])
    y = x.reshape(-1, block)
    for _ in range(block.bit_length() - 1):
        first, second = y[:, : block // 2], y[:, block // 2 :]
        y = np.stack([first + second, first - second], axis=-1).reshape(-1, block)
    scaled: Floats = y.reshape(x.shape) * (1 / np.sqrt(x.dtype.type(block)))
    return scaled


def _round_q8_0(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounds x as ggml does, except that a value halfway between two codes gets the even one."""
    blocks = x.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.where(scale != 0, 1 / np.where(scale != 0, scale, 1), 0)
    rounded: NDArray[np.float32] = np.rint(blocks * inverse) * scale.astype(np.float16).astype(np.float32)
    return rounded.reshape(x.shape)


def _round_q4_0(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounds x to q4_0: the best of three scales gives the codes, then least squares gives the scale for these codes.

    Each of the three scales maps the largest value of the block to one of Q4_0_ENDS; ggml uses only -8. On normally
    distributed values this has 9 % less squared error.
    """
    blocks = x.reshape(-1, 32)
    top, bottom = blocks.max(axis=1, keepdims=True), blocks.min(axis=1, keepdims=True)
    most = np.where(top < -bottom, bottom, top)
    scales = most / np.array(Q4_0_ENDS, np.float32)[:, None, None]  # (3, n, 1)
    inverse = np.where(most != 0, 1 / np.where(most != 0, scales, 1), 0)
    codes = np.clip(np.rint(blocks * inverse), -8, 7)  # (3, n, 32)
    errors = np.square(blocks - codes * scales, dtype=np.float64).sum(axis=2)
    best = codes[errors.argmin(axis=0), np.arange(len(blocks))].astype(np.float64)  # (n, 32)
    products, squares = (best * blocks).sum(axis=1, keepdims=True), (best * best).sum(axis=1, keepdims=True)
    scale = (products / np.maximum(squares, 1)).astype(np.float32).astype(np.float16).astype(np.float32)
    rounded: NDArray[np.float32] = (best.astype(np.float32) * scale).reshape(x.shape)
    return rounded
