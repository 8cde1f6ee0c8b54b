"""MXFP4: four-bit floats, E2M1, of which 32 in a row share a power of two. GGUF has the same grid.

Source: the OCP microscaling specification, gpt-oss's checkpoints, and transformers' integrations/mxfp4.py.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from lltool.gguf.errors import InputError
from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes, Tensor
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked
from lltool.quant.convert.raw import RawTensor

_GROUP, _NAN = 32, 255


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """Stacks of experts: `NAME_blocks` of (experts, outputs, inputs / 32, 16), `NAME_scales` of (.., inputs / 32).

    A weight is (experts, outputs, inputs) and named as its blocks are, because NAME is that of the transposed stack.
    """
    for name in list(parts.with_suffix("_blocks")):
        blocks = parts.take(f"{name}_blocks", name, "U8")
        if len(blocks.shape) != 4 or blocks.shape[-1] != _GROUP // 2:
            raise InputError(f"{blocks.path}: {blocks.name}: shape {blocks.shape}, wanted four axes, the last of 16")
        scales = parts.take(f"{name}_scales", blocks.name, "U8", shape=blocks.shape[:-1])
        *outer, groups, _ = blocks.shape
        yield Unpacked(blocks.path, grid_tensor(blocks.name, blocks, scales, (*outer, groups * _GROUP)), is_exact=True)


def grid_tensor(name: str, codes: RawTensor, scales: RawTensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape in GGUF's MXFP4, from bytes of two weights, the first one low, and E8M0 scales.

    Raises InputError, when read, for a scale that is NaN.
    """
    rows, groups = prod(shape[:-1]), shape[-1] // _GROUP
    each, scale_each = codes.rows // rows, scales.rows // rows  # stored rows for one of the tensor

    def read(start: int, stop: int) -> Bytes:
        pairs = codes.read(start * each, stop * each).reshape(stop - start, groups, 2, 8)
        powers = scales.read(start * scale_each, stop * scale_each).reshape(stop - start, groups)
        if (powers == _NAN).any():
            row = start + int((powers == _NAN).any(axis=1).argmax())
            raise InputError(
                f"{scales.path}: {scales.name}: row {row}: found a scale that is NaN, wanted a power of two; "
                f"the file is damaged, so fetch it again"
            )
        first, second = pairs[:, :, 0], pairs[:, :, 1]  # weights 0 to 15 and 16 to 31, which GGUF puts in one byte
        blocks = np.empty((stop - start, groups, 17), np.uint8)
        blocks[..., 0] = powers
        blocks[..., 1::2] = first & 15 | second << 4
        blocks[..., 2::2] = first >> 4 | second & 240
        return blocks.reshape(stop - start, groups * 17)

    return Tensor(name, GGMLType.MXFP4, shape, read)
