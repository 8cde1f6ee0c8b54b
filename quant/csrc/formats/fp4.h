// Four-bit formats whose codes index a table of 16 values. Source of layouts and tables: ggml-common.h.
#pragma once
#include "bits.h"

namespace {

// The values of IQ4_NL and IQ4_XS (-127 ... 113), 127 added.
constexpr uint8_t iq4_codes[16] = {0, 23, 44, 62, 78, 92, 105, 117, 128, 140, 152, 165, 180, 196, 216, 240};
// E2M1 doubled (0 1 2 3 4 6 8 12 and their negatives), 12 added.
constexpr uint8_t e2m1_codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// The codes for nibbles.
template <class V> inline V look_up(const uint8_t (&table)[16], V nibbles) {
  return {look_up_bytes(table, nibbles.low), look_up_bytes(table, nibbles.high)};
}

// f16 d; nibbles as in Q4_0.
struct IQ4_NL : InRegisters<IQ4_NL> {
  static constexpr int type = 20, block = 32, bytes = 18, group = 32, zero = 127, max_code = 240;
  static constexpr bool has_min = false;
  static void scales(const uint8_t* b, float* scale, float*) { scale[0] = load_f16(b); }
  template <class V, class Place> static V codes(Place b, int) {
    return look_up(iq4_codes, V::template nibbles<bytes>(b + 2));
  }
};

// f16 d, u16 of high scale bits, 4 bytes of low scale nibbles, 128 bytes: nibbles of 32 weights as in Q4_0.
struct IQ4_XS : InRegisters<IQ4_XS> {
  static constexpr int type = 23, block = 256, bytes = 136, group = 32, zero = 127, max_code = 240;
  static constexpr bool has_min = false;
  static void scales(const uint8_t* b, float* __restrict scale, float*) {
    uint64_t low = load_u32(b + 4), high = load_u16(b + 2); // nibbles and pairs, each expanded to a byte
    low = (low | low << 16) & 0x0000ffff0000ffff;
    low = (low | low << 8) & 0x00ff00ff00ff00ff;
    low = (low | low << 4) & 0x0f * every_byte;
    high = (high | high << 24) & 0x000000ff000000ff;
    high = (high | high << 12) & 0x000f000f000f000f;
    high = (high | high << 6) & 3 * every_byte;
    store_floats(scale, (widen<uint8_t>(low | high << 4) - 32.0f) * load_f16(b));
  }
  template <class V> static void scales_of_rows(RowPlace b, float* scale, float*) {
    const auto words = V::four_words(b);
    const auto d = V::halves(b);
    for (int g = 0; g < 8; ++g, scale += V::lanes) {
      const auto factor = (words.word[1] >> 4 * g & 15) | (words.word[0] >> (16 + 2 * g) & 3) << 4;
      V::store(scale, V::to_float(factor - 32) * d);
    }
  }
  template <class V, class Place> static V codes(Place b, int group) {
    return look_up(iq4_codes, V::template nibbles<16>(b + 8 + 16 * group));
  }
};

// One E8M0 exponent (bias 127; halved, because the values are doubled); nibbles as in Q4_0.
struct MXFP4 {
  static constexpr int type = 39, block = 32, bytes = 17, group = 32, zero = 12, max_code = 24;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    scale[0] = bits_f32(b[0] < 2 ? 0x00200000u << b[0] : uint32_t(b[0] - 1) << 23);
    look_up(e2m1_codes, Rows<1>::nibbles<bytes>(b + 1)).store(codes);
  }
};

// Four unsigned E4M3 scales (bias 7; halved; 0x7f is zero), then per 16 weights 8 bytes of nibbles.
struct NVFP4 {
  static constexpr int type = 40, block = 64, bytes = 36, group = 16, zero = 12, max_code = 24;
  static constexpr bool has_min = false;
  static float e4m3_half(uint8_t bits) {
    const uint32_t exponent = bits >> 3 & 15, mantissa = bits & 7;
    if (bits == 0x7f) return 0.0f;
    if (exponent == 0) return float(mantissa) * 0.0009765625f; // 2^-10
    return bits_f32((exponent + 119) << 23 | mantissa << 20);
  }
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    for (int g = 0; g < 4; ++g) {
      scale[g] = e4m3_half(b[g]);
      const uint64_t both = load_u64(b + 4 + 8 * g);
      const Words2 found = look_up_bytes(e2m1_codes, Words2{both & 0x0f * every_byte, both >> 4 & 0x0f * every_byte});
      std::memcpy(codes + 16 * g, &found, 16);
    }
  }
};

} // namespace
