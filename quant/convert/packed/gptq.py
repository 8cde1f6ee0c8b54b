"""GPTQ: integers of 2, 3, 4 or 8 bits along the inputs, packed into 32-bit words, with scales for groups of inputs.

Source: AutoGPTQ's and GPTQModel's packing. In their first format the stored zeros are one too small, modulo the range.
"""

from collections.abc import Iterator

import numpy as np

from lltool.gguf.errors import InputError
from lltool.quant.convert.packed.integers import Integers, read_columns
from lltool.quant.convert.packed.numbers import Codes, Floats, read_scales, unpack_bits
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked
from lltool.quant.convert.raw import RawTensor

BITS = (2, 3, 4, 8)
_WORD = 32


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The weights of all modules with a `qweight`."""
    bits, group = settings.integer("bits", *BITS), settings.integer("group_size", default=-1)
    settings.require("group_size", group == -1 or group > 0, "-1 or a positive integer")
    lift = settings.choice("checkpoint_format", "gptq", "gptq", "gptq_v2") == "gptq"
    for name in list(parts.with_suffix(".qweight")):
        yield _weight(parts, name, bits, group, lift)


def _weight(parts: Parts, name: str, bits: int, group: int, lift: bool) -> Unpacked:
    weight = f"{name}.qweight"
    raw = parts.take(weight, weight, "I32")
    if len(raw.shape) != 2:
        raise InputError(f"{raw.path}: {weight}: shape {raw.shape}, wanted a matrix")
    order = None
    inputs, outputs = raw.shape[0] * _WORD // bits, raw.shape[1]
    if (stored := parts.take_if_stored(f"{name}.g_idx", weight, "I32")) is not None:
        order = stored.values().reshape(-1).astype(np.int64)
        bits = next((b for b in BITS if len(order) * b == raw.shape[0] * _WORD), 0)  # a module may have its own
        inputs = len(order)
        if not bits:
            raise InputError(
                f"{raw.path}: {weight}: shape {raw.shape}, wanted {' or '.join(map(str, BITS))} bits for each of the "
                f"{inputs} inputs in {stored.name}"
            )
    size = inputs if group == -1 else group
    groups = -(-inputs // size)
    scales = parts.take(f"{name}.scales", weight, "F16", "BF16", "F32", shape=(groups, outputs))
    zeros = parts.take(f"{name}.qzeros", weight, "I32", shape=(groups, -(-outputs * bits // _WORD)))
    if order is not None:
        if len(order) and not (order.min() >= 0 and order.max() < groups):
            raise InputError(f"{raw.path}: {name}.g_idx: found {order.max()}, wanted groups from 0 to {groups - 1}")
        if (order == np.arange(inputs) // size).all():
            order = None

    def codes(start: int, stop: int) -> Codes:
        return unpack_bits(read_columns(raw, start, stop), bits)[:, :inputs]

    def zeros_of(start: int, stop: int) -> Floats:
        return (_zeros(zeros, bits, start, stop) + lift & (1 << bits) - 1).T.astype(np.float32)

    def scales_of(start: int, stop: int) -> Floats:
        return np.ascontiguousarray(read_scales(scales)[:, start:stop].T)

    is_symmetric = bool((zeros_of(0, outputs) == 1 << (bits - 1)).all())
    made = Integers(
        (outputs, inputs),
        bits,
        size,
        codes,
        scales_of,
        None if is_symmetric else zeros_of,
        order,
        scales.dtype == "F16",
    )
    return Unpacked(raw.path, made.tensor(f"{name}.weight"), made.is_exact)


def _zeros(raw: RawTensor, bits: int, start: int, stop: int) -> Codes:
    """The stored zeros of outputs [start, stop), (groups, outputs)."""
    first = start // _WORD  # 32 fields begin and end with a word
    words = raw.values()[:, first * bits : -(-stop // _WORD) * bits]
    return unpack_bits(words, bits)[:, start - first * _WORD : stop - first * _WORD]
