// The codebook formats: each 8 (or 4) weights are stored as the number of a codebook entry and signs. Source of the layouts:
// ggml-common.h. Codes are zero plus or minus the entry's values; IQ1's are in eighths, so they include the shift.
#pragma once
#include "bits.h"
#include "codebooks.h"

namespace {

// Seven stored sign bits, and an eighth that makes the number of set bits even.
inline uint8_t even_signs(uint32_t stored) {
  uint32_t parity = stored ^ stored >> 4;
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return uint8_t(stored | (parity & 1) << 7);
}

// f16 d; per 32 weights: four entry numbers of 8 bits, then a word of four 7-bit signs and the 4-bit scale.
struct IQ2_XXS {
  static constexpr int type = 16, block = 256, bytes = 66, group = 32, zero = 43, max_code = 86;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = load_f16(b);
    for (int g = 0; g < 8; ++g) {
      const uint8_t* entries = b + 2 + 8 * g;
      const uint32_t word = load_u32(entries + 4);
      scale[g] = d * (0.5f + float(word >> 28)) * 0.25f;
      for (int i = 0; i < 4; ++i)
        store_u64(codes + 32 * g + 8 * i,
                  signed_codes(book_iq2_xxs[entries[i]], even_signs(word >> (7 * i) & 127), zero));
    }
  }
};

// f16 d; 32 words of a 9-bit entry number and 7-bit signs; 4-bit scales of 16 weights, low nibble first.
struct IQ2_XS {
  static constexpr int type = 17, block = 256, bytes = 74, group = 16, zero = 43, max_code = 86;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = load_f16(b);
    for (int g = 0; g < 16; ++g) scale[g] = d * (0.5f + float(b[66 + g / 2] >> (4 * (g & 1)) & 15)) * 0.25f;
    for (int i = 0; i < 32; ++i) {
      const uint16_t word = load_u16(b + 2 + 2 * i);
      store_u64(codes + 8 * i, signed_codes(book_iq2_xs[word & 511], even_signs(word >> 9), zero));
    }
  }
};

// f16 d, 32 low bytes of entry numbers, 32 sign bytes, 8 bytes of high bit pairs, scales as in IQ2_XS.
struct IQ2_S {
  static constexpr int type = 22, block = 256, bytes = 82, group = 16, zero = 43, max_code = 86;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = load_f16(b);
    const uint8_t *low = b + 2, *signs = b + 34, *high = b + 66, *scales = b + 74;
    for (int g = 0; g < 16; ++g) scale[g] = d * (0.5f + float(scales[g / 2] >> (4 * (g & 1)) & 15)) * 0.25f;
    for (int i = 0; i < 32; ++i) {
      const int entry = low[i] | (high[i / 4] >> (2 * (i & 3)) & 3) << 8;
      store_u64(codes + 8 * i, signed_codes(book_iq2_s[entry], signs[i], zero));
    }
  }
};

// f16 d, 64 entry numbers of 4 weights, then per 32 weights a word of four 7-bit signs and the 4-bit scale.
struct IQ3_XXS {
  static constexpr int type = 18, block = 256, bytes = 98, group = 32, zero = 62, max_code = 124;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = load_f16(b);
    for (int g = 0; g < 8; ++g) {
      const uint8_t* entries = b + 2 + 8 * g;
      const uint32_t word = load_u32(b + 66 + 4 * g);
      scale[g] = d * (0.5f + float(word >> 28)) * 0.5f;
      for (int i = 0; i < 4; ++i) {
        const uint64_t values = book_iq3_xxs[entries[2 * i]] | uint64_t(book_iq3_xxs[entries[2 * i + 1]]) << 32;
        store_u64(codes + 32 * g + 8 * i, signed_codes(values, even_signs(word >> (7 * i) & 127), zero));
      }
    }
  }
};

// f16 d, 64 low bytes of entry numbers, 8 bytes of ninth bits, 32 sign bytes, 4-bit scales of 32 weights.
struct IQ3_S {
  static constexpr int type = 21, block = 256, bytes = 110, group = 32, zero = 15, max_code = 30;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = load_f16(b);
    const uint8_t *low = b + 2, *high = b + 66, *signs = b + 74, *scales = b + 106;
    for (int g = 0; g < 8; ++g) scale[g] = d * float(1 + 2 * (scales[g / 2] >> (4 * (g & 1)) & 15));
    for (int i = 0; i < 32; ++i) {
      const int bits = high[i / 4] >> (2 * (i & 3));
      const uint64_t first = book_iq3_s[low[2 * i] | (bits & 1) << 8];
      const uint64_t second = book_iq3_s[low[2 * i + 1] | (bits & 2) << 7];
      store_u64(codes + 8 * i, signed_codes(first | second << 32, signs[i], zero));
    }
  }
};

// Eight IQ1 codes: entry values -8, 0, 8 eighths, and one eighth more or less.
inline uint64_t shifted_codes(int entry, bool down) { return book_iq1[entry] + (down ? 0 : 2) * every_byte; }

// f16 d, 32 low bytes of entry numbers, per 32 weights a word of four 3-bit high parts, the 3-bit scale and the shift's sign.
struct IQ1_S {
  static constexpr int type = 19, block = 256, bytes = 50, group = 32, zero = 9, max_code = 18;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = load_f16(b);
    for (int g = 0; g < 8; ++g) {
      const uint16_t word = load_u16(b + 34 + 2 * g);
      scale[g] = d * float(2 * (word >> 12 & 7) + 1) * 0.125f;
      for (int i = 0; i < 4; ++i)
        store_u64(codes + 32 * g + 8 * i,
                  shifted_codes(b[2 + 4 * g + i] | (word >> (3 * i) & 7) << 8, word & 0x8000));
    }
  }
};

// 32 low bytes of entry numbers, 16 bytes of nibbles (3 high bits, the shift's sign), then four words of four 3-bit scales
// each; their top nibbles make up the f16 d.
struct IQ1_M {
  static constexpr int type = 29, block = 256, bytes = 56, group = 16, zero = 9, max_code = 18;
  static constexpr bool has_min = false;
  static uint16_t half(const uint8_t* b) {
    uint16_t half = 0;
    for (int i = 0; i < 4; ++i) half |= uint16_t(load_u16(b + 48 + 2 * i) >> 12 << (4 * i));
    return half;
  }
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const uint8_t *low = b, *high = b + 32, *scales = b + 48;
    const float d = f16_to_f32(half(b));
    for (int g = 0; g < 16; ++g)
      scale[g] = d * float(2 * (load_u16(scales + g / 4 * 2) >> (3 * (g & 3)) & 7) + 1) * 0.125f;
    for (int i = 0; i < 32; ++i) {
      const int nibble = high[i / 2] >> (4 * (i & 1)) & 15;
      store_u64(codes + 8 * i, shifted_codes(low[i] | (nibble & 7) << 8, nibble & 8));
    }
  }
};

} // namespace
