"""BitNet: weights of -1, 0 and 1, four rows in a row of bytes, with one scale for each matrix.

Source: transformers' integrations/bitnet.py.
"""

from collections.abc import Iterator

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.packed.numbers import read_scales
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked

_EACH = 4


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The float32 weights of all modules with a `weight_scale`.

    A module of the kind `autobitlinear` multiplies by its scale, one of the kind `bitlinear` divides by it.
    """
    divides = settings.choice("linear_class", "bitlinear", "bitlinear", "autobitlinear") == "bitlinear"
    settings.choice("quantization_mode", "offline", "offline")
    for module in list(parts.with_suffix(".weight_scale")):
        yield _weight(parts, module, divides)


def _weight(parts: Parts, module: str, divides: bool) -> Unpacked:
    name = f"{module}.weight"
    raw = parts.take(name, name, "U8")
    if len(raw.shape) != 2:
        raise InputError(f"{raw.path}: {name}: shape {raw.shape}, wanted a matrix")
    stored = parts.take(f"{module}.weight_scale", name, "F32", "BF16", "F16")
    scale = read_scales(stored).reshape(-1)
    if len(scale) != 1 or not scale[0]:
        raise InputError(f"{stored.path}: {stored.name}: found {scale[:3].tolist()}, wanted one scale other than 0")
    factor = 1 / scale[0] if divides else scale[0]
    height = raw.shape[0]  # of each of the four parts of the matrix, which lie one below the other
    table = np.arange(-1, 3, dtype=np.float32) * factor

    def read(start: int, stop: int) -> Bytes:
        weights = np.empty((stop - start, raw.columns), np.float32)
        row = start
        while row < stop:
            part, first = divmod(row, height)
            last = min(height, first + stop - row)
            codes = raw.values(first, last) >> (2 * part) & 3
            if (codes == 3).any():
                bad = row + int((codes == 3).any(axis=1).argmax())
                raise InputError(f"{raw.path}: {name}: row {bad}: found the code 3, wanted 0 to 2, for -1 to 1")
            weights[row - start : row - start + last - first] = table[codes]
            row += last - first
        return weights.view(np.uint8)

    return Unpacked(raw.path, Tensor(name, GGMLType.F32, (height * _EACH, raw.columns), read))
