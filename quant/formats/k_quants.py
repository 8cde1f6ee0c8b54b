"""The k-quants: super-blocks of 256 weights with small integer scales. Source of the layouts: ggml-common.h."""

import numpy as np

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.formats.base import Floats, Format, Groups, half, nibbles, planes


class Q2_K(Format, type=GGMLType.Q2_K):
    """16 bytes of scale (low) and min (high) nibbles, 64 bytes of bit pairs, f16 d, f16 dmin."""

    group, zero = 16, 0

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        scale, min = blocks[:, :16] & 15, blocks[:, :16] >> 4
        return Groups(planes(blocks[:, 16:80], 2), half(blocks, 80) * scale, -(half(blocks, 82) * min))


class Q3_K(Format, type=GGMLType.Q3_K):
    """32 bytes of third bits, 64 of bit pairs, sixteen 6-bit scales (8 bytes of nibbles, 4 of high pairs), f16 d."""

    group, zero = 16, 4

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        low = np.concatenate([blocks[:, 96:104] & 15, blocks[:, 96:104] >> 4], axis=1)
        high = np.concatenate([blocks[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
        scales = (low | high << 4).astype(np.float32) - np.float32(32)
        return Groups(planes(blocks[:, 32:96], 2) | planes(blocks[:, :32], 1) << 2, half(blocks, 108) * scales)


def scales_and_mins(blocks: Bytes) -> tuple[Floats, Floats]:
    """f16 d, f16 dmin, then eight 6-bit scales and eight 6-bit mins in 12 bytes: both (n, 8), the mins negated."""
    scale, min, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([scale & 63, high & 15 | scale >> 6 << 4], axis=1)
    mins = np.concatenate([min & 63, high >> 4 | min >> 6 << 4], axis=1)
    return half(blocks, 0) * scales, -(half(blocks, 2) * mins)


class Q4_K(Format, type=GGMLType.Q4_K):
    """Scales and mins, then 128 bytes of nibbles: for each 32 bytes, first the low nibbles, then the high ones."""

    group, zero = 32, 0

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(planes(blocks[:, 16:], 4), *scales_and_mins(blocks))


class Q5_K(Format, type=GGMLType.Q5_K):
    """Scales and mins, 32 bytes of fifth bits (bit g for group g), 128 bytes of nibbles as in Q4_K."""

    group, zero = 32, 0

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(planes(blocks[:, 48:], 4) | planes(blocks[:, 16:48], 1) << 4, *scales_and_mins(blocks))


class Q6_K(Format, type=GGMLType.Q6_K):
    """128 bytes of low nibbles (64 bytes, low ones first, twice), 64 of high bit pairs, 16 int8 scales, f16 d."""

    group, zero = 16, 32

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 256)
        scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
        return Groups(low | planes(blocks[:, 128:192], 2) << 4, half(blocks, 208) * scales)


class Q8_K(Format, type=GGMLType.Q8_K):
    """f32 d, 256 int8, 16 int16 sums: ggml's own format for activations."""

    group, zero = 32, 128

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        d = np.ascontiguousarray(blocks[:, :4]).view("<f4")
        return Groups(blocks[:, 4:260] ^ 0x80, np.repeat(d, 8, axis=1))
