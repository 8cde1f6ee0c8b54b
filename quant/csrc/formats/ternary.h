// Formats with one or two bits per weight and one scale per block. Source of the layouts: ggml-common.h.
#pragma once
#include "bits.h"

namespace {

// 48 bytes of five base-3 digits each and 4 bytes of four, as fractions of 256 (highest digit first); f16 d.
struct TQ1_0 {
  static constexpr int type = 34, block = 256, bytes = 54, group = 32, zero = 1, max_code = 2;
  static constexpr bool has_min = false;
  static void digits(const uint8_t* bytes_, int n, int count, uint8_t* __restrict codes) {
    uint8_t power = 1;
    for (int k = 0; k < count; ++k, power = uint8_t(power * 3))
      for (int i = 0; i < n; ++i) codes[n * k + i] = uint8_t(uint8_t(bytes_[i] * power) * 3 >> 8);
  }
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    digits(b, 32, 5, codes);
    digits(b + 32, 16, 5, codes + 160);
    digits(b + 48, 4, 4, codes + 240);
    const float d = load_f16(b + 52);
    for (int g = 0; g < 8; ++g) scale[g] = d;
  }
};

// In each 32 bytes, bit pair k holds weights 32k to 32k + 31; f16 d.
struct TQ2_0 {
  static constexpr int type = 35, block = 256, bytes = 66, group = 32, zero = 1, max_code = 3;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    for (int j = 0; j < 2; ++j)
      for (int k = 0; k < 4; ++k)
        for (int i = 0; i < 32; ++i) codes[128 * j + 32 * k + i] = b[32 * j + i] >> (2 * k) & 3;
    const float d = load_f16(b + 64);
    for (int g = 0; g < 8; ++g) scale[g] = d;
  }
};

// f16 d; weight i is d if bit i is set, else -d.
struct Q1_0 {
  static constexpr int type = 41, block = 128, bytes = 18, group = 32, zero = 1, max_code = 2;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    const float d = load_f16(b);
    for (int g = 0; g < 4; ++g) scale[g] = d;
    for (int i = 0; i < 16; ++i) store_u64(codes + 8 * i, spread_bits(b[2 + i]) << 1);
  }
};

// f16 d; four weights per byte, the first in the low bits.
struct Q2_0 {
  static constexpr int type = 42, block = 64, bytes = 18, group = 32, zero = 1, max_code = 3;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    scale[0] = scale[1] = load_f16(b);
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 4; ++k) codes[4 * i + k] = b[2 + i] >> (2 * k) & 3;
  }
};

} // namespace
