"""Checkpoints of compressed-tensors: packed integers, four-bit floats, and whole numbers or floats of 8 bits.

Source: the compressors of the compressed-tensors package.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lltool.gguf.errors import InputError
from lltool.quant.convert.packed import fp8
from lltool.quant.convert.packed.integers import Integers, are_half
from lltool.quant.convert.packed.mxfp4 import grid_tensor
from lltool.quant.convert.packed.numbers import Codes, Floats, read_scales, unpack_bits
from lltool.quant.convert.packed.nvfp4 import grid_weight
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked

_WORD = 32


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The weights of all modules with a `weight_packed` or a `weight` of 8 bits."""
    sparsity = settings.values.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity:
        settings.part("sparsity_config", sparsity).choice("format", "dense", "dense")
    widths, block = _widths(settings)
    for name in list(parts.with_suffix(".weight_packed")):
        weight, codes = f"{name}.weight", f"{name}.weight_packed"
        if parts.peek(codes).dtype == "I32":
            yield _integers(parts, name, widths)
        elif f"{weight}_global_scale" in parts:
            yield grid_weight(parts, weight, codes, f"{weight}_scale", f"{weight}_global_scale", divides=True)
        else:
            yield _mxfp4(parts, name)
    for name in list(parts.files):
        if name.endswith(".weight") and parts.peek(name).dtype in ("I8", "F8_E4M3"):
            zeros = None
            if f"{name}_zero_point" in parts and f"{name}_scale" in parts:
                zeros = parts.take(f"{name}_zero_point", name, "I8", shape=parts.peek(f"{name}_scale").shape)
            yield fp8.scaled(parts, name, block, zeros)


def _widths(settings: Settings) -> tuple[list[int], tuple[int, int] | None]:
    """The numbers of bits that groups of modules have, and the size of blocks."""
    groups = settings.values.get("config_groups")
    settings.require("config_groups", isinstance(groups, dict) and bool(groups), "an object of groups of modules")
    widths, block = [], None
    for key, group in (groups or {}).items():
        weights: Any = group.get("weights") if isinstance(group, dict) else None
        if weights is None:
            continue
        settings.require("config_groups", isinstance(weights, dict), "groups with an object named weights")
        inner = settings.part(f"config_groups.{key}.weights", weights)
        widths.append(inner.integer("num_bits", *range(1, 9)))
        if (size := weights.get("block_structure")) is not None:
            fine = isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
            inner.require("block_structure", fine, "two positive integers")
            block = (size[0], size[1])
    return widths, block


def _integers(parts: Parts, name: str, widths: list[int]) -> Unpacked:
    codes = f"{name}.weight_packed"
    raw = parts.take(codes, codes, "I32")
    shape = parts.take(f"{name}.weight_shape", codes, "I64", "I32", shape=(2,))
    rows, columns = (int(size) for size in shape.values().reshape(-1))
    bits = next((b for b in widths if raw.shape == (rows, -(-columns * b // _WORD))), 0)
    if not bits or rows < 1:
        raise InputError(
            f"{raw.path}: {codes}: shape {raw.shape}, wanted {rows} rows of {columns} integers of "
            f"{' or '.join(map(str, widths))} bits, as {shape.name} and config.json say"
        )
    scales = parts.take(f"{name}.weight_scale", codes, "BF16", "F16", "F32")
    groups = scales.columns
    if scales.shape != (rows, groups) or columns % groups:
        raise InputError(
            f"{scales.path}: {scales.name}: shape {scales.shape}, wanted {rows} rows of scales for groups of the "
            f"{columns} columns"
        )
    zeros = parts.take_if_stored(f"{name}.weight_zero_point", codes, "I32", shape=(-(-rows * bits // _WORD), groups))
    order = None
    if (stored := parts.take_if_stored(f"{name}.weight_g_idx", codes, "I32", "I64", shape=(columns,))) is not None:
        order = stored.values().reshape(-1).astype(np.int64)
        if not (order.min() >= 0 and order.max() < groups):
            raise InputError(f"{raw.path}: {stored.name}: found {order.max()}, wanted groups from 0 to {groups - 1}")

    def codes_of(start: int, stop: int) -> Codes:
        return unpack_bits(raw.values(start, stop), bits)[:, :columns]

    def zeros_of(start: int, stop: int) -> Floats:
        assert zeros is not None
        first = start // _WORD  # 32 fields begin and end with a word
        words = zeros.values(first * bits, min(-(-stop // _WORD) * bits, zeros.rows)).T
        fields = unpack_bits(words, bits)[:, start - first * _WORD : stop - first * _WORD]
        return fields.T.astype(np.float32)

    made = Integers(
        (rows, columns),
        bits,
        columns // groups,
        codes_of,
        lambda start, stop: read_scales(scales, start, stop),
        None if zeros is None else zeros_of,
        order,
        scales.dtype == "F16" or are_half(read_scales(scales)),
    )
    return Unpacked(raw.path, made.tensor(f"{name}.weight"), made.is_exact)


def _mxfp4(parts: Parts, name: str) -> Unpacked:
    codes = f"{name}.weight_packed"
    raw = parts.take(codes, codes, "U8")
    if len(raw.shape) != 2 or raw.columns % 16:
        raise InputError(f"{raw.path}: {codes}: shape {raw.shape}, wanted two axes, the last a multiple of 16")
    scales = parts.take(f"{name}.weight_scale", codes, "U8", shape=(raw.shape[0], raw.columns // 16))
    shape = (raw.shape[0], raw.columns * 2)
    return Unpacked(raw.path, grid_tensor(f"{name}.weight", raw, scales, shape), is_exact=True)
