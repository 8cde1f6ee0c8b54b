// The formats with one scale for 32 weights. Source of the layouts: ggml-common.h.
#pragma once
#include "../half.h"

namespace {

// f16 d; 16 bytes: low nibbles are weights 0-15, high nibbles 16-31.
struct Q4_0 {
  static constexpr int type = 2, block = 32, bytes = 18, group = 32, zero = 8, max_code = 15;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* codes, float* scale, float*) {
    scale[0] = load_f16(b);
    for (int i = 0; i < 16; ++i) {
      codes[i] = b[2 + i] & 15;
      codes[i + 16] = b[2 + i] >> 4;
    }
  }
};

// f16 d, f16 m; nibbles as in Q4_0.
struct Q4_1 {
  static constexpr int type = 3, block = 32, bytes = 20, group = 32, zero = 0, max_code = 15;
  static constexpr bool has_min = true;
  static void unpack(const uint8_t* b, uint8_t* codes, float* scale, float* min) {
    scale[0] = load_f16(b);
    min[0] = load_f16(b + 2);
    for (int i = 0; i < 16; ++i) {
      codes[i] = b[4 + i] & 15;
      codes[i + 16] = b[4 + i] >> 4;
    }
  }
};

// Low four bits as nibbles; bit i of `high` is the fifth bit of weight i.
inline void unpack_5bit(const uint8_t* nibbles, uint32_t high, uint8_t* codes) {
  uint8_t bytes[4];
  std::memcpy(bytes, &high, 4);
  static constexpr uint8_t bit[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  for (int i = 0; i < 16; ++i) {
    codes[i] = uint8_t((nibbles[i] & 15) | (bytes[i / 8] & bit[i & 7] ? 16 : 0));
    codes[i + 16] = uint8_t(nibbles[i] >> 4 | (bytes[2 + i / 8] & bit[i & 7] ? 16 : 0));
  }
}

// f16 d, u32 of fifth bits, 16 bytes of nibbles.
struct Q5_0 {
  static constexpr int type = 6, block = 32, bytes = 22, group = 32, zero = 16, max_code = 31;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* codes, float* scale, float*) {
    scale[0] = load_f16(b);
    unpack_5bit(b + 6, load_u32(b + 2), codes);
  }
};

// f16 d, f16 m, u32 of fifth bits, 16 bytes of nibbles.
struct Q5_1 {
  static constexpr int type = 7, block = 32, bytes = 24, group = 32, zero = 0, max_code = 31;
  static constexpr bool has_min = true;
  static void unpack(const uint8_t* b, uint8_t* codes, float* scale, float* min) {
    scale[0] = load_f16(b);
    min[0] = load_f16(b + 2);
    unpack_5bit(b + 8, load_u32(b + 4), codes);
  }
};

// f16 d; 32 int8.
struct Q8_0 {
  static constexpr int type = 8, block = 32, bytes = 34, group = 32, zero = 128, max_code = 255;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* codes, float* scale, float*) {
    scale[0] = load_f16(b);
    for (int i = 0; i < 32; ++i) codes[i] = b[2 + i] ^ 0x80;
  }
};

} // namespace
