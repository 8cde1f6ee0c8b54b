"""Arrays of weights to bytes and back, by the name of the type: what a notebook calls."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant.codec import decode, encode


def quantize(
    array: ArrayLike, type: GGMLType | str, importance: ArrayLike | None = None, *, threads: int | None = None
) -> NDArray[np.uint8]:
    """The weights of `array`, (..., columns), as a GGUF file stores them in `type`: uint8 of (..., bytes of a row).

    `importance`, (columns,), says how much the error of each column counts. Raises InputError for a type that cannot be
    written, rows that are not whole blocks, and weights that are not finite or do not fit.
    """
    type, values = _find_type(type), np.asarray(array, np.float32)
    block = LAYOUT[type].block
    if values.ndim == 0 or not values.size or values.shape[-1] % block:
        raise InputError(
            f"array of shape {values.shape}, wanted rows of a multiple of the {type.name} block of {block}"
        )
    columns = values.shape[-1]
    if importance is not None:
        importance = np.asarray(importance, np.float32)
        if importance.shape != (columns,):
            raise InputError(f"importance of shape {importance.shape}, wanted ({columns},): a number a column")
        if not (np.isfinite(importance) & (importance >= 0)).all():
            raise InputError("importance holds numbers that are negative or not finite, wanted 0 or more")
    data = encode(values.reshape(-1, columns), type, importance, threads)
    return data.reshape(*values.shape[:-1], -1)


def dequantize(data: NDArray[np.uint8], type: GGMLType | str, *, threads: int | None = None) -> NDArray[np.float32]:
    """The weights of `data`, uint8 of (..., bytes of a row) as `quantize` makes them, as float32 of (..., columns)."""
    type = _find_type(type)
    size = LAYOUT[type].bytes
    if data.dtype != np.uint8:
        raise InputError(f"data of {data.dtype}, wanted the bytes, uint8")
    if data.ndim == 0 or not data.size or data.shape[-1] % size:
        raise InputError(f"data of shape {data.shape}, wanted rows of a multiple of {size} bytes, a {type.name} block")
    weights = decode(data.reshape(-1, data.shape[-1]), type, threads)
    return weights.reshape(*data.shape[:-1], -1)


def _find_type(type: GGMLType | str) -> GGMLType:
    if isinstance(type, GGMLType):
        return type
    if type.upper() not in GGMLType.__members__:
        raise InputError(f"{type!r} is no type of tensors; choose of {', '.join(GGMLType.__members__)}")
    return GGMLType[type.upper()]
