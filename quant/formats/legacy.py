"""The formats with one scale for 32 weights. Source of the layouts: ggml-common.h."""

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.formats.base import Format, Groups, bits, half, nibbles


class Q4_0(Format, type=GGMLType.Q4_0):
    """f16 d; 16 bytes: low nibbles are weights 0-15, high nibbles 16-31."""

    group, zero = 32, 8

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(nibbles(blocks[:, 2:]), half(blocks, 0))


class Q4_1(Format, type=GGMLType.Q4_1):
    """f16 d, f16 m; nibbles as in Q4_0."""

    group, zero = 32, 0

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(nibbles(blocks[:, 4:]), half(blocks, 0), half(blocks, 2))


class Q5_0(Format, type=GGMLType.Q5_0):
    """f16 d, u32 whose bit i is the fifth bit of weight i, 16 bytes of nibbles."""

    group, zero = 32, 16

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(nibbles(blocks[:, 6:]) | bits(blocks[:, 2:6]) << 4, half(blocks, 0))


class Q5_1(Format, type=GGMLType.Q5_1):
    """f16 d, f16 m, u32 of fifth bits, 16 bytes of nibbles."""

    group, zero = 32, 0

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(nibbles(blocks[:, 8:]) | bits(blocks[:, 4:8]) << 4, half(blocks, 0), half(blocks, 2))


class Q8_0(Format, type=GGMLType.Q8_0):
    """f16 d; 32 int8."""

    group, zero = 32, 128

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(blocks[:, 2:] ^ 0x80, half(blocks, 0))


class Q8_1(Format, type=GGMLType.Q8_1):
    """f16 d, f16 sum, 32 int8: ggml's own format for activations."""

    group, zero = 32, 128

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(blocks[:, 4:] ^ 0x80, half(blocks, 0))
