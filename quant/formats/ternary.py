"""Formats with one or two bits per weight and one scale per block. Source of the layouts: ggml-common.h."""

import numpy as np

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.formats.base import Codes, Format, Groups, bits, fields, half, planes


def digits(data: Bytes, count: int) -> Codes:
    """The base-3 digits of bytes, which are fractions of 256: the first digits of all bytes, then all second digits."""
    powers = (3 ** np.arange(count)).astype(np.uint8)[:, None]
    rest = data[:, None, :] * powers  # (n, count, bytes), modulo 256
    return (rest.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), -1)


class TQ1_0(Format, type=GGMLType.TQ1_0):
    """48 bytes of five base-3 digits each (32, then 16 bytes), 4 bytes of four digits each, f16 d."""

    group, zero = 32, 1

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        codes = [digits(blocks[:, :32], 5), digits(blocks[:, 32:48], 5), digits(blocks[:, 48:52], 4)]
        return Groups(np.concatenate(codes, axis=1), np.repeat(half(blocks, 52), 8, axis=1))


class TQ2_0(Format, type=GGMLType.TQ2_0):
    """64 bytes of bit pairs (in each 32 bytes, pair k holds the weights from 32k on), f16 d."""

    group, zero = 32, 1

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(planes(blocks[:, :64], 2), np.repeat(half(blocks, 64), 8, axis=1))


class Q1_0(Format, type=GGMLType.Q1_0):
    """f16 d; weight i is d if bit i is set, else -d."""

    group, zero = 32, 1

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(bits(blocks[:, 2:]) << 1, np.repeat(half(blocks, 0), 4, axis=1))


class Q2_0(Format, type=GGMLType.Q2_0):
    """f16 d; four weights per byte, the first in the low bits."""

    group, zero = 32, 1

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        codes = fields(blocks[:, 2:], range(0, 8, 2), 2).reshape(-1, 64).astype(np.uint8)
        return Groups(codes, np.repeat(half(blocks, 0), 2, axis=1))
