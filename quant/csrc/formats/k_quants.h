// The k-quants: super-blocks of 256 weights with small integer scales. Source of the layouts: ggml-common.h.
#pragma once
#include "bits.h"

namespace {

// 16 bytes of scale and min nibbles, 64 bytes of bit pairs (in each 32 bytes, pair k holds the weights from 32k on), f16 d,
// f16 dmin.
struct Q2_K : InRegisters<Q2_K> {
  static constexpr int type = 10, block = 256, bytes = 84, group = 16, zero = 0, max_code = 3;
  static constexpr bool has_min = true;
  static void scales(const uint8_t* b, float* __restrict scale, float* __restrict min) {
    const float d = load_f16(b + 80), dmin = load_f16(b + 82);
    for (int g = 0; g < 16; g += 8) {
      const uint64_t both = load_u64(b + g);
      store_floats(scale + g, widen<uint8_t>(both & 0x0f * every_byte) * d);
      store_floats(min + g, widen<uint8_t>(both >> 4 & 0x0f * every_byte) * -dmin);
    }
  }
  template <class V> static void scales_of_rows(RowPlace b, float* scale, float* min) {
    const auto words = V::four_words(b);
    const auto d = V::halves(b + 80), dmin = V::halves(b + 82);
    for (int g = 0; g < 16; ++g, scale += V::lanes, min += V::lanes) {
      V::store(scale, V::to_float(words.word[g / 4] >> 8 * (g % 4) & 15) * d);
      V::store(min, V::to_float(words.word[g / 4] >> (8 * (g % 4) + 4) & 15) * -dmin);
    }
  }
  template <class V, class Place> static V codes(Place b, int group) {
    const auto pairs = [&](Place from) { return V::moved(from + 32 * (group / 4), 2 * (group % 4), 2, 0) & 3 * every_byte; };
    return {pairs(b + 16), pairs(b + 32)};
  }
};

// 32 bytes of third bits (bit g for the weights from 32g on), bit pairs as in Q2_K, sixteen 6-bit scales (low nibbles in 8
// bytes, high pairs in 4), f16 d.
struct Q3_K : InRegisters<Q3_K> {
  static constexpr int type = 11, block = 256, bytes = 110, group = 16, zero = 4, max_code = 7;
  static constexpr bool has_min = false;
  static void scales(const uint8_t* b, float* __restrict scale, float*) {
    const float d = load_f16(b + 108);
    const uint64_t nibbles = load_u64(b + 96), pairs = load_u32(b + 104);
    for (int half = 0; half < 2; ++half) {
      const uint64_t low = nibbles >> 4 * half & 0x0f * every_byte;
      const uint64_t high = (pairs >> 4 * half & 0x03030303) | (pairs >> (4 * half + 2) & 0x03030303) << 32;
      store_floats(scale + 8 * half, (widen<uint8_t>(low | high << 4) - 32.0f) * d);
    }
  }
  template <class V> static void scales_of_rows(RowPlace b, float* scale, float*) {
    const auto words = V::four_words(b + 94); // up to the end of the block
    const auto byte = [&](int i) { return words.word[(i + 2) / 4] >> 8 * ((i + 2) % 4); };
    const auto d = V::halves(b + 108);
    for (int g = 0; g < 16; ++g, scale += V::lanes) {
      const auto factor = (byte(g % 8) >> g / 8 * 4 & 15) | (byte(8 + g % 4) >> g / 4 * 2 & 3) << 4;
      V::store(scale, V::to_float(factor - 32) * d);
    }
  }
  template <class V, class Place> static V codes(Place b, int group) {
    const auto code = [&](Place pairs, Place thirds) {
      return (V::moved(pairs + 32 * (group / 4), 2 * (group % 4), 2, 0) & 3 * every_byte) | (V::moved(thirds, group, 1, 2) & 4 * every_byte);
    };
    return {code(b + 32, b), code(b + 48, b + 16)};
  }
};

// Expands the eight 6-bit scales and eight 6-bit mins of Q4_K and Q5_K, in three words, to one per byte.
template <class Word> struct ScalesMins {
  Word scales[2], mins[2];
  ScalesMins(Word a, Word b, Word c)
      : scales{a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030)},
        mins{b & 0x3f3f3f3f, (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)} {}
};
// They follow f16 d and f16 dmin.
inline void unpack_scales_mins(const uint8_t* b, float* __restrict scale, float* __restrict min) {
  const ScalesMins<uint32_t> all(load_u32(b + 4), load_u32(b + 8), load_u32(b + 12));
  store_floats(scale, widen<uint8_t>(all.scales[0] | uint64_t(all.scales[1]) << 32) * load_f16(b));
  store_floats(min, widen<uint8_t>(all.mins[0] | uint64_t(all.mins[1]) << 32) * -load_f16(b + 2));
}
template <class V> inline void unpack_scales_mins_of_rows(RowPlace b, float* scale, float* min) {
  const auto words = V::four_words(b);
  const auto d = V::halves(b), dmin = V::halves(b + 2);
  const ScalesMins<typename V::Word> all(words.word[1], words.word[2], words.word[3]);
  for (int g = 0; g < 8; ++g, scale += V::lanes, min += V::lanes) {
    V::store(scale, V::to_float(all.scales[g / 4] >> 8 * (g % 4) & 255) * d);
    V::store(min, V::to_float(all.mins[g / 4] >> 8 * (g % 4) & 255) * -dmin);
  }
}

