"""The codebook formats: 8 (or 4) weights share one codebook entry. Source of the layouts: ggml-common.h."""

import numpy as np

from lltool.gguf.ggml_types import GGMLType
from lltool.gguf.source import Bytes
from lltool.quant import _native
from lltool.quant.formats.base import Codes, Floats, Format, Groups, bits, fields, half, words


def even_signs(stored: Codes) -> Bytes:
    """Seven stored sign bits and an eighth that makes the number of set bits even."""
    parity = fields(stored, range(7), 1).sum(axis=-1) & 1
    signs: Bytes = (stored | parity << 7).astype(np.uint8)
    return signs


def signed_codes(book: str, entries: Codes, signs: Bytes, zero: int) -> Codes:
    """The codes of weights: zero + value, or zero - value if the weight's sign bit is set."""
    values = _native.codebook(book)[entries].reshape(len(entries), -1).astype(np.int16)
    return (zero + np.where(bits(signs), -values, values)).astype(np.uint8)


def nibble_scales(data: Bytes) -> Floats:
    """One 4-bit number per group, the low nibble first."""
    return fields(data, range(0, 8, 4), 4).reshape(len(data), -1).astype(np.float32)


class IQ2_XXS(Format, type=GGMLType.IQ2_XXS):
    """f16 d; per 32 weights four 8-bit entry numbers, then a word of four 7-bit signs and the 4-bit scale."""

    group, zero = 32, 43

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        word = words(blocks[:, 2:].reshape(-1, 8)[:, 4:], "<u4").reshape(-1, 8)
        entries = blocks[:, 2:].reshape(-1, 8, 8)[..., :4].reshape(-1, 32)
        signs = even_signs(fields(word, range(0, 28, 7), 7).reshape(-1, 32))
        scale = half(blocks, 0) * (np.float32(0.5) + (word >> 28).astype(np.float32)) * np.float32(0.25)
        return Groups(signed_codes("iq2_xxs", entries, signs, cls.zero), scale)


class IQ2_XS(Format, type=GGMLType.IQ2_XS):
    """f16 d; 32 words of a 9-bit entry number and 7-bit signs; 4-bit scales of 16 weights."""

    group, zero = 16, 43

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        word = words(blocks[:, 2:66], "<u2")
        scale = half(blocks, 0) * (np.float32(0.5) + nibble_scales(blocks[:, 66:])) * np.float32(0.25)
        return Groups(signed_codes("iq2_xs", word & 511, even_signs(word >> 9), cls.zero), scale)


class IQ2_S(Format, type=GGMLType.IQ2_S):
    """f16 d, 32 low bytes of entry numbers, 32 sign bytes, 8 bytes of high bit pairs, scales as in IQ2_XS."""

    group, zero = 16, 43

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        entries = blocks[:, 2:34] | fields(blocks[:, 66:74], range(0, 8, 2), 2).reshape(-1, 32) << 8
        scale = half(blocks, 0) * (np.float32(0.5) + nibble_scales(blocks[:, 74:])) * np.float32(0.25)
        return Groups(signed_codes("iq2_s", entries, blocks[:, 34:66], cls.zero), scale)


class IQ3_XXS(Format, type=GGMLType.IQ3_XXS):
    """f16 d, 64 entry numbers of 4 weights, then per 32 weights a word of four 7-bit signs and the 4-bit scale."""

    group, zero = 32, 62

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        word = words(blocks[:, 66:], "<u4")
        signs = even_signs(fields(word, range(0, 28, 7), 7).reshape(-1, 32))
        scale = half(blocks, 0) * (np.float32(0.5) + (word >> 28).astype(np.float32)) * np.float32(0.5)
        return Groups(signed_codes("iq3_xxs", words(blocks[:, 2:66], "u1"), signs, cls.zero), scale)


class IQ3_S(Format, type=GGMLType.IQ3_S):
    """f16 d, 64 low bytes of entry numbers, 8 bytes of ninth bits, 32 sign bytes, 4-bit scales of 32 weights."""

    group, zero = 32, 15

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        entries = blocks[:, 2:66] | bits(blocks[:, 66:74]).astype(np.uint32) << 8
        scale = half(blocks, 0) * (1 + 2 * nibble_scales(blocks[:, 106:]))
        return Groups(signed_codes("iq3_s", entries, blocks[:, 74:106], cls.zero), scale)


def shifted_codes(entries: Codes, down: Codes) -> Codes:
    """The codes of IQ1: -8, 0 or 8 eighths from the codebook, minus (`down`) or plus one eighth; zero is at 9."""
    codes = _native.codebook("iq1")[entries] + np.where(down, 0, 2)[..., None]
    return codes.astype(np.uint8).reshape(len(entries), -1)


class IQ1_S(Format, type=GGMLType.IQ1_S):
    """f16 d, 32 low bytes of entry numbers, per 32 weights a word: four 3-bit high parts, 3-bit scale, shift."""

    group, zero = 32, 9

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        word = words(blocks[:, 34:], "<u2")
        entries = blocks[:, 2:34] | fields(word, range(0, 12, 3), 3).reshape(-1, 32) << 8
        scale = half(blocks, 0) * (2 * (word >> 12 & 7) + 1).astype(np.float32) * np.float32(0.125)
        return Groups(shifted_codes(entries, np.repeat(word >> 15, 4, axis=1)), scale)


class IQ1_M(Format, type=GGMLType.IQ1_M):
    """32 low bytes of entry numbers, 16 bytes of nibbles (3 high bits, the shift), four words of four 3-bit scales.

    The top nibbles of the four words make up the f16 d.
    """

    group, zero = 16, 9

    @classmethod
    def unpack(cls, blocks: Bytes) -> Groups:
        nibble = fields(blocks[:, 32:48], range(0, 8, 4), 4).reshape(-1, 32)
        word = words(blocks[:, 48:], "<u2")
        pattern = (word >> 12 << np.arange(0, 16, 4, dtype=np.uint32)).sum(axis=1, keepdims=True).astype("<u2")
        scales = 2 * fields(word, range(0, 12, 3), 3).reshape(-1, 16) + 1
        scale = pattern.view("<f2").astype(np.float32) * scales.astype(np.float32) * np.float32(0.125)
        return Groups(shifted_codes(blocks[:, :32] | (nibble & 7) << 8, nibble >> 3), scale)
