"""How a matrix lies in a device's memory: planes of code bits, and the scales of its groups.

A file's blocks have odd sizes, so that a device would read them two bytes at a time. Planes are aligned: the codes of
32 columns are 16, 8 and 4 bytes in planes of 4, 2 and 1 bits, or 32 bytes; a code of a format with a codebook is a
place in a table of at most 16 values. Scales stay exact: as f16 where the format has one for each group, else as small
integers, which a f16 of each block multiplies, else as float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lltool.engine.program import Weight
from lltool.gguf.ggml_types import LAYOUT, GGMLType
from lltool.quant import _native

CHUNK = 32  # columns whose codes lie together

_IQ4 = (0, 23, 44, 62, 78, 92, 105, 117, 128, 140, 152, 165, 180, 196, 216, 240)


def _around(zero: int, *distances: int) -> tuple[int, ...]:
    return tuple(sorted({zero - d for d in distances} | {zero + d for d in distances}))


# The codes of formats with a codebook (quant/csrc/formats/).
_TABLES: Mapping[GGMLType, tuple[int, ...]] = {
    GGMLType.IQ4_NL: _IQ4,
    GGMLType.IQ4_XS: _IQ4,
    GGMLType.MXFP4: _around(12, 0, 1, 2, 3, 4, 6, 8, 12),
    GGMLType.NVFP4: _around(12, 0, 1, 2, 3, 4, 6, 8, 12),
    GGMLType.IQ1_S: _around(9, 1, 7, 9),
    GGMLType.IQ1_M: _around(9, 1, 7, 9),
    GGMLType.IQ2_XXS: _around(43, 8, 25, 43),
    GGMLType.IQ2_XS: _around(43, 8, 25, 43),
    GGMLType.IQ2_S: _around(43, 8, 25, 43),
    GGMLType.IQ3_XXS: _around(62, 4, 12, 20, 28, 36, 44, 52, 62),
    GGMLType.IQ3_S: _around(15, *range(1, 16, 2)),
}

# The bytes of a block at which the f16 lie that multiply its integer scales, and its integer minima if it has any. The
# scales of other formats are f16 or float32.
_SUPER_SCALES: Mapping[GGMLType, tuple[int, ...]] = {
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
    GGMLType.IQ4_XS: (0,),
}
_HALF_SCALES = frozenset(
    {
        GGMLType.Q4_0,
        GGMLType.Q4_1,
        GGMLType.Q5_0,
        GGMLType.Q5_1,
        GGMLType.Q8_0,
        GGMLType.IQ4_NL,
        GGMLType.TQ1_0,
        GGMLType.TQ2_0,
        GGMLType.Q1_0,
        GGMLType.Q2_0,
    }
)


@dataclass(frozen=True)
class Form:
    """The form that matrices of a type have on a device. Kernels are compiled for one form, from its `defines`."""

    type: GGMLType
    widths: tuple[int, ...]  # bits of each plane, widest first
    group: int  # columns with one scale
    zero: int  # the code of 0, subtracted after the product; a table has it subtracted already
    has_min: bool
    scales: str  # "HALF", "INTEGER" (with a f16 for each block) or "FLOAT"
    block: int  # columns of a block of the file
    table: tuple[int, ...] = ()  # codes

    @property
    def bits_per_weight(self) -> float:
        count = 2 if self.has_min else 1
        of_group = {"HALF": 16, "INTEGER": 8, "FLOAT": 32}[self.scales] / self.group
        of_block = 16 / self.block if self.scales == "INTEGER" else 0
        return sum(self.widths) + count * (of_group + of_block)

    @property
    def defines(self) -> dict[str, str]:
        """The macros that kernels/weights.h reads."""
        defines = {
            **{f"PLANE{bits}": "1" for bits in self.widths},
            "GROUP_COLUMNS": str(self.group),
            "ZERO": str(0 if self.table else self.zero),
            f"SCALES_{self.scales}": "1",
            "BLOCK": str(self.block),
        }
        if self.has_min:
            defines["HAS_MIN"] = "1"
        if self.table:
            values = [code - self.zero for code in self.table] + [0] * (16 - len(self.table))
            defines["TABLE"] = ",".join(map(str, values))
        return defines


def form_of(type: GGMLType) -> Form:
    """The form of a quantized type."""
    group, zero, largest, has_min = _native.coded_form(type) or _unknown(type)
    table = _TABLES.get(type, ())
    bits = 4 if table else largest.bit_length()
    widths = (8,) if bits > 6 else tuple(width for width in (4, 2, 1) if bits & width)
    scales = "HALF" if type in _HALF_SCALES else "INTEGER" if type in _SUPER_SCALES else "FLOAT"
    zero -= 128 if widths == (8,) else 0  # whole bytes are signed
    return Form(type, widths, group, zero, has_min, scales, LAYOUT[type].block, table)


def _unknown(type: GGMLType) -> tuple[int, int, int, bool]:
    raise AssertionError(f"{type.name} is not a quantized type")


@dataclass(frozen=True)
class Planes:
    """A matrix in the form that kernels read: arrays (rows, ...), named as the kernels' arguments."""

    form: Form | None  # None: float weights, which are in `arrays["values"]` as the file has them
    rows: int
    columns: int
    arrays: Mapping[str, NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


PLANE_NAMES = {4: "fours", 2: "twos", 1: "ones", 8: "eights"}


def pack(weight: Weight, threads: int = 1) -> Planes:
    """The planes of a matrix or a stack of matrices, whose rows follow one another."""
    rows, columns = weight.rows, weight.columns
    if LAYOUT[weight.type].block == 1:
        return Planes(None, rows, columns, {"values": weight.data})
    form = form_of(weight.type)
    data = np.ascontiguousarray(weight.data)
    planes = {PLANE_NAMES[bits]: np.empty((rows, columns * bits // 8), np.uint8) for bits in form.widths}
    scale = np.empty((rows, columns // form.group), np.float32)
    minimum = np.empty_like(scale) if form.has_min else None
    table = np.array(form.table, np.uint8) if form.table else None
    _native.planes(
        weight.type,
        data,
        planes.get("fours"),
        planes.get("twos"),
        planes.get("ones"),
        planes.get("eights"),
        table,
        scale,
        minimum,
        threads,
    )
    if form.widths == (8,):
        planes["eights"] ^= 128
    scales = _store_scales(form, data, scale, minimum)
    return Planes(form, rows, columns, {**planes, **scales})


def _store_scales(
    form: Form, data: NDArray[np.uint8], scale: NDArray[np.float32], minimum: NDArray[np.float32] | None
) -> dict[str, NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]]:
    """The scales, and the minima, of groups in the form's way."""
    parts = {"scale": scale} if minimum is None else {"scale": scale, "min": minimum}
    match form.scales:
        case "FLOAT":
            return dict(parts)
        case "HALF":
            return {name: part.astype(np.float16) for name, part in parts.items()}
    stored: dict[str, NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]] = {}
    blocks = data.reshape(len(data), -1, LAYOUT[form.type].bytes)
    for (name, part), place in zip(parts.items(), _SUPER_SCALES[form.type], strict=True):
        halves = np.ascontiguousarray(blocks[..., place : place + 2]).view(np.float16)[..., 0]  # (rows, blocks)
        factor = np.repeat(halves.astype(np.float32), form.block // form.group, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            integers = np.where(factor == 0, 0, np.rint(part / factor))
        stored[name] = integers.astype(np.int8).view(np.uint8)
        stored[f"{name}_factor"] = halves
    return stored
