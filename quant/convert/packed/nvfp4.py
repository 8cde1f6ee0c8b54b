"""NVFP4: four-bit floats, E2M1, of which 16 in a row share an E4M3 scale, and all a float32 scale.

GGUF's blocks have no place for the scale of the whole tensor, so the weights are made as float32.
Source: compressed-tensors' nvfp4 compressor, and the checkpoints of TensorRT's model optimizer.
"""

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.packed.numbers import E2M1, Floats, by_group, look_up, read_scales, unpack_bits
from lltool.quant.convert.packed.parts import Parts, Unpacked

_GROUP = 16


def grid_weight(parts: Parts, name: str, codes: str, scale: str, whole: str, *, divides: bool) -> Unpacked:
    """The weight `name` from its stored parts: codes of (rows, columns / 2), scales of (rows, columns / 16), and one
    of the whole tensor, which divides or else multiplies the others.

    Raises InputError for parts that do not fit, and for a scale that is zero where it divides.
    """
    raw = parts.take(codes, codes, "U8")
    if len(raw.shape) != 2 or raw.columns * 2 % _GROUP:
        raise InputError(
            f"{raw.path}: {codes}: shape {raw.shape}, wanted two axes, the last a multiple of {_GROUP // 2}"
        )
    rows, columns = raw.shape[0], raw.columns * 2
    scales = parts.take(scale, codes, "F8_E4M3", shape=(rows, columns // _GROUP))
    stored = parts.take(whole, codes, "F32")
    factor = read_scales(stored).reshape(-1)
    if len(factor) != 1 or factor[0] <= 0:
        raise InputError(f"{stored.path}: {whole}: found {factor[:3].tolist()}, wanted one positive scale")

    def read(start: int, stop: int) -> Bytes:
        weights: Floats = look_up(E2M1, unpack_bits(raw.values(start, stop), 4))
        groups = read_scales(scales, start, stop)
        by_group(np.multiply, weights, groups / factor if divides else groups * factor, _GROUP)
        return weights.view(np.uint8)

    return Unpacked(raw.path, Tensor(name, GGMLType.F32, (rows, columns), read))