// f16 d, f16 dmin, 12 bytes of scales and mins, 128 bytes of nibbles: for each 32 bytes, the low nibbles come first.
struct Q4_K : InRegisters<Q4_K> {
  static constexpr int type = 12, block = 256, bytes = 144, group = 32, zero = 0, max_code = 15;
  static constexpr bool has_min = true;
  static void scales(const uint8_t* b, float* scale, float* min) { unpack_scales_mins(b, scale, min); }
  template <class V> static void scales_of_rows(RowPlace b, float* scale, float* min) {
    unpack_scales_mins_of_rows<V>(b, scale, min);
  }
  template <class V, class Place> static V codes(Place b, int group) { return V::nibbles_of_pairs(b + 16, group); }
};

// f16 d, f16 dmin, scales and mins as Q4_K, 32 bytes of fifth bits (bit g for group g), 128 bytes of nibbles.
struct Q5_K : InRegisters<Q5_K> {
  static constexpr int type = 13, block = 256, bytes = 176, group = 32, zero = 0, max_code = 31;
  static constexpr bool has_min = true;
  static void scales(const uint8_t* b, float* scale, float* min) { unpack_scales_mins(b, scale, min); }
  template <class V> static void scales_of_rows(RowPlace b, float* scale, float* min) {
    unpack_scales_mins_of_rows<V>(b, scale, min);
  }
  template <class V, class Place> static V codes(Place b, int group) {
    const V nibbles = V::nibbles_of_pairs(b + 48, group);
    const auto fifth = [&](Place bits) { return V::moved(bits, group, 1, 4) & 16 * every_byte; };
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
  template <class V> static void scales_of_rows(RowPlace b, float* scale, float*) {
    const auto words = V::four_words(b + 192);
    const auto d = V::halves(b + 208);
    for (int g = 0; g < 16; ++g, scale += V::lanes)
      V::store(scale, V::to_float(words.word[g / 4] << (24 - 8 * (g % 4)) >> 24) * d);
  }
  template <class V, class Place> static V codes(Place b, int group) {
    const int half = group / 4, quarter = group % 4; // of each four groups the last two are high nibbles
    const V nibbles = V::nibbles_of_fours(b + 64 * half, quarter);
    const auto high = [&](Place pairs) { return V::moved(pairs + 32 * half, 2 * quarter, 2, 4) & 0x30 * every_byte; };
    return {nibbles.low | high(b + 128), nibbles.high | high(b + 144)};
  }
};

// f32 d, 256 int8, 16 sums. This is ggml's own format for activations; files do not contain it, but it is decoded too.
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
