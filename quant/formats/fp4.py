"""Four-bit formats whose codes index a table of 16 values. Source of layouts and tables: ggml-common.h."""

import numpy as np

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes
from lltool.quant.formats.base import Floats, Format, Groups, fields, half, nibbles, words

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])
_IQ4_CODES = (_IQ4 + 127).astype(np.uint8)
_E2M1_CODES = (_E2M1_DOUBLED + 12).astype(np.uint8)


class IQ4_NL(Format, type=GGMLType.IQ4_NL):
    """f16 d; nibbles as in Q4_0."""

    group, zero = 32, 127

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        return Groups(_IQ4_CODES[nibbles(blocks[:, 2:])], half(blocks, 0))


class IQ4_XS(Format, type=GGMLType.IQ4_XS):
    """f16 d, u16 of high scale bits, 4 bytes of low scale nibbles, 128 bytes: nibbles of 32 weights as in Q4_0."""

    group, zero = 32, 127

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        high = fields(words(blocks[:, 2:4], "<u2"), range(0, 16, 2), 2).reshape(-1, 8)
        low = fields(blocks[:, 4:8], range(0, 8, 4), 4).reshape(-1, 8)
        scales = (low | high << 4).astype(np.float32) - np.float32(32)
        codes = _IQ4_CODES[nibbles(blocks[:, 8:].reshape(-1, 8, 16))].reshape(-1, 256)
        return Groups(codes, half(blocks, 0) * scales)


class MXFP4(Format, type=GGMLType.MXFP4):
    """One E8M0 exponent (bias 127); nibbles as in Q4_0. The scale is halved because the values are doubled."""

    group, zero = 32, 12

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
        return Groups(_E2M1_CODES[nibbles(blocks[:, 1:])], scale)


class NVFP4(Format, type=GGMLType.NVFP4):
    """Four unsigned E4M3 scales (bias 7; 0x7f is zero), halved as in MXFP4; per 16 weights 8 bytes of nibbles."""

    group, zero = 16, 12

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        codes = _E2M1_CODES[nibbles(blocks[:, 4:].reshape(-1, 4, 8))].reshape(-1, 64)
        return Groups(codes, cls.scale(blocks[:, :4]))

    @staticmethod
    def scale(data: Bytes) -> Floats:
        exponent, mantissa = data.astype(np.int32) >> 3 & 15, data & 7
        eighths = (mantissa + 8 * (exponent > 0)).astype(np.float32)
        scale = eighths * np.ldexp(np.float32(1), np.maximum(exponent, 1) - 11)
        return np.where(data == 0x7F, np.float32(0), scale)
