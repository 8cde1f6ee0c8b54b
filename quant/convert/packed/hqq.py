"""HQQ: integers of 1 to 8 bits with a zero and a scale for each group of neighbours, along the rows or across them.

Source: hqq's Quantizer.dequantize and BitPack, and HQQLinear.state_dict for the names of parts.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from lltool.gguf.errors import InputError
from lltool.quant.convert.packed.numbers import Codes, Floats, floats_in_pieces, read_scales
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked
from lltool.quant.convert.raw import RawTensor

_FIELDS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "3bit_32": (3, 10), "2bit_u8": (2, 4), "1bit_u8": (1, 8)}
"""Of each packing: the bits of a code, and the codes of a stored number, the first of which has the highest bits."""

# Parts that the weights do not need: they repeat the others or say how the codes were found.
_REPEATED = (
    *("nbits", "group_size", "compute_dtype", "unpack_view_dtype", "offload_meta", "encoded_state_dict"),
    *("stores_quant_config", "channel_wise", "optimize", "round_zero"),
)


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The float32 weights of all modules with codes, `W_q`, which HQQ computes as (code - zero) * scale."""
    for module in list(parts.with_suffix(".W_q")):
        yield _weight(parts, module)


def _weight(parts: Parts, module: str) -> Unpacked:
    codes = f"{module}.W_q"
    raw = parts.take(codes, codes, "U8", "I32")
    for name in ("quant_scale", "quant_zero", "view_as_float"):
        if (flag := parts.take_if_stored(f"{module}.{name}", codes, "U8")) is not None and flag.values().any():
            raise InputError(f"{raw.path}: {module}.{name}: is set, and this version reads only plain scales and codes")
    packing = bytes(parts.take(f"{module}.packing", codes, "U8").values().reshape(-1).tolist()).decode("latin-1")
    if packing not in _FIELDS:
        raise InputError(f"{raw.path}: {module}.packing: found {packing!r}, wanted {', '.join(_FIELDS)}")
    rows, columns = (int(n) for n in parts.take(f"{module}.shape", codes, "I64", shape=(2,)).values().reshape(-1))
    along = parts.take(f"{module}.axis", codes, "I32").values().reshape(-1)[:1].tolist()
    scale = parts.take(f"{module}.scale", codes, "F16", "BF16", "F32")
    zero = parts.take(f"{module}.zero", codes, "F16", "BF16", "F32", shape=scale.shape)
    for name in _REPEATED:
        parts.take_if_stored(f"{module}.{name}", codes)
    count, groups = rows * columns, prod(scale.shape)
    height, width = (groups, count // groups) if along == [1] else (count // groups, groups)  # of the matrix of codes
    bits, each = _FIELDS[packing]
    step = -(-height // each)  # stored rows; the codes of a stored number lie so many rows apart
    wanted_scale = (height, 1) if along == [1] else (1, width)
    if min(rows, columns) < 1 or height * width != count or scale.shape != wanted_scale or raw.shape != (step, width):
        raise InputError(
            f"{raw.path}: {module}: codes {raw.shape}, scales {scale.shape} and axis {along} do not give a weight of "
            f"({rows}, {columns})"
        )

    def read(start: int, stop: int) -> Floats:
        begin, end = start * columns, stop * columns
        first, last = begin // width, -(-end // width)
        weights = _codes(raw, first, last, step, bits, each).astype(np.float32)
        span = (first, last) if along == [1] else (0, 1)
        weights -= read_scales(zero, *span)
        weights *= read_scales(scale, *span)
        return weights.reshape(-1)[begin - first * width : end - first * width].reshape(stop - start, columns)

    return Unpacked(raw.path, floats_in_pieces(f"{module}.weight", (rows, columns), read))


def _codes(raw: RawTensor, first: int, last: int, step: int, bits: int, each: int) -> Codes:
    """Rows [first, last) of the matrix of codes."""
    found = []
    while first < last:
        field, place = divmod(first, step)
        stop = min(last, (field + 1) * step)
        stored = raw.values(place, place + stop - first)
        found.append((stored >> (bits * (each - 1 - field)) & ((1 << bits) - 1)).astype(np.uint8))
        first = stop
    return np.concatenate(found)
