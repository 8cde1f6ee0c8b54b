// The formats with one scale for 32 weights. Source of the layouts: ggml-common.h.
#pragma once
#include "bits.h"

namespace {

// f16 d; 16 bytes: low nibbles are weights 0-15, high nibbles 16-31.
struct Q4_0 : InRegisters<Q4_0> {
  static constexpr int type = 2, block = 32, bytes = 18, group = 32, zero = 8, max_code = 15;
  static constexpr bool has_min = false;
  static void scales(const uint8_t* b, float* scale, float*) { scale[0] = load_f16(b); }
  template <class V, class Place> static V codes(Place b, int) {
    return V::template nibbles<bytes>(b + 2);
  }
};

// f16 d, f16 m; nibbles as in Q4_0.
struct Q4_1 : InRegisters<Q4_1> {
  static constexpr int type = 3, block = 32, bytes = 20, group = 32, zero = 0, max_code = 15;
  static constexpr bool has_min = true;
  static void scales(const uint8_t* b, float* scale, float* min) {
    scale[0] = load_f16(b);
    min[0] = load_f16(b + 2);
  }
  template <class V, class Place> static V codes(Place b, int) {
    return V::template nibbles<bytes>(b + 4);
  }
};

// f16 d, u32 of fifth bits, 16 bytes of nibbles.
struct Q5_0 : InRegisters<Q5_0> {
  static constexpr int type = 6, block = 32, bytes = 22, group = 32, zero = 16, max_code = 31;
  static constexpr bool has_min = false;
  static void scales(const uint8_t* b, float* scale, float*) { scale[0] = load_f16(b); }
  template <class V, class Place> static V codes(Place b, int) {
    return V::template nibbles<bytes>(b + 6).template with_fifth_bits<bytes>(b + 2);
  }
};

// f16 d, f16 m, u32 of fifth bits, 16 bytes of nibbles.
struct Q5_1 : InRegisters<Q5_1> {
  static constexpr int type = 7, block = 32, bytes = 24, group = 32, zero = 0, max_code = 31;
  static constexpr bool has_min = true;
  static void scales(const uint8_t* b, float* scale, float* min) {
    scale[0] = load_f16(b);
    min[0] = load_f16(b + 2);
  }
  template <class V, class Place> static V codes(Place b, int) {
    return V::template nibbles<bytes>(b + 8).template with_fifth_bits<bytes>(b + 4);
  }
};

// f16 d; 32 int8.
struct Q8_0 : InRegisters<Q8_0> {
  static constexpr int type = 8, block = 32, bytes = 34, group = 32, zero = 128, max_code = 255;
  static constexpr bool has_min = false;
  static void scales(const uint8_t* b, float* scale, float*) { scale[0] = load_f16(b); }
  template <class V, class Place> static V codes(Place b, int) {
    return {V::template gather<bytes>(b + 2) ^ 0x80 * every_byte, V::template gather<bytes>(b + 18) ^ 0x80 * every_byte};
  }
};

// f16 d, f16 sum, 32 int8. This is ggml's own format for activations; files do not contain it, but it is decoded too.
struct Q8_1 {
  static constexpr int type = 9, block = 32, bytes = 36, group = 32, zero = 128, max_code = 255;
  static constexpr bool has_min = false;
  static void unpack(const uint8_t* b, uint8_t* __restrict codes, float* __restrict scale, float*) {
    scale[0] = load_f16(b);
    for (int i = 0; i < 32; ++i) codes[i] = b[4 + i] ^ 0x80;
  }
};

} // namespace
