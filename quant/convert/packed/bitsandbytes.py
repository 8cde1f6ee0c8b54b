"""bitsandbytes: four-bit codes of a table (nf4, fp4) with a scale for each run of weights, and rows of 8-bit integers.

The scales of four-bit weights may themselves be codes of a table, with scales of their own and an offset.
Source: bitsandbytes' QuantState and its int8_vectorwise_dequant.
"""

import json
from collections.abc import Iterator
from math import prod
from reprlib import repr as short
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.packed.numbers import Floats, by_group, read_scales
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked
from lltool.quant.convert.raw import RawTensor

_STATE = ".quant_state.bitsandbytes__"
_PER_127 = np.float32(7.874015718698502e-3)  # the library's 1 / 127


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The float32 weights of all modules with a state of quantization, or with scales of rows, `SCB`."""
    for kind in ("nf4", "fp4"):
        for name in list(parts.with_suffix(_STATE + kind)):
            yield _four_bits(parts, name, kind)
    for module in list(parts.with_suffix(".SCB")):
        yield _eight_bits(parts, module)
    parts.drop([".weight_format"])


def _four_bits(parts: Parts, name: str, kind: str) -> Unpacked:
    state = parts.take(name + _STATE + kind, name, "U8")
    shape, block, nested = _read_state(state)
    count = prod(shape)
    raw = parts.take(name, name, "U8")
    if prod(raw.shape) != -(-count // 2):
        raise InputError(f"{raw.path}: {name}: {prod(raw.shape)} bytes, wanted {-(-count // 2)} for {shape} codes")
    blocks = -(-count // block)
    table = read_scales(parts.take(f"{name}.quant_map", name, "F32", shape=(16,))).reshape(-1)
    scales = parts.take(f"{name}.absmax", name, "U8" if nested else "F32", shape=(blocks,))
    second: tuple[RawTensor, Floats, int, np.float32] | None = None
    if nested:
        size, offset = nested
        inner = parts.take(f"{name}.nested_absmax", name, "F32", shape=(-(-blocks // size),))
        values = read_scales(parts.take(f"{name}.nested_quant_map", name, "F32", shape=(256,))).reshape(-1)
        second = inner, values, size, np.float32(offset)
    pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], axis=1)  # the first code of a byte is the high one
    codes = _in_a_row(raw)

    def scales_of(first: int, last: int) -> Floats:
        if second is None:
            return read_scales(scales).reshape(-1)[first:last]
        inner, values, size, offset = second
        places = np.arange(first, last) // size
        found: Floats = values[scales.values().reshape(-1)[first:last]] * read_scales(inner).reshape(-1)[places]
        return found + offset

    def read(start: int, stop: int) -> Bytes:
        begin, end = start * shape[-1], stop * shape[-1]
        first, last = begin // block, -(-end // block)
        last_code = min(last * block, count)
        weights = pairs[codes(first * block // 2, -(-last_code // 2))].reshape(-1)
        whole = np.zeros((last - first, block), np.float32)
        whole.reshape(-1)[: len(weights)] = weights
        by_group(np.multiply, whole, scales_of(first, last)[:, None], block)
        values = whole.reshape(-1)[begin - first * block : end - first * block]
        return np.ascontiguousarray(values).view(np.uint8).reshape(stop - start, 4 * shape[-1])

    return Unpacked(raw.path, Tensor(name, GGMLType.F32, shape, read))


def _in_a_row(raw: RawTensor) -> Any:
    """A function that reads bytes [start, stop) of a tensor of bytes, whatever its shape is."""
    width = raw.columns

    def read(start: int, stop: int) -> Bytes:
        rows = raw.read(start // width, -(-stop // width)).reshape(-1)
        return rows[start % width :][: stop - start]

    return read


def _read_state(raw: RawTensor) -> tuple[tuple[int, ...], int, tuple[int, float] | None]:
    """The weight's shape, the size of a block, and for nested scales the size of theirs and the offset."""
    try:
        state = json.loads(raw.values().tobytes())
    except ValueError as error:
        raise InputError(f"{raw.path}: {raw.name}: is not JSON: {error}") from None
    match state:
        case {"blocksize": int(block), "shape": [*shape]} if block > 0 and block % 2 == 0:
            if shape and all(type(size) is int and size > 0 for size in shape):
                match state:
                    case {"nested_blocksize": int(size), "nested_offset": float() | int() as offset} if size > 0:
                        return tuple(shape), block, (size, float(offset))
                return tuple(shape), block, None
    raise InputError(f"{raw.path}: {raw.name}: found {short(state)}, wanted a blocksize and the shape of the weight")


def _eight_bits(parts: Parts, module: str) -> Unpacked:
    name = f"{module}.weight"
    raw = parts.take(name, name, "I8")
    if len(raw.shape) != 2:
        raise InputError(f"{raw.path}: {name}: shape {raw.shape}, wanted a matrix")
    scales = parts.take(f"{module}.SCB", name, "F32", shape=(raw.shape[0],))
    form = parts.take_if_stored(f"{module}.weight_format", name, "U8")
    if form is not None and form.values().any():
        raise InputError(
            f"{raw.path}: {form.name}: found {form.values().reshape(-1)[:1].tolist()}, wanted 0, for rows; "
            f"load and save the model with a newer bitsandbytes"
        )

    def read(start: int, stop: int) -> Bytes:
        weights = raw.values(start, stop).astype(np.float32)
        by_group(np.multiply, weights, read_scales(scales).reshape(-1, 1)[start:stop], raw.columns)
        weights *= _PER_127
        return weights.view(np.uint8)

    return Unpacked(raw.path, Tensor(name, GGMLType.F32, raw.shape, read))
