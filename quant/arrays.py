"""Functions for notebooks that quantize and dequantize arrays, with the type given by name."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant.codec import decode, encode


def quantize(
    array: ArrayLike, type: GGMLType | str, importance: ArrayLike | None = None, *, threads: int | None = None
) -> NDArray[np.uint8]:
    """The weights of `array`, (..., columns), as a GGUF file stores them in `type`: uint8 of (..., bytes per row).

    `importance`, (columns,), weights the error of each column. Raises InputError for a type that cannot be encoded,
    rows that are not whole blocks, and weights that are not finite or do not fit.

    >>> import numpy as np
    >>> lltool.quantize_array(np.ones((2, 64)), "Q4_0").shape  # blocks of 32 weights in 18 bytes
    (2, 36)
    """
    type, values = tensor_type(type), np.asarray(array, np.float32)
    block = LAYOUT[type].block
    if values.ndim == 0 or not values.size or values.shape[-1] % block:
        smaller = "; take a type with smaller blocks, such as Q8_0 with 32" if block > 32 else ""
        raise InputError(
            f"array of shape {values.shape}, wanted rows of a multiple of the {type.name} block of {block}{smaller}"
        )
    columns = values.shape[-1]
    if importance is not None:
        importance = np.asarray(importance, np.float32)
        if importance.shape != (columns,):
            raise InputError(f"importance of shape {importance.shape}, wanted ({columns},): one number per column")
    data = encode(values.reshape(-1, columns), type, importance, threads)
    return data.reshape(*values.shape[:-1], -1)


def dequantize(data: NDArray[np.uint8], type: GGMLType | str, *, threads: int | None = None) -> NDArray[np.float32]:
    """The weights of `data`, uint8 of (..., bytes per row) from `quantize`, as float32 of (..., columns).

    Raises InputError for an unknown type, for data that is not uint8 and for rows that are not whole blocks.

    >>> import numpy as np
    >>> weights = lltool.dequantize_array(lltool.quantize_array(np.full((2, 64), 0.5), "Q8_0"), "Q8_0")
    >>> print(weights.shape, weights.dtype, abs(weights - 0.5).max() < 1e-4)
    (2, 64) float32 True
    """
    type = tensor_type(type)
    size = LAYOUT[type].bytes
    if data.dtype != np.uint8:
        raise InputError(f"data of {data.dtype}, wanted bytes (uint8)")
    if data.ndim == 0 or not data.size or data.shape[-1] % size:
        raise InputError(f"data of shape {data.shape}, wanted rows of a multiple of {size} bytes, a {type.name} block")
    weights = decode(data.reshape(-1, data.shape[-1]), type, threads)
    return weights.reshape(*data.shape[:-1], -1)


def tensor_type(type: GGMLType | str) -> GGMLType:
    """The tensor type of that name, in any case. Raises InputError if there is none."""
    if isinstance(type, GGMLType):
        return type
    if type.upper() not in GGMLType.__members__:
        raise InputError(f"{type!r} is not a tensor type; choose one of {', '.join(GGMLType.__members__)}")
    return GGMLType[type.upper()]
