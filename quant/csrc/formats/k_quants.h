// The k-quants: super-blocks of 256 weights with small integer scales. Source of the layouts: ggml-common.h.
#pragma once
#include "bits.h"

namespace {

// 16 bytes of scale and min nibbles, 64 bytes of bit pairs (of each 32 bytes pair k holds weights 32k on), f16 d, f16 dmin.
struct Q2_K {
  static constexpr int type = 10, block = 256, bytes = 84, group = 16, zero = 0, max_code = 3;
  static constexpr bool has_min = true;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float* __restrict min) {
    const float d = load_f16(b + 80), dmin = load_f16(b + 82);
    for (int g = 0; g < 16; ++g) {
      scale[g] = d * float(b[g] & 15);
      min[g] = -(dmin * float(b[g] >> 4));
    }
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 4; ++k)
        for (int i = 0; i < 32; ++i) codes[128 * j + 32 * k + i] = b[16 + 32 * j + i] >> (2 * k) & 3;
  }
};

// 32 bytes of third bits (bit g for weights 32g on), bit pairs as in Q2_K, sixteen 6-bit scales (low nibbles in 8 bytes, high
// pairs in 4), f16 d.
struct Q3_K {
  static constexpr int type = 11, block = 256, bytes = 110, group = 16, zero = 4, max_code = 7;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const uint8_t *high = b, *low = b + 32, *scales = b + 96;
    const float d = load_f16(b + 108);
    for (int g = 0; g < 16; ++g) {
      const int nibble = scales[g & 7] >> (g < 8 ? 0 : 4) & 15, pair = scales[8 + (g & 3)] >> (g / 4 * 2) & 3;
      scale[g] = d * float((nibble | pair << 4) - 32);
    }
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 4; ++k)
        for (int i = 0; i < 32; ++i)
          codes[128 * j + 32 * k + i] =
              uint8_t((low[32 * j + i] >> (2 * k) & 3) | (high[i] >> (4 * j + k) & 1) << 2);
  }
};

// Eight 6-bit scales and eight 6-bit mins in 12 bytes, as Q4_K and Q5_K keep them.
inline void unpack_scales_mins(const uint8_t* s, float d, float dmin, float* __restrict scale, float* __restrict min) {
  const uint32_t a = load_u32(s), b = load_u32(s + 4), c = load_u32(s + 8);
  const uint64_t scales = (a & 0x3f3f3f3f) | uint64_t((c & 0x0f0f0f0f) | (a >> 2 & 0x30303030)) << 32;
  const uint64_t mins = (b & 0x3f3f3f3f) | uint64_t((c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)) << 32;
  store_floats(scale, widen<uint8_t>(scales) * d);
  store_floats(min, widen<uint8_t>(mins) * -dmin);
}

// f16 d, f16 dmin, 12 bytes of scales and mins, 128 bytes: of each 32 bytes the low nibbles come first.
struct Q4_K : InRegisters<Q4_K> {
  static constexpr int type = 12, block = 256, bytes = 144, group = 32, zero = 0, max_code = 15;
  static constexpr bool has_min = true;
  static void scales(const uint8_t* b, float* scale, float* min) {
    unpack_scales_mins(b + 4, load_f16(b), load_f16(b + 2), scale, min);
  }
  template <class V> static V codes(const uint8_t* b, int group) { return V::nibbles_of_pairs(b + 16, group); }
};

// f16 d, f16 dmin, scales and mins as Q4_K, 32 bytes of fifth bits (bit g for group g), 128 bytes of nibbles.
struct Q5_K : InRegisters<Q5_K> {
  static constexpr int type = 13, block = 256, bytes = 176, group = 32, zero = 0, max_code = 31;
  static constexpr bool has_min = true;
  static void scales(const uint8_t* b, float* scale, float* min) {
    unpack_scales_mins(b + 4, load_f16(b), load_f16(b + 2), scale, min);
  }
  template <class V> static V codes(const uint8_t* b, int group) {
    const V nibbles = V::nibbles_of_pairs(b + 48, group);
    const auto fifth = [&](const uint8_t* bits) { return (V::shifted(bits, group, 1) & every_byte) << 4; };
    return {nibbles.low | fifth(b + 16), nibbles.high | fifth(b + 32)};
  }
};

// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 scales, f16 d.
struct Q6_K : InRegisters<Q6_K> {
  static constexpr int type = 14, block = 256, bytes = 210, group = 16, zero = 32, max_code = 63;
  static constexpr bool has_min = false;
  static void scales(const uint8_t* b, float* __restrict scale, float*) {
    const float d = load_f16(b + 208);
    store_floats(scale, widen<int8_t>(load_u64(b + 192)) * d);
    store_floats(scale + 8, widen<int8_t>(load_u64(b + 200)) * d);
  }
  template <class V> static V codes(const uint8_t* b, int group) {
    const int half = group / 4, quarter = group % 4; // of each four groups the last two are high nibbles
    const V nibbles = V::nibbles_of_fours(b + 64 * half, quarter);
    const auto high = [&](const uint8_t* pairs) { return (V::shifted(pairs + 32 * half, 2 * quarter, 2) & 3 * every_byte) << 4; };
    return {nibbles.low | high(b + 128), nibbles.high | high(b + 144)};
  }
};

// f32 d, 256 int8, 16 sums. ggml's own activations: not met in files, decoded all the same.
struct Q8_K {
  static constexpr int type = 15, block = 256, bytes = 292, group = 32, zero = 128, max_code = 255;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = bits_f32(load_u32(b));
    for (int g = 0; g < 8; ++g) scale[g] = d;
    for (int i = 0; i < 256; ++i) codes[i] = b[4 + i] ^ 0x80;
  }
};

} // namespace
