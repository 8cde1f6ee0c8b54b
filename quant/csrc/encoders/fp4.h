// Encoders of the formats of four-bit floats. Importance changes nothing: the largest weight decides the scale.
// Source: quantize_row_mxfp4_ref and quantize_row_nvfp4_ref of ggml-quants.c.
#pragma once
#include "../formats/fp4.h"
#include "legacy.h"

namespace {

// The number of the E2M1 value (doubled, as is `scale` halved) that is nearest; of equally near ones the lowest.
inline Ints nearest_e2m1(Floats x, Floats scale) {
  constexpr float doubled[] = {0, 1, 2, 3, 4, 6, 8, 12};
  const Floats size = magnitude(x);
  Floats least = size;
  Ints code{};
  for (int k = 1; k < 8; ++k) {
    const Floats error = magnitude(doubled[k] * scale - size);
    code = error < least ? Ints{} + k : code;
    least = error < least ? error : least;
  }
  return code | (((x < 0) & (code != 0)) & 8);
}

// One exponent: that of the largest weight, less two. Below 2^-125 it wraps around (to a scale that makes zeros of all
// weights): so does ggml's.
template <> struct Encoder<MXFP4> {
  static constexpr auto halves = no_halves;
  static constexpr auto importance = Importance::ignored;
  static void encode(const Floats* x, const Floats*, const Blocks& out) {
    const Floats largest = largest_size(x, 32);
    Ints exponent, codes[32];
    for (int l = 0; l < lanes; ++l) // rounding just below a power of two is log2f's
      exponent[l] = largest[l] > 0 ? int(__builtin_floorf(__builtin_log2f(largest[l]))) + 125 & 255 : 0;
    const Floats scale = floats_of(exponent < 2 ? (Ints{} + 0x00200000) << (exponent & 1) : (exponent - 1) << 23);
    for (int i = 0; i < 32; ++i) codes[i] = nearest_e2m1(x[i], scale);
    out.store_byte(0, exponent);
    store_nibbles(out, 1, codes);
  }
};

// The nearest unsigned E4M3 number, never above 448; ties go up.
inline Ints to_e4m3(Floats v) {
  const Ints subnormal = clamp(to_ints(v * 512.0f + 0.5f), 0, 7);
  const Ints normal = (bits_of(v) >> 20) + (bits_of(v) >> 19 & 1) - (120 << 3);
  return bits_of(v) < 121 << 23 ? subnormal : normal > 119 ? Ints{} + 126 : normal;
}

// A scale for each 16 weights, which makes the largest of them 6. Weights above 2688 are cut, as ggml does.
template <> struct Encoder<NVFP4> {
  static constexpr auto halves = no_halves;
  static constexpr auto importance = Importance::ignored;
  static void encode(const Floats* x, const Floats*, const Blocks& out) {
    Ints scales[4], bytes[32];
    for (int g = 0; g < 4; ++g) {
      scales[g] = to_e4m3(largest_size(x + 16 * g, 16) / 6.0f);
      Floats scale;
      for (int l = 0; l < lanes; ++l) scale[l] = NVFP4::e4m3_half(uint8_t(scales[g][l]));
      for (int i = 0; i < 8; ++i)
        bytes[8 * g + i] = nearest_e2m1(x[16 * g + i], scale) | nearest_e2m1(x[16 * g + 8 + i], scale) << 4;
    }
    out.store_bytes(0, scales, 4);
    out.store_bytes(4, bytes, 32);
  }
};

} // namespace
