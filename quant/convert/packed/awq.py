"""AWQ: integers of four bits, eight outputs in a 32-bit word in an order of its own, with scales for groups of inputs.

Source: AutoAWQ's WQLinear_GEMM.
"""

from collections.abc import Iterator

import numpy as np

from lltool.gguf.errors import InputError
from lltool.quant.convert.packed.integers import Integers, read_columns
from lltool.quant.convert.packed.numbers import Codes, Floats, read_scales, unpack_bits
from lltool.quant.convert.packed.parts import Parts, Settings, Unpacked
from lltool.quant.convert.raw import RawTensor

_BITS, _EACH = 4, 8
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # the field of a word that holds each of its outputs


def unpack(parts: Parts, settings: Settings) -> Iterator[Unpacked]:
    """The weights of all modules with a `qweight`."""
    settings.integer("w_bit" if "w_bit" in settings.values else "bits", _BITS, default=_BITS)
    settings.choice("version", "gemm", "gemm")
    group = settings.integer("q_group_size" if "q_group_size" in settings.values else "group_size", default=128)
    settings.require("group_size", group == -1 or group > 0, "-1 or a positive integer")
    for name in list(parts.with_suffix(".qweight")):
        yield _weight(parts, name, group)


def _weight(parts: Parts, name: str, group: int) -> Unpacked:
    weight = f"{name}.qweight"
    raw = parts.take(weight, weight, "I32")
    if len(raw.shape) != 2:
        raise InputError(f"{raw.path}: {weight}: shape {raw.shape}, wanted a matrix")
    inputs, outputs = raw.shape[0], raw.shape[1] * _EACH
    size = inputs if group == -1 else group
    groups = -(-inputs // size)
    scales = parts.take(f"{name}.scales", weight, "F16", "BF16", "F32", shape=(groups, outputs))
    zeros = parts.take_if_stored(f"{name}.qzeros", weight, "I32", shape=(groups, outputs // _EACH))

    def zeros_of(start: int, stop: int) -> Floats:
        assert zeros is not None
        return _outputs(zeros, start, stop).astype(np.float32)

    def scales_of(start: int, stop: int) -> Floats:
        return np.ascontiguousarray(read_scales(scales)[:, start:stop].T)

    is_symmetric = zeros is None or bool((zeros_of(0, outputs) == 1 << (_BITS - 1)).all())
    made = Integers(
        (outputs, inputs),
        _BITS,
        size,
        lambda start, stop: _outputs(raw, start, stop),
        scales_of,
        None if is_symmetric else zeros_of,
        None,
        scales.dtype == "F16",
    )
    return Unpacked(raw.path, made.tensor(f"{name}.weight"), made.is_exact)


def _outputs(raw: RawTensor, start: int, stop: int) -> Codes:
    """The integers of outputs [start, stop), (outputs, rows of the stored matrix)."""
    first = start // _EACH
    words = read_columns(raw, first, -(-stop // _EACH))  # (words, rows)
    codes = unpack_bits(words.reshape(-1, 1), _BITS).reshape(*words.shape, _EACH)[..., _PLACES]
    rows = codes.transpose(0, 2, 1).reshape(-1, words.shape[1])
    return np.ascontiguousarray(rows[start - first * _EACH : stop - first * _EACH])
